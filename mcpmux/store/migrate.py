"""Migrations: brings a database to the schema that this mcpmux was written for.

The files `migrations/NNNN_what.sql` are applied in order, each in a transaction of its own together with its record
in `schema_migrations`. An advisory lock lets one process at a time do it. They only go forward, and a file that was
ever released is never changed: its checksum is compared at every start. A database that a later release has
migrated is fine: a release must run on what its successor made of the schema, or replicas could not be upgraded one
after the other.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

from mcpmux.errors import MigrationFailed, MuxError, StoreUnavailable
from mcpmux.observe.log import logger
from mcpmux.store.database import Connection, Database

log = logger("store")

FOLDER: Final = Path(__file__).parent / "migrations"
LOCK: Final = 0x6D63706D7578  # "mcpmux"
LOCK_SECONDS: Final = 120

_FILE: Final = re.compile(r"(\d{4})_[a-z0-9_]+")


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its number, its name without `.sql`, its text and the SHA-256 of that in hexadecimal."""

    version: int
    name: str
    sql: str
    checksum: str


def migrations(folder: Path = FOLDER) -> list[Migration]:
    """Read the migrations that come with this mcpmux, in order.

    Raises: MigrationFailed when a name or the numbering is wrong.
    """
    found = []
    for number, path in enumerate(sorted(folder.glob("*.sql")), start=1):
        match = _FILE.fullmatch(path.stem)
        if match is None or int(match[1]) != number:
            raise MigrationFailed(f"{path.name} should be number {number:04}")
        sql = path.read_text("utf-8")
        found.append(Migration(number, path.stem, sql, hashlib.sha256(sql.encode()).hexdigest()))
    return found


def pending(known: list[Migration], applied: Mapping[int, str]) -> list[Migration]:
    """Say which migrations are to be applied, where `applied` has the checksums by version.

    Raises: MigrationFailed when the database has a gap, or was made by other files.
    """
    for migration in known[: max(applied, default=0)]:
        if migration.version not in applied:
            raise MigrationFailed(f"{migration.name} was left out when later ones were applied")
        if applied[migration.version] != migration.checksum:
            raise MigrationFailed(f"{migration.name} is not the file that was applied to this database")
    return known[max(applied, default=0) :]


async def migrate(db: Database, known: list[Migration] | None = None) -> list[str]:
    """Apply what is missing and give the names of what was applied, in order.

    Raises: MigrationFailed, StoreUnavailable.
    """
    if known is None:
        known = migrations()
    async with db.alone() as connection:
        await _lock(connection)
        # The lock ends with the connection.
        applied = await _applied(connection)
        todo = pending(known, applied)
        if (newest := max(applied, default=0)) > len(known):
            log.warning("database_newer", version=newest, known=len(known))
        for migration in todo:
            await _apply(connection, migration)
    return [migration.name for migration in todo]


LIMIT_WAIT = "SELECT set_config('lock_timeout', $1, false)"
TAKE_LOCK = "SELECT pg_advisory_lock($1)"


async def _lock(connection: Connection) -> None:
    await connection.execute(LIMIT_WAIT, f"{LOCK_SECONDS}s")
    try:
        await connection.execute(TAKE_LOCK, LOCK)
    except StoreUnavailable as exc:
        if isinstance(exc.__cause__, asyncpg.LockNotAvailableError):
            raise MigrationFailed(f"another process has held the migration lock for {LOCK_SECONDS} s") from exc
        raise


HAS_RECORDS = "SELECT to_regclass('schema_migrations') IS NOT NULL"
MAKE_RECORDS = """
CREATE TABLE schema_migrations (
    version integer NOT NULL,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT schema_migrations_pkey PRIMARY KEY (version)
)"""
APPLIED = "SELECT version, checksum FROM schema_migrations"


async def _applied(connection: Connection) -> dict[int, str]:
    # Asked first, so that a user without the right to create tables can run on a database that is up to date.
    if not await connection.fetchval(HAS_RECORDS):
        await connection.execute(MAKE_RECORDS)
    return {int(row["version"]): str(row["checksum"]) for row in await connection.fetch(APPLIED)}


RECORD = "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)"


async def _apply(connection: Connection, migration: Migration) -> None:
    try:
        async with connection.transaction():
            await connection.execute(migration.sql)
            await connection.execute(RECORD, migration.version, migration.name, migration.checksum)
    except MuxError as exc:
        cause = f": {exc.__cause__}" if exc.__cause__ is not None else ""
        raise MigrationFailed(f"{migration.name} did not apply{cause}") from exc
    log.info("migration_applied", version=migration.version, name=migration.name)
