"""Who wants to hear what: resource subscriptions and log levels, counted over sessions.

The first session that wants a resource has it subscribed upstream, the last one that loses interest ends it. A
shared link runs at the lowest log level that any session wants. Both are asked for again whenever a link comes
back.
Source: MCP server/resources (subscriptions), server/utilities/logging; design section 3.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from typing import Final

from msgspec import Raw

from mcpmux.credentials.scope import LinkKey
from mcpmux.errors import MuxError
from mcpmux.links.changes import LinkReady, ResourceUpdated
from mcpmux.links.pool import Pool
from mcpmux.observe.log import logger
from mcpmux.protocol.envelope import encode
from mcpmux.protocol.events import Opening
from mcpmux.protocol.methods import LOG_LEVELS
from mcpmux.protocol.upstream.attribution import OURSELVES

UPSTREAM_LIMIT: Final = 30.0
MAX_WANTED: Final = 1024


class Interest:
    """The tables of who wants what, and the loop that tells the servers."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._log = logger("calls")
        self._wanted: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self._levels: dict[str, tuple[int, frozenset[str]]] = {}
        self._told: dict[str, int] = {}
        self._orders: asyncio.Queue[tuple[str, str, dict[str, Raw]]] = asyncio.Queue()

    def heard(self, server: str, uri: str) -> bool:
        """Whether some session has this resource subscribed already."""
        return (server, uri) in self._wanted

    def add(self, session: str, server: str, uri: str) -> None:
        """This session wants to hear of the resource; it is subscribed upstream."""
        self._wanted[server, uri].add(session)

    def remove(self, session: str, server: str, uri: str) -> None:
        """This session does not want to hear of the resource any more."""
        sessions = self._wanted.get((server, uri))
        if sessions is None or session not in sessions:
            return
        sessions.discard(session)
        if not sessions:
            del self._wanted[server, uri]
            self._order(server, "resources/unsubscribe", {"uri": Raw(encode(uri))})

    def count(self, session: str) -> int:
        """How many resources one session has subscribed."""
        return sum(session in sessions for sessions in self._wanted.values())

    def set_level(self, session: str, level: str, servers: Iterable[str]) -> None:
        """This session wants log messages from `level` on, of these servers."""
        self._levels[session] = (LOG_LEVELS.index(level), frozenset(servers))
        self._tell_levels()

    def drop(self, session: str) -> None:
        """The session has ended."""
        for server, uri in [key for key, sessions in self._wanted.items() if session in sessions]:
            self.remove(session, server, uri)
        if self._levels.pop(session, None) is not None:
            self._tell_levels()

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
        """Carry out what the servers are to be told, one after the other."""
        while True:
            server, method, params = await self._orders.get()
            await self._tell(server, method, params)

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
                self._order(server, "resources/subscribe", {"uri": Raw(encode(uri))})
        self._tell_levels()

    def _tell_levels(self) -> None:
        lowest: dict[str, int] = {}
        for level, servers in self._levels.values():
            for server in servers:
                lowest[server] = min(level, lowest.get(server, level))
        for server, level in lowest.items():
            if self._told.get(server) != level:
                self._told[server] = level
                self._order(server, "logging/setLevel", {"level": Raw(encode(LOG_LEVELS[level]))})

    def _order(self, server: str, method: str, params: dict[str, Raw]) -> None:
        self._orders.put_nowait((server, method, params))

    async def _tell(self, server: str, method: str, params: dict[str, Raw]) -> None:
        link = self._pool.ready(LinkKey(server, ""))
        if link is None:
            return
        try:
            exchange = link.open(Opening(method, params, OURSELVES))
            try:
                async with asyncio.timeout(UPSTREAM_LIMIT):
                    await exchange.next()
            finally:
                exchange.cancel("not waited for any longer")
        except (MuxError, TimeoutError) as exc:
            self._log.warning("interest_refused", server=server, method=method, cause=str(exc))
