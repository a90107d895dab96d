"""Bulkhead: at most `concurrency` calls at a time on one server, so that one slow server cannot hold everything.

Taking a seat never waits: `free` is asked first. Whoever finds none waits in line (`seat()`), bounded by the caller's
patience, and is not overtaken: while somebody waits, `free` is False for everybody else.
"""

from __future__ import annotations

import asyncio
from collections import deque

from mcpmux.errors import ServerBusy


class Bulkhead:
    """The seats of one server."""

    __slots__ = ("_line", "_server", "seats", "taken")

    def __init__(self, server: str, seats: int) -> None:
        self._server = server
        self._line: deque[asyncio.Future[None]] = deque()
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
        place = asyncio.get_running_loop().create_future()
        self._line.append(place)
        try:
            async with asyncio.timeout_at(until):
                await place
        except TimeoutError:
            raise ServerBusy(self._server) from None
        finally:
            self._line.remove(place)
            # Later: whoever was served takes the seat first; whoever was cancelled leaves it to the next.
            asyncio.get_running_loop().call_soon(self._call_next)

    def _call_next(self) -> None:
        if self._line and self.taken < self.seats and not self._line[0].done():
            self._line[0].set_result(None)
