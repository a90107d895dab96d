"""Offers: live lists replace kept ones, an error never empties a list, and nothing is asked or told too often."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from mcpmux.catalog import kept
from mcpmux.catalog.pages import Bounds
from mcpmux.config.schema import Server
from mcpmux.credentials import LinkKey
from mcpmux.errors import LinkLost
from mcpmux.protocol.events import Offered
from mcpmux.store import Database
from tests.catalog.harness import BRISK, RING, Plan, Room, room, tool
from tests.links.harness import counter, faulty, stdio, with_section

LISTS = ("tools/list", "resources/list", "resources/templates/list", "prompts/list")
ROWS = "SELECT offer FROM kept_offers WHERE server_id = $1"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(tmp_path / "plan").tools("a", "b", "shout")


@asynccontextmanager
async def lister(tmp_path: Path, database: Database, plan: Plan) -> AsyncIterator[Room]:
    """A room whose lister has been listed."""
    async with room(tmp_path, database, plan.server) as shown:
        await shown.offer("lister")
        yield shown


async def kept_of(database: Database, server: str, digest_of: bytes) -> bytes | None:
    return (await kept.fetch_kept(database, {server: RING.digest("offer", digest_of)})).get(server)


# Live lists ---------------------------------------------------------------------------------------------------


async def test_all_four_lists_of_a_server_are_offered(tmp_path: Path, database: Database) -> None:
    async with room(tmp_path, database, counter()) as shown:
        offer = await shown.offer("counter")
        assert "echo" in (shown.names("counter") or [])
        assert shown.names("counter", Offered.RESOURCES) == ["counter://value"]
        assert shown.names("counter", Offered.TEMPLATES) == ["counter://note/{id}"]
        assert shown.names("counter", Offered.PROMPTS) == ["greet"]
        assert offer.instructions == "counter counts."
        assert json.loads(bytes(offer.server_info or b"")) == {"name": "counter", "version": "1.0.0"}
        assert set(offer.capabilities) == {"tools", "prompts", "resources", "completions", "logging", "extensions"}
        echo = offer.public(Offered.TOOLS, "counter__echo")
        assert echo is not None
        assert echo.read_only


async def test_all_pages_of_a_list_are_read(tmp_path: Path, database: Database) -> None:
    async with room(tmp_path, database, counter("many", "--tools", "250", "--page", "7")) as shown:
        await shown.offer("many")
        names = shown.names("many") or []
        assert [name for name in names if name.startswith("generated_")] == [f"generated_{n}" for n in range(250)]


async def test_a_list_of_more_than_a_megabyte_in_one_line_is_read(tmp_path: Path, database: Database) -> None:
    async with room(tmp_path, database, faulty("huge-list")) as shown:
        offer = await shown.offer("huge-list")
        assert sum(len(item.raw) for item in offer.items[Offered.TOOLS]) > 1_100_000
        await until_kept(database, "huge-list")


async def test_a_server_that_offers_nothing_has_an_empty_offer_and_is_not_asked_again(
    tmp_path: Path, database: Database
) -> None:
    async with room(tmp_path, database, faulty("no-tools")) as shown:
        offer = await shown.offer("no-tools")
        assert offer.items == dict.fromkeys(Offered, ())


async def test_a_list_that_the_server_does_not_have_is_empty(tmp_path: Path, database: Database, plan: Plan) -> None:
    plan.answer("prompts/list", error=[-32601, "Method not found"])
    async with lister(tmp_path, database, plan) as shown:
        assert shown.names("lister", Offered.PROMPTS) == []
        assert shown.names("lister") == ["a", "b", "shout"]


async def test_a_null_list_is_an_empty_one(tmp_path: Path, database: Database, plan: Plan) -> None:
    plan.answer("prompts/list", result={"prompts": None})
    async with lister(tmp_path, database, plan) as shown:
        assert shown.names("lister", Offered.PROMPTS) == []


@pytest.mark.parametrize(
    "step",
    [
        {"error": [-32603, "Internal error"]},
        {"result": {}},
        {"result": {"tools": 7}},
        {"result": []},
        {"pages": {"": {"tools": [tool("a")], "nextCursor": "2"}, "2": {"oops": 1}}},
    ],
)
async def test_a_list_that_fails_is_unknown_not_empty_and_the_others_are_shown(
    tmp_path: Path, database: Database, plan: Plan, step: dict[str, object]
) -> None:
    plan.answer("tools/list", **step)
    async with lister(tmp_path, database, plan) as shown:
        assert shown.names("lister") is None
        assert shown.names("lister", Offered.PROMPTS) == ["greet"]
        plan.tools("a", "b")
        await shown.until(lambda: shown.names("lister") == ["a", "b"])


async def test_a_list_that_begins_to_fail_keeps_what_was_known(tmp_path: Path, database: Database, plan: Plan) -> None:
    async with lister(tmp_path, database, plan) as shown:
        offer, serial = shown.offers.of("lister"), shown.catalog.serial
        plan.answer("tools/list", error=[-32000, "out of order"])
        asked = plan.seen("tools/list")
        await shown.call("lister", "shout", kind="tools", times=1)
        async with asyncio.timeout(5):
            while plan.seen("tools/list") < asked + 3:
                await shown.call("lister", "echo", text="still here")
        assert shown.offers.of("lister") is offer
        assert shown.catalog.serial == serial
        plan.tools("c", "shout")
        await shown.until(lambda: shown.names("lister") == ["c", "shout"])


async def test_a_list_that_hangs_holds_up_no_other(tmp_path: Path, database: Database, plan: Plan) -> None:
    plan.answer("resources/list", silent=True)
    async with lister(tmp_path, database, plan) as shown:
        assert shown.names("lister") == ["a", "b", "shout"]
        assert shown.names("lister", Offered.RESOURCES) is None


async def test_a_list_that_hangs_is_given_up_and_asked_for_again(
    tmp_path: Path, database: Database, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan.answer("tools/list", silent=True)
    async with room(tmp_path, database) as shown:
        shown.offers._bounds = Bounds(page_time=0.1)
        await shown.show(plan.server)
        await shown.until(lambda: shown.names("lister", Offered.PROMPTS) == ["greet"])
        plan.tools("a")
        await shown.until(lambda: shown.names("lister") == ["a"])


async def test_cursors_that_run_in_a_circle_end_the_list(tmp_path: Path, database: Database, plan: Plan) -> None:
    circle = {
        "": {"tools": [tool("a")], "nextCursor": "2"},
        "2": {"tools": [tool("b")], "nextCursor": "3"},
        "3": {"tools": [tool("c")], "nextCursor": "2"},
    }
    plan.answer("tools/list", pages=circle)
    async with lister(tmp_path, database, plan) as shown:
        assert shown.names("lister") == ["a", "b", "c"]
        assert plan.seen("tools/list") == 3


@pytest.mark.parametrize("bounds", [Bounds(pages=3), Bounds(entries=3), Bounds(size=200)])
async def test_a_list_without_end_is_cut(tmp_path: Path, database: Database, bounds: Bounds) -> None:
    async with room(tmp_path, database) as shown:
        shown.offers._bounds = bounds
        await shown.show(counter("many", "--tools", "100", "--page", "1"))
        await shown.offer("many")
        assert len(shown.names("many") or []) <= 3


async def test_listing_takes_no_more_than_one_seat_of_a_server(tmp_path: Path, database: Database) -> None:
    async with room(tmp_path, database, counter(concurrency=1)) as shown:
        await shown.offer("counter")
        assert all(shown.names("counter", what) is not None for what in Offered)


async def test_listing_waits_for_a_seat_while_calls_hold_them_all(
    tmp_path: Path, database: Database, plan: Plan
) -> None:
    plan = Plan(tmp_path / "plan", concurrency=1).tools("a", "shout")
    async with lister(tmp_path, database, plan) as shown:
        gate = tmp_path / "gate"
        await shown.call("lister", "shout", kind="tools", times=1)
        async with asyncio.TaskGroup() as tasks:
            held = tasks.create_task(shown.call("lister", "slow", gate=str(gate)))
            plan.tools("b", "shout")
            gate.touch()
            await held
        await shown.call("lister", "shout", kind="tools", times=1)
        await shown.until(lambda: shown.names("lister") == ["b", "shout"])


# Changes ------------------------------------------------------------------------------------------------------


async def test_a_change_that_a_server_announces_is_seen(tmp_path: Path, database: Database) -> None:
    async with room(tmp_path, database, counter()) as shown:
        before = await shown.offer("counter")
        for kind, what, name in (
            ("tools", Offered.TOOLS, "later"),
            ("prompts", Offered.PROMPTS, "later"),
            ("resources", Offered.RESOURCES, "counter://later"),
        ):
            await shown.call("counter", "offer", kind=kind, name="later")
            await shown.until(lambda what=what, name=name: name in (shown.names("counter", what) or []))
        after = shown.offers.of("counter")
        assert after is not None
        assert after.serial > before.serial


async def test_a_storm_of_changes_costs_few_questions_and_the_last_word_counts(
    tmp_path: Path, database: Database, plan: Plan
) -> None:
    async with lister(tmp_path, database, plan) as shown:
        asked = plan.seen("tools/list")
        for number in range(50):
            plan.tools(f"t{number}", "shout")
            await shown.call("lister", "shout", kind="tools", times=20)
        await shown.until(lambda: shown.names("lister") == ["t49", "shout"])
        assert plan.seen("tools/list") - asked < 50


async def test_shuffled_lists_tell_nobody_and_keep_their_order(tmp_path: Path, database: Database, plan: Plan) -> None:
    async with lister(tmp_path, database, plan) as shown:
        serial, asked = shown.catalog.serial, plan.seen("tools/list")
        plan.tools("shout", "b", "a")
        await shown.call("lister", "shout", kind="tools", times=1)
        async with asyncio.timeout(5):
            while plan.seen("tools/list") == asked:
                await shown.call("lister", "echo", text="x")
        plan.answer("prompts/list", result={"prompts": []})
        await shown.call("lister", "shout", kind="prompts", times=1)
        await shown.until(lambda: shown.names("lister", Offered.PROMPTS) == [])
        assert shown.names("lister") == ["a", "b", "shout"]
        assert shown.catalog.serial == serial + 1


async def test_a_restart_that_changes_nothing_tells_nobody(tmp_path: Path, database: Database) -> None:
    async with room(tmp_path, database, counter()) as shown:
        offer = await shown.offer("counter")
        serial = shown.catalog.serial
        link = await shown.pool.link(LinkKey("counter"), 5)
        with pytest.raises(LinkLost):
            await shown.call("counter", "die", code=1)
        assert await shown.pool.link(LinkKey("counter"), 5) is not link
        await shown.call("counter", "offer", kind="tools", name="later")
        await shown.until(lambda: "later" in (shown.names("counter") or []))
        assert shown.catalog.serial == serial + 1
        assert offer.serial < shown.offers.serial


async def test_each_listener_hears_of_every_server_once_however_late_it_reads(
    tmp_path: Path, database: Database
) -> None:
    async with room(tmp_path, database) as shown:
        first, second = shown.offers.changes(), shown.offers.changes()
        await shown.show(counter("one"), counter("two"))
        await shown.offer("one")
        await shown.offer("two")
        for listener in (first, second):
            async with asyncio.timeout(5):
                assert {await anext(listener), await anext(listener)} == {"one", "two"}


# Kept offers --------------------------------------------------------------------------------------------------


async def test_what_was_offered_is_there_at_once_after_a_restart(tmp_path: Path, database: Database) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    late = stdio("late", "faulty.py", "late", "--seconds", "0", "--gate", str(gate))
    async with room(tmp_path, database, late) as shown:
        before = await shown.offer("late")
        await until_kept(database, "late")
    gate.unlink()
    async with room(tmp_path, database, late) as shown:
        after = shown.offers.of("late")
        assert after is not None
        assert after.same_as(before)
        assert after.items == before.items
        async with asyncio.timeout(1):
            await shown.offers.settled(["late"], 60)
        gate.touch()


async def test_an_offer_is_kept_as_soon_as_it_is_shown(tmp_path: Path, database: Database, plan: Plan) -> None:
    async with room(tmp_path, database, plan.server, pace=replace(BRISK, quiet=3600.0)) as shown:
        await shown.offer("lister")
        await until_kept(database, "lister", b'"shout"')


async def test_what_could_not_be_kept_is_kept_at_the_end(tmp_path: Path, database: Database, plan: Plan) -> None:
    await database.execute("ALTER TABLE kept_offers RENAME TO hidden")
    async with room(tmp_path, database, plan.server, pace=replace(BRISK, retry=3600.0, longest=3600.0)) as shown:
        await shown.offer("lister")
        plan.tools("new")
        await shown.call("lister", "shout", kind="tools", times=1)
        await shown.until(lambda: shown.names("lister") == ["new"])
        await database.execute("ALTER TABLE hidden RENAME TO kept_offers")
        await shown.offers.close(5.0)
        assert b'"new"' in (await kept_of(database, "lister", plan.server.section) or b"")


async def test_the_end_does_not_wait_for_a_database_that_hangs(tmp_path: Path, database: Database, plan: Plan) -> None:
    plan.tools("old", "shout")
    async with lister(tmp_path, database, plan) as shown:
        await until_kept(database, "lister")
        async with database.transaction() as held:
            await held.execute("LOCK TABLE kept_offers")
            plan.tools("new")
            await shown.call("lister", "shout", kind="tools", times=1)
            await shown.until(lambda: shown.names("lister") == ["new"])
            async with asyncio.timeout(5):
                await shown.offers.close(0.1)
            assert [b'"old"' in bytes(row["offer"]) for row in await held.fetch(ROWS, "lister")] == [True]


async def test_a_live_list_replaces_the_kept_one(tmp_path: Path, database: Database, plan: Plan) -> None:
    async with lister(tmp_path, database, plan):
        await until_kept(database, "lister")
    plan.tools("new")
    async with room(tmp_path, database, plan.server) as shown:
        await shown.until(lambda: shown.names("lister") == ["new"])
        await until_kept(database, "lister", b'"new"')


async def test_another_section_has_another_kept_offer(tmp_path: Path, database: Database, plan: Plan) -> None:
    async with lister(tmp_path, database, plan):
        await until_kept(database, "lister")
    changed = msgspec.structs.replace(plan.server, section=plan.server.section + b" another token")
    silent = msgspec.structs.replace(changed, command=faulty("silent-start").command)
    async with room(tmp_path, database, silent) as shown:
        assert shown.offers.of("lister") is None


@pytest.mark.parametrize("broken", [b"", b"\xff\x00", b"null", b'{"form":99}'])
async def test_a_kept_offer_that_cannot_be_read_is_as_good_as_none(
    tmp_path: Path, database: Database, broken: bytes, plan: Plan
) -> None:
    await kept.keep(database, "lister", RING.digest("offer", plan.server.section), broken)
    async with lister(tmp_path, database, plan) as shown:
        assert shown.names("lister") == ["a", "b", "shout"]
        await until_kept(database, "lister", b'"shout"')


async def test_entries_of_a_kept_offer_are_not_believed_either(tmp_path: Path, database: Database) -> None:
    row = {"form": 1, "lists": {"tools": [7, {"name": "x"}, tool("good")]}, "capabilities": {}}
    server = faulty("silent-start")
    data = json.dumps({**row, "instructions": None, "server_info": None}).encode()
    await kept.keep(database, "silent-start", RING.digest("offer", server.section), data)
    async with room(tmp_path, database, server) as shown:
        assert shown.names("silent-start") == ["good"]


async def test_without_the_database_lists_come_from_the_servers(tmp_path: Path, database: Database, plan: Plan) -> None:
    await database.execute("ALTER TABLE kept_offers RENAME TO hidden")
    async with lister(tmp_path, database, plan) as shown:
        assert shown.names("lister") == ["a", "b", "shout"]
        await database.execute("ALTER TABLE hidden RENAME TO kept_offers")
        await until_kept(database, "lister", b'"shout"')


# The config ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"enabled": False}, {"missing": ("TOKEN",)}, {"reason": "not built yet"}, None])
async def test_a_server_that_may_not_be_used_offers_nothing(
    tmp_path: Path, database: Database, fields: dict[str, object] | None
) -> None:
    async with room(tmp_path, database, counter()) as shown:
        await shown.offer("counter")
        news = shown.offers.changes()
        await shown.show(*([] if fields is None else [msgspec.structs.replace(counter(), **fields)]))
        assert shown.offers.of("counter") is None
        async with asyncio.timeout(5):
            assert await anext(news) == "counter"
            await shown.offers.settled(["counter", "unheard-of"], 60)
        await shown.show(counter())
        await shown.offer("counter")


async def test_a_changed_server_shows_what_it_offered_until_the_new_link_says_more(
    tmp_path: Path, database: Database, plan: Plan
) -> None:
    async with lister(tmp_path, database, plan) as shown:
        gate = tmp_path / "gate"
        late = stdio("lister", "faulty.py", "late", "--seconds", "0", "--gate", str(gate))
        await shown.show(late)
        assert shown.names("lister") == ["a", "b", "shout"]
        # The old link still serves; what it says is not the new section's.
        plan.tools("old")
        await shown.call("lister", "shout", kind="tools", times=1)
        gate.touch()
        await shown.until(lambda: "count" in (shown.names("lister") or []))
        row = await database.fetchval(ROWS + " AND digest = $2", "lister", RING.digest("offer", late.section))
        assert row is None or b'"old"' not in bytes(row)  # type: ignore[call-overload]


async def test_what_a_new_section_offers_is_kept_even_if_it_is_the_same(
    tmp_path: Path, database: Database, plan: Plan
) -> None:
    async with lister(tmp_path, database, plan) as shown:
        offer = shown.offers.of("lister")
        changed = msgspec.structs.replace(plan.server, section=plan.server.section + b" another token")
        await shown.show(changed)
        async with asyncio.timeout(5):
            while await kept_of(database, "lister", changed.section) is None:
                await asyncio.sleep(0.01)
        assert shown.offers.of("lister") is offer


async def test_a_new_title_asks_nothing_anew(tmp_path: Path, database: Database, plan: Plan) -> None:
    async with lister(tmp_path, database, plan) as shown:
        offer = shown.offers.of("lister")
        await shown.show(msgspec.structs.replace(plan.server, title="Another"))
        assert shown.offers.of("lister") is offer


# Settling -----------------------------------------------------------------------------------------------------


async def test_a_list_waits_for_a_server_that_starts(tmp_path: Path, database: Database) -> None:
    gate = tmp_path / "gate"
    late = stdio("late", "faulty.py", "late", "--seconds", "0", "--gate", str(gate))
    async with room(tmp_path, database, late) as shown, asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(shown.offers.settled(["late"], 60))
        await shown.offers.settled(["late"], 0.01)
        assert not waiting.done()
        gate.touch()
        async with asyncio.timeout(10):
            await waiting
        assert shown.offers.of("late") is not None


async def test_nobody_waits_for_a_server_whose_lists_fail(tmp_path: Path, database: Database, plan: Plan) -> None:
    for method in LISTS:
        plan.answer(method, error=[-32603, "no"])
    async with room(tmp_path, database, plan.server) as shown:
        async with asyncio.timeout(10):
            await shown.offers.settled(["lister"], 60)
        assert shown.offers.of("lister") is None


async def test_nobody_waits_for_a_server_that_has_failed(tmp_path: Path, database: Database) -> None:
    async with room(tmp_path, database, with_section(Server(id="broken", command=("/nonexistent/server",)))) as shown:
        async with asyncio.timeout(30):
            await shown.offers.settled(["broken"], 60)
        assert shown.offers.failed("broken")


async def test_a_burst_is_asked_for_once_in_the_quiet_time(tmp_path: Path, database: Database, plan: Plan) -> None:
    calm = replace(BRISK, quiet=30.0)
    async with room(tmp_path, database, plan.server, pace=calm) as shown:
        await shown.offer("lister")
        for _ in range(10):
            await shown.call("lister", "shout", kind="tools", times=10)
        assert plan.seen("tools/list") == 1


@pytest.mark.parametrize(("transport", "shown"), [("http", ["good"]), ("stdio", ["good", "bad"])])
async def test_a_kept_tool_whose_headers_are_invalid_is_not_shown_of_a_server_over_http(
    tmp_path: Path, database: Database, transport: Literal["http", "stdio"], shown: list[str]
) -> None:
    wrong = {"type": "object", "properties": {"n": {"type": "number", "x-mcp-header": "N"}}}
    tools = [tool("good"), {"name": "bad", "inputSchema": wrong}]
    form = {"form": 1, "lists": {"tools": tools}, "capabilities": {}, "instructions": None, "server_info": None}
    server = with_section(Server(id="old", transport=transport, url="http://127.0.0.1:9/", command=("false",)))
    await kept.keep(database, "old", RING.digest("offer", server.section), json.dumps(form).encode())
    async with room(tmp_path, database, server) as one:
        assert one.names("old") == shown


async def until_kept(database: Database, server: str, part: bytes = b"") -> None:
    """Wait until what a server offers is kept."""
    async with asyncio.timeout(5):
        while not any(part in bytes(row["offer"]) for row in await database.fetch(ROWS, server)):
            await asyncio.sleep(0.01)
