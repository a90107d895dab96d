"""What a session's event streams sent lately, so that a client can go on after `Last-Event-ID`.

An event id is `<stream>-<number>`: streams are numbered per session (0 is the GET stream), events over all of them,
so that an id is unique in its session and names its stream. Bounded by events, bytes and age: what was dropped is
gone.
Source: MCP 2025-11-25 basic/transports, "Resumability and Redelivery".
"""

from __future__ import annotations

import re
from collections import deque
from typing import Final

GET_STREAM: Final = 0
MAX_EVENTS: Final = 256
MAX_BYTES: Final = 1024 * 1024
MAX_AGE: Final = 60.0

_EVENT_ID: Final = re.compile(r"([0-9]{1,12})-([0-9]{1,15})\Z", re.ASCII)


class Replay:
    """The bounded memory of one session; see the module."""

    __slots__ = ("_bytes", "_events", "_last")

    def __init__(self) -> None:
        self._events: deque[tuple[int, int, float, bytes]] = deque()
        self._bytes = 0
        self._last = 0

    def __len__(self) -> int:
        return len(self._events)

    def prime(self, stream: int) -> str:
        """An id for an event that holds nothing: the place from where the whole stream can be had again."""
        self._last += 1
        return f"{stream}-{self._last}"

    def add(self, stream: int, wire: bytes, now: float) -> str:
        """Remember one event that is about to be sent; its id."""
        self._last += 1
        self._events.append((stream, self._last, now, wire))
        self._bytes += len(wire)
        while len(self._events) > MAX_EVENTS or (self._bytes > MAX_BYTES and len(self._events) > 1):
            self._drop()
        return f"{stream}-{self._last}"

    def after(self, stream: int, number: int) -> list[tuple[str, bytes]]:
        """What the stream sent after the event of that number, as (event id, wire bytes)."""
        return [(f"{of}-{n}", wire) for of, n, _, wire in self._events if of == stream and n > number]

    def expire(self, now: float) -> None:
        """Forget what is older than a client may take to come back."""
        while self._events and now - self._events[0][2] > MAX_AGE:
            self._drop()

    def _drop(self) -> None:
        self._bytes -= len(self._events.popleft()[3])


def place(event_id: str) -> tuple[int, int] | None:
    """The stream and number that an event id of ours names; None for any other text."""
    found = _EVENT_ID.match(event_id)
    return (int(found[1]), int(found[2])) if found else None
