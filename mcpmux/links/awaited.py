"""Awaited: a call that goes on by further requests when its server makes a task of it, until its result is there.

What follows on what is decided by `protocol/upstream/awaiting.py`, and done here: the next request goes up as the same
exchange, with the same seat, under another id. Between two requests the link knows of it, too.

Who gives up such a call must not leave a task at work. So one that is given up before its server has said whether there
is a task waits for that word, and one that has a task for the answer to `tasks/cancel`, a while at most. The request
that waited for the result stays until it is answered too: then its server needs no answers any more to what it has
asked for the task, and some break down at one for a task that is cancelled. The server may be at work on it even then
(a cancellation is a wish): what it says without an address is nobody else's, and a link that was lent is replaced.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from mcpmux.errors import LinkLost, MuxError
from mcpmux.links.exchange import Exchange
from mcpmux.protocol.events import ENDS, End, Event, Opening
from mcpmux.protocol.revisions import MODERN
from mcpmux.protocol.upstream.attribution import GHOST_LIFE, OURSELVES
from mcpmux.protocol.upstream.awaiting import Awaiting, Go, Over, Put, Rest, Step

if TYPE_CHECKING:
    from mcpmux.links.link import Link

LAST_WORD: Final = 5.0  # seconds that a call which was given up waits for its server
LONGEST: Final = 3600.0  # seconds; no call lives longer

_AT_WORK: Final = "it may be at work on a task that was given up"


def awaited(link: Link, opening: Opening) -> Awaited:
    """A call of which its server may make a task, and that is to be opened on this link."""
    modern = link.greeting is not None and link.greeting.protocol_version == MODERN
    return Awaited(link, link.loop.time(), awaiting=Awaiting(opening, modern=modern))


class Awaited(Exchange, eq=False, kw_only=True):
    """See the module. `_rests`: no answer is awaited; `_left`: nobody wants the result, the server is asked to stop;
    `_former`: the request that waited for it, and is answered as well (0: it was).
    """

    awaiting: Awaiting
    _left: bool = False
    _closed: bool = False
    _rests: bool = False
    _former: int = 0
    _timer: asyncio.TimerHandle | None = None

    @property
    def at_work(self) -> bool:
        """Whether the server has made a task of the call, which has not ended."""
        return bool(self.awaiting.task) and not self.ended

    def answer(self, ask: int, answer: End) -> None:
        """Answer what the server asked in this call. Does nothing if it waits for it no more."""
        if self.ended:
            return
        if not self.awaiting.has_asked(ask):
            self.link.answer(self, ask, self.awaiting.marked(answer))
            return
        step = self.awaiting.answer(ask, answer)
        if step is not None:
            self._follow(step)

    # For the link ----------------------------------------------------------------------------------------------

    def put(self, event: Event) -> None:
        """The server said `event`, which ends the call only if it is the end of what became of it."""
        if self._closed:
            return
        if isinstance(event, ENDS):
            self._rests = True
            if self._left:
                self._answered()
            else:
                self._follow(self.awaiting.answered(event))
        elif not self.ended:
            Exchange.put(self, self.awaiting.shown(event))

    def put_error(self, error: MuxError) -> None:
        """The server's answer cannot come any more, or cannot be used."""
        if self._closed:
            return
        self._rests = True
        if self.ended or self.link.lost is not None:
            self._error = self._error or error
            self._close()
            self._wake()
            return
        step = self.awaiting.lost(self.link.loop.time()) if isinstance(error, LinkLost) else None
        if step is not None:
            self._follow(step)
        else:
            self._give_up(error, str(error))

    # What follows ----------------------------------------------------------------------------------------------

    def _follow(self, step: Step) -> None:
        if self._error is not None:  # it was given up before anybody knew whether there is a task
            self._leave()
            return
        if self.awaiting.task:
            self.link.outlasts(self.awaiting.task, self.awaiting.caller, LONGEST)
        match step:
            case Go(opening):
                self._rests = False
                self.link.go_on(self, opening)
            case Rest(seconds):
                self.link.go_on(self, None)
                self._timer = self.link.loop.call_later(seconds, self._rested)
            case Put(asks):
                self.link.go_on(self, None)
                for ask in asks:
                    Exchange.put(self, ask)
            case Over(end, at_work):
                self._end = end
                self._leave() if at_work else self._close()
                self._wake()

    def _rested(self) -> None:
        self._timer = None
        self._follow(self.awaiting.rested())

    def _give_up(self, error: MuxError, reason: str) -> None:
        if self.ended:
            return
        self._error = error
        self._wake()
        if self.awaiting.may_become and self.link.lost is None:
            self._timer = self.link.loop.call_later(LAST_WORD, self._forsake)
        elif self.awaiting.task:
            self._leave()
        else:
            self._closed = True
            self.link.abandon(self, reason)

    # The end of what nobody waits for any more -----------------------------------------------------------------

    def _leave(self) -> None:
        """Have the task cancelled, if there is one and its server can be told."""
        self._stop_timer()
        cancelling = self.awaiting.cancelling()
        if cancelling is None or self.link.lost is not None:
            self._close()
            return
        self._left = True
        self._former = 0 if self._rests else self.id
        self._timer = self.link.loop.call_later(LAST_WORD, self._forsake)
        self.link.go_on(self, cancelling)

    def _answered(self) -> None:
        """The server has answered `tasks/cancel`, or what was waited for before."""
        if not self._former:
            self._close()
        self._former = 0

    def _forsake(self) -> None:
        """The server has not said what was waited for."""
        self._left = True
        self.link.part(self)
        if self._former:
            self.id = self._former
            self.link.part(self)
        self._close()

    def _close(self) -> None:
        """Nothing comes any more: the seat is free."""
        self._stop_timer()
        self._closed = True
        if self.awaiting.task:
            self.link.outlasts(self.awaiting.task, OURSELVES, 0.0)
            if self._left:
                self.link.outlasts(self.awaiting.task, self.awaiting.caller, GHOST_LIFE)
        self.link.leave(self, _AT_WORK if self._left else None)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
