"""Exchange: one call's half on a link. Events come out of `next()`, a cancel, a failure of ours or an answer goes in.

Rules of the file: on the way of a call that is answered at once there is one future and nothing else, no task, timer
or lock. At most 256 progress and log events wait for a slow reader, then the oldest gives way; the end never does,
nor does what the server asks, of which the link's core bounds the number.
Once ended, an exchange is out of its link's table, and everything put into it is ignored.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from mcpmux.errors import CallCancelled, MuxError
from mcpmux.protocol.events import ENDS, Ask, End, Event, Failure, Quiet, Withdrawn

if TYPE_CHECKING:
    from mcpmux.links.link import Link

MAX_WAITING: Final = 256  # events
_QUIET: Final = Quiet()


class Exchange(Struct, eq=False):
    """One call on a link; made by `Link.open()`. One reader at a time.

    `opened` is loop time; `seated`: it holds a seat of the server's bulkhead; `dropped` counts events.
    """

    link: Link
    opened: float
    id: int = 0
    dropped: int = 0
    seated: bool = True
    _end: End | None = None
    _error: MuxError | None = None
    _waiting: deque[Event] | None = None
    _waiter: asyncio.Future[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether the server has answered, or nobody waits for it any more."""
        return self._end is not None or self._error is not None

    @property
    def at_work(self) -> bool:
        """Whether the server is known to be at work on the call, however silent it is."""
        return False

    async def next(self) -> Event:
        """The next event; after a `Result` or `Failure` there is none.

        Raises: LinkLost, ServerEnded, UpstreamBroken, CallCancelled, or what `fail()` was given.
        """
        if self._end is None and self._error is None and not self._waiting:
            self._waiter = self.link.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._error is not None:
            raise self._error
        if self._waiting:
            return self._waiting.popleft()
        assert self._end is not None  # a waiter is woken for news only
        return self._end

    def asks(self) -> list[Ask | Withdrawn]:
        """What the server has asked and taken back that nobody has read; whoever gets it has read it."""
        found = [event for event in self._waiting or () if isinstance(event, Ask | Withdrawn)]
        for event in found:
            self._waiting.remove(event)  # type: ignore[union-attr]
        return found

    def nudge(self) -> None:
        """Give `Quiet` to a reader who waits and whom nobody has woken."""
        waiter = self._waiter
        if waiter is not None and not waiter.done() and not self._has_news():
            self._keep(_QUIET)
            waiter.set_result(None)

    def answer(self, ask: int, answer: End) -> None:
        """Answer what the server asked in this call. Does nothing if it waits for it no more."""
        if not self.ended:
            self.link.answer(self, ask, answer)

    def decline(self, ask: int, failure: Failure) -> None:
        """Answer what the server asked without its client, which is told by `Withdrawn`."""
        self.answer(ask, failure)
        self.put(Withdrawn(ask))

    def cancel(self, reason: str) -> None:
        """Give the call up: the server is told, whoever reads gets `CallCancelled`. Does nothing after the end."""
        self._give_up(CallCancelled(), reason)

    def fail(self, error: MuxError) -> None:
        """End the call from our side: the server is told, whoever reads gets `error`. Does nothing after the end."""
        self._give_up(error, str(error))

    # For the link ----------------------------------------------------------------------------------------------

    def put(self, event: Event) -> None:
        """The server said `event`."""
        if self._end is not None or self._error is not None:
            return
        if isinstance(event, ENDS):
            self._end = event
            self.link.closed(self)
        else:
            self._keep(event)
        self._wake()

    def refuse(self, failure: Failure) -> None:
        """The server is not asked at all."""
        self.seated = False
        self._end = failure

    def put_error(self, error: MuxError) -> None:
        """The server's answer cannot come any more, or cannot be used."""
        if self.ended:
            return
        self._error = error
        self.link.closed(self)
        self._wake()

    def _give_up(self, error: MuxError, reason: str) -> None:
        if self.ended:
            return
        self._error = error
        self.link.abandon(self, reason)
        self._wake()

    def _keep(self, event: Event) -> None:
        if self._waiting is None:
            self._waiting = deque()
        elif type(event) is Withdrawn and self._unread(event.ask):
            return
        elif len(self._waiting) >= MAX_WAITING:
            self._drop()
        self._waiting.append(event)

    def _unread(self, ask: int) -> bool:
        """Take back an ask that nobody has read yet."""
        assert self._waiting is not None
        found = next((event for event in self._waiting if type(event) is Ask and event.id == ask), None)
        if found is None:
            return False
        self._waiting.remove(found)
        return True

    def _drop(self) -> None:
        assert self._waiting is not None
        oldest = next((place for place, event in enumerate(self._waiting) if type(event) is not Ask), 0)
        del self._waiting[oldest]
        self.dropped += 1
        self.link.overflowed(self)

    def _has_news(self) -> bool:
        return self._end is not None or self._error is not None or bool(self._waiting)

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
