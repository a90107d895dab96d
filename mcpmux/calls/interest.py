"""Who wants to hear what: resource subscriptions and log levels, counted over sessions.

The first session that wants a resource has it subscribed upstream, the last one that loses interest ends it. A
shared link runs at the lowest log level that any session wants. Both are asked for again whenever a link comes
back. What one server is told waits for nobody else's answers.
Source: MCP server/resources (subscriptions), server/utilities/logging; design section 3.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Iterable
from typing import Final

from msgspec import Raw

from mcpmux.credentials.scope import LinkKey
from mcpmux.errors import MuxError, ServerUnavailable
from mcpmux.links.changes import LinkReady, ResourceUpdated
from mcpmux.links.pool import Pool
from mcpmux.observe.log import logger
from mcpmux.protocol.envelope import encode, text
from mcpmux.protocol.events import Failure, Opening
from mcpmux.protocol.methods import LOG_LEVELS
from mcpmux.protocol.upstream.attribution import OURSELVES

_Resource = tuple[str, str]  # server, URI
_Order = tuple[str, dict[str, Raw]]  # method, params

_SUBSCRIBE: Final = "resources/subscribe"
_UNSUBSCRIBE: Final = "resources/unsubscribe"
_SET_LEVEL: Final = "logging/setLevel"

UPSTREAM_LIMIT: Final = 30.0
MAX_WANTED: Final = 1024


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
        self._told: dict[str, int] = {}
        self._orders: dict[str, deque[_Order]] = {}  # by server, while somebody is to carry them out
        self._due: asyncio.Queue[str] = asyncio.Queue()

    def heard(self, server: str, uri: str) -> bool:
        """Whether some session has this resource subscribed already."""
        return (server, uri) in self._wanted

    def add(self, session: str, server: str, uri: str) -> None:
        """This session wants to hear of the resource; it is subscribed upstream."""
        resource = (server, uri)
        if resource not in self._wanted and resource in self._given_up:
            # The server may have been told of the end of the former interest after it was asked for this one.
            self._order(server, _SUBSCRIBE, _uri(uri))
        self._wanted[resource].add(session)
        self._of[session].add(resource)

    def remove(self, session: str, server: str, uri: str) -> None:
        """This session does not want to hear of the resource any more."""
        resource = (server, uri)
        if resource not in self._of.get(session, ()):
            return
        self._of[session].discard(resource)
        self._wanted[resource].discard(session)
        if not self._wanted[resource]:
            del self._wanted[resource]
            self._order(server, _UNSUBSCRIBE, _uri(uri))

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

    def drop(self, session: str) -> None:
        """The session has ended."""
        for server, uri in list(self._of.get(session, ())):
            self.remove(session, server, uri)
        self._of.pop(session, None)
        self._tell_levels(self._unvote(session))

    async def updates(self) -> AsyncIterator[tuple[str, str, str]]:
        """(session, server, uri) for every subscribed resource that changed, once for each session that wants it."""
        async for change in self._pool.changes():
            match change:
                case ResourceUpdated(server, _, uri):
                    for session in self._listeners(server, uri):
                        yield session, server, uri
                case LinkReady(server, _):
                    self._renew(server)

    async def run(self) -> None:
        """Carry out what the servers are to be told, for each server in order, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                server = await self._due.get()
                tasks.create_task(self._carry_out(server), name=f"interest: {server}")

    def _listeners(self, server: str, uri: str) -> set[str]:
        # A server may name a part of what was subscribed (2025-11-25 server/resources: "sub-resource").
        return {
            session
            for (of, wanted), sessions in self._wanted.items()
            if of == server and (uri == wanted or uri.startswith(wanted.rstrip("/") + "/"))
            for session in sessions
        }

    def _renew(self, server: str) -> None:
        self._told.pop(server, None)
        for of, uri in list(self._wanted):
            if of == server:
                self._order(server, _SUBSCRIBE, _uri(uri))
        self._tell_levels((server,))

    def _unvote(self, session: str) -> frozenset[str]:
        """Take back what the session wanted of the log; the servers that it was about."""
        rank, servers = self._levels.pop(session, (0, frozenset()))
        for server in servers:
            votes = self._votes[server]
            votes[rank] -= 1
            if not votes[rank]:
                del votes[rank]
            if not votes:
                del self._votes[server]
        return servers

    def _tell_levels(self, servers: Iterable[str]) -> None:
        for server in servers:
            votes = self._votes.get(server)
            if votes and self._told.get(server) != (lowest := min(votes)):
                self._told[server] = lowest
                self._order(server, _SET_LEVEL, {"level": Raw(encode(LOG_LEVELS[lowest]))})

    # What servers are told -----------------------------------------------------------------------------------------

    def _order(self, server: str, method: str, params: dict[str, Raw]) -> None:
        orders = self._orders.get(server)
        if orders is None:
            orders = self._orders[server] = deque()
            self._due.put_nowait(server)
        orders.append((method, params))

    async def _carry_out(self, server: str) -> None:
        orders = self._orders.get(server)
        try:
            while orders:
                await self._tell(server, *orders.popleft())
        finally:
            self._orders.pop(server, None)

    async def _tell(self, server: str, method: str, params: dict[str, Raw]) -> None:
        try:
            async with asyncio.timeout(UPSTREAM_LIMIT):
                link = await self._pool.link(LinkKey(server, ""), UPSTREAM_LIMIT)
                if method == _UNSUBSCRIBE and not self._may_end((server, text(params["uri"]) or "")):
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
                self._told.pop(server, None)
            self._log.warning("interest_refused", server=server, method=method, cause=cause)

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
