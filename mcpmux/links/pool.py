"""Pool: every server's supervisor, and the link behind a LinkKey.

`run()` owns one task per server. `apply()` takes a new config: what did not change is not touched; a changed server
gets a new supervisor *beside* the old one, which goes on serving until the new one is ready, and then drains. If the
new one fails at its first try, or takes too long, the old one ends all the same: a config that somebody replaced (a
revoked credential, say) must not live on, and `status` says what is wrong with the new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final
from weakref import WeakSet

from msgspec import Struct

from mcpmux.config.schema import Server
from mcpmux.credentials.scope import LinkKey
from mcpmux.errors import ServerUnavailable
from mcpmux.links.changes import (
    ChangeFeed,
    LinkChange,
    LinkGone,
    LinkReady,
    OfferChanged,
    ResourceUpdated,
    StateChanged,
)
from mcpmux.links.link import Link
from mcpmux.links.starts import Starts
from mcpmux.links.states import State
from mcpmux.links.supervisor import Supervisor
from mcpmux.links.surroundings import Surroundings
from mcpmux.observe.log import logger
from mcpmux.protocol.events import Changed, Updated

BESIDE_LIMIT: Final = 60.0  # seconds that an old link serves beside a new one that is still starting

log = logger("links")


class ServerStatus(Struct, frozen=True):
    """What `status` says of one server; `since` is when it came into this state, in unix seconds."""

    id: str
    title: str
    transport: str
    state: str
    reason: str | None
    missing: tuple[str, ...]
    era: str | None
    revision: str | None
    pid: int | None
    restarts: int
    since: float
    in_flight: int


class _Seat:
    """One server's place: who serves, who is to follow, and which link the consumers know of."""

    __slots__ = ("announced", "current", "deadline", "incoming")

    def __init__(self, current: Supervisor) -> None:
        self.current = current
        self.incoming: Supervisor | None = None
        self.deadline: asyncio.TimerHandle | None = None
        self.announced: Link | None = None


