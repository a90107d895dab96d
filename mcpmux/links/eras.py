"""Eras: which era each server was found to speak, from one run to the next, so that it is looked for once.

Owns the table `link_eras`. As with kept offers a row belongs to one server with one exact config section, by a keyed
digest. A row is believed for a week: a server may learn another era behind the same section. Without the database, or
without a row, the era is not known, and looking for it costs little; so nothing here fails.
"""

from __future__ import annotations

import asyncio
from typing import Final, Literal

from mcpmux.config.schema import Server
from mcpmux.errors import StoreUnavailable
from mcpmux.observe.log import logger
from mcpmux.protocol.revisions import LEGACY as LEGACY_REVISIONS
from mcpmux.seal import Keyring
from mcpmux.store.database import Database

Era = Literal["legacy", "modern"]
LEGACY: Final[Era] = "legacy"
MODERN: Final[Era] = "modern"

STORE_LIMIT: Final = 2.0  # seconds
KEPT_DAYS: Final = 7

log = logger("links")


def era_of(revision: str) -> Era:
    """The era of a revision that is spoken here."""
    return LEGACY if revision in LEGACY_REVISIONS else MODERN


class Eras:
    """What is known; without a database for as long as this lives."""

    __slots__ = ("_db", "_keyring", "_known")

    def __init__(self, db: Database | None = None, keyring: Keyring | None = None) -> None:
        self._db = db
        self._keyring = keyring
        self._known: dict[tuple[str, bytes], Era] = {}

    async def of(self, server: Server) -> Era | None:
        """The era that this server was last found to speak. Never fails, and takes `STORE_LIMIT` at most."""
        if server.transport == "sse":
            return LEGACY  # the transport of one revision
        known = self._known.get(_key(server))
        if known is not None or self._db is None or self._keyring is None:
            return known
        try:
            async with asyncio.timeout(STORE_LIMIT):
                kept = await _fetch(self._db, server.id, self._keyring.digest("era", server.section))
        except (StoreUnavailable, TimeoutError):
            return None
        if kept is not None:
            self._known[_key(server)] = kept
        return kept

    async def found(self, server: Server, era: Era) -> None:
        """The server has been greeted in this era."""
        if self._known.get(_key(server)) == era or server.transport == "sse":
            return
        self._known[_key(server)] = era
        log.info("era_found", server=server.id, era=era)
        await self._write(server, era)

    async def forget(self, server: Server) -> None:
        """What was known is not so any more."""
        if self._known.pop(_key(server), None) is not None:
            log.info("era_forgotten", server=server.id)
            await self._write(server, None)

    async def _write(self, server: Server, era: Era | None) -> None:
        if self._db is None or self._keyring is None:
            return
        digest = self._keyring.digest("era", server.section)
        try:
            async with asyncio.timeout(STORE_LIMIT):
                await (_drop(self._db, server.id, digest) if era is None else _keep(self._db, server.id, digest, era))
        except (StoreUnavailable, TimeoutError) as exc:
            log.warning("era_unkept", server=server.id, cause=str(exc))


def _key(server: Server) -> tuple[str, bytes]:
    return server.id, server.section


ERA = """
SELECT era FROM link_eras
WHERE server_id = $1 AND digest = $2 AND kept_at > now() - make_interval(days => $3)
"""


async def _fetch(db: Database, server: str, digest: bytes) -> Era | None:
    found = await db.fetchval(ERA, server, digest, KEPT_DAYS)
    if found == LEGACY:
        return LEGACY
    return MODERN if found == MODERN else None


KEEP_ERA = """
WITH old AS (
    DELETE FROM link_eras
    WHERE server_id = $1 AND digest <> $2 AND kept_at < now() - make_interval(days => $4)
)
INSERT INTO link_eras (server_id, digest, era) VALUES ($1, $2, $3)
ON CONFLICT (server_id, digest) DO UPDATE SET era = excluded.era, kept_at = now()
"""


async def _keep(db: Database, server: str, digest: bytes, era: Era) -> None:
    await db.execute(KEEP_ERA, server, digest, era, KEPT_DAYS)


DROP_ERA = "DELETE FROM link_eras WHERE server_id = $1 AND digest = $2"


async def _drop(db: Database, server: str, digest: bytes) -> None:
    await db.execute(DROP_ERA, server, digest)
