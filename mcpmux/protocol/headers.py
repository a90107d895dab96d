"""The HTTP headers of the modern era: what a request's body says again in its headers, written and checked.

One source for both sides: `check` and `check_mirrored` for what clients send us, `standard` and `mirrored_headers` for
what we send to servers. Nothing here reads a request: whoever has one gives a function from a header's name to all its
values, so that a header that stands twice is seen; two readers might take another one each.

`Mcp-Name` and `Mcp-Param-*` carry text that may not fit into a header. Then, and when a text looks like it already, it
goes as `=?base64?…?=`, the Base64 of its UTF-8. Only the one canonical spelling of a Base64 text is taken.

A tool may say in its `inputSchema`, by `x-mcp-header`, that an argument is mirrored as `Mcp-Param-{name}`. It may say
so only where a chain of `properties` leads; anywhere else, and in a few more cases, the whole tool is invalid. An
integer that some reader on the way cannot hold exactly may not stand there: a call with one is invalid.

Source: MCP 2026-07-28 basic/transports/streamable-http, "Request Metadata"; server/tools, "x-mcp-header".
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Final

import msgspec
from msgspec import Raw, Struct

from mcpmux.errors import AnnotationInvalid, HeaderMismatch, InvalidParams, InvalidRequest, MalformedMessage
from mcpmux.protocol import envelope

Values = Callable[[str], Sequence[str]]
"""All values of the header with this name, in any case; none if it is not there."""

SESSION: Final = "Mcp-Session-Id"
VERSION: Final = "MCP-Protocol-Version"
METHOD: Final = "Mcp-Method"
NAME: Final = "Mcp-Name"
PARAM: Final = "Mcp-Param-"

# Which member of params `Mcp-Name` repeats.
NAMED_BY: Final[Mapping[str, str]] = {
    "tools/call": "name", "prompts/get": "name", "resources/read": "uri",
    "tasks/get": "taskId", "tasks/update": "taskId", "tasks/cancel": "taskId",
}  # fmt: skip

LONGEST_SESSION_ID: Final = 1024
LARGEST: Final = 2**53 - 1  # of integers in headers, without their sign

_ANNOTATION: Final = "x-mcp-header"
_MARK: Final = b"x-mcp-header"
_PLAIN: Final = re.compile(r"[\x20-\x7e]*\Z")
_FIELD: Final = re.compile(r"[\t\x20-\x7e]*\Z")  # RFC 9110 section 5.5, without obsolete text
_SENTINEL: Final = re.compile(r"=\?base64\?(.*)\?=\Z", re.DOTALL)
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_DECIMAL: Final = re.compile(r"-?[0-9]{1,32}(?:\.[0-9]{1,32})?\Z")
_NUMBER: Final = re.compile(rb"-?[0-9][0-9.eE+-]{0,63}\Z")
_KINDS: Final = ("string", "integer", "boolean")
_SHOWN: Final = 64  # characters of a name in a message

# The keywords of JSON Schema 2020-12 that hold schemas, beside `properties`: none of them may be on the way.
_ONE: Final = frozenset({
    "items", "contains", "unevaluatedItems", "additionalItems", "additionalProperties", "unevaluatedProperties",
    "propertyNames", "not", "if", "then", "else", "contentSchema",
})  # fmt: skip
_SOME: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
_NAMED: Final = frozenset({"patternProperties", "dependentSchemas", "$defs", "definitions"})


class Mirrored(Struct, frozen=True):
    """One argument that goes in a header too: the whole name of the header, where the value is, and its JSON type."""

    header: str
    path: tuple[str, ...]
    kind: str


# Values --------------------------------------------------------------------------------------------------------


def encoded(text: str) -> str:
    """`text` as a header value that `decoded` gives back."""
    if _PLAIN.match(text) and text == text.strip() and not _SENTINEL.match(text):
        return text
    return f"=?base64?{base64.b64encode(text.encode()).decode()}?="


def decoded(value: str) -> str | None:
    """The text that a header value stands for; None if it can stand for none."""
    if not _FIELD.match(value):
        return None
    found = _SENTINEL.match(value)
    if found is None:
        return value
    try:
        body = base64.b64decode(found[1], validate=True)
        return body.decode() if base64.b64encode(body).decode() == found[1] else None
    except (binascii.Error, ValueError):
        return None


# What stands in every request ----------------------------------------------------------------------------------


def is_visible(text: str) -> bool:
    """Whether it is visible ASCII alone, as session ids and revisions must be in a header."""
    return bool(text) and all("!" <= char <= "~" for char in text)


def session_id(header: str | None) -> str | None:
    """The session id of an answer's header; visible ASCII only, as the specification says."""
    return header if header is not None and len(header) <= LONGEST_SESSION_ID and is_visible(header) else None


