"""opened(): the database of a data directory, yours or the embedded one, migrated and ready for use.

Two locks (flock, which the kernel frees however a process ends) order who does what with a data directory:

    <data_dir>/lock         who serves it, or runs its embedded PostgreSQL: one process
    <data_dir>/lock.users   held together by commands that use another process' PostgreSQL; a command that runs it
                            takes this lock alone before it shuts down, so that nobody's connection is cut

`serve` waits for the first lock. A command takes it if it is free and runs PostgreSQL for as long as it works;
otherwise it connects to the one that is running.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from mcpmux.errors import DataDirBusy, StoreUnavailable
from mcpmux.guardian import Guardian
from mcpmux.observe.log import logger
from mcpmux.seal import Secret
from mcpmux.store import place as places
from mcpmux.store.cluster import dsn_of, running
from mcpmux.store.database import Database
from mcpmux.store.migrate import migrate

log = logger("store")

TRY_SECONDS: Final = 0.1
"""Pause between two attempts at a lock: there is no way to wait for one that can be cancelled."""

LINGER_SECONDS: Final = 10.0
"""How long a command that runs PostgreSQL waits for others that use it."""


@asynccontextmanager
async def opened(
    url: Secret | None, data_dir: Path, guardian: Guardian | None, *, wait: float, exclusive: bool = False,
    locked: Callable[[], object] | None = None,
) -> AsyncIterator[Database]:  # fmt: skip
    """Give the database at `url`, or for None the embedded one of `data_dir`, migrated.

    `exclusive` is for `serve`: it keeps the data directory for itself, whichever database it uses. `wait` is how many
    seconds a process may take that has the data directory now; `locked` is called when we have it, before anything is
    started. Without a guardian one is started if needed.
    Raises: DataDirBusy, StoreUnavailable, MigrationFailed.
    """
    if url is not None and not exclusive:
        async with _migrated(url.reveal()) as db:
            yield db
        return
    real = places.make_data_dir(data_dir)
    async with AsyncExitStack() as stack:
        lock = await _lock_or_live(stack, real, wait, exclusive)
        if isinstance(lock, Database):
            db = lock
        else:
            stack.callback(os.close, lock)
            if locked is not None:
                locked()
            db = await stack.enter_async_context(
                _migrated(url.reveal()) if url is not None else _own(real, guardian, exclusive)
            )
        yield db


async def _lock_or_live(stack: AsyncExitStack, data_dir: Path, wait: float, exclusive: bool) -> int | Database:
    """Take the lock (gives its descriptor), or for a command connect to the PostgreSQL of who has it.

    Raises: DataDirBusy.
    """
    clock = asyncio.get_running_loop()
    until = clock.time() + wait
    while True:
        lock = _try_lock(data_dir / "lock", fcntl.LOCK_EX)
        if lock is not None:
            return lock
        if not exclusive and (db := await _live(stack, data_dir)) is not None:
            return db
        if clock.time() >= until:
            raise DataDirBusy(str(data_dir))
        await asyncio.sleep(TRY_SECONDS)


async def _live(stack: AsyncExitStack, data_dir: Path) -> Database | None:
    """Connect to the PostgreSQL that another process runs; None when there is none, or it is starting or ending."""
    named = places.read_file(places.home_of(data_dir) / "socket")
    if not named:
        return None
    async with AsyncExitStack() as attempt:
        # Before the connection: from here on its owner will not shut it down.
        seat = _try_lock(data_dir / "lock.users", fcntl.LOCK_SH)
        if seat is None:
            return None
        attempt.callback(os.close, seat)
        try:
            db = await attempt.enter_async_context(_migrated(dsn_of(Path(named))))
        except StoreUnavailable:
            return None
        stack.push_async_callback(attempt.pop_all().aclose)
        return db


@asynccontextmanager
async def _own(data_dir: Path, guardian: Guardian | None, exclusive: bool) -> AsyncIterator[Database]:
    """Run the embedded PostgreSQL; we hold the lock."""
    with _guarded(guardian) as guard, ExitStack() as last:
        place = places.make_place(data_dir)
        async with running(place, guard) as cluster:
            await make_database(cluster.folder)
            try:
                async with _migrated(dsn_of(cluster.folder)) as db:
                    yield db
            finally:
                if not exclusive:
                    await _wait_for_users(data_dir, last)


@contextmanager
def _guarded(guardian: Guardian | None) -> Iterator[Guardian]:
    if guardian is not None:
        yield guardian
        return
    own = Guardian.start()
    try:
        yield own
    finally:
        own.close()


@asynccontextmanager
async def _migrated(dsn: str) -> AsyncIterator[Database]:
    async with Database.open(dsn) as db:
        await migrate(db)
        yield db


HAS_ROLE = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'mcpmux')"
MAKE_ROLE = "CREATE ROLE mcpmux LOGIN"
HAS_DATABASE = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = 'mcpmux')"
MAKE_DATABASE = "CREATE DATABASE mcpmux OWNER mcpmux"


async def make_database(folder: Path) -> None:
    """Make our own user, who is no superuser, and its database, unless they are there."""
    async with Database.open(dsn_of(folder, "postgres", "postgres"), size=1) as db:
        if not await db.fetchval(HAS_ROLE):
            await db.execute(MAKE_ROLE)
        if not await db.fetchval(HAS_DATABASE):
            await db.execute(MAKE_DATABASE)


async def _wait_for_users(data_dir: Path, last: ExitStack) -> None:
    """Wait, up to a limit, until no other command uses our PostgreSQL, and keep new ones away until `last` closes."""
    clock = asyncio.get_running_loop()
    until = clock.time() + LINGER_SECONDS
    while clock.time() < until:
        lock = _try_lock(data_dir / "lock.users", fcntl.LOCK_EX)
        if lock is not None:
            last.callback(os.close, lock)
            return
        await asyncio.sleep(TRY_SECONDS)
    log.warning("database_users_left", waited=LINGER_SECONDS)


def _try_lock(path: Path, kind: int) -> int | None:
    """Take a lock and give its descriptor, None when another process has it.

    Raises: StoreUnavailable when the file cannot be used.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise StoreUnavailable(f"{path} cannot be opened ({exc.strerror})") from exc
    try:
        owner = path.parent.stat()
        if os.geteuid() == 0 and os.fstat(descriptor).st_uid == 0 and owner.st_uid != 0:
            # Made by root in somebody's data directory, who must be able to open it too.
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
