"""Bulkhead: at most `concurrency` calls at a time on one server, so that one slow server cannot hold everything.

Taking a seat never waits: `free` is asked first. Whoever finds none waits in line (`seat()`), bounded by the caller's
patience, and is not overtaken: while somebody waits, `free` is False for everybody else. A seat that is given back is
kept for the first in line, so that several can be woken in one turn of the loop; one timer watches over all of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from mcpmux.errors import ServerBusy


class Bulkhead:
    """The seats of one link. `taken` counts those kept for somebody who is about to wake as well."""

    __slots__ = ("_due", "_line", "_server", "_timer", "lent", "seats", "taken")

    def __init__(self, server: str, seats: int) -> None:
        self.lent: Final = False
        self._server = server
        self._line: deque[tuple[float, asyncio.Future[None]]] = deque()  # until when, and who is to be woken
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self.seats = seats
        self.taken = 0

    @property
    def free(self) -> bool:
        """Whether a call may be opened now."""
        return self.taken < self.seats and not self._line

    def take(self) -> None:
        """Take a seat. Raises: ServerBusy."""
        if self.taken >= self.seats:
            raise ServerBusy(self._server)
        self.taken += 1

    def give_back(self) -> None:
        """A call has ended."""
        self.taken -= 1
        if self._line:
            self._call_next()

    def resize(self, seats: int) -> None:
        """The config changed; calls in flight are left alone."""
        self.seats = seats
        self._call_next()

    async def seat(self, until: float) -> None:
        """Wait for a free seat, which the caller takes before it awaits anything else. `until`: loop time.

        Raises: ServerBusy.
        """
        if self.free:
            return
        loop = asyncio.get_running_loop()
        entry = (until, loop.create_future())
        self._line.append(entry)
        self._watch(loop, until)
        try:
            await entry[1]
        except asyncio.CancelledError:
            if entry in self._line:
                self._line.remove(entry)
            elif not entry[1].cancelled() and entry[1].exception() is None:
                self.give_back()
            raise
        self.taken -= 1
        if self._line:
            # Later: the caller takes the seat first; if it does not, the next one gets it.
            loop.call_soon(self._call_next)

    def _call_next(self) -> None:
        while self._line and self.taken < self.seats:
            place = self._line.popleft()[1]
            if not place.done():
                self.taken += 1
                place.set_result(None)

    def _watch(self, loop: asyncio.AbstractEventLoop, until: float) -> None:
        if self._timer is not None:
            if self._due <= until:
                return
            self._timer.cancel()
        self._due = until
        self._timer = loop.call_at(until, self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send away who has waited long enough."""
        self._timer = None
        now = loop.time()
        for entry in [waiting for waiting in self._line if waiting[0] <= now]:
            self._line.remove(entry)
            if not entry[1].done():
                entry[1].set_exception(ServerBusy(self._server))
        if self._line:
            self._watch(loop, min(until for until, _ in self._line))
