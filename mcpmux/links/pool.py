"""Pool: every server's fleet of links, and the link behind a LinkKey.

`run()` owns one task per link. `apply()` takes a new config: what did not change is not touched; a changed server
gets a new fleet *beside* the old one, which goes on serving until the new one is ready, and then drains. If the new
one fails at its first try, or takes too long, the old one ends all the same: a config that somebody replaced (a
revoked credential, say) must not live on, and `status` says what is wrong with the new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Final
from weakref import WeakSet

from mcpmux.config.schema import Server
from mcpmux.credentials.scope import LinkKey
from mcpmux.errors import ServerUnavailable
from mcpmux.links.changes import (
    ChangeFeed,
    ElicitationCompleted,
    LinkChange,
    LinkGone,
    LinkReady,
    OfferChanged,
    ResourceUpdated,
    StateChanged,
    TaskChanged,
    TaskMissed,
    TaskMoved,
)
from mcpmux.links.eras import Eras
from mcpmux.links.fleet import Fleet, Listener
from mcpmux.links.link import Link
from mcpmux.links.pooled import Pooled
from mcpmux.links.scoped import Scoped
from mcpmux.links.shared import Shared
from mcpmux.links.starts import Starts
from mcpmux.links.states import State
from mcpmux.links.status import ServerStatus, status_of
from mcpmux.links.supervisor import Fittings
from mcpmux.links.surroundings import Surroundings
from mcpmux.observe.log import logger
from mcpmux.protocol.abilities import OF_NOBODY, Capabilities
from mcpmux.protocol.events import Changed, Completed, News, TaskProgressed, TaskTold, TaskUnheard, Updated

BESIDE_LIMIT: Final = 60.0  # seconds that an old fleet serves beside a new one that is still starting

_KINDS: Final[Mapping[str, type[Fleet]]] = {"shared": Shared, "pooled": Pooled, "session": Scoped}

log = logger("links")


class _Seat:
    """One server's place: who serves, who is to follow, and which link the consumers know of."""

    __slots__ = ("alone", "announced", "current", "deadline", "incoming")

    def __init__(self, current: Fleet) -> None:
        self.current = current
        self.alone = current.alone
        self.incoming: Fleet | None = None
        self.deadline: asyncio.TimerHandle | None = None
        self.announced: Link | None = None

    def both(self) -> Iterator[Fleet]:
        """Who serves, and who is to follow."""
        yield self.current
        if self.incoming is not None:
            yield self.incoming


