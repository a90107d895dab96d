"""One JSON-RPC message: bytes to `Request | Notification | Reply` and back.

Owns the envelope alone: what a method means is `methods.py`'s. Members of `params` and a `result` stay `Raw`, the
bytes they came in. Rules: a name may stand once in whatever we read (`members`), and what we send is written anew
from that, so that a message can never show us one name and the server another. Limits on size are the transport's.

Source: JSON-RPC 2.0; MCP basic (ids are strings or integers, never null).
"""

from __future__ import annotations

import re
from typing import Final, Literal, TypeVar

import msgspec
from msgspec import Raw, Struct

from mcpmux.errors import InvalidRequest, MalformedMessage

T = TypeVar("T")

MAX_ID_LENGTH: Final = 256
MAX_BATCH: Final = 64
MAX_MEMBERS: Final = 1024  # of the objects that we read; what nobody reads has as many as it likes

_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])
_ARRAY: Final = msgspec.json.Decoder(list[Raw])
_TEXT: Final = msgspec.json.Decoder(str)
_ERROR_CODE: Final = msgspec.json.Decoder(int)
_ENCODER: Final = msgspec.json.Encoder()
_INTEGER: Final = re.compile(rb"-?(?:0|[1-9][0-9]{0,17})\Z")
_BEYOND: Final = 10**18  # the first integer that `_INTEGER` does not take
_WHITESPACE: Final = b" \t\r\n"
_EMPTY_OBJECT: Final = re.compile(rb"\{[ \t\r\n]*\}")
_VERSION: Final = b'"2.0"'

# A member's name with its colon; what follows a member's value: a comma, or the end of the object.
_NAME: Final = re.compile(rb'[ \t\r\n]*"([^"\\]*(?:\\.[^"\\]*)*)"[ \t\r\n]*:[ \t\r\n]*', re.DOTALL)
_FOLLOWING: Final = re.compile(rb"[ \t\r\n]*(?:,|\}\Z)")


class Request(Struct, frozen=True, gc=False):
    """A message that wants an answer."""

    id: int | str
    method: str
    params: dict[str, Raw] | None


class Notification(Struct, frozen=True, gc=False):
    """A message that wants none."""

    method: str
    params: dict[str, Raw] | None


class Reply(Struct, frozen=True, gc=False):
    """The answer to a request of ours: `result`, or `code` and `message` (with `data`).

    `id` is None where the peer could not read ours.
    """

    id: int | str | None
    result: Raw | None = None
    code: int = 0
    message: str = ""
    data: Raw | None = None


Message = Request | Notification | Reply


def parse(data: bytes) -> Message | list[Message | InvalidRequest]:
    """Read one message, or a batch (its bad entries as `InvalidRequest` values in their places).

    Raises: MalformedMessage (not JSON, not UTF-8, too deep, a name twice), InvalidRequest (no message; empty or
    over-long batch).
    """
    check_text(data)
    usual = _usual(data)
    if usual is not None:
        return usual
    body = data.strip(_WHITESPACE)
    if body[:1] != b"[":
        return _message(members(body))
    entries = _decoded(_ARRAY, body)
    if not entries:
        raise InvalidRequest("a batch must not be empty")
    if len(entries) > MAX_BATCH:
        raise InvalidRequest(f"a batch holds at most {MAX_BATCH} messages")
    return [_entry(bytes(entry)) for entry in entries]


def members(raw: Raw | bytes) -> dict[str, Raw]:
    """The members of one JSON object, each name once.

    Raises: MalformedMessage (a name twice, broken text), InvalidRequest (not an object, over-many members).
    """
    body = bytes(raw).strip(_WHITESPACE)
    if body[:1] != b"{":
        if body:
            _decoded(msgspec.json.Decoder(Raw), body)
        raise InvalidRequest("expected a JSON object") if body else MalformedMessage("empty")
    found = _decoded(_OBJECT, body)
    if len(found) > MAX_MEMBERS:
        raise InvalidRequest(f"an object has at most {MAX_MEMBERS} members here")
    # Compact text without escapes in its names is exactly as long as what it decodes to, unless a name stood twice.
    compact = 1 + sum(len(name) + len(memoryview(value)) + 4 for name, value in found.items())
    if compact != len(body) and not _names_are_unique(body, found):
        raise MalformedMessage("a name stands twice in one object")
    return found


