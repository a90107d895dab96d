"""Database: one pool; its own errors and nobody else's; notifications that say when something may be missing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from mcpmux.errors import StoreUnavailable, ValueRefused
from mcpmux.store import Database
from mcpmux.store import database as module
from tests.postgres import Postgres

GRANT = "INSERT INTO user_tenant_access (user_email, tenant_id) VALUES ($1, $2)"
GRANTS = "SELECT user_email, tenant_id, access_level FROM user_tenant_access ORDER BY user_email"
END_OTHERS = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename = 'mcpmux'"""


@pytest.fixture
async def admin(postgres: Postgres, database_url: str) -> AsyncIterator[Database]:
    """A superuser in the same database."""
    async with Database.open(database_url.replace("//mcpmux@", "//postgres@"), size=1) as db:
        yield db


async def test_rows_come_as_mappings(database: Database) -> None:
    await database.execute(GRANT, "ana@example.com", "github")
    assert [dict(row) for row in await database.fetch(GRANTS)] == [
        {"user_email": "ana@example.com", "tenant_id": "github", "access_level": "write"}
    ]
    row = await database.fetchrow(GRANTS)
    assert row is not None
    assert row["tenant_id"] == row.get("tenant_id") == "github"
    assert await database.fetchval("SELECT $1::int + 1", 41) == 42
    assert await database.fetchrow("SELECT 1 WHERE false") is None
    assert await database.execute("DELETE FROM user_tenant_access") == "DELETE 1"


async def test_many_rows_are_written_all_or_none(database: Database) -> None:
    with pytest.raises(ValueRefused):
        await database.executemany(GRANT, [("ana@example.com", "a"), ("ana@example.com", "a")])
    assert await database.fetch(GRANTS) == []
    await database.executemany(GRANT, [("ana@example.com", "a"), ("ben@example.com", "a")])
    assert len(await database.fetch(GRANTS)) == 2


async def test_a_transaction_is_undone_when_its_block_fails(database: Database) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with database.transaction() as transaction:
            await transaction.execute(GRANT, "ana@example.com", "github")
            assert await database.fetch(GRANTS) == []
            raise KeyError("mine")
    assert await database.fetch(GRANTS) == []
    async with database.transaction() as transaction:
        await transaction.execute(GRANT, "ana@example.com", "github")
    assert len(await database.fetch(GRANTS)) == 1


async def test_a_cancelled_transaction_is_undone_and_its_connection_is_good(database_url: str) -> None:
    async with Database.open(database_url, size=1) as db:
        begun = asyncio.Event()

        async def work() -> None:
            async with db.transaction() as transaction:
                await transaction.execute(GRANT, "ana@example.com", "github")
                begun.set()
                await asyncio.Event().wait()

        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(work())
            await begun.wait()
            task.cancel()
        assert await db.fetch(GRANTS) == []


@pytest.mark.parametrize(
    ("query", "values", "constraint"),
    [
        (GRANT, ("ana@example.com", None), "tenant_id"),
        (GRANT, ("nul\0", "github"), ""),
        (GRANT, ("\ud800", "github"), ""),
        (GRANT, (4, "github"), ""),
        (
            "INSERT INTO user_tenant_access VALUES ($1, $2, 'owner')",
            ("ana@example.com", "github"),
            "user_tenant_access_level",
        ),
    ],
    ids=["null", "NUL", "surrogate", "type", "check"],
)
async def test_a_value_that_is_not_allowed_is_refused(
    database: Database, query: str, values: tuple[object, ...], constraint: str
) -> None:
    with pytest.raises(ValueRefused) as refused:
        await database.execute(query, *values)
    assert refused.value.constraint == constraint
    assert "ana" not in str(refused.value)


async def test_a_second_row_with_the_same_key_names_the_key(database: Database) -> None:
    await database.execute(GRANT, "ana@example.com", "github")
    with pytest.raises(ValueRefused) as refused:
        await database.execute(GRANT, "ana@example.com", "github")
    assert refused.value.constraint == "user_tenant_access_pkey"


async def test_a_wrong_statement_is_our_own_error_without_its_text(database: Database) -> None:
    with pytest.raises(StoreUnavailable, match="42P01") as failed:
        await database.fetch("SELECT secret FROM nowhere")
    assert "nowhere" not in str(failed.value)


