"""What a client can be asked: which revision knows it, and whether the client said that it can.

Both sides ask here. A link: what to announce to its server, and whether the server asks for what was announced. A
session: whether its client can do what a server asks. Deny by default: what is not in the table is not announced and
not passed on, a capability that is no object was not declared.

Source: `ClientCapabilities` and `ServerRequest` of the JSON Schemas 2024-11-05 to 2025-11-25; client/elicitation
("Capabilities": an empty object means forms), client/sampling (tools).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import DecodeError, Raw, Struct
from msgspec.json import Decoder

from mcpmux.errors import InvalidRequest, MalformedMessage
from mcpmux.protocol import envelope
from mcpmux.protocol.methods import ELICITATION, ROOTS, SAMPLING
from mcpmux.protocol.tasks import EXTENSIONS

Capabilities = Mapping[str, Raw]

OF_NOBODY: Final[Capabilities] = {"elicitation": Raw(b'{"form":{},"url":{}}'), "sampling": Raw(b'{"tools":{}}')}
"""What a link announces that is greeted before any caller is known; a caller who cannot do it is asked nothing."""

URL_REQUIRED: Final = -32042
"""The error of a call that can go on only when its person has been at a URL (2025-11-25 client/elicitation)."""

_FORM: Final = "form"
_URL: Final = "url"
_OLDEST: Final = "2024-11-05"
_NEWEST: Final = "2025-11-25"

# Capability -> the revision that brought it, and the same for its members. Tasks at a client are not announced.
_SINCE: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "roots": (_OLDEST, {"listChanged": _OLDEST}),
    "sampling": (_OLDEST, {"context": _NEWEST, "tools": _NEWEST}),
    "elicitation": ("2025-06-18", {_FORM: _NEWEST, _URL: _NEWEST}),
}
_NEEDS: Final[Mapping[str, str]] = {ELICITATION: "elicitation", SAMPLING: "sampling", ROOTS: "roots"}


def announced(capabilities: Capabilities, revision: str) -> dict[str, Raw]:
    """These capabilities as `revision` knows them; extensions as they are, whatever they are."""
    found: dict[str, Raw] = {}
    for name, (since, members) in _SINCE.items():
        declared = _declared(capabilities, name)
        if declared is None or revision < since:
            continue
        if name == "elicitation" and revision < _NEWEST and not _takes_forms(declared):
            continue  # this revision has forms alone
        known = {member: raw for member, raw in declared.items() if revision >= members.get(member, "~")}
        found[name] = Raw(envelope.encode(known))
    extensions = capabilities.get(EXTENSIONS)
    if extensions is not None and bytes(extensions)[:1] == b"{":
        found[EXTENSIONS] = extensions
    return found


def inability(method: str, params: Mapping[str, Raw] | None, capabilities: Capabilities, revision: str) -> str | None:
    """Why a client with these capabilities in this revision cannot be asked that; None if it can.

    The text goes to the server.
    """
    name = _NEEDS.get(method)
    if name is None:
        return f"Method not found: {method[:128]}"
    since, _ = _SINCE[name]
    if revision < since:
        return f"The client speaks protocol version {revision}, which does not have {name}"
    declared = _declared(capabilities, name)
    if declared is None:
        return f"The client does not support {name}"
    asked = params or {}
    if method == ELICITATION:
        return _unable_to_elicit(asked, declared, revision)
    if method == SAMPLING and ("tools" in asked or "toolChoice" in asked):
        return None if revision >= _NEWEST and "tools" in declared else "The client does not support tools in sampling"
    return None


def needed(method: str, params: Mapping[str, Raw] | None) -> dict[str, dict[str, object]]:
    """What a client would have to declare to be asked that."""
    asked = params or {}
    name = _NEEDS.get(method, method[:128])
    if method == ELICITATION:
        return {name: {_URL if envelope.text(asked.get("mode")) == _URL else _FORM: {}}}
    return {name: {"tools": {}} if method == SAMPLING and ("tools" in asked or "toolChoice" in asked) else {}}


def elicitation(method: str, params: Mapping[str, Raw] | None) -> str | None:
    """The id under which the end of this elicitation will be told; None for whatever has none."""
    if method != ELICITATION or params is None or envelope.text(params.get("mode")) != _URL:
        return None
    return envelope.text(params.get("elicitationId"))


def required(data: Raw | None) -> list[str]:
    """The ids of the elicitations in the data of a `URL_REQUIRED` error."""
    try:
        return [] if data is None else [each.elicitationId for each in _REQUIRED.decode(data).elicitations]
    except (DecodeError, UnicodeDecodeError, RecursionError):
        return []


class _Elicitation(Struct):
    elicitationId: str


class _Required(Struct):
    elicitations: list[_Elicitation]


_REQUIRED: Final = Decoder(_Required)


def _unable_to_elicit(asked: Mapping[str, Raw], declared: Mapping[str, Raw], revision: str) -> str | None:
    mode = envelope.text(asked.get("mode", Raw(b'"form"')))
    if mode == _FORM:
        return None if revision < _NEWEST or _takes_forms(declared) else "The client does not support form elicitation"
    if mode == _URL:
        able = revision >= _NEWEST and _URL in declared
        return None if able else "The client does not support URL elicitation"
    return "The client does not know this mode of elicitation"


def _takes_forms(declared: Mapping[str, Raw]) -> bool:
    return _FORM in declared or _URL not in declared


def _declared(capabilities: Capabilities, name: str) -> dict[str, Raw] | None:
    try:
        raw = capabilities.get(name)
        return None if raw is None else envelope.members(raw)
    except (InvalidRequest, MalformedMessage):
        return None
