"""Grants from PostgreSQL, kept in memory for as long as they are surely right.

Owns the reading of the four grant tables and the memory of it. What a grant means is `decision.py`'s, writing is
`rows.py`'s. One query reads one principal's grants (by e-mail if it is trusted, and by groups); they are remembered
by `Principal.rights`, the least recently used given up first, and however many calls ask at once, one reads.

How they stay right. Triggers on the tables notify `grants_changed`, whoever changed them. On it, everything remembered
is void at once (the generation goes up), then those that were remembered are read anew a hundred at a time, then
whoever waits on `changes()` wakes: all within a fraction of a second. What was read while the generation changed is
read again. Notifications can get lost (a connection that died silently, a pooler in between), so every 10 s a digest
of the tables is compared with that of the last reading; after every new connection everything is void anyway.

PostgreSQL away. What is remembered goes on for 60 s from the last moment at which it was known to be right, so that a
restart of the database is not an outage of the gateway. After that, and at once for whoever is not remembered, there
are no grants: StoreUnavailable, and access is denied. A failed reading is not tried again for a second, or each of a
thousand calls would wait for the same time-out in turn. `MCP-Admin` is in the token and in no table: it needs no
database.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Sequence
from functools import lru_cache
from typing import Final

from mcpmux.access.decision import ADMIN_GROUP, ALL_TOOLS, RANK, Grant, GrantSet
from mcpmux.errors import StoreUnavailable
from mcpmux.identity.principal import Principal
from mcpmux.observe.fence import fenced
from mcpmux.observe.log import logger
from mcpmux.observe.metrics import Metrics
from mcpmux.store.database import Database, Row

log = logger("access")

CHANNEL: Final = "grants_changed"
MOST_PRINCIPALS: Final = 20_000
STALE_AFTER: Final = 60.0  # seconds without any word from PostgreSQL
CHECK_EVERY: Final = 10.0  # seconds
RETRY_AFTER: Final = 1.0  # seconds
AT_ONCE: Final = 100  # principals read in one query after a change
PAUSE: Final = 0.1  # seconds between two readings of everything, for tables that change row by row

ADMINISTRATOR: Final = GrantSet.made(
    (), Grant("*", "*", "admin", ALL_TOOLS, f"the built-in group {ADMIN_GROUP}, which needs no row")
)
_NO_GRANTS: Final = GrantSet.made(())
_FOR_EVER: Final = -1  # the generation of what no table has


class Grants:
    """The grants of every principal."""

    __slots__ = (
        "_changed", "_check_every", "_db", "_digest", "_down_until", "_generation", "_metrics", "_remembered",
        "_right_at", "_stale_after", "_waiting",
    )  # fmt: skip

    def __init__(
        self, db: Database, metrics: Metrics, *, stale_after: float = STALE_AFTER, check_every: float = CHECK_EVERY
    ) -> None:
        self._db = db
        self._metrics = metrics
        self._stale_after = stale_after
        self._check_every = check_every
        self._remembered: OrderedDict[str, _Remembered] = OrderedDict()
        self._generation = 0
        self._digest: str | None = None
        self._right_at = float("-inf")  # when all that is remembered was last known to be right
        self._down_until = float("-inf")
        self._changed = asyncio.Event()
        self._waiting: set[asyncio.Event] = set()

    def cached(self, principal: Principal) -> GrantSet | None:
        """The principal's grants if they are remembered and surely right."""
        rights = principal.rights
        entry = self._remembered.get(rights)
        if entry is None or entry.grants is None:
            return None
        generation = entry.generation
        if generation != _FOR_EVER:
            if generation != self._generation:
                return None
            lately = time.monotonic() - self._stale_after
            if entry.read_at < lately and self._right_at < lately:
                return None
        self._remembered.move_to_end(rights)
        return entry.grants

    async def of(self, principal: Principal) -> GrantSet:
        """The principal's grants.

        Raises: StoreUnavailable.
        """
        if (known := self.cached(principal)) is not None:
            return known
        entry = self._entry(principal)
        async with entry.reading:
            # Whoever had the lock before may have read what we came for.
            return self.cached(principal) or await self._read(entry)

    async def changes(self) -> AsyncIterator[None]:
        """Iterate over the moments after which grants may be different; for one reader, several changes become one.

        The first comes at once: a reader who begins, or begins again, has missed what was before.
        """
        wake = asyncio.Event()
        wake.set()
        self._waiting.add(wake)
        try:
            while True:
                await wake.wait()
                wake.clear()
                yield None
        finally:
            self._waiting.discard(wake)

    async def run(self) -> None:
        """Hear of changes, until cancelled."""
        loops = {"grants listen": self._listen, "grants reread": self._reread, "grants check": self._check}
        async with asyncio.TaskGroup() as tasks:
            for name, loop in loops.items():
                tasks.create_task(fenced(name, loop, self._metrics), name=name)

    # Reading ---------------------------------------------------------------------------------------------------

    def _entry(self, principal: Principal) -> _Remembered:
        if (entry := self._remembered.get(principal.rights)) is None:
            entry = self._remembered[principal.rights] = _Remembered(principal)
            if len(self._remembered) > MOST_PRINCIPALS:
                self._remembered.popitem(last=False)
        return entry

    async def _read(self, entry: _Remembered) -> GrantSet:
        """Read until nothing has changed meanwhile; tables that change all the time are believed as last read."""
        grants = _NO_GRANTS
        for _ in range(3):
            generation, started = self._generation, time.monotonic()
            (grants,) = await self._fetch([entry])
            if generation == self._generation:
                entry.remember(grants, generation, started)
                break
        return grants

    async def _fetch(self, entries: Sequence[_Remembered]) -> list[GrantSet]:
        if time.monotonic() < self._down_until:
            raise StoreUnavailable("grants could not be read a moment ago")
        try:
            made = await read_grants(self._db, [(entry.email, entry.groups) for entry in entries])
        except StoreUnavailable:
            self._down_until = time.monotonic() + RETRY_AFTER
            self._metrics.store_up(False)
            raise
        self._metrics.store_up(True)
        return made

    # Staying right ---------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        async for _ in self._db.listen(CHANNEL):
            self._void()

    def _void(self) -> None:
        self._generation += 1
        self._down_until = float("-inf")
        self._changed.set()

    async def _reread(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            started = time.monotonic()
            try:
                principals = await self._renew()
            except StoreUnavailable as error:
                self._metrics.store_up(False)
                log.warning("grants_unread", reason=error.reason, problem=str(error))
            else:
                took = round((time.monotonic() - started) * 1000, 1)
                log.info("grants_changed", principals=principals, duration_ms=took)
            self._metrics.grants_reloaded()
            for wake in self._waiting:
                wake.set()
            await asyncio.sleep(PAUSE)

    async def _renew(self) -> int:
        """Read anew what is remembered; how many principals that is."""
        self._digest = str(await self._db.fetchval(GRANTS_DIGEST))
        # Again, so that nothing is remembered which is older than the digest.
        self._generation += 1
        generation, started = self._generation, time.monotonic()
        entries = [entry for entry in self._remembered.values() if entry.generation != _FOR_EVER]
        for first in range(0, len(entries), AT_ONCE):
            some = entries[first : first + AT_ONCE]
            made = await self._fetch(some)
            if generation != self._generation:
                break  # changed once more: we are called again
            for entry, grants in zip(some, made, strict=True):
                entry.remember(grants, generation, started)
        return len(entries)

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(self._check_every)
            generation, started = self._generation, time.monotonic()
            try:
                digest = str(await self._db.fetchval(GRANTS_DIGEST))
            except StoreUnavailable:
                self._metrics.store_up(False)
                continue
            self._metrics.store_up(True)
            if generation != self._generation:
                continue
            if digest == self._digest:
                self._right_at = started
            else:
                log.warning("grants_unheard", first=self._digest is None)
                self._void()


class _Remembered:
    """What is known of one principal; `grants` is None until it was read."""

    __slots__ = ("email", "generation", "grants", "groups", "read_at", "reading")

    def __init__(self, principal: Principal) -> None:
        self.email = principal.email
        self.groups = principal.groups
        self.reading = asyncio.Lock()
        self.grants: GrantSet | None = None
        self.generation = 0
        self.read_at = float("-inf")
        if ADMIN_GROUP in principal.groups:
            self.remember(ADMINISTRATOR, _FOR_EVER, 0.0)

    def remember(self, grants: GrantSet, generation: int, read_at: float) -> None:
        self.grants, self.generation, self.read_at = grants, generation, read_at


# The tables ----------------------------------------------------------------------------------------------------

GRANTS = """
SELECT granted.kind, granted.name, granted.tenant_id, granted.access_level, has.server_id, has.tools
FROM (
    SELECT 'user' AS kind, user_email AS name, tenant_id, access_level
    FROM user_tenant_access WHERE user_email = ANY($1::text[])
    UNION ALL
    SELECT 'group', group_name, tenant_id, access_level
    FROM group_tenant_mapping WHERE group_name = ANY($2::text[])
) AS granted
LEFT JOIN tenant_servers AS has ON has.tenant_id = granted.tenant_id
"""


async def read_grants(db: Database, who: Sequence[tuple[str | None, Sequence[str]]]) -> list[GrantSet]:
    """The grants of these (trusted e-mail or None, groups), in their order, in one query.

    Raises: StoreUnavailable.
    """
    emails = {email for email, groups in who if email is not None and ADMIN_GROUP not in groups}
    names = {group for _, groups in who if ADMIN_GROUP not in groups for group in groups}
    rows: list[Row] = []
    if emails or names:
        rows = await db.fetch(GRANTS, sorted(filter(_storable, emails)), sorted(filter(_storable, names)))
    by_holder = _by_holder(rows)
    return [_set_of(by_holder, email, groups) for email, groups in who]


# `r::text` quotes what it has to, so two different rows never read alike; a sum does not depend on the order.
GRANTS_DIGEST = """
SELECT concat_ws(' ',
    (SELECT count(*) || ':' || coalesce(sum(hashtextextended(r::text, 0)), 0) FROM user_tenant_access AS r),
    (SELECT count(*) || ':' || coalesce(sum(hashtextextended(r::text, 0)), 0) FROM group_tenant_mapping AS r),
    (SELECT count(*) || ':' || coalesce(sum(hashtextextended(r::text, 0)), 0) FROM tenant_servers AS r))
"""


def _storable(text: str) -> bool:
    """Whether a column of PostgreSQL could hold it; asking for what none can hold would be an error."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


_Holder = tuple[str, str]  # ("user", e-mail) or ("group", name)


def _by_holder(rows: Iterable[Row]) -> dict[_Holder, list[Grant]]:
    grants: dict[_Holder, list[Grant]] = {}
    own: dict[tuple[str, str, str], tuple[Grant, bool]] = {}
    for row in rows:
        kind, name, tenant, level, server = (
            row[key] for key in ("kind", "name", "tenant_id", "access_level", "server_id")
        )
        if level not in RANK or tenant == "*":
            continue
        via = f"{kind} {name}"
        implied, explicit = own.get((kind, name, tenant), (Grant(tenant, tenant, level, ALL_TOOLS, via), False))
        own[kind, name, tenant] = (implied, explicit or server == tenant)
        if server is not None and server != "*":
            grants.setdefault((kind, name), []).append(Grant(tenant, server, level, _patterns(row["tools"]), via))
    for (kind, name, _), (implied, explicit) in own.items():
        if not explicit:
            grants.setdefault((kind, name), []).append(implied)
    return grants


def _patterns(tools: Iterable[str | None]) -> tuple[str, ...]:
    patterns = sorted({pattern for pattern in tools if pattern})
    return ALL_TOOLS if "*" in patterns else tuple(patterns)


def _set_of(by_holder: dict[_Holder, list[Grant]], email: str | None, groups: Sequence[str]) -> GrantSet:
    if ADMIN_GROUP in groups:
        return ADMINISTRATOR
    found: list[Grant] = []
    if email is not None:
        found += by_holder.get(("user", email), ())
    for group in groups:
        found += by_holder.get(("group", group), ())
    return _made(tuple(found)) if found else _NO_GRANTS


@lru_cache(maxsize=4096)
def _made(grants: tuple[Grant, ...]) -> GrantSet:
    """One set in memory for all who are in the same groups."""
    return GrantSet.made(grants)
