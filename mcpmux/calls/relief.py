"""Relief: calls whose clients are away give way to calls that wait for a place at their server.

Theory. A parked call holds its seat, on a lent link all of it, for as long as its client may take. Somebody at a form
is worth that, and nothing tells them from a client that will never come back: so it is only when a call has waited for
`WAITED` seconds that one of those parked for `UNDISTURBED` seconds, which is time for a form, is cancelled in its
favour, and only one whose end helps it (`Pool.relieves()`). A client that comes back without an answer does not make
its call look younger.

No principal throws out another one, or keeps it out. A call displaces calls of its own principal, and of principals
that have more calls parked there than its own has seats, be they parked, at work, or on their way to it by another
displacement. Of those the principal with most gives way first, with its oldest. So who holds everything is down to a
fair share as others come, and nobody gets beyond it by this.

The place goes to whoever has waited longest, as any other: to the one who displaced, or to one who stands before it.
What was displaced has ended for its client as if its time had been over.

Nothing of this is on the way of a call that finds a place: who waits stands in the line here meanwhile, and the
router's sweep looks through it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from mcpmux.calls.call import Call
from mcpmux.calls.parked import DISPLACED, Parked, Parking
from mcpmux.credentials.scope import LinkKey
from mcpmux.links.link import Link
from mcpmux.links.pool import Pool

WAITED: Final = 1.0  # seconds
UNDISTURBED: Final = 30.0  # seconds
AGAIN: Final = 4.0  # seconds between two displacements for one call; a lent link may be held for most of that


class _Waiting(Struct, eq=False):
    """A call in line. `due`: when it may be helped, in `time.monotonic()` seconds; `displaced`: how many it has."""

    principal: str
    key: LinkKey
    due: float
    displaced: int = 0


class Relief:
    """Those calls that wait for a link, and what gives way to them."""

    def __init__(self, pool: Pool, parking: Parking) -> None:
        self._pool = pool
        self._parking = parking
        self._line: dict[_Waiting, None] = {}  # in order of arrival

    def __len__(self) -> int:
        return len(self._line)

    async def link(self, call: Call, key: LinkKey, wait: float) -> Link:
        """`Pool.link()` for a call, cut short if the call ends meanwhile.

        Where calls that are parked are in the way, it waits for as long as its server may take for an answer: what
        gives way may have to become old enough first.
        Raises: ServerUnavailable, ServerBusy, CallCancelled.
        """
        if call.server is not None and any(self._is_in_the_way(parked, key) for parked in self._at(key)):
            wait = max(wait, call.server.timeout)
        waiting = _Waiting(call.caller.principal.key, key, time.monotonic() + WAITED)
        self._line[waiting] = None
        try:
            return await call.patiently(self._pool.link(key, wait, call.caller.capabilities))
        finally:
            del self._line[waiting]

    def sweep(self, now: float, calls: Iterable[Call]) -> None:
        """Let calls give way to those who have waited; `calls` are all that are in flight."""
        due = [waiting for waiting in self._line if waiting.due <= now and self._at(waiting.key)]
        if not due:
            return
        seats = self._seats(calls)
        for waiting in due:
            parked = self._gives_way(waiting, seats, now)
            if parked is None:
                waiting.due = now + WAITED
                continue
            waiting.due = now + AGAIN
            waiting.displaced += 1
            seats[waiting.key.server, waiting.principal] += 1
            self._parking.drop(parked, DISPLACED)

    def _gives_way(self, waiting: _Waiting, seats: Counter[tuple[str, str]], now: float) -> Parked | None:
        """The parked call to cancel for this one, if any may be."""
        parked = self._at(waiting.key)
        held = Counter(one.principal.key for one in parked)
        mine = held[waiting.principal] + seats[waiting.key.server, waiting.principal]
        found = [
            one
            for one in parked
            if now - one.since >= UNDISTURBED
            and (one.principal.key == waiting.principal or held[one.principal.key] > mine)
            and self._is_in_the_way(one, waiting.key)
        ]
        return max(found, key=lambda one: (held[one.principal.key], -one.since), default=None)

    def _seats(self, calls: Iterable[Call]) -> Counter[tuple[str, str]]:
        """How many places each principal has at each server, or is to get, without its parked calls."""
        seats = Counter(
            (call.server.id, call.caller.principal.key)
            for call in calls
            if call.server is not None and call.exchange is not None
        )
        for waiting in self._line:
            if waiting.displaced:
                seats[waiting.key.server, waiting.principal] += waiting.displaced
        return seats

    def _is_in_the_way(self, parked: Parked, key: LinkKey) -> bool:
        return self._pool.relieves(key, parked.exchange.link)

    def _at(self, key: LinkKey) -> list[Parked]:
        """Those that hold a place at this server: what has ended meanwhile only waits to be told."""
        return [parked for parked in self._parking.at(key.server) if not parked.exchange.ended]
