"""Seat: one server with one config section, what is known of its offer, and what is to be asked and when.

Pure: the loop time and chance are arguments. A changed section gets a new seat, which starts with what the old one
offered and waits for the new link: until that is there, whatever the server says is still said by the old one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mcpmux.catalog.items import Item, Offer
from mcpmux.config.schema import Server
from mcpmux.credentials.scope import LinkKey
from mcpmux.links.states import State
from mcpmux.protocol.events import Offered

KEEP: Final = "keep"
Due = Offered | str
"""What can be due: to ask for a list, or to `KEEP` the offer."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often one server is asked; seconds. Pauses after failures begin with `retry` and double up to `longest`.

    `fresh`: how long a list is good whatever its server says, which is what we tell our own clients.
    """

    quiet: float = 1.0
    fresh: float = 5.0
    together: float = 2.0
    retry: float = 1.0
    longest: float = 300.0


class Seat:
    """See the module."""

    __slots__ = (
        "_due", "_failures", "_good_until", "_looked_for", "awaits_link", "busy", "digest", "fresh", "given_up",
        "hurry", "kept", "key", "live", "offer", "said", "server", "unavailable",
    )  # fmt: skip

    def __init__(self, server: Server, digest: bytes, before: Seat | None) -> None:
        self.server = server
        self.digest = digest  # of the section
        self.key = LinkKey(server.id)
        self.offer: Offer | None = before.offer if before else None
        self.awaits_link = before is not None
        self.given_up = False  # it failed, and has not been ready since
        self.unavailable = False  # it was asked, and nothing came
        self.live = False  # the offer is what a link of this section says
        self.kept = False  # the offer is what the database has
        self.fresh: dict[Offered, tuple[Item, ...]] = {}  # read, and not in the offer yet
        self.said: dict[tuple[Offered, str], tuple[str, ...]] = {}  # what the log was told of last
        self.hurry = asyncio.Event()  # something has become due
        self.busy = False  # a task does what is due
        self._due: dict[Due, float] = {}
        self._failures: dict[Due, int] = {}
        self._good_until: dict[Offered, float] = {}  # loop time; for ever, unless it is here
        self._looked_for: dict[Offered, asyncio.Event] = {}  # by list: somebody waits until it was asked for

    @property
    def settled(self) -> bool:
        """Whether waiting longer for its first offer is of no use."""
        return self.offer is not None or self.unavailable or self.given_up

    @property
    def next_due(self) -> float | None:
        """When there is something to do, None if nothing is due."""
        return min(self._due.values(), default=None)

    def note_state(self, state: str) -> bool:
        """Take in the server's state; True if it was given up, or no longer is."""
        before = self.given_up
        if state == State.FAILED:
            self.given_up = True
        elif state in (State.READY, State.DEGRADED):
            self.given_up = False
        return self.given_up != before

    def greeted(self) -> None:
        """A link of this section is ready: it may do better than the one before."""
        self.awaits_link = False
        self._failures.clear()
        self._good_until.clear()

    def ages(self, what: Offered, until: float) -> None:
        """A list was had that is good until then, and of whose changes nobody tells us."""
        self._good_until[what] = until

    def aged(self, what: Offered, now: float) -> bool:
        """Whether a list is older than it may get. Said once: then it is to be asked for."""
        aged = self._good_until.get(what, now + 1) <= now
        if aged:
            del self._good_until[what]
        return aged

    def want(self, what: Iterable[Due], now: float) -> None:
        """Make these due now."""
        for each in what:
            self._due[each] = now
        self.hurry.set()

    def look_for(self, what: Offered) -> asyncio.Event:
        """What is set when this list has been asked for once more, well or not."""
        return self._looked_for.setdefault(what, asyncio.Event())

    def take_looked_for(self, what: Iterable[Due]) -> list[asyncio.Event]:
        """Who waits for these, which are about to be asked for."""
        return [self._looked_for.pop(each) for each in Offered if each in what and each in self._looked_for]

    def take_due(self, now: float) -> list[Due]:
        """What is due, lists first; it is due no more."""
        self.hurry.clear()
        return [what for what in (*Offered, KEEP) if self.take(what, now)]

    def take(self, what: Due, now: float) -> bool:
        """Whether `what` is due; if so, it is due no more."""
        due = self._due.get(what, now + 1) <= now
        if due:
            del self._due[what]
        return due

    def succeeded(self, what: Due) -> None:
        """It was done."""
        self._failures.pop(what, None)

    def failed(self, what: Due, pace: Pace, now: float, chance: float) -> float:
        """It could not be done: make it due again after a pause, in seconds, which is the answer."""
        failures = self._failures[what] = self._failures.get(what, 0) + 1
        pause = min(pace.retry * 2.0 ** min(failures - 1, 30), pace.longest) * (0.5 + chance / 2)
        # It may have become due again meanwhile.
        self._due.setdefault(what, now + pause)
        return pause
