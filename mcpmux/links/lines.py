"""LineSplitter: bytes as they come from a pipe, cut into lines of a bounded length (pure)."""

from __future__ import annotations

from typing import Final, NamedTuple

EDGE: Final = 512  # bytes kept of either end of a line that is too long


class Oversized(NamedTuple):
    """A line over the limit, which was never held in memory; `size` in bytes."""

    head: bytes
    tail: bytes
    size: int


class LineSplitter:
    """Cuts at line feeds. At most `limit` bytes of an unfinished line are held; of a longer one only its ends are."""

    __slots__ = ("_head", "_limit", "_parts", "_size", "_tail")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self._head: bytes | None = None  # of a line that is over the limit already
        self._tail = b""

    def feed(self, data: bytes) -> list[bytes | Oversized]:
        """The lines that `data` completes, without their line feeds."""
        first, *others = data.split(b"\n")
        self._hold(first)
        if not others:
            return []
        rest = others.pop()
        lines = [self._finished(), *(others if len(data) <= self._limit else map(self._checked, others))]
        self._hold(rest)
        return lines

    def close(self) -> list[bytes | Oversized]:
        """What was written without a last line feed."""
        return [self._finished()] if self._size else []

    def _hold(self, part: bytes) -> None:
        if not part:
            return
        self._size += len(part)
        if self._head is None:
            self._parts.append(part)
            if self._size <= self._limit:
                return
            whole = b"".join(self._parts)
            self._parts.clear()
            self._head, self._tail = whole[:EDGE], whole[-EDGE:]
        else:
            self._tail = (self._tail + part[-EDGE:])[-EDGE:]

    def _finished(self) -> bytes | Oversized:
        if self._head is not None:
            line: bytes | Oversized = Oversized(self._head, self._tail, self._size)
        else:
            line = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._head, self._tail, self._size = None, b"", 0
        return line

    def _checked(self, line: bytes) -> bytes | Oversized:
        return line if len(line) <= self._limit else Oversized(line[:EDGE], line[-EDGE:], len(line))