def session_lost(status: int, body: bytes) -> bool:
    """Whether an answer says that our session is unknown: 404 by the specification, 400 by widespread habit."""
    return status == 404 or (status == 400 and b"session" in body.lower())


def standard(method: str, params: Mapping[str, Raw] | None, revision: str) -> dict[str, str]:
    """The headers that go with a request."""
    found = {VERSION: revision, METHOD: method}
    name = envelope.text((params or {}).get(NAMED_BY.get(method, "")))
    if name is not None:
        found[NAME] = encoded(name)
    return found


def check(revision: str, method: str, params: Mapping[str, Raw], values: Values) -> None:
    """Refuse a request whose headers do not say what its body says.

    Raises: HeaderMismatch. Source: "Server Validation".
    """
    if _only(VERSION, values) != revision:
        raise HeaderMismatch(VERSION, "is not the protocol version in the body")
    if _only(METHOD, values) != method:
        raise HeaderMismatch(METHOD, "is not the method in the body")
    member = NAMED_BY.get(method)
    name = None if member is None else envelope.text(params.get(member))
    if name is not None and decoded(_only(NAME, values)) != name:
        raise HeaderMismatch(NAME, f"is not the {member} in the body")


def _only(header: str, values: Values) -> str:
    """The value of a header that must be there once."""
    found = values(header)
    if len(found) != 1:
        raise HeaderMismatch(header, "is missing" if not found else "stands twice")
    return found[0]


# What a tool asks for ------------------------------------------------------------------------------------------


def mirrored(tool: bytes) -> tuple[Mirrored, ...]:
    """The arguments of a tool that go in headers too; `tool` is its entry in a list.

    Raises: AnnotationInvalid (such a tool is to be left out of lists).
    """
    return _mirrored(tool) if _MARK in tool or b"\\u00" in tool else ()


def mirrored_headers(tool: bytes, arguments: Raw | None) -> dict[str, str]:
    """The headers that go with a call of this tool.

    Raises: AnnotationInvalid, InvalidParams (the arguments cannot be read, or an integer is too large).
    """
    found: dict[str, str] = {}
    for one in mirrored(tool):
        argument = _at(arguments, one.path)
        shown = _shown(argument, one.kind)
        if argument is not None and shown is not None:
            _check_range(one, argument)
            found[one.header] = encoded(shown)
    return found


def check_mirrored(tool: bytes, arguments: Raw | None, values: Values) -> None:
    """Refuse a call whose `Mcp-Param-*` headers do not say what its arguments say.

    A header that the tool does not ask for is nobody's business. A tool with an invalid annotation asks for none: no
    client may use it that honours them.

    Raises: HeaderMismatch, InvalidParams (the arguments cannot be read, or an integer is too large).
    Source: "Server Behavior for Custom Headers".
    """
    try:
        wanted = mirrored(tool)
    except AnnotationInvalid:
        return
    for one in wanted:
        argument = _at(arguments, one.path)
        shown = _shown(argument, one.kind)
        if argument is None or shown is None:
            if values(one.header):
                raise HeaderMismatch(one.header, "stands for an argument that is not in the body")
            continue
        said = decoded(_only(one.header, values))
        if said is None:
            raise HeaderMismatch(one.header, "cannot be decoded")
        if said != shown and not _same_number(said, argument, one.kind):
            raise HeaderMismatch(one.header, "is not the argument in the body")
        _check_range(one, argument)


