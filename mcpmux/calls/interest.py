"""Who wants to hear what: resource subscriptions and log levels, counted over sessions.

The first session that wants a resource has it subscribed upstream, the last one that loses interest ends it. A link
that everybody's calls go through runs at the lowest log level that any session wants, a session's own at that
session's. Both are asked for again whenever a link comes back. What one link is told waits for nobody else's answers.

A call of the modern era says its log level itself, and an older server has to be told before it gets the call. Such a
call counts like a session for as long as it lives and a while longer (`LINGERING`): a chat makes one after the other.

A resource is wanted at an address, the `LinkKey` that the session's calls go to: what a session's own link says of it
is that session's alone.
Source: MCP server/resources (subscriptions), server/utilities/logging; design section 3.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sized
from typing import Final

from msgspec import Raw, Struct

from mcpmux.credentials.scope import LinkKey
from mcpmux.errors import MuxError, ServerUnavailable
from mcpmux.links.changes import LinkGone, LinkReady, ResourceUpdated
from mcpmux.links.link import Link
from mcpmux.links.pool import Pool
from mcpmux.observe.log import logger
from mcpmux.protocol.envelope import encode, text
from mcpmux.protocol.events import Failure, Opening
from mcpmux.protocol.methods import LOG_LEVELS
from mcpmux.protocol.upstream.attribution import OURSELVES

_Resource = tuple[LinkKey, str]  # where, URI
_Order = tuple[str, dict[str, Raw]]  # method, params
_Vote = tuple[str, int]  # server, rank of the level

_SUBSCRIBE: Final = "resources/subscribe"
_UNSUBSCRIBE: Final = "resources/unsubscribe"
_SET_LEVEL: Final = "logging/setLevel"

UPSTREAM_LIMIT: Final = 30.0
LEVEL_WAIT: Final = 2.0  # seconds that a call waits at most until its server knows what it wants to hear
LINGERING: Final = 60.0  # seconds
MAX_WANTED: Final = 1024


class _Orders(deque[_Order]):
    """What one link is to be told; `done` when it has been."""

    def __init__(self) -> None:
        super().__init__()
        self.done = asyncio.Event()


class _Passing(Struct):
    """The calls that vote for one level of one server; without any, it counts `until` then."""

    calls: set[str]
    until: float = 0.0


class Interest:
    """The tables of who wants what, and the tasks that tell the servers."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._log = logger("calls")
        self._wanted: defaultdict[_Resource, set[str]] = defaultdict(set)
        self._of: defaultdict[str, set[_Resource]] = defaultdict(set)  # by session
        self._given_up: dict[_Resource, float] = {}  # when its server was told that nobody wants it, oldest first
        self._levels: dict[str, tuple[int, frozenset[str]]] = {}  # by session
        self._votes: defaultdict[str, Counter[int]] = defaultdict(Counter)  # by server: how many want which level
        self._told: dict[LinkKey, int] = {}
        self._passing: dict[_Vote, _Passing] = {}
        self._voted: dict[str, _Vote] = {}  # by call
        self._deaf: set[LinkKey] = set()  # links that no call waits for any more until they have been told
        self._orders: dict[LinkKey, _Orders] = {}  # by address, while somebody is to carry them out
        self._due: asyncio.Queue[LinkKey] = asyncio.Queue()

    def heard(self, key: LinkKey, uri: str) -> bool:
        """Whether some session has this resource subscribed there already."""
        return (key, uri) in self._wanted

    def add(self, session: str, key: LinkKey, uri: str) -> None:
        """This session wants to hear of the resource; it is subscribed upstream."""
        resource = (key, uri)
        if resource not in self._wanted and resource in self._given_up:
            # The server may have been told of the end of the former interest after it was asked for this one.
            self._order(key, _SUBSCRIBE, _uri(uri))
        self._wanted[resource].add(session)
        self._of[session].add(resource)
        self._pool.keep(key)

    def remove(self, session: str, key: LinkKey, uri: str) -> None:
        """This session does not want to hear of the resource any more."""
        resource = (key, uri)
        if resource not in self._of.get(session, ()):
            return
        self._of[session].discard(resource)
        self._wanted[resource].discard(session)
        if not self._wanted[resource]:
            del self._wanted[resource]
            self._order(key, _UNSUBSCRIBE, _uri(uri))
        if not any(of == key for of, _ in self._of[session]):
            self._pool.let_go(key)

    def given_up(self, key: LinkKey, uri: str) -> None:
        """A subscription was given up before its server answered, which may have agreed: nobody wants it for that."""
        if (key, uri) not in self._wanted:
            self._order(key, _UNSUBSCRIBE, _uri(uri))

    @property
    def leftovers(self) -> int:
        """How many entries all tables hold together, but for what is known of the servers; for tests."""
        tables: tuple[Sized, ...] = (
            self._wanted, self._of, self._levels, self._votes, self._passing, self._voted, self._orders
        )  # fmt: skip
        return sum(len(table) for table in tables)

    def count(self, session: str) -> int:
        """How many resources one session has subscribed."""
        return len(self._of.get(session, ()))

    def set_level(self, session: str, level: str, servers: Iterable[str]) -> None:
        """This session wants log messages from `level` on, of these servers."""
        former = self._unvote(session)
        rank, chosen = self._levels[session] = (LOG_LEVELS.index(level), frozenset(servers))
        for server in chosen:
            self._votes[server][rank] += 1
        self._tell_levels(former | chosen)
        for server in chosen:
            self._tell_own_level(LinkKey(server, session))

    def level(self, session: str) -> str | None:
        """From which level on this session wants log messages; None if it has not said."""
        found = self._levels.get(session)
        return None if found is None else LOG_LEVELS[found[0]]

    async def attuned(self, call: str, level: str, link: Link, another: Callable[[], Awaitable[Link]]) -> Link:
        """The link of a call without a session, once its server says all from `level` on.

        `another` gives the link for it anew, should that take a while. Raises: what `another` does.
        """
        end = time.monotonic() + LEVEL_WAIT
        told: set[LinkKey] = set()
        while link.key not in told and (orders := self.hear(call, level, link)) is not None:
            told.add(link.key)
            try:
                async with asyncio.timeout(end - time.monotonic()):
                    await orders.done.wait()
            except TimeoutError:
                self._deaf.add(link.key)
            link = await another()
        return link

    def hear(self, call: str, level: str, link: Link) -> _Orders | None:
        """Let it count what a call without a session wants; what its link has to be told first, if it is to wait."""
        key, rank = link.key, LOG_LEVELS.index(level)
        if not link.serves(_SET_LEVEL):
            return None
        if key not in self._pool.common(key.server):
            self._tell_level(key, rank)
        elif call not in self._voted:
            vote = self._voted[call] = key.server, rank
            if vote not in self._passing:
                self._passing[vote] = _Passing(set())
                self._votes[key.server][rank] += 1
            self._passing[vote].calls.add(call)
            self._tell_levels((key.server,))
        return None if key in self._deaf else self._orders.get(key)

    def let_go(self, call: str) -> None:
        """The call has ended."""
        vote = self._voted.pop(call, None)
        if vote is not None:
            passing = self._passing[vote]
            passing.calls.discard(call)
            passing.until = time.monotonic() + LINGERING

    def sweep(self, now: float) -> None:
        """Forget what calls wanted that ended long ago."""
        for vote, passing in tuple(self._passing.items()):
            if not passing.calls and passing.until <= now:
                del self._passing[vote]
                self._take_back(*vote)
                self._tell_levels((vote[0],))

    def drop(self, session: str) -> None:
        """The session has ended."""
        for key, uri in list(self._of.get(session, ())):
            self.remove(session, key, uri)
        self._of.pop(session, None)
        silenced = self._unvote(session)
        for server in silenced:
            self._told.pop(LinkKey(server, session), None)
        self._tell_levels(silenced)

    async def updates(self) -> AsyncIterator[tuple[str, str, str]]:
        """(session, server, uri) for every subscribed resource that changed, once for each session that wants it."""
        async for change in self._pool.changes():
            match change:
                case ResourceUpdated(server, key, uri):
                    for session in self._listeners(key, uri):
                        yield session, server, uri
                case LinkReady(_, key):
                    self._renew(key)
                case LinkGone(_, key):
                    self._told.pop(key, None)
                    self._deaf.discard(key)

    async def run(self) -> None:
        """Carry out what the servers are to be told, for each link in order, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                key = await self._due.get()
                tasks.create_task(self._carry_out(key), name=f"interest: {key.server}")

    def _listeners(self, key: LinkKey, uri: str) -> set[str]:
        # A server may name a part of what was subscribed (2025-11-25 server/resources: "sub-resource").
        return {
            session
            for (of, wanted), sessions in self._wanted.items()
            if of == key and (uri == wanted or uri.startswith(wanted.rstrip("/") + "/"))
            for session in sessions
        }

    def _renew(self, key: LinkKey) -> None:
        self._told.pop(key, None)
        self._deaf.discard(key)
        for of, uri in list(self._wanted):
            if of == key:
                self._pool.keep(key)
                self._order(key, _SUBSCRIBE, _uri(uri))
        self._tell_levels((key.server,))
        self._tell_own_level(key)

    def _unvote(self, session: str) -> frozenset[str]:
        """Take back what the session wanted of the log; the servers that it was about."""
        rank, servers = self._levels.pop(session, (0, frozenset()))
        for server in servers:
            self._take_back(server, rank)
        return servers

    def _take_back(self, server: str, rank: int) -> None:
        votes = self._votes[server]
        votes[rank] -= 1
        if not votes[rank]:
            del votes[rank]
        if not votes:
            del self._votes[server]

    def _tell_levels(self, servers: Iterable[str]) -> None:
        for server in servers:
            if votes := self._votes.get(server):
                for key in self._pool.common(server):
                    self._tell_level(key, min(votes))

    def _tell_own_level(self, key: LinkKey) -> None:
        """Tell a link that is one session's alone, if it lives, what that session wants."""
        rank, servers = self._levels.get(key.scope, (0, frozenset()))
        if key.server in servers and self._pool.lives(key):
            self._tell_level(key, rank)

    def _tell_level(self, key: LinkKey, rank: int) -> None:
        if self._told.get(key) != rank:
            self._told[key] = rank
            self._order(key, _SET_LEVEL, {"level": Raw(encode(LOG_LEVELS[rank]))})

    # What servers are told -----------------------------------------------------------------------------------------

    def _order(self, key: LinkKey, method: str, params: dict[str, Raw]) -> None:
        orders = self._orders.get(key)
        if orders is None:
            orders = self._orders[key] = _Orders()
            self._due.put_nowait(key)
        orders.append((method, params))

    async def _carry_out(self, key: LinkKey) -> None:
        orders = self._orders.get(key)
        if orders is None:
            return
        try:
            while orders:
                await self._tell(key, *orders.popleft())
        finally:
            del self._orders[key]
            orders.done.set()

    async def _tell(self, key: LinkKey, method: str, params: dict[str, Raw]) -> None:
        if key.scope and not self._pool.lives(key):
            return  # it is told when it is there (again); nobody's own link is started for that
        try:
            async with asyncio.timeout(UPSTREAM_LIMIT):
                link = await self._pool.link(self._pool.lasting(key), UPSTREAM_LIMIT)
                if method == _UNSUBSCRIBE and not self._may_end((key, text(params["uri"]) or "")):
                    return
                exchange = link.open(Opening(method, params, OURSELVES))
                try:
                    event = await exchange.next()
                finally:
                    exchange.cancel("not waited for any longer")
            # A server without logging says so each time; that is nothing to look at.
            cause = event.message if isinstance(event, Failure) and method != _SET_LEVEL else None
        except ServerUnavailable:
            return  # it is told when its link is back
        except (MuxError, TimeoutError) as exc:
            cause = str(exc)
        if cause is not None:
            if method == _SET_LEVEL:
                self._told.pop(key, None)
            self._log.warning("interest_refused", server=key.server, method=method, cause=cause)

    def _may_end(self, resource: _Resource) -> bool:
        """Whether still nobody wants the resource, just before its server is told so."""
        if resource in self._wanted:
            return False
        now = time.monotonic()
        self._given_up.pop(resource, None)
        self._given_up[resource] = now
        while (oldest := next(iter(self._given_up))) and now - self._given_up[oldest] > UPSTREAM_LIMIT:
            del self._given_up[oldest]
        return True


def _uri(uri: str) -> dict[str, Raw]:
    return {"uri": Raw(encode(uri))}
