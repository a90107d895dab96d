"""EventStream: `text/event-stream` as it comes over HTTP, cut into events of a bounded size (pure).

Source: WHATWG HTML, "Server-sent events", parsing and interpreting an event stream.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from mcpmux.links.lines import EDGE, LineSplitter, Oversized

LONGEST_RETRY: Final = 300.0  # seconds; a server that asks for more is asked again after this
SHORTEST_PAUSE: Final = 0.1  # seconds, even if the server says less
LONGEST_ID: Final = 1024  # characters of an event id that we send back in a header

_BOM: Final = b"\xef\xbb\xbf"
_NUMBER: Final = frozenset(b"0123456789")
_DATA: Final = b"data:"


class ServerEvent(NamedTuple):
    """One event that has data."""

    name: str
    data: bytes


class EventStream:
    """One stream, over as many connections as it takes; `limit` bounds the bytes of one event's data."""

    __slots__ = (
        "_data", "_limit", "_lines", "_name", "_new_id", "_oversized", "_size", "_started", "_torn", "last_id", "retry",
    )  # fmt: skip

    def __init__(self, limit: int) -> None:
        self.last_id: str | None = None
        self.retry: float | None = None  # seconds that the server wants us to wait before we connect again
        self._limit = limit
        self._name = ""
        self._data: list[bytes] = []
        self._size = 0
        self._oversized: Oversized | None = None
        self.reconnect()

    def reconnect(self) -> None:
        """A new connection begins: what was incomplete will be sent again, or never."""
        self._lines = LineSplitter(self._limit + len(_DATA) + 1)
        self._started = False
        self._torn = False  # the last chunk ended between \r and \n
        self._new_id = self.last_id
        self._clear()

    def pause(self, otherwise: float) -> float:
        """Seconds to wait before the next connection; `otherwise` where the server does not say."""
        return otherwise if self.retry is None else max(self.retry, SHORTEST_PAUSE)

    def feed(self, chunk: bytes) -> list[ServerEvent | Oversized]:
        """The events that `chunk` completes."""
        if not self._started:
            self._started = True
            chunk = chunk.removeprefix(_BOM)
        found: list[ServerEvent | Oversized] = []
        for line in self._lines.feed(self._with_line_feeds(chunk)):
            if not line:
                self._dispatch(found)
            elif isinstance(line, Oversized):
                self._oversized = Oversized(line.head.removeprefix(_DATA).lstrip(b" "), line.tail, line.size)
            else:
                self._take(line)
        return found

    def _with_line_feeds(self, chunk: bytes) -> bytes:
        if self._torn and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._torn = False
        if b"\r" not in chunk:
            self._torn = self._torn and not chunk
            return chunk
        self._torn = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _take(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._size += len(value) + 1
            if self._size - 1 <= self._limit:
                self._data.append(value)
            elif self._oversized is None:
                whole = b"\n".join((*self._data, value))
                self._oversized = Oversized(whole[:EDGE], whole[-EDGE:], self._size)
                self._data.clear()
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")
        elif field == b"id":
            text = value.decode("utf-8", "replace")
            if text.isprintable() and len(text) <= LONGEST_ID:
                self._new_id = text or None
        elif field == b"retry" and value and _NUMBER.issuperset(value):
            self.retry = min(int(value[:9]) / 1000, LONGEST_RETRY)

    def _dispatch(self, found: list[ServerEvent | Oversized]) -> None:
        self.last_id = self._new_id
        if self._oversized is not None:
            found.append(self._oversized)
        elif any(self._data):
            found.append(ServerEvent(self._name or "message", b"\n".join(self._data)))
        self._clear()

    def _clear(self) -> None:
        self._name = ""
        self._data = []
        self._size = 0
        self._oversized = None
