"""What can still be known of a message that cannot be read: mended, or at least whose answer it was.

A call must not hang because its answer came broken. So a text whose only fault is a lone surrogate escape is mended,
and of anything else the id is looked for where serialisers put it: right at the beginning, or right at the end.
"""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

from mcpmux.errors import InvalidRequest, MalformedMessage
from mcpmux.protocol import envelope
from mcpmux.protocol.envelope import Reply

SHOWN: Final = 500  # characters of a stray message that the log may have
EDGE: Final = 512  # bytes at either end that are looked at
MENDABLE: Final = 1024 * 1024  # bytes; mending looks at every escape, and the loop has other servers to serve

# A pair of surrogates, a lone one, or any other escape (which hides the backslash of `\\ud800` from the others).
_ESCAPE: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[dD][89a-fA-F][0-9a-fA-F]{2}|\\.", re.DOTALL
)
_LONE: Final = 6  # length of the second alternative; the others have 12 and 2
_FIRST_ID: Final = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*([0-9]{1,18})\s*[,}]')
_LAST_ID: Final = re.compile(rb',\s*"id"\s*:\s*([0-9]{1,18})\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*\Z')
_ANSWER: Final = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"(?:result|error)"\s*:')
_ASKING: Final = re.compile(rb'"method"\s*:')
_NULL: Final = b"null"


class Wreck(Struct, frozen=True):
    """What is known of it: a closed word and a part for the log, whose answer it was, and what is wrong with that."""

    reason: str
    text: str
    meant: int | None = None
    problem: str = ""


def unreadable(data: bytes, stream: int | None, fault: MalformedMessage, only: int | None) -> Wreck:
    """A text that is no JSON, or not well-formed. `only`: the one call in flight, if there is just one."""
    if data.lstrip()[:1] not in (b"{", b"[") and stream is None:
        # An installer's chatter, a forgotten print.
        return Wreck("not_json", shown(data))
    ends = data[:EDGE], data[-EDGE:]
    return remains(ends, stream, ("malformed", str(fault)), only)


def invalid(data: bytes, fault: InvalidRequest) -> Wreck:
    """JSON that is no message."""
    text, meant = shown(data) or str(fault), fault.request_id
    # A program's own JSON log on stdout may have an `id` as well.
    if not isinstance(meant, int) or b'"method"' in data or not (b'"jsonrpc"' in data or not data):
        return Wreck("invalid", text)
    return Wreck("invalid", text, meant, str(fault))


def remains(ends: tuple[bytes, bytes], stream: int | None, why: tuple[str, str], only: int | None) -> Wreck:
    """A message of which only the ends can be read; `why`: the reason word, and the problem."""
    head, tail = ends
    meant = answered(head, tail)
    if meant is None and (stream is not None or is_answer(head)):
        meant = stream if stream is not None else only
    return Wreck(why[0], shown(head), meant, why[1])


def shown(data: bytes) -> str:
    """As much of it as the log may have."""
    return data[:SHOWN].decode("utf-8", "replace")


def mended(data: bytes) -> bytes | None:
    """`data` with U+FFFD in the place of lone surrogate escapes; None if it has none (or is too long to look)."""
    if len(data) > MENDABLE or (b"\\ud" not in data and b"\\uD" not in data):
        return None
    found = _ESCAPE.sub(_replaced, data)
    return None if found == data else found


def answered(head: bytes, tail: bytes) -> int | None:
    """The id of the request that an unreadable message of this beginning and end answers; None if nobody can say."""
    if (found := _FIRST_ID.match(head)) is not None and not _ASKING.match(head, found.end()):
        return int(found[1])
    if (found := _LAST_ID.search(tail)) is not None:
        return int(found[1])
    return None


def is_answer(head: bytes) -> bool:
    """Whether an unreadable message begins as an answer does that has its id last."""
    return _ANSWER.match(head) is not None


def with_null(data: bytes) -> Reply | None:
    """A reply that carries `error: null` beside its result, or `result: null` beside its error (JSON-RPC 1.0)."""
    try:
        found = envelope.members(data)
        empty = [name for name in ("error", "result") if name in found and bytes(found[name]) == _NULL]
        if len(empty) != 1 or "method" in found:
            return None
        del found[empty[0]]
        message = envelope.parse(envelope.encode(found))
    except (InvalidRequest, MalformedMessage):
        return None
    return message if isinstance(message, Reply) else None


def _replaced(escape: re.Match[bytes]) -> bytes:
    return b"\\ufffd" if len(escape[0]) == _LONE else escape[0]