def with_meta(params: dict[str, Raw] | None, name: str, value: Raw) -> dict[str, Raw]:
    """Params with one member more in their `_meta`; a `_meta` that is no object gives way."""
    try:
        meta = members((params or {}).get("_meta", b"{}"))
    except (InvalidRequest, MalformedMessage):
        meta = {}
    return {**(params or {}), "_meta": Raw(encode({**meta, name: value}))}


def check_text(data: bytes) -> None:
    """Refuse what is not UTF-8: `Raw` would carry it on unread.

    Raises: MalformedMessage. Source: RFC 8259 section 8.1.
    """
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError as exc:
            raise MalformedMessage("the text is not UTF-8") from exc


def text(raw: Raw | None) -> str | None:
    """The string in `raw`, None if it is absent or not a string."""
    try:
        return None if raw is None else _TEXT.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def identifier(raw: Raw | None) -> int | str | None:
    """The request id or progress token in `raw`; None if it is none that MCP allows (null, fractions, too long)."""
    if raw is None:
        return None
    body = bytes(raw)
    if body[:1] == b'"':
        found = text(raw)
        return found if found is not None and len(found) <= MAX_ID_LENGTH else None
    return int(body) if _INTEGER.match(body) else None


def request(request_id: int | str, method: str, params: dict[str, Raw] | None) -> bytes:
    """The wire bytes of a request."""
    return b'{"jsonrpc":"2.0","id":%b,"method":"%b"%b}' % (_id(request_id), method.encode(), _params(params))


def notification(method: str, params: dict[str, Raw] | None) -> bytes:
    """The wire bytes of a notification."""
    return b'{"jsonrpc":"2.0","method":"%b"%b}' % (method.encode(), _params(params))


def result(request_id: int | str, raw: Raw | bytes) -> bytes:
    """The wire bytes of a successful answer."""
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (_id(request_id), bytes(raw))


def result_with(request_id: int | str, more: bytes, raw: Raw) -> bytes:
    """The same with members before those of `raw`, which has none of these names: `more` is JSON without braces."""
    comma = b"" if _EMPTY_OBJECT.match(raw) else b","
    head = b'{"jsonrpc":"2.0","id":%b,"result":{%b%b' % (_id(request_id), more, comma)
    return b"".join((head, memoryview(raw)[1:], b"}"))


def error(request_id: int | str | None, code: int, message: str, data: Raw | bytes | None = None) -> bytes:
    """The wire bytes of an error answer; `request_id` None where the id could not be read."""
    tail = b"" if data is None else b',"data":' + bytes(data)
    shown = b"null" if request_id is None else _id(request_id)
    return b'{"jsonrpc":"2.0","id":%b,"error":{"code":%d,"message":%b%b}}' % (shown, code, encode(message), tail)


def unaddressed(code: int, message: str, data: Raw | None = None) -> bytes:
    """The same over HTTP where the id could not be read: there it is left out, and never null."""
    return error(None, code, message, data).replace(b'"id":null,', b"", 1)


def encode(value: object) -> bytes:
    """Compact JSON of plain values, Structs and `Raw`."""
    return _ENCODER.encode(value)


def one_line(wire: bytes) -> bytes:
    """`wire` without line ends: raw members may come pretty-printed, while stdio and SSE frame by lines."""
    if b"\n" in wire or b"\r" in wire:
        return wire.replace(b"\r", b" ").replace(b"\n", b" ")
    return wire


class _Wire(Struct, gc=False):
    jsonrpc: Literal["2.0"]
    id: int | str
    method: str
    params: dict[str, Raw] | None = None


_WIRE: Final = msgspec.json.Decoder(_Wire)


