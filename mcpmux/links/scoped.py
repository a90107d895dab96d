"""Scoped: one link for each scope (a downstream session), and one that serves nobody but lists.

The link for lists has no scope and stays warm: what the server offers is known without waiting for anybody's own link,
its `list_changed` is heard, and the server's state is that link's. No caller's call ever goes through it.

A scope's link is started by the first call that needs it. At most `max_links` live at a time, those on their way out
included, so that the bound is one of processes. It ends with its scope, after `idle` seconds without a call (unless it
is `kept`, because its scope waits to hear of something), or when another scope needs its place and none has been unused
for longer; the next call of its scope starts a new one. While every link is in the middle of a call, whoever needs
another one waits in line, as for a seat.

While the server itself has failed (its link for lists says so), no scope starts one either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from mcpmux.config.schema import Server
from mcpmux.credentials.scope import LinkKey
from mcpmux.errors import LinksTaken, ServerBusy, ServerUnavailable
from mcpmux.links.berth import Berth
from mcpmux.links.bulkhead import Bulkhead
from mcpmux.links.fleet import Fleet, Listener
from mcpmux.links.link import Link
from mcpmux.links.supervisor import Fittings, Supervisor
from mcpmux.protocol.abilities import Capabilities

LOOKS: Final = 4  # within the time after which an unused link ends
LONGEST_LOOK: Final = 30.0  # seconds
IN_NEED: Final = 0.1  # seconds between two looks while somebody needs a place


class _Own(Berth):
    """The link of one scope."""

    __slots__ = ("awaited", "used")

    def __init__(self, supervisor: Supervisor, bulkhead: Bulkhead, now: float) -> None:
        super().__init__(supervisor, bulkhead)
        self.awaited = 0  # calls that wait for its start or a seat
        self.used = now  # loop time

    @property
    def busy(self) -> bool:
        """Whether a call is on it, or will be."""
        return bool(self.awaited or self.bulkhead.taken)


class Scoped(Fleet):
    """See the module."""

    __slots__ = ("_arriving", "_leaving", "_lists", "_own", "_places", "_timer")

    def __init__(self, server: Server, fittings: Fittings, listener: Listener) -> None:
        super().__init__(server, fittings, listener)
        bulkhead = Bulkhead(server.id, server.concurrency)
        self.alone = self._lists = Berth(self._supervisor("", bulkhead), bulkhead)
        self._own: dict[str, _Own] = {}
        self._leaving: list[Supervisor] = []
        self._places = Bulkhead(server.id, server.max_links)
        self._arriving: dict[str, int] = {}  # calls that wait for a place, by scope
        self._timer: asyncio.TimerHandle | None = None

    @property
    def chief(self) -> Supervisor:
        """The one that lists."""
        return self._lists.supervisor

    def common(self) -> list[LinkKey]:
        """None: everybody has their own."""
        return []

    def supervisors(self) -> Sequence[Supervisor]:
        """The one that lists, those of the scopes, and those on their way out."""
        return (self._lists.supervisor, *(own.supervisor for own in self._own.values()), *self._leaving)

    def ready(self, scope: str) -> Link | None:
        """The link of this scope, if it lives and has a free seat."""
        own = self._own.get(scope)
        if own is None:
            return None if scope else self._lists.ready
        own.used = self._now()
        return own.ready

    async def link(self, scope: str, until: float, client: Capabilities) -> Link | None:
        """See `Fleet`; starts the link of a scope that has none."""
        if not scope:
            return await self._lists.link(until)
        own = self._own.get(scope)
        if own is None:
            await self._place(scope, until)
            if self._retiring:
                return None
            own = self._own.get(scope) or self._begun(scope, client)
        own.used = self._now()
        own.awaited += 1
        try:
            return await own.link(until)
        finally:
            own.awaited -= 1

    def relieves(self, scope: str, link: Link) -> bool:
        """See `Fleet`; who has no link yet waits for the place of another."""
        own = self._own.get(scope) if scope else self._lists
        if own is not None:
            return own.relieves(link)
        other = self._own.get(link.key.scope)
        awaited = not self._places.free and len(self._leaving) < (len(self._arriving) or 1)
        return awaited and other is not None and other.supervisor.link is link

    def update(self, server: Server) -> None:
        """Take over a config that leaves the links as they are."""
        self.server = server
        for berth in (self._lists, *self._own.values()):
            berth.update(server)
        self._places.resize(server.max_links)
        while len(self._own) > server.max_links and self._dismiss_idle():
            pass
        self._watch()

    def retire(self, drain: float) -> None:
        """End every link for good."""
        super().retire(drain)
        self._stop_watching()

    def end_scope(self, scope: str) -> None:
        """Whoever had this scope is gone: its link ends at once."""
        self.kept.discard(scope)
        if scope in self._own:
            self._dismiss(scope)

    # Places ----------------------------------------------------------------------------------------------------

    async def _place(self, scope: str, until: float) -> None:
        """Wait until one more link may be started. Raises: ServerUnavailable, LinksTaken."""
        if not self.chief.hopeful:
            raise ServerUnavailable(self.server.id, self.chief.retry_after)
        self._arriving[scope] = self._arriving.get(scope, 0) + 1
        try:
            self._make_room()
            self._watch()
            await self._places.seat(until)
        except ServerBusy:
            raise LinksTaken(self.server.id) from None
        finally:
            self._arriving[scope] -= 1
            if not self._arriving[scope]:
                del self._arriving[scope]

    def _make_room(self) -> None:
        """Let as many unused links go as are needed."""
        while not self._places.free and len(self._leaving) < len(self._arriving) and self._dismiss_idle():
            pass

    def _dismiss_idle(self) -> bool:
        """Let the link go that has been unused for longest; False if each is in use."""
        idle = {scope: own.used for scope, own in self._own.items() if not own.busy}
        if not idle:
            return False
        self._dismiss(min(idle, key=lambda scope: idle[scope]))
        return True

    def _begun(self, scope: str, client: Capabilities) -> _Own:
        self._places.take()
        bulkhead = Bulkhead(self.server.id, self.server.concurrency)
        own = self._own[scope] = _Own(self._supervisor(scope, bulkhead), bulkhead, self._now())
        own.supervisor.client = client
        self._start(own.supervisor)
        self._watch()
        return own

    def _dismiss(self, scope: str) -> None:
        supervisor = self._own.pop(scope).supervisor
        self._leaving.append(supervisor)
        supervisor.retire(0)
        supervisor.turn()

    def _over(self, supervisor: Supervisor) -> None:
        if supervisor in self._leaving:
            self._leaving.remove(supervisor)
        if supervisor.key.scope:
            self._places.give_back()
        super()._over(supervisor)

    # Looking for what is unused --------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Look soon if somebody needs a place, else in time for the first that will have been idle for too long."""
        if self._retiring or not (self._own or self._arriving):
            return
        due = self._now() + (IN_NEED if self._arriving else min(self.server.idle / LOOKS, LONGEST_LOOK))
        if self._timer is None or due < self._timer.when():
            self._stop_watching()
            self._timer = asyncio.get_running_loop().call_at(due, self._sweep)

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self._timer = None
        now = self._now()
        for scope, own in list(self._own.items()):
            if own.busy:
                own.used = now
            elif now - own.used >= self.server.idle and scope not in self.kept:
                self._dismiss(scope)
        self._make_room()
        self._watch()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