async def test_a_statement_that_takes_too_long_is_ended(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STATEMENT_SECONDS", 0.2)
    async with Database.open(database_url, size=1) as db:
        with pytest.raises(StoreUnavailable, match="too long"):
            await db.execute("SELECT pg_sleep(60)")
        assert await db.fetchval("SELECT 1") == 1


async def test_nobody_waits_for_ever_for_a_connection(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ACQUIRE_SECONDS", 0.1)
    async with Database.open(database_url, size=1) as db, db.transaction():
        with pytest.raises(StoreUnavailable, match="in time"):
            await db.fetchval("SELECT 1")


async def test_lost_connections_are_made_again(database: Database, admin: Database) -> None:
    await database.fetchval("SELECT 1")
    assert await admin.fetchval(END_OTHERS) == 1
    # The first one may still meet the connection that has just been lost.
    try:
        assert await database.fetchval("SELECT 1") == 1
    except StoreUnavailable:
        assert await database.fetchval("SELECT 1") == 1


async def test_a_connection_lost_in_a_transaction_is_our_own_error(database: Database, admin: Database) -> None:
    with pytest.raises(StoreUnavailable, match="connection was lost"):
        async with database.transaction() as transaction:
            await transaction.fetchval("SELECT 1")
            await admin.fetchval(END_OTHERS)
            await transaction.fetchval("SELECT 1")
    assert await database.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("what", ["nobody", "wrong name", "silent", "nonsense"])
async def test_a_database_that_cannot_be_used_is_refused_clearly(
    what: str, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        dsn = {
            "nobody": f"postgresql://u:topsecret@/x?host={tmp_path}",
            "wrong name": postgres.url("nowhere"),
            "silent": f"postgresql://u:topsecret@127.0.0.1:{port}/x?sslmode=disable",
            "nonsense": "postgresql://u:topsecret@127.0.0.1:port/x",
        }[what]
        with pytest.raises(StoreUnavailable) as refused:
            async with Database.open(dsn):
                pass
    assert "topsecret" not in str(refused.value)


async def test_a_listener_hears_what_others_notify_in_order(database: Database) -> None:
    async with asyncio.timeout(5), aclosing(database.listen("things")) as heard:
        assert await anext(heard) is None
        for number in range(3):
            await database.execute("SELECT pg_notify('things', $1)", str(number))
        await database.execute("SELECT pg_notify('other', 'no')")
        assert [await anext(heard) for _ in range(3)] == ["0", "1", "2"]


async def test_a_listener_that_lost_its_connection_is_told_that_it_may_have_missed_something(
    database: Database, admin: Database
) -> None:
    async with asyncio.timeout(5), aclosing(database.listen("things")) as heard:
        assert await anext(heard) is None
        for _ in range(2):
            await admin.fetchval(END_OTHERS)
            assert await anext(heard) is None
            await admin.execute("SELECT pg_notify('things', 'again')")
            assert await anext(heard) == "again"


async def test_a_listener_waits_for_a_database_that_is_away(
    postgres: Postgres, database: Database, admin: Database
) -> None:
    name = await admin.fetchval("SELECT current_database()")
    async with (
        asyncio.timeout(10),
        Database.open(postgres.url("postgres", "postgres"), size=1) as outside,
        aclosing(database.listen("things")) as heard,
    ):
        assert await anext(heard) is None
        await outside.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await admin.fetchval(END_OTHERS)
        async with asyncio.TaskGroup() as tasks:
            next_one = tasks.create_task(anext(heard))
            while not await outside.fetchval(
                "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = $1 AND usename = 'mcpmux')", name
            ):
                pass
            assert not next_one.done()
            await outside.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert next_one.result() is None


async def test_a_listener_that_is_too_slow_is_told_to_read_everything_anew(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INBOX", 10)
    async with asyncio.timeout(5), aclosing(database.listen("things")) as heard:
        assert await anext(heard) is None
        await database.execute("SELECT pg_notify('things', n::text) FROM generate_series(1, 11) n")
        # The generator stands still while nobody asks; another round trip proves that all have come.
        await database.execute("SELECT pg_notify('things', 'last')")
        while (payload := await anext(heard)) not in (None, "last"):
            assert payload == "1", "they came one by one, before the inbox was full"
        assert payload is None


async def test_a_listener_notices_a_connection_that_is_silently_gone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LISTEN_CHECK_SECONDS", 0.05)
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.5)
    async with (
        asyncio.timeout(5),
        Wire(database._dsn) as wire,
        Database.open(wire.dsn, size=1) as db,
        aclosing(db.listen("things")) as heard,
    ):
        assert await anext(heard) is None
        wire.cut = True
        async with asyncio.TaskGroup() as tasks:
            next_one = tasks.create_task(anext(heard))
            await wire.tried.wait()
            wire.cut = False
        assert next_one.result() is None


async def test_closing_does_not_wait_for_ever_for_connections_in_use(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.1)
    async with asyncio.timeout(5):
        async with Database.open(database_url, size=1) as db:
            held = db.transaction()
            await held.__aenter__()
        with pytest.raises(StoreUnavailable):
            await db.fetchval("SELECT 1")


class Wire:
    """A wire to PostgreSQL that can be cut without anybody being told, as a firewall does it."""

    def __init__(self, dsn: str) -> None:
        self._path = dsn.partition("host=")[2].partition("&")[0] + "/.s.PGSQL.5432"
        self._name = dsn.partition("@/")[2].partition("?")[0]
        self.cut = False
        self.tried = asyncio.Event()
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Wire:
        await self._tasks.__aenter__()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.dsn = f"postgresql://mcpmux@127.0.0.1:{port}/{self._name}?sslmode=disable"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks._tasks):
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cut:
            self.tried.set()
        there, back = await asyncio.open_unix_connection(self._path)
        self._tasks.create_task(self._copy(reader, back))
        self._tasks.create_task(self._copy(there, writer))

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            if not self.cut:
                target.write(data)
        target.close()
