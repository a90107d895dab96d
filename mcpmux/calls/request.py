"""What a request is about: the name or URI in it, the answer where that is not there, and what goes to its server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Raw

from mcpmux.calls.call import Call
from mcpmux.calls.interest import Interest
from mcpmux.catalog import rewrite
from mcpmux.catalog.view import Found
from mcpmux.credentials.scope import link_key
from mcpmux.errors import (
    AnnotationInvalid,
    InvalidParams,
    MuxError,
    PromptUnknown,
    ResourceUnknown,
    StateRefused,
    TaskUnknown,
    ToolUnknown,
)
from mcpmux.links.link import Link
from mcpmux.protocol import envelope, headers, rounds
from mcpmux.protocol.events import Opening
from mcpmux.protocol.methods import Answers, Subject
from mcpmux.protocol.revisions import MODERN
from mcpmux.protocol.tasks import PARAM, TO_BE_MADE, is_extended

# How much of a name that leads nowhere is repeated to the caller and logged.
MAX_NAMED: Final = 256

# What a task is made with whose client wants none: no call lives longer than an hour.
_A_TASK: Final = Raw(b'{"ttl":3600000}')


def subject_of(call: Call) -> tuple[Subject, str]:
    """What the request is about, and the name or URI of it as sent.

    Raises: InvalidParams.
    """
    method, params = call.admission.method, call.admission.params
    subject, member = method.subject, method.member
    if subject is Subject.REFERENCE:
        return rewrite.reference(params)
    name = envelope.text(params.get(member or ""))
    if subject is None or name is None:
        raise InvalidParams(f"{member} must be a string")
    return subject, name


def cursor_of(call: Call) -> str | None:
    """Where the page begins that is asked for; None: at the beginning.

    Raises: InvalidParams.
    """
    raw = call.admission.params.get("cursor")
    cursor = envelope.text(raw)
    if raw is not None and cursor is None and bytes(raw) != b"null":
        raise InvalidParams("cursor must be a string")
    return cursor


def unknown(call: Call) -> MuxError:
    """The one answer for absent and refused; it repeats the name as it was sent."""
    if call.admission.method.answers is Answers.TASK:
        return TaskUnknown()
    subject, name = subject_of(call)
    shown = name[:MAX_NAMED]
    if subject is Subject.TOOL:
        return ToolUnknown(shown)
    return PromptUnknown(shown) if subject is Subject.PROMPT else ResourceUnknown(shown)


def interest_after(call: Call, interest: Interest) -> None:
    """Remember what a subscription that has ended came to."""
    if call.server is None or call.admission.method.name != "resources/subscribe":
        return
    key = link_key(call.server, call.caller.principal.key, call.caller.session)
    if call.outcome == "ok":
        interest.add(call.caller.session, key, call.native)
    elif call.exchange is not None and call.outcome != "rpc_error":
        interest.given_up(key, call.native)


def opening_of(call: Call, found: Found, link: Link, interest: Interest) -> Opening:
    """What begins the call on its link; a server of the modern era is told of the client that asks.

    Raises: StateRefused (the request brings the state of a modern server, and this is none any more), InvalidParams
    (an argument cannot go in the header that its tool wants).
    """
    admission, caller = call.admission, call.caller
    params = rewrite.params(admission.method, admission.params, found.native)
    wants_progress = admission.token is not None
    awaits = found.awaited and call.errand is None
    if link.greeting is None or link.greeting.protocol_version != MODERN:
        if call.state is not None:
            raise StateRefused
        to_be_made = awaits or call.errand is not None
        if to_be_made and PARAM not in params and found.item is not None and found.item.task:
            params[PARAM] = _A_TASK
        task = TO_BE_MADE if to_be_made else ""
        return Opening(admission.method.name, params, caller.principal.key, wants_progress, task, awaits=awaits)
    said = call.said
    return Opening(
        admission.method.name,
        params if said is None else rounds.again(params, said.responses, call.state),
        caller.principal.key,
        wants_progress,
        client=caller.capabilities,
        log_level=interest.level(caller.session) if said is None else said.log_level,
        # What one process has sealed another cannot read: then the call stays open at the one that asks.
        resumes=said is not None and not link.one_of_several,
        task="" if call.errand is None else TO_BE_MADE,
        # Who speaks that era, and does not know tasks, is told so by the server itself.
        awaits=awaits and (said is None or is_extended(caller.capabilities)),
        mirrored=_mirrored(found, params) if found.server.transport == "http" else None,
    )


def _mirrored(found: Found, params: Mapping[str, Raw]) -> dict[str, str] | None:
    """The headers that a tool asks for; one that asks wrongly gets none."""
    if found.item is None:
        return None
    try:
        return headers.mirrored_headers(found.item.raw, params.get("arguments")) or None
    except AnnotationInvalid:
        return None
