"""Whose call an unaddressed message of a shared link belongs to: one caller's for certain, or nobody's.

A log message carries no id, and what a server asks of a client carries none of ours. On a shared link whose messages
come on one stream (stdio, HTTP+SSE) it belongs to a call only if that call is the only one in flight, but for those
of our own, and no call of another caller was on the link in the last 30 s: a tool may go on working a while after its
answer. A call that was cancelled counts until the server has answered it all the same, or for 5 minutes, because
nothing says whether it ever stopped. On a link that is lent to one call at a time only such cancelled calls of others
count, on a link of one client nothing does. A task works on after its answer, so it counts until it has ended.

Source: design.md section 3, "A server→client message reaches exactly the caller that it belongs to, or nobody".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

AFTERMATH: Final = 30.0  # seconds in which an ended call may still be what a server talks about
GHOST_LIFE: Final = 300.0
MAX_GHOSTS: Final = 256

OURSELVES: Final = ""
"""The caller of what mcpmux asks on its own account: nobody's data can be in it."""

_SOMEBODY: Final = "\0"  # no caller's word


class Callers:
    """Which callers' calls have been on one link lately. Times are seconds of one monotonic clock."""

    __slots__ = ("_before", "_forgotten", "_ghosts", "_last", "_tasks")

    def __init__(self) -> None:
        # The latest end of a call, and the latest of any other caller than that one: enough to answer for everybody.
        self._last: tuple[str, float] | None = None
        self._before: tuple[str, float] | None = None
        self._ghosts: dict[int, tuple[str, float]] = {}
        self._tasks: dict[str, tuple[str, float]] = {}  # whoever has them made bounds their number
        self._forgotten = 0  # the newest cancelled call that was never answered and is remembered no more

    @property
    def ghosts(self) -> int:
        """How many cancelled calls are still remembered."""
        return len(self._ghosts)

    def ended(self, caller: str, now: float) -> None:
        """A call of `caller` has been answered, or given up."""
        if caller == OURSELVES:
            return
        if self._last is not None and self._last[0] != caller:
            self._before = self._last
        self._last = (caller, now)

    def haunted(self, request: int, caller: str, now: float) -> None:
        """A call was cancelled; the server may work on, and may answer yet."""
        self.ended(caller, now)
        self._forget_old(now)
        if len(self._ghosts) >= MAX_GHOSTS:
            self._forget(next(iter(self._ghosts)))
        self._ghosts[request] = (caller, now + GHOST_LIFE)

    def laid(self, request: int, now: float) -> bool:
        """Whether `request` was a cancelled call, which the server has now answered after all."""
        ghost = self._ghosts.pop(request, None)
        if ghost is None:
            if request <= self._forgotten:
                # Somebody's, and it may have been at work until now: whose, nobody remembers.
                self.ended(_SOMEBODY, now)
            return False
        self.ended(ghost[0], now)
        return True

    def outlasts(self, task: str, caller: str, until: float) -> None:
        """A task of `caller` works on until then, unless it ends before: that is said by a time in the past."""
        self._tasks[task] = (caller, until)

    def certain(self, in_flight: Mapping[int, str], now: float, *, lent: bool) -> int | None:
        """The call (its id → its caller) that a message without an address belongs to, None if that is not certain.

        What we ask on our own account, lists above all, holds nobody's data: it stands in no caller's way.
        """
        theirs = [call for call, caller in in_flight.items() if caller != OURSELVES]
        candidates = theirs or list(in_flight)
        if len(candidates) != 1:
            return None
        (call,) = candidates
        caller = in_flight[call]
        if lent:
            return call if self.unhaunted(caller, now) else None
        return call if caller == OURSELVES or self.alone(caller, now) else None

    def alone(self, caller: str, now: float) -> bool:
        """Whether nothing on the link can be about any other caller."""
        for seen in (self._last, self._before):
            if seen is not None and seen[0] != caller and now - seen[1] < AFTERMATH:
                return False
        return self.unhaunted(caller, now)

    def unhaunted(self, caller: str, now: float) -> bool:
        """Whether no cancelled call and no task of another caller may still be at work."""
        self._forget_old(now)
        self._tasks = {task: worker for task, worker in self._tasks.items() if worker[1] > now}
        at_work = (*self._ghosts.values(), *self._tasks.values())
        return all(worker[0] in (caller, OURSELVES) for worker in at_work)

    def clear(self) -> None:
        """The link has ended: nobody is left on it."""
        self._last = self._before = None
        self._ghosts.clear()
        self._tasks.clear()

    def _forget_old(self, now: float) -> None:
        while self._ghosts:
            oldest = next(iter(self._ghosts))
            if self._ghosts[oldest][1] > now:
                return
            self._forget(oldest)

    def _forget(self, request: int) -> None:
        del self._ghosts[request]
        self._forgotten = max(self._forgotten, request)
