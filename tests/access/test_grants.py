"""Grants from a real PostgreSQL: read once, dropped on every change, whoever made it, bounded without the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

import mcpmux.access.grants as module
from mcpmux.access import rows
from mcpmux.access.decision import GrantSet, Level, Target, decide
from mcpmux.access.grants import ADMINISTRATOR, Grants, read_grants
from mcpmux.config.schema import ToolRules
from mcpmux.errors import StoreUnavailable
from mcpmux.identity.principal import Principal
from mcpmux.observe.metrics import Metrics
from mcpmux.store import Database
from tests.postgres import Postgres

ANA = Principal.of(("https://idp", "", "ana"), email="ana@example.com", groups=("MCP-GitHub", "Staff"))
BEN = Principal.of(("https://idp", "", "ben"), email="ben@example.com", groups=())
NO_MAIL = Principal.of(("https://idp", "", "cleo"), email=None, groups=("MCP-GitHub",))
ADMIN = Principal.of(("https://idp", "", "root"), email=None, groups=("MCP-Admin",))


@asynccontextmanager
async def running(grants: Grants) -> AsyncIterator[Grants]:
    """Hear of changes for as long as the block, from the moment at which the first reading is done."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(grants.run())
        await until(lambda: grants._digest is not None)
        yield grants
        task.cancel()


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def until_so(condition: Callable[[], Awaitable[bool]], seconds: float = 2.0) -> None:
    """Two seconds are what is promised for a change of grants."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def grants(database: Database) -> Grants:
    return Grants(database, Metrics([]))


def allowed(held: GrantSet, server: str, tool: str | None = None, *, read_only: bool = False) -> Level | None:
    kind, name = ("server", server) if tool is None else ("tool", tool)
    return decide(held, Target(server, True, kind, name, read_only, ToolRules())).level  # type: ignore[arg-type]


async def read(database: Database, email: str | None, groups: Sequence[str]) -> GrantSet:
    return (await read_grants(database, [(email, groups)]))[0]


# What the tables mean -------------------------------------------------------------------------------------------


async def test_a_group_mapped_to_a_server_id_works_without_any_tenant_row(database: Database) -> None:
    await database.execute("INSERT INTO group_tenant_mapping (group_name, tenant_id) VALUES ('MCP-GitHub', 'github')")
    held = await read(database, None, ["Staff", "MCP-GitHub"])
    assert allowed(held, "github", "create_issue") == "write"
    assert allowed(held, "jira") is None
    assert held.of("github")[0].via == "group MCP-GitHub"


async def test_a_user_is_found_by_the_e_mail_alone_and_only_if_there_is_one(database: Database) -> None:
    await rows.grant_user(database, "ana@example.com", "github", "read")
    assert allowed(await read(database, "ana@example.com", []), "github") == "read"
    assert allowed(await read(database, None, ["ana@example.com"]), "github") is None
    assert allowed(await read(database, "Ana@example.com", []), "github") is None


async def test_groups_are_compared_exactly(database: Database) -> None:
    await rows.grant_group(database, "MCP-GitHub", "github", "write")
    for group in ("mcp-github", "MCP-GitHub ", "MCP-GitHu", "MCP-GitHub%", "\uff2dCP-GitHub", "MCP-Git\u200bHub"):
        assert allowed(await read(database, None, [group]), "github") is None


async def test_a_tenant_has_its_servers_with_their_tools_and_no_others(database: Database) -> None:
    await rows.add_to_tenant(database, "eng", "github", ["get_*", "list_*"])
    await rows.add_to_tenant(database, "eng", "jira", ["*"])
    await rows.grant_group(database, "Engineers", "eng", "write")
    held = await read(database, None, ["Engineers"])
    assert allowed(held, "github", "get_issue") == "write"
    assert allowed(held, "github", "create_issue") is None
    assert allowed(held, "jira", "create_issue") == "write"
    assert allowed(held, "time") is None
    assert decide(held, Target("jira", True, "server", "jira", False, ToolRules())).tenant == "eng"


async def test_a_row_of_a_servers_own_tenant_takes_the_place_of_the_implied_one(database: Database) -> None:
    await rows.grant_group(database, "Engineers", "github", "write")
    await rows.add_to_tenant(database, "github", "jira", ["*"])
    held = await read(database, None, ["Engineers"])
    assert allowed(held, "github", "create_issue") == allowed(held, "jira", "create_issue") == "write"
    await rows.add_to_tenant(database, "github", "github", ["get_*"])
    held = await read(database, None, ["Engineers"])
    assert allowed(held, "github", "create_issue") is None
    assert allowed(held, "github", "get_issue") == "write"


async def test_a_titled_tenant_of_a_servers_id_is_still_that_servers(database: Database) -> None:
    await database.execute("INSERT INTO tenants (id, title) VALUES ('github', 'GitHub')")
    await rows.grant_group(database, "Engineers", "github", "write")
    assert allowed(await read(database, None, ["Engineers"]), "github") == "write"


async def test_nobody_gets_everything_by_a_star_in_a_table(database: Database) -> None:
    await rows.grant_user(database, "ana@example.com", "*", "admin")
    await rows.grant_user(database, "ana@example.com", "all", "admin")
    await rows.add_to_tenant(database, "all", "*", ["*"])
    held = await read(database, "ana@example.com", [])
    assert held.everywhere is None
    assert "*" not in held.by_server
    assert allowed(held, "github") is None


@pytest.mark.parametrize("group", ["mcp-admin", "MCP-Admin ", "MCP-Admins", "\u039cCP-Admin", "MCP_Admin"])
async def test_only_the_exact_group_is_the_administrators(database: Database, group: str) -> None:
    assert (await read(database, None, [group])).everywhere is None
    assert await read(database, None, ["x", "MCP-Admin"]) is ADMINISTRATOR


async def test_texts_that_no_column_can_hold_match_nothing_and_break_nothing(database: Database) -> None:
    await rows.grant_group(database, "good", "github", "write")
    held = await read(database, "a\0@b", ["\0", "\ud800", "good", "'; DROP TABLE tenants; --", "%", "x" * 100_000])
    assert allowed(held, "github") == "write"


async def test_many_principals_are_read_in_one_query_each_with_their_own(database: Database) -> None:
    for number in range(50):
        await rows.grant_user(database, f"user{number}@example.com", f"server-{number}", "read")
    await rows.grant_group(database, "all", "time", "write")
    found = await read_grants(database, [(f"user{n}@example.com", ["all"] if n % 2 else []) for n in range(50)])
    for number, held in enumerate(found):
        assert held.servers([f"server-{n}" for n in range(50)]) == (f"server-{number}",)
        assert allowed(held, "time") == ("write" if number % 2 else None)


async def test_principals_with_equal_grants_share_a_fingerprint(database: Database) -> None:
    await rows.grant_group(database, "a", "github", "write")
    await rows.grant_group(database, "b", "github", "write")
    await rows.grant_user(database, "ana@example.com", "github", "write")
    await rows.grant_user(database, "ben@example.com", "github", "read")
    by_group, by_other, by_mail, less = await read_grants(
        database, [(None, ["a"]), (None, ["b", "x"]), ("ana@example.com", ["a"]), ("ben@example.com", [])]
    )
    assert by_group.fingerprint == by_other.fingerprint == by_mail.fingerprint != less.fingerprint


# Remembered -----------------------------------------------------------------------------------------------------


async def test_what_was_read_is_remembered_by_rights(database: Database, grants: Grants) -> None:
    await rows.grant_group(database, "MCP-GitHub", "github", "write")
    assert grants.cached(ANA) is None
    held = await grants.of(ANA)
    assert grants.cached(ANA) is held
    assert await grants.of(ANA) is held
    fewer = Principal.of(("https://idp", "", "ana"), email="ana@example.com", groups=())
    assert grants.cached(fewer) is None
    assert allowed(await grants.of(fewer), "github") is None


LOCKED_OUT = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
LOCK = "LOCK TABLE group_tenant_mapping IN ACCESS EXCLUSIVE MODE"


async def gives(database: Database, query: str, value: object) -> bool:
    return await database.fetchval(query) == value


async def test_a_thousand_calls_at_once_make_one_query(database: Database, grants: Grants) -> None:
    await rows.grant_group(database, "MCP-GitHub", "github", "write")
    async with database.alone() as other, asyncio.TaskGroup() as tasks, other.transaction():
        await other.execute(LOCK)
        calls = [tasks.create_task(grants.of(ANA)) for _ in range(1000)]
        await until_so(lambda: gives(database, LOCKED_OUT, 1))
        assert await database.fetchval(LOCKED_OUT) == 1
    assert all(call.result() is calls[0].result() for call in calls)
    assert allowed(calls[0].result(), "github") == "write"


async def test_one_who_stops_waiting_leaves_the_reading_to_the_next(database: Database, grants: Grants) -> None:
    await rows.grant_group(database, "MCP-GitHub", "github", "write")
    async with database.alone() as other, asyncio.TaskGroup() as tasks:
        async with other.transaction():
            await other.execute(LOCK)
            first, second = (tasks.create_task(grants.of(ANA)) for _ in range(2))
            await until_so(lambda: gives(database, LOCKED_OUT, 1))
            first.cancel()
            await until(first.done)
        assert first.cancelled()
        assert allowed(await second, "github") == "write"


async def test_what_changed_while_it_was_read_is_read_again(database: Database, grants: Grants) -> None:
    """A statement sees the tables as they were when it began; a policy that sleeps makes it long."""
    await rows.grant_user(database, "ana@example.com", "github", "write")
    for statement in (
        "ALTER TABLE user_tenant_access ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE user_tenant_access FORCE ROW LEVEL SECURITY",
        "CREATE POLICY slow ON user_tenant_access FOR SELECT USING (pg_sleep(0.5)::text IS NOT NULL)",
        "CREATE POLICY free ON user_tenant_access FOR DELETE USING (true)",
    ):
        await database.execute(statement)
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    async with running(grants), asyncio.TaskGroup() as tasks:
        async with database.transaction() as revoking:
            await revoking.execute("DELETE FROM user_tenant_access")
            # Sees the grant still: the end of it is not committed.
            reading = tasks.create_task(grants.of(ANA))
            await until_so(lambda: gives(database, asleep, 1))
        assert not reading.done()
        assert allowed(await reading, "github") is None


async def test_the_least_recently_used_gives_way(grants: Grants, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PRINCIPALS", 10)
    await grants.of(ANA)
    for number in range(30):
        await grants.of(Principal.of(("https://idp", "", str(number)), email=None, groups=()))
        assert grants.cached(ANA) is not None
    assert len(grants._remembered) == 10
    for number in range(10):
        await grants.of(Principal.of(("https://idp", "", f"x{number}"), email=None, groups=()))
    assert grants.cached(ANA) is None


# Changed --------------------------------------------------------------------------------------------------------

EDITS = [
    "INSERT INTO user_tenant_access (user_email, tenant_id) VALUES ('ana@example.com', 'added')",
    "UPDATE user_tenant_access SET access_level = 'admin' WHERE user_email = 'ana@example.com'",
    "DELETE FROM user_tenant_access",
    "TRUNCATE user_tenant_access",
    "INSERT INTO group_tenant_mapping (group_name, tenant_id) VALUES ('Staff', 'added')",
    "UPDATE group_tenant_mapping SET tenant_id = 'moved'",
    "DELETE FROM group_tenant_mapping WHERE group_name = 'MCP-GitHub'",
    "TRUNCATE group_tenant_mapping",
    "INSERT INTO tenant_servers (tenant_id, server_id) VALUES ('eng', 'added')",
    "UPDATE tenant_servers SET tools = '{get_*}'",
    "DELETE FROM tenant_servers",
    "TRUNCATE tenant_servers",
]


@pytest.mark.parametrize("edit", EDITS)
async def test_plain_sql_from_anybody_counts_within_two_seconds(
    database: Database, database_url: str, edit: str
) -> None:
    await rows.grant_user(database, "ana@example.com", "eng", "write")
    await rows.grant_group(database, "MCP-GitHub", "github", "write")
    await rows.add_to_tenant(database, "eng", "jira", ["*"])
    async with running(Grants(database, Metrics([]))) as grants:
        before = await grants.of(ANA)
        async with Database.open(database_url, size=1) as somebody:
            await somebody.execute(edit)

        async def changed() -> bool:
            return (await grants.of(ANA)).fingerprint != before.fingerprint

        await until_so(changed)
        assert (await grants.of(ANA)).fingerprint == (await read(database, ANA.email, ANA.groups)).fingerprint


async def test_what_is_remembered_is_read_anew_before_anybody_asks(database: Database, grants: Grants) -> None:
    async with running(grants):
        people = [Principal.of(("https://idp", "", str(n)), email=f"{n}@example.com", groups=()) for n in range(350)]
        for person in people:
            await grants.of(person)
        await rows.grant_user(database, "7@example.com", "github", "read")
        await until(lambda: all((held := grants.cached(p)) and len(held.by_server) == (p is people[7]) for p in people))


async def test_every_reader_of_changes_hears_at_once_and_of_each_change(database: Database, grants: Grants) -> None:
    heard = {"calls": 0, "sessions": 0}

    async def read_changes(who: str) -> None:
        async for _ in grants.changes():
            heard[who] += 1

    async with running(grants), asyncio.TaskGroup() as tasks:
        readers = [tasks.create_task(read_changes(who)) for who in heard]
        await until(lambda: min(heard.values()) >= 1)
        before = dict(heard)
        await rows.grant_user(database, "ana@example.com", "github", "read")
        await until(lambda: all(heard[who] > before[who] for who in heard))
        for reader in readers:
            reader.cancel()
    assert grants._waiting == set()


async def test_when_a_reader_of_changes_wakes_the_new_grants_are_there(database: Database, grants: Grants) -> None:
    async with running(grants):
        await grants.of(ANA)
        changes = grants.changes()
        await anext(changes)
        for number in range(20):
            await rows.grant_user(database, "ana@example.com", f"server-{number}", "read")
            async with asyncio.timeout(5):
                while allowed(await grants.of(ANA), f"server-{number}") is None:
                    await anext(changes)


async def test_a_storm_of_changes_ends_in_the_truth(database: Database, grants: Grants) -> None:
    people = [Principal.of(("https://idp", "", str(n)), email=f"{n}@example.com", groups=("g",)) for n in range(20)]

    async def edit(number: int) -> None:
        for turn in range(20):
            level: Level = "read" if turn % 2 else "write"
            await rows.grant_user(database, f"{number}@example.com", f"server-{turn % 3}", level)
            await rows.revoke_user(database, [f"{number}@example.com"], f"server-{(turn + 1) % 3}")

    async def ask(person: Principal, done: asyncio.Event) -> None:
        while not done.is_set():
            await grants.of(person)
            await asyncio.sleep(0)

    async with running(grants), asyncio.TaskGroup() as tasks:
        done = asyncio.Event()
        for person in people:
            tasks.create_task(ask(person, done))
        async with asyncio.TaskGroup() as edits:
            for number in range(5):
                edits.create_task(edit(number))
        truth = await read_grants(database, [(person.email, person.groups) for person in people])

        async def settled() -> bool:
            return [await grants.of(person) for person in people] == truth

        await until_so(settled)
        done.set()


# Notifications lost, database away ------------------------------------------------------------------------------


async def test_after_the_listening_connection_was_cut_everything_is_read_anew(
    database: Database, database_url: str, grants: Grants
) -> None:
    async with running(grants):
        await grants.of(ANA)
        cut = """
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND query ILIKE '%listen%' AND pid <> pg_backend_pid()
        """
        async with database.transaction() as transaction:
            assert await transaction.fetch(cut)
            # While nobody listens:
            await transaction.execute(
                "INSERT INTO user_tenant_access (user_email, tenant_id) VALUES ('ana@example.com', 'github')"
            )

        async def known() -> bool:
            return allowed(await grants.of(ANA), "github") == "write"

        await until_so(known)


async def test_a_change_that_nobody_was_told_of_is_noticed(database: Database) -> None:
    async with running(Grants(database, Metrics([]), check_every=0.05)) as grants:
        await rows.grant_user(database, "ana@example.com", "github", "write")
        await database.execute("ALTER TABLE user_tenant_access DISABLE TRIGGER grants_changed")
        await asyncio.sleep(0)

        async def has(level: Level | None) -> bool:
            return allowed(await grants.of(ANA), "github") == level

        await until_so(lambda: has("write"))
        await database.execute("UPDATE user_tenant_access SET access_level = 'read'")
        await until_so(lambda: has("read"))
        await database.execute("DELETE FROM user_tenant_access")
        await until_so(lambda: has(None))


async def refused(database: Database) -> bool:
    """Whether the pool has noticed that its connections are gone."""
    try:
        await database.fetchval("SELECT 1")
    except Exception as error:
        return isinstance(error, StoreUnavailable)
    return False


@asynccontextmanager
async def away(postgres: Postgres, database: Database) -> AsyncIterator[None]:
    """Nobody can connect to this database for as long as the block, and nobody is."""
    name = await database.fetchval("SELECT current_database()")
    async with Database.open(postgres.url("postgres", "postgres"), size=1) as superuser:
        await superuser.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await superuser.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        try:
            await until_so(lambda: refused(database))
            yield
        finally:
            await superuser.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


async def test_without_the_database_known_grants_go_on_for_a_bounded_time_and_unknown_ones_are_denied(
    postgres: Postgres, database: Database
) -> None:
    await rows.grant_user(database, "ana@example.com", "github", "write")
    metrics = Metrics([])
    async with running(Grants(database, metrics, stale_after=1.0, check_every=0.1)) as grants:
        await grants.of(ANA)
        async with away(postgres, database):
            assert allowed(await grants.of(ANA), "github") == "write"
            with pytest.raises(StoreUnavailable):
                await grants.of(BEN)
            assert await grants.of(ADMIN) is ADMINISTRATOR
            await until(lambda: grants.cached(ANA) is None)
            with pytest.raises(StoreUnavailable):
                await grants.of(ANA)
            assert b"mcpmux_store_up 0.0" in metrics.render(None)[0]

        async def back() -> bool:
            try:
                return allowed(await grants.of(ANA), "github") == "write"
            except StoreUnavailable:
                return False

        await until_so(back, 10)
        await until(lambda: b"mcpmux_store_up 1.0" in metrics.render(None)[0])


async def test_with_the_database_there_known_grants_never_grow_stale(database: Database) -> None:
    async with running(Grants(database, Metrics([]), stale_after=0.3, check_every=0.05)) as grants:
        held = await grants.of(ANA)
        async with asyncio.timeout(1):
            for _ in range(60):
                await asyncio.sleep(0.01)
                assert grants.cached(ANA) is held


async def test_a_failed_reading_is_not_tried_again_by_everyone_in_turn(
    postgres: Postgres, database: Database, grants: Grants
) -> None:
    async with away(postgres, database):
        with pytest.raises(StoreUnavailable):
            await grants.of(BEN)
        clock = asyncio.get_running_loop()
        started, attempts = clock.time(), {grants._down_until}
        for number in range(500):
            with pytest.raises(StoreUnavailable):
                await grants.of(Principal.of(("https://idp", "", str(number)), email=None, groups=("g",)))
            attempts.add(grants._down_until)
        assert len(attempts) <= 2 + (clock.time() - started) / module.RETRY_AFTER


async def test_administrators_and_those_without_any_name_in_the_tables_need_no_query(
    postgres: Postgres, database: Database, grants: Grants
) -> None:
    async with away(postgres, database):
        assert await grants.of(ADMIN) is ADMINISTRATOR
        assert (await grants.of(Principal.of(("https://idp", "", "nobody"), email=None, groups=()))).by_server == {}


async def test_every_statement_of_this_room_fits_the_schema(database: Database) -> None:
    for owner in (module, rows):
        statements = [value for name, value in vars(owner).items() if name.isupper() and isinstance(value, str)]
        for number, statement in enumerate(found for found in statements if " " in found):
            await database.execute(f"PREPARE s_{owner.__name__.rpartition('.')[2]}_{number} AS {statement}")
