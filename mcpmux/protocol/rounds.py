"""Requests in several rounds (2026-07-28): results that ask for something, and requests made again with the answers.

Owns the form of both, and what of a request stays the same from round to round. Not: who asks whom, and what is sealed.
Members are read strictly, each name once; what a person or a model answered is looked at only as far as it says whether
it answers the question.
Source: MCP 2026-07-28 basic/patterns/mrtr.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final, Literal

import msgspec
from msgspec import Raw, Struct

from mcpmux.errors import InvalidParams, InvalidRequest, MalformedMessage
from mcpmux.protocol import envelope
from mcpmux.protocol.events import Ask
from mcpmux.protocol.methods import ELICITATION, ROOTS, SAMPLING

METHODS: Final = frozenset({"tools/call", "prompts/get", "resources/read"})
"""The requests that may be answered so."""

REQUESTS: Final = "inputRequests"
RESPONSES: Final = "inputResponses"
STATE: Final = "requestState"

_TYPE: Final = "resultType"
_REQUIRED: Final = "input_required"
_MARKS: Final = (_REQUIRED.encode(), b"\\u00")  # it may be spelt with escapes

# What a request carries for one round alone.
_PASSING: Final = frozenset({"_meta", RESPONSES, STATE})

_OBJECT: Final = ord("{")
_ACTIONS: Final = frozenset({"accept", "decline", "cancel"})
_ROLES: Final = frozenset({"user", "assistant"})


class Question(Struct, frozen=True):
    """One entry of `inputRequests`."""

    method: str
    params: dict[str, Raw] | None


def asked(raw: Raw) -> dict[str, Raw] | None:
    """The members of a result that asks for something, without its `resultType`; None for any other result.

    Raises: InvalidRequest, MalformedMessage (it cannot be read).
    """
    body = bytes(raw)
    if not any(mark in body for mark in _MARKS):
        return None
    found = envelope.members(body)
    return found if envelope.text(found.pop(_TYPE, None)) == _REQUIRED else None


def questions(found: Mapping[str, Raw]) -> dict[str, Question]:
    """What such a result asks.

    Raises: InvalidRequest, MalformedMessage (it cannot be read, or neither asks nor has a state).
    """
    raw = found.get(REQUESTS)
    if (raw is None or STATE in found) and envelope.text(found.get(STATE)) is None:
        raise InvalidRequest("neither inputRequests nor requestState, or one that is no text")
    if raw is None:
        return {}
    return {key: _question(one) for key, one in envelope.members(raw).items()}


def asking(asks: Mapping[str, Ask], state: str) -> Raw:
    """The result that asks these."""
    return Raw(envelope.encode({REQUESTS: requests(asks), STATE: state}))


def requests(asks: Mapping[str, Ask]) -> Raw:
    """These, by the names that the client is to answer them by."""
    return Raw(envelope.encode({key: _shown(ask) for key, ask in asks.items()}))


def visits(data: Raw | None) -> dict[str, Ask]:
    """What the data of a `URL_REQUIRED` error (2025-11-25) asks, as questions of this era; empty if it asks nothing.

    Source: MCP 2025-11-25 client/elicitation, "URL Elicitation Required Error".
    """
    try:
        wanted = [] if data is None else _REQUIRED_URLS.decode(data).elicitations[:_MOST_URLS]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    found = {}
    for number, one in enumerate(wanted, 1):
        params = {"mode": "url", "message": one.message, "url": one.url}
        encoded = {name: Raw(envelope.encode(value)) for name, value in params.items()}
        found[str(number)] = Ask(number, ELICITATION, encoded)
    return found


class _Visit(Struct):
    message: str
    url: str
    mode: Literal["url"]


class _Required(Struct):
    elicitations: list[_Visit]


_MOST_URLS: Final = 16
_REQUIRED_URLS: Final = msgspec.json.Decoder(_Required)


def responses(params: Mapping[str, Raw]) -> dict[str, Raw] | None:
    """What a client says it was answered, by key.

    Raises: InvalidParams.
    """
    raw = params.get(RESPONSES)
    if raw is None:
        return None
    try:
        found = envelope.members(raw)
    except (InvalidRequest, MalformedMessage) as exc:
        raise InvalidParams(f"{RESPONSES} must be an object with each name once") from exc
    if any(memoryview(one)[0] != _OBJECT for one in found.values()):
        raise InvalidParams(f"{RESPONSES} must hold objects alone")
    return found


def state(params: Mapping[str, Raw]) -> str | None:
    """The state that a client gives back.

    Raises: InvalidParams.
    """
    raw = params.get(STATE)
    found = envelope.text(raw)
    if raw is not None and found is None:
        raise InvalidParams(f"{STATE} must be a string")
    return found


def again(params: dict[str, Raw], answered: Mapping[str, Raw] | None, given: str | None) -> dict[str, Raw]:
    """The params of a request for a server of this era, with what it asked for and the state that it gave."""
    more: dict[str, Raw] = {}
    if answered is not None:
        more[RESPONSES] = Raw(envelope.encode(answered))
    if given is not None:
        more[STATE] = Raw(envelope.encode(given))
    return {**params, **more} if more else params


def answers(method: str, response: Raw) -> bool:
    """Whether `response` can be an answer to a question of this method."""
    try:
        found = envelope.members(response)
    except (InvalidRequest, MalformedMessage):
        return False
    if method == ELICITATION:
        return envelope.text(found.get("action")) in _ACTIONS
    if method == SAMPLING:
        named = envelope.text(found.get("model")) is not None
        return named and envelope.text(found.get("role")) in _ROLES and _begins(found.get("content"), b"{[")
    return method == ROOTS and _begins(found.get("roots"), b"[")


def declines(method: str, response: Raw) -> bool:
    """Whether a person declined to answer."""
    if method != ELICITATION:
        return False
    try:
        return envelope.text(envelope.members(response).get("action")) != "accept"
    except (InvalidRequest, MalformedMessage):
        return False


def digest(params: Mapping[str, Raw]) -> str:
    """What stays the same when a request is made again: a digest of its params as values.

    Clients write a request anew for each round, and not each of them in the same order.
    """
    lasting = {name: _canonical(raw) for name, raw in sorted(params.items()) if name not in _PASSING}
    return hashlib.sha256(envelope.encode(lasting)).hexdigest()


def _question(raw: Raw) -> Question:
    found = envelope.members(raw)
    method, params = envelope.text(found.get("method")), found.get("params")
    if method is None:
        raise InvalidRequest("an input request without a method")
    return Question(method, None if params is None else envelope.members(params))


def _shown(ask: Ask) -> dict[str, object]:
    """An ask as this era has it: a request without an id; it does not know the ids of elicitations."""
    params = {name: raw for name, raw in (ask.params or {}).items() if name != "elicitationId"}
    return {"method": ask.method, "params": params}


def _begins(raw: Raw | None, with_: bytes) -> bool:
    return raw is not None and memoryview(raw)[0] in with_


def _canonical(raw: Raw) -> object:
    try:
        return Raw(msgspec.json.encode(msgspec.json.decode(raw), order="sorted"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return hashlib.sha256(raw).hexdigest()  # too deep to be read: its bytes must be the same