@lru_cache(maxsize=512)
def _mirrored(tool: bytes) -> tuple[Mirrored, ...]:
    try:
        schema = msgspec.json.decode(tool).get("inputSchema")
    except (msgspec.DecodeError, RecursionError, AttributeError) as exc:
        raise AnnotationInvalid("the tool cannot be read") from exc
    found: dict[str, Mirrored] = {}
    for path, position in _positions(schema):
        if _ANNOTATION not in position:
            continue
        made = _read(path, position)
        if made.header.lower() in found:
            raise AnnotationInvalid(f"{made.header[:_SHOWN]} stands for two arguments")
        found[made.header.lower()] = made
    return tuple(found.values())


def _read(path: tuple[str, ...] | None, position: Mapping[str, object]) -> Mirrored:
    name, kind = position[_ANNOTATION], position.get("type")
    if not path:
        raise AnnotationInvalid("it stands where no chain of properties leads")
    where = ".".join(path)[:_SHOWN]
    if not isinstance(name, str) or not _TOKEN.match(name):
        raise AnnotationInvalid(f"that of {where} cannot be the name of a header")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise AnnotationInvalid(f"{where} is none of {', '.join(_KINDS)}")
    return Mirrored(PARAM + name, path, kind)


def _positions(root: object) -> Iterator[tuple[tuple[str, ...] | None, Mapping[str, object]]]:
    """Every schema in a schema, with the chain of properties that leads to it; None if something else is on the way."""
    waiting: list[tuple[tuple[str, ...] | None, object]] = [((), root)]
    while waiting:
        path, schema = waiting.pop()
        if not isinstance(schema, dict):
            continue
        yield path, schema
        for keyword, value in schema.items():
            if keyword == "properties" and isinstance(value, dict):
                waiting += [(None if path is None else (*path, name), below) for name, below in value.items()]
            elif keyword in _SOME and isinstance(value, list):
                waiting += [(None, below) for below in value]
            elif keyword in _ONE:
                waiting.append((None, value))
            elif keyword in _NAMED and isinstance(value, dict):
                waiting += [(None, below) for below in value.values()]


def _at(arguments: Raw | None, path: tuple[str, ...]) -> Raw | None:
    """The value there, None if there is none or it is null. Each object on the way is read strictly."""
    found = arguments
    for name in path:
        if found is None or bytes(found)[:1] != b"{":
            return None
        try:
            found = envelope.members(found).get(name)
        except (InvalidRequest, MalformedMessage) as exc:
            raise InvalidParams("arguments must be an object with each name once") from exc
    return None if found is None or bytes(found) == b"null" else found


def _shown(argument: Raw | None, kind: str) -> str | None:
    """The argument as text; None if there is none, or it is an object or an array."""
    if argument is None:
        return None
    body = bytes(argument)
    if body[:1] == b'"':
        return envelope.text(argument)
    if body[:1] in (b"{", b"["):
        return None
    if kind == "integer" and _NUMBER.match(body) and (number := Decimal(body.decode())).adjusted() < len(body):
        whole = int(number)
        return str(whole) if whole == number else body.decode()
    return body.decode()


def _check_range(one: Mirrored, argument: Raw) -> None:
    """Refuse an integer that a double does not hold exactly: what reads the header might take it for another."""
    body = bytes(argument)
    if one.kind == "integer" and _NUMBER.match(body) and abs(Decimal(body.decode())) > LARGEST:
        where = ".".join(one.path)[:_SHOWN]
        raise InvalidParams(f"{where} goes in a header, so it must be from -{LARGEST} to {LARGEST}")


def _same_number(said: str, argument: Raw, kind: str) -> bool:
    """Whether they are one number spelled in two ways, as `42` and `42.0`."""
    body = bytes(argument)
    if kind != "integer" or not _DECIMAL.match(said) or not _NUMBER.match(body):
        return False
    return Decimal(said) == Decimal(body.decode())