class Pool:
    """All links of one mcpmux."""

    __slots__ = ("_closing", "_done", "_feeds", "_ground", "_seats", "_starts", "_supervisors", "_tasks")

    def __init__(self, ground: Surroundings) -> None:
        self._ground = ground
        self._starts = Starts(ground.limits.starts)
        self._seats: dict[str, _Seat] = {}
        self._supervisors: set[Supervisor] = set()  # those whose task has not ended
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
                self._seats[name] = seat = _Seat(self._supervisor(server))
                self._begin(seat.current)
                self._publish_state(seat)
            elif (seat.incoming or seat.current).server != server:
                self._change(seat, server)

    def ready(self, key: LinkKey) -> Link | None:
        """The link, if a call can be opened on it this very moment."""
        seat = self._seats.get(key.server)
        if seat is None or key.scope:
            return None
        supervisor = seat.current
        return supervisor.ready if supervisor.bulkhead.free else None

    async def link(self, key: LinkKey, wait: float) -> Link:
        """The link, waiting up to `wait` seconds for a start, a restart or a free seat. Open before you await.

        Raises: ServerUnavailable, ServerBusy.
        """
        until = asyncio.get_running_loop().time() + wait
        while True:
            supervisor = self._supervisor_of(key)
            if supervisor.ready is not None:
                await supervisor.bulkhead.seat(until)
                if self._supervisor_of(key) is supervisor and (link := supervisor.ready) is not None:
                    return link
                continue
            if not supervisor.hopeful:
                raise ServerUnavailable(key.server, supervisor.retry_after)
            supervisor.wanted = True
            try:
                await supervisor.turned(until)
            except TimeoutError:
                raise ServerUnavailable(key.server, supervisor.retry_after) from None

    def state(self, server: str) -> State | None:
        """The state of one server, None if there is no such server."""
        seat = self._seats.get(server)
        return None if seat is None else seat.current.state

    def status(self) -> list[ServerStatus]:
        """Every server, in the order of the config."""
        return [_status(seat) for seat in self._seats.values()]

    def changes(self) -> ChangeFeed:
        """A feed for one consumer, beginning with the links that are ready now; dropping it ends it."""
        feed = ChangeFeed()
        for seat in self._seats.values():
            feed.put(StateChanged(seat.current.server.id, seat.current.state))
            if seat.announced is not None:
                feed.put(LinkReady(seat.current.server.id, seat.current.key))
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
            log.error("links_unfinished", servers=[supervisor.server.id for supervisor in self._supervisors])

    # Config ----------------------------------------------------------------------------------------------------

    def _supervisor(self, server: Server) -> Supervisor:
        return Supervisor(server, self._ground, self._starts, self._moved, self._noticed)

    def _begin(self, supervisor: Supervisor) -> None:
        if self._tasks is None or self._closing.is_set() or not supervisor.runs:
            return
        self._supervisors.add(supervisor)
        supervisor.begin(self._tasks, lambda: self._supervisors.discard(supervisor))

    def _change(self, seat: _Seat, server: Server) -> None:
        newest = seat.incoming or seat.current
        if _same_link(newest.server, server):
            newest.update(server)
            return
        if seat.incoming is not None:
            seat.incoming.retire(0)
        follower = self._supervisor(server)
        seat.incoming = follower
        self._begin(follower)
        if not follower.runs or seat.current.link is None:
            self._swap(seat, 0 if not follower.runs else self._ground.limits.drain)
        elif self._tasks is not None:
            self._cancel_deadline(seat)
            loop = asyncio.get_running_loop()
            seat.deadline = loop.call_later(BESIDE_LIMIT, self._swap_late, seat, follower)

    def _swap_late(self, seat: _Seat, follower: Supervisor) -> None:
        if seat.incoming is follower:
            log.warning("server_replaced_early", server=follower.server.id, reason="the new one is not ready")
            self._swap(seat, self._ground.limits.drain)

    def _swap(self, seat: _Seat, drain: float) -> None:
        """The follower takes the seat; the old one drains."""
        old, follower = seat.current, seat.incoming
        assert follower is not None
        self._cancel_deadline(seat)
        seat.current, seat.incoming = follower, None
        log.info("server_replaced", server=follower.server.id, state=follower.state)
        self._publish_state(seat)
        old.retire(drain)
        old.turn()

    def _remove(self, name: str) -> None:
        seat = self._seats.pop(name)
        self._cancel_deadline(seat)
        for supervisor in (seat.current, seat.incoming):
            if supervisor is not None:
                supervisor.retire(0)
                supervisor.turn()
        if seat.announced is not None:
            self._publish(LinkGone(name, seat.current.key))
        self._publish(StateChanged(name, State.DISABLED, removed=True))
        self._ground.metrics.forget(name)

    def _retire_all(self) -> None:
        for seat in self._seats.values():
            self._cancel_deadline(seat)
        for supervisor in tuple(self._supervisors):
            supervisor.retire(0)

    def _cancel_deadline(self, seat: _Seat) -> None:
        if seat.deadline is not None:
            seat.deadline.cancel()
            seat.deadline = None

    def _supervisor_of(self, key: LinkKey) -> Supervisor:
        seat = self._seats.get(key.server)
        if seat is None or key.scope:
            raise ServerUnavailable(key.server)
        return seat.current

    # News of supervisors ---------------------------------------------------------------------------------------

    def _moved(self, supervisor: Supervisor) -> None:
        seat = self._seats.get(supervisor.server.id)
        if seat is None:
            return
        if supervisor is seat.incoming and (supervisor.ready is not None or supervisor.stumbled):
            self._swap(seat, self._ground.limits.drain)
        elif supervisor is seat.current:
            self._publish_state(seat)

    def _noticed(self, supervisor: Supervisor, what: Changed | Updated | None) -> None:
        seat = self._seats.get(supervisor.server.id)
        if seat is None or supervisor is not seat.current:
            return
        server, key = supervisor.server.id, supervisor.key
        match what:
            case Changed():
                self._publish(OfferChanged(server, key, what.what))
            case Updated():
                self._publish(ResourceUpdated(server, key, what.uri, what.params))
            case None:  # the session was made anew on the same link
                self._publish(LinkReady(server, key))

    def _publish_state(self, seat: _Seat) -> None:
        supervisor = seat.current
        server, link = supervisor.server.id, supervisor.link
        self._ground.metrics.server(server).links({supervisor.state: 1})
        if link is not seat.announced:
            seat.announced = link
            self._publish(LinkGone(server, supervisor.key) if link is None else LinkReady(server, supervisor.key))
        self._publish(StateChanged(server, supervisor.state))

    def _publish(self, change: LinkChange) -> None:
        for feed in self._feeds:
            feed.put(change)


def _same_link(old: Server, new: Server) -> bool:
    """Whether the link may stay as it is; title, timeout, concurrency, tags and tool rules don't touch it."""
    return (old.section, old.enabled, old.missing, old.reason) == (new.section, new.enabled, new.missing, new.reason)


def _status(seat: _Seat) -> ServerStatus:
    supervisor = seat.current
    server, link = supervisor.server, supervisor.link
    greeting = link.greeting if link is not None else None
    return ServerStatus(
        id=server.id,
        title=server.title or server.id,
        transport=server.transport,
        state=supervisor.state,
        reason=supervisor.reason,
        missing=server.missing,
        era=None if greeting is None else "legacy",
        revision=None if greeting is None else greeting.protocol_version,
        pid=None if link is None else link.pid,
        restarts=max(0, supervisor.attempts - 1),
        since=supervisor.since,
        in_flight=supervisor.bulkhead.taken,
    )
