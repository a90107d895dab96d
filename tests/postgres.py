"""One embedded PostgreSQL for a whole test run, a migrated template in it, and a fresh database for each test."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final, TypeVar

from mcpmux.guardian import Guardian
from mcpmux.store.cluster import dsn_of, running
from mcpmux.store.database import Database
from mcpmux.store.embedded import make_database
from mcpmux.store.migrate import migrate
from mcpmux.store.place import make_data_dir, make_place

T = TypeVar("T")

# Nothing here has to survive a power cut.
SETTINGS: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "200",
    "autovacuum": "off",
}


class Postgres:
    """A running PostgreSQL, in a thread with an event loop of its own: tests and fixtures have other loops."""

    def __init__(self, data_dir: Path, guardian: Guardian) -> None:
        self.folder = Path()
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._failure: BaseException | None = None
        self._numbers = count(1)
        self._thread = threading.Thread(target=self._live, args=(data_dir, guardian), name="postgres", daemon=True)
        self._stop = asyncio.Event()
        self._thread.start()
        self._up.wait(60)
        if self._failure is not None:
            raise self._failure

    def url(self, database: str, user: str = "mcpmux") -> str:
        """Give the URL of a database; user `postgres` is the superuser."""
        return dsn_of(self.folder, database, user)

    def create(self, template: str = "mcpmux") -> str:
        """Make a database like `template` (`template0`: an empty one) and give its name."""
        name = f"test_{next(self._numbers)}"
        self._sql(f"CREATE DATABASE {name} TEMPLATE {template} OWNER mcpmux")
        return name

    def drop(self, name: str) -> None:
        """Remove a database, whoever is connected to it."""
        self._sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def close(self) -> None:
        """Shut it down."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def _sql(self, statement: str) -> None:
        async def run() -> None:
            async with Database.open(self.url("postgres", "postgres"), size=1) as db:
                await db.execute(statement)

        self._run(run())

    def _run(self, work: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def _live(self, data_dir: Path, guardian: Guardian) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._hold(data_dir, guardian))
        except BaseException as exc:
            self._failure = exc
        finally:
            self._up.set()
            self._loop.close()

    async def _hold(self, data_dir: Path, guardian: Guardian) -> None:
        async with running(make_place(data_dir), guardian, settings=SETTINGS) as cluster:
            self.folder = cluster.folder
            await make_database(self.folder)
            async with Database.open(self.url("mcpmux"), size=1) as db:
                await migrate(db)
            self._up.set()
            await self._stop.wait()


@contextmanager
def postgres_running() -> Iterator[Postgres]:
    """Run one for as long as the block."""
    with open_folder() as folder:
        guardian = Guardian.start()
        try:
            postgres = Postgres(make_data_dir(folder / "data"), guardian)
            try:
                yield postgres
            finally:
                postgres.close()
        finally:
            guardian.close()


@contextmanager
def open_folder() -> Iterator[Path]:
    """Give a folder that every user may pass and only we may write, with a short path, and remove it afterwards.

    Tests that run as root need it instead of `tmp_path`: the database's user could not pass that, and the database
    would be made in /var/lib.
    """
    folder = Path(tempfile.mkdtemp(prefix="mcpmux-test-", dir="/tmp"))
    os.chmod(folder, 0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