def _usual(data: bytes) -> Request | None:
    """The request in `data` if it is written as nearly all are: compact, and nothing in it but what we know.

    One decoding instead of three. What is exactly as long as its members need has none twice, no other ones, no escapes
    in its names and no white space; everything else goes the long way, errors too.
    """
    try:
        wire = _WIRE.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    request_id, params = wire.id, wire.params
    if isinstance(request_id, int):
        if not -_BEYOND < request_id < _BEYOND:
            return None
        length = 35 + len(str(request_id)) + len(wire.method)
    elif len(request_id) <= MAX_ID_LENGTH:
        length = 37 + len(request_id) + len(wire.method)
    else:
        return None
    if params:
        length += 11 + 4 * len(params) + len("".join(params)) + len(b"".join(params.values()))
    elif params is not None:
        length += 12
    return Request(request_id, wire.method, params) if length == len(data) else None


def _entry(body: bytes) -> Message | InvalidRequest:
    try:
        return _message(members(body))
    except MalformedMessage as exc:
        return InvalidRequest(str(exc))
    except InvalidRequest as exc:
        return exc


def _message(found: dict[str, Raw]) -> Message:
    request_id = identifier(found.get("id"))
    version = found.get("jsonrpc")
    if version is None or bytes(version) != _VERSION:
        raise InvalidRequest('"jsonrpc" must be "2.0"', request_id)
    if "method" not in found:
        return _reply(found, request_id)
    method = text(found["method"])
    if method is None:
        raise InvalidRequest('"method" must be a string', request_id)
    params = _read_params(found.get("params"), request_id)
    if "id" not in found:
        return Notification(method, params)
    if request_id is None:
        raise InvalidRequest(f'"id" must be an integer or a string of at most {MAX_ID_LENGTH} characters')
    return Request(request_id, method, params)


def _read_params(raw: Raw | None, request_id: int | str | None) -> dict[str, Raw] | None:
    if raw is None or bytes(raw) == b"null":
        return None
    try:
        return members(raw)
    except InvalidRequest as exc:
        raise InvalidRequest(f'"params" must be an object of at most {MAX_MEMBERS} members', request_id) from exc


def _reply(found: dict[str, Raw], request_id: int | str | None) -> Reply:
    if "id" not in found or ("result" in found) == ("error" in found):
        raise InvalidRequest("neither a request, nor a notification, nor a response", request_id)
    if request_id is None and bytes(found["id"]) != b"null":
        raise InvalidRequest('"id" must be an integer or a string')
    if "result" in found:
        return Reply(request_id, result=found["result"])
    try:
        problem = members(found["error"])
        code = _ERROR_CODE.decode(problem.get("code", Raw(b"0")))
    except InvalidRequest as exc:
        raise InvalidRequest('"error" must be an object', request_id) from exc
    except msgspec.DecodeError as exc:
        raise InvalidRequest('"error.code" must be an integer', request_id) from exc
    return Reply(request_id, code=code, message=text(problem.get("message")) or "", data=problem.get("data"))


def _decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except RecursionError as exc:
        raise MalformedMessage("nested too deeply") from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise MalformedMessage("the text is not valid JSON") from exc


def _names_are_unique(body: bytes, found: dict[str, Raw]) -> bool:
    """Whether `body`, valid JSON, has no more members than were `found` in it.

    One walk over the outermost members that skips their values: of two with one name only the last was kept, so that
    the walk meets a value it does not expect, or a member too many. Costs nothing for what is inside the values.
    """
    if not found:
        return True
    position = 1
    for _ in range(len(found)):
        name = _NAME.match(body, position)
        value = None if name is None else found.get(_unescaped(name[1]))
        if name is None or value is None or not body.startswith(memoryview(value), name.end()):
            return False
        following = _FOLLOWING.match(body, name.end() + len(memoryview(value)))
        if following is None:
            return False
        position = following.end()
    return position == len(body)


def _unescaped(name: bytes) -> str:
    return _TEXT.decode(b'"%b"' % name) if b"\\" in name else name.decode()


def _id(request_id: int | str) -> bytes:
    return b"%d" % request_id if isinstance(request_id, int) else _ENCODER.encode(request_id)


def _params(params: dict[str, Raw] | None) -> bytes:
    return b"" if params is None else b',"params":' + _ENCODER.encode(params)
