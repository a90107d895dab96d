"""The schema: what the tables allow, whom a change wakes, and that every statement in the code fits it."""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from mcpmux.errors import ValueRefused
from mcpmux.store import Database
from tests.processes import ROOT

STATEMENT = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|MERGE)\s")

CHANGES = {
    "user_tenant_access": "INSERT INTO user_tenant_access (user_email, tenant_id) VALUES ('ana@example.com', 't')",
    "group_tenant_mapping": "INSERT INTO group_tenant_mapping (group_name, tenant_id) VALUES ('MCP-GitHub', 't')",
    "tenants": "INSERT INTO tenants (id) VALUES ('t')",
    "tenant_servers": "INSERT INTO tenant_servers (tenant_id, server_id) VALUES ('t', 'github')",
}
COLUMN = {"tenants": "id"}


@pytest.fixture
async def plain(database_url: str) -> AsyncIterator[Database]:
    """Somebody else with plain SQL, as a superuser."""
    async with Database.open(database_url.replace("//mcpmux@", "//postgres@"), size=1) as db:
        yield db


@pytest.mark.parametrize("table", CHANGES)
async def test_every_change_of_a_grant_by_plain_sql_is_heard(database: Database, plain: Database, table: str) -> None:
    column = COLUMN.get(table, "tenant_id")
    async with asyncio.timeout(5), aclosing(database.listen("grants_changed")) as heard:
        assert await anext(heard) is None
        for change in (
            CHANGES[table],
            f"UPDATE {table} SET {column} = 'u'",
            f"DELETE FROM {table}",
            f"TRUNCATE {table}",
        ):
            await plain.execute(change)
            assert await anext(heard) == "", change


async def test_a_bulk_load_that_switches_triggers_off_is_heard_too(database: Database, plain: Database) -> None:
    async with asyncio.timeout(5), aclosing(database.listen("grants_changed")) as heard:
        assert await anext(heard) is None
        async with plain.transaction() as load:
            await load.execute("SET LOCAL session_replication_role = replica")
            for change in CHANGES.values():
                await load.execute(change)
        # One transaction is heard once.
        await plain.execute("SELECT pg_notify('grants_changed', 'end')")
        assert [await anext(heard), await anext(heard)] == ["", "end"]


async def test_what_is_kept_of_servers_wakes_nobody(database: Database) -> None:
    async with asyncio.timeout(5), aclosing(database.listen("grants_changed")) as heard:
        assert await anext(heard) is None
        await database.execute("INSERT INTO kept_offers (server_id, digest, offer) VALUES ('github', '1', '2')")
        await database.execute("INSERT INTO link_eras (server_id, digest, era) VALUES ('github', '1', 'legacy')")
        await database.execute("SELECT pg_notify('grants_changed', 'end')")
        assert await anext(heard) == "end"


@pytest.mark.parametrize(
    ("table", "column"), [("user_tenant_access", "user_email"), ("group_tenant_mapping", "group_name")]
)
async def test_a_grant_is_for_writing_unless_it_says_otherwise_and_knows_three_levels(
    database: Database, table: str, column: str
) -> None:
    for level in ("read", "write", "admin"):
        await database.execute(f"INSERT INTO {table} ({column}, tenant_id, access_level) VALUES ('x', $1, $1)", level)
    await database.execute(f"INSERT INTO {table} ({column}, tenant_id) VALUES ('x', 'y')")
    assert await database.fetchval(f"SELECT access_level FROM {table} WHERE tenant_id = 'y'") == "write"
    for level in ("owner", "Write", "", None):
        with pytest.raises(ValueRefused):
            await database.execute(f"INSERT INTO {table} VALUES ('x', 'z', $1)", level)


def statements() -> Iterator[tuple[str, str]]:
    """Every SQL constant of the code, with where it stands."""
    for path in sorted((Path(ROOT) / "mcpmux").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str) and STATEMENT.match(value.value):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", value.value


async def test_every_statement_in_the_code_fits_the_schema(database: Database) -> None:
    found = dict(statements())
    assert len(found) > 5
    async with database.alone() as connection:
        for place, statement in found.items():
            try:
                await connection._raw.prepare(statement)
            except Exception as exc:
                pytest.fail(f"{place}: {exc}")
