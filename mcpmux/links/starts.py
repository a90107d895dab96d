"""Starts: how many servers may be starting at the same time, and who is next.

A start costs processor time, and 70 at once would make each of them slow. A server that somebody is waiting for goes
first. A slow starter gives its place back after a while and goes on starting: it may be waiting for a network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

HOLD: Final = 10.0  # seconds


class Starts:
    """The places for starting servers."""

    __slots__ = ("_free", "_line")

    def __init__(self, places: int) -> None:
        self._free = places
        self._line: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    async def take(self, wanted: Callable[[], bool]) -> Place:
        """Wait for a place. `wanted` is asked, each time one gets free, whether somebody waits for this server."""
        loop = asyncio.get_running_loop()
        if self._free > 0:
            self._free -= 1
            return Place(self, loop)
        mine = (wanted, loop.create_future())
        self._line.append(mine)
        try:
            await mine[1]
        except asyncio.CancelledError:
            if mine in self._line:
                self._line.remove(mine)
            else:
                self.give_back()
            raise
        return Place(self, loop)

    def give_back(self) -> None:
        """A place is free for the next."""
        if not self._line:
            self._free += 1
            return
        chosen = next((waiting for waiting in self._line if waiting[0]()), self._line[0])
        self._line.remove(chosen)
        chosen[1].set_result(None)


class Place:
    """One place, held until `release()` or for `HOLD` seconds."""

    __slots__ = ("_starts", "_timer")

    def __init__(self, starts: Starts, loop: asyncio.AbstractEventLoop) -> None:
        self._starts: Starts | None = starts
        self._timer = loop.call_later(HOLD, self.release)

    def release(self) -> None:
        """Give the place back; idempotent."""
        self._timer.cancel()
        starts, self._starts = self._starts, None
        if starts is not None:
            starts.give_back()