class Pool(Listener):
    """All links of one mcpmux."""

    __slots__ = ("_at_work", "_closing", "_done", "_feeds", "_fittings", "_ground", "_scoped", "_seats", "_tasks")

    def __init__(self, ground: Surroundings, eras: Eras | None = None) -> None:
        self._ground = ground
        self._fittings = Fittings(ground, Starts(ground.limits.starts), eras or Eras())
        self._seats: dict[str, _Seat] = {}
        self._scoped: set[str] = set()  # servers that have links for scopes, or had until now
        self._at_work: set[Fleet] = set()  # those of which something may run
        self._feeds: WeakSet[ChangeFeed] = WeakSet()
        self._tasks: asyncio.TaskGroup | None = None
        self._closing = asyncio.Event()
        self._done = asyncio.Event()

    async def run(self) -> None:
        """Supervise until `close()`; on return nothing that was started runs any more."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                for seat in self._seats.values():
                    self._begin(seat.current)
                await self._closing.wait()
                self._retire_all()
        finally:
            self._tasks = None
            self._done.set()

    def apply(self, servers: Mapping[str, Server]) -> None:
        """Make what runs what the config says. Never waits."""
        for name in self._seats.keys() - servers.keys():
            self._remove(name)
        for name, server in servers.items():
            seat = self._seats.get(name)
            if seat is None:
                self._seats[name] = seat = _Seat(self._fleet(server))
                self._begin(seat.current)
                self._publish_state(seat)
            elif (seat.incoming or seat.current).server != server:
                self._change(seat, server)

    def ready(self, key: LinkKey) -> Link | None:
        """The link, if a call can be opened on it this very moment."""
        seat = self._seats.get(key.server)
        if seat is None:
            return None
        alone = seat.alone
        if alone is None or key.scope:
            return seat.current.ready(key.scope)
        return alone.supervisor.ready if alone.bulkhead.free else None

    async def link(self, key: LinkKey, wait: float, client: Capabilities = OF_NOBODY) -> Link:
        """The link, waiting up to `wait` seconds for a start, a restart or a free seat. Open before you await.

        `client`: what whoever has the scope of `key` can do, for a link that is started now.
        Raises: ServerUnavailable, ServerBusy.
        """
        until = asyncio.get_running_loop().time() + wait
        while True:
            fleet = self._fleet_of(key)
            link = await fleet.link(key.scope, until, client)
            if link is not None and self._fleet_of(key) is fleet:
                return link

    def relieves(self, key: LinkKey, link: Link) -> bool:
        """Whether one who waits for the link behind `key` may get one when a call on `link` ends."""
        seat = self._seats.get(key.server)
        return seat is not None and link.key.server == key.server and seat.current.relieves(key.scope, link)

    def end(self, scope: str) -> None:
        """Whoever had this scope (a session) is gone: links of their own end at once."""
        for name in self._scoped:
            if (seat := self._seats.get(name)) is not None:
                for fleet in seat.both():
                    fleet.end_scope(scope)

    def keep(self, key: LinkKey) -> None:
        """Let this scope's own link stay although no calls go through it: whoever has it waits to hear of something."""
        if key.scope and (seat := self._seats.get(key.server)) is not None:
            seat.current.kept.add(key.scope)

    def let_go(self, key: LinkKey) -> None:
        """Nothing is waited for on this scope's own link any more."""
        if (seat := self._seats.get(key.server)) is not None:
            seat.current.kept.discard(key.scope)

    def common(self, server: str) -> list[LinkKey]:
        """The addresses of the links that everybody's calls go through."""
        seat = self._seats.get(server)
        return [] if seat is None else seat.current.common()

    def lives(self, key: LinkKey) -> bool:
        """Whether there is a link at this very address."""
        seat = self._seats.get(key.server)
        return seat is not None and key in seat.current.living()

    def lasting(self, key: LinkKey) -> LinkKey:
        """Where what outlasts a call, such as a subscription, is asked for by those whose calls go to `key`."""
        seat = self._seats.get(key.server)
        return key if seat is None or key.scope else seat.current.lasting

    def state(self, server: str) -> State | None:
        """The state of one server, None if there is no such server."""
        seat = self._seats.get(server)
        return None if seat is None else seat.current.chief.state

    def status(self) -> list[ServerStatus]:
        """Every server, in the order of the config."""
        return [status_of(seat.current) for seat in self._seats.values()]

    def changes(self) -> ChangeFeed:
        """A feed for one consumer, beginning with the links that are ready now; dropping it ends it."""
        feed = ChangeFeed()
        for seat in self._seats.values():
            feed.put(StateChanged(seat.current.server.id, seat.current.chief.state))
            if seat.announced is not None:
                feed.put(LinkReady(seat.current.server.id, LinkKey(seat.current.server.id)))
            for key in seat.current.living():
                if key.scope:
                    feed.put(LinkReady(key.server, key))
        self._feeds.add(feed)
        return feed

    async def close(self, limit: float) -> None:
        """End every link; calls in flight fail. Returns when nothing runs any more, or after `limit` seconds."""
        self._closing.set()
        if self._tasks is None:
            return
        try:
            async with asyncio.timeout(limit):
                await self._done.wait()
        except TimeoutError:
            log.error("links_unfinished", servers=[fleet.server.id for fleet in self._at_work])

    # Config ----------------------------------------------------------------------------------------------------

    def _fleet(self, server: Server) -> Fleet:
        # What is not built is unconfigured: its fleet costs nothing, and no link of it is ever anybody's.
        made = _KINDS.get(server.isolation, Scoped)(server, self._fittings, self)
        if isinstance(made, Scoped):
            self._scoped.add(server.id)
        return made

    def _begin(self, fleet: Fleet) -> None:
        if self._tasks is None or self._closing.is_set() or not fleet.runs:
            return
        self._at_work.add(fleet)
        fleet.begin(self._tasks, lambda: self._at_work.discard(fleet))

    def _change(self, seat: _Seat, server: Server) -> None:
        newest = seat.incoming or seat.current
        if _same_link(newest.server, server):
            newest.update(server)
            return
        if seat.incoming is not None:
            seat.incoming.retire(0)
        follower = self._fleet(server)
        seat.incoming = follower
        self._begin(follower)
        if not follower.runs or seat.current.chief.link is None:
            self._swap(seat, 0 if not follower.runs else self._ground.limits.drain)
        elif self._tasks is not None:
            self._cancel_deadline(seat)
            loop = asyncio.get_running_loop()
            seat.deadline = loop.call_later(BESIDE_LIMIT, self._swap_late, seat, follower)

    def _swap_late(self, seat: _Seat, follower: Fleet) -> None:
        if seat.incoming is follower:
            log.warning("server_replaced_early", server=follower.server.id, reason="the new one is not ready")
            self._swap(seat, self._ground.limits.drain)

    def _swap(self, seat: _Seat, drain: float) -> None:
        """The follower takes the seat; the old one drains."""
        old, follower = seat.current, seat.incoming
        assert follower is not None
        self._cancel_deadline(seat)
        seat.current, seat.alone, seat.incoming = follower, follower.alone, None
        log.info("server_replaced", server=follower.server.id, state=follower.chief.state)
        self._publish_state(seat)
        old.retire(drain)
        old.turn()

    def _remove(self, name: str) -> None:
        seat = self._seats.pop(name)
        self._cancel_deadline(seat)
        self._scoped.discard(name)
        for fleet in seat.both():
            fleet.retire(0)
            fleet.turn()
        if seat.announced is not None:
            self._publish(LinkGone(name, LinkKey(name)))
        self._publish(StateChanged(name, State.DISABLED, removed=True))
        self._ground.metrics.forget(name)

    def _retire_all(self) -> None:
        for seat in self._seats.values():
            self._cancel_deadline(seat)
        for fleet in tuple(self._at_work):
            fleet.retire(0)

    def _cancel_deadline(self, seat: _Seat) -> None:
        if seat.deadline is not None:
            seat.deadline.cancel()
            seat.deadline = None

    def _fleet_of(self, key: LinkKey) -> Fleet:
        seat = self._seats.get(key.server)
        if seat is None:
            raise ServerUnavailable(key.server)
        return seat.current

    # News of fleets --------------------------------------------------------------------------------------------

    def moved(self, fleet: Fleet) -> None:
        """For fleets: one of the links is in another state."""
        seat = self._seats.get(fleet.server.id)
        if seat is None:
            return
        if fleet is seat.incoming and (fleet.chief.ready is not None or fleet.stumbled):
            self._swap(seat, self._ground.limits.drain)
        elif fleet is seat.current:
            self._publish_state(seat)

    def noticed(self, fleet: Fleet, key: LinkKey, what: News | Link | None) -> None:
        """For fleets: news of one link."""
        seat = self._seats.get(key.server)
        if seat is None or fleet is not seat.current:
            return
        match what:
            case Changed():
                self._publish(OfferChanged(key.server, key, what.what))
            case Updated():
                self._publish(ResourceUpdated(key.server, key, what.uri, what.params))
            case Completed():
                self._publish(ElicitationCompleted(key.server, key, what.elicitation, what.params))
            case TaskTold():
                self._publish(TaskChanged(key.server, key, what.task, what.params))
            case TaskProgressed():
                self._publish(TaskMoved(key.server, key, what.task, what.params))
            case TaskUnheard():
                self._publish(TaskMissed(key.server, key, what.task))
            case Link():
                self._publish(LinkReady(key.server, key))
            case None:
                self._publish(LinkGone(key.server, key))

    def _publish_state(self, seat: _Seat) -> None:
        fleet = seat.current
        server, link = fleet.server.id, fleet.chief.link
        self._ground.metrics.server(server).links(fleet.counts())
        if link is not seat.announced:
            seat.announced = link
            key = LinkKey(server)
            self._publish(LinkGone(server, key) if link is None else LinkReady(server, key))
        self._publish(StateChanged(server, fleet.chief.state))

    def _publish(self, change: LinkChange) -> None:
        for feed in self._feeds:
            feed.put(change)


def _same_link(old: Server, new: Server) -> bool:
    """Whether the link may stay as it is; title, timeout, concurrency, tags and tool rules don't touch it."""
    return (old.section, old.enabled, old.missing, old.reason) == (new.section, new.enabled, new.missing, new.reason)
