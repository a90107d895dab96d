"""Numbers: the ids of one link's requests, and what an answer is that nobody waits for.

Where a server has several links, or one after another, all of them draw from one source: no id comes twice in one run,
whatever a server makes of ids across its connections.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

from mcpmux.protocol.upstream.attribution import Callers
from mcpmux.protocol.upstream.received import Stray

FIRST: Final = 1001  # small numbers turn up in what servers write by mistake


def source(first: int = FIRST) -> Iterator[int]:
    """Numbers that no link has had yet."""
    return itertools.count(first)


class Numbers:
    """See the module."""

    __slots__ = ("_first", "_last", "_passed_over", "_source")

    def __init__(self, drawn_from: Iterator[int]) -> None:
        self._source = drawn_from
        self._first = 0
        self._last = -1
        self._passed_over: int | None = None

    def take(self) -> int:
        """The id of a new request."""
        self._last = taken = next(self._source)
        if not self._first:
            self._first = taken
        return taken

    def pass_over(self, request: int) -> None:
        """This was a greeting in another era: an answer to it may still come, and means nothing."""
        self._passed_over = request

    def unawaited(self, request: int, callers: Callers, now: float) -> Stray:
        """What an answer to `request` is, for which nobody waits (any more)."""
        if request == self._passed_over:
            self._passed_over = None
            return Stray("late", "greeting")
        if not self._first <= request <= self._last:
            return Stray("unknown_id", str(request))
        return Stray("late") if callers.laid(request, now) else Stray("duplicate", str(request))
