"""Views: an endpoint shows what exists on it, in one order, under the right names, and finds it again by them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from mcpmux.catalog import kept
from mcpmux.catalog.view import MOST_INSTRUCTIONS, View
from mcpmux.config.schema import Server
from mcpmux.links.changes import StateChanged
from mcpmux.protocol.events import Offered
from mcpmux.protocol.methods import Subject
from mcpmux.store import Database
from tests.catalog.harness import RING, Plan, Room, room, tool
from tests.links.harness import counter, faulty, with_section

ALL, COUNTER = View("all"), View("server", "counter")
LONG = "list.everything/" + "very " * 20


@pytest.fixture
async def shown(tmp_path: Path, database: Database) -> AsyncIterator[Room]:
    """Two servers that have been listed: `counter` and, with odd names, `lister`."""
    plan = Plan(tmp_path / "plan").tools("b__c", LONG, "counter__echo")
    plan.answer("resources/list", result={"resources": [{"uri": "ui://board", "name": "board"}]})
    async with room(tmp_path, database, plan.server, counter()) as one:
        await one.offer("counter")
        await one.offer("lister")
        yield one


def shown_names(one: Room, view: View, what: Offered) -> list[str]:
    """The names of one list of an endpoint, as a client would see them."""
    items = one.catalog.entries(view, what)
    member = {Offered.RESOURCES: "uri", Offered.TEMPLATES: "uriTemplate"}.get(what, "name")
    return [json.loads(item.shown if view.aggregate else item.raw)[member] for item in items]


async def failing(database: Database, *names: str) -> Server:
    """A server that cannot be started, and once offered tools of these names."""
    server = with_section(Server(id="broken", command=("/nonexistent/server",)))
    row = {"form": 1, "lists": {"tools": [tool(name) for name in names]}, "capabilities": {}, "instructions": None}
    data = json.dumps({**row, "server_info": None}).encode()
    await kept.keep(database, "broken", RING.digest("offer", server.section), data)
    return server


# Lists --------------------------------------------------------------------------------------------------------


async def test_an_aggregate_lists_every_server_by_id_in_its_own_order(shown: Room) -> None:
    tools = shown_names(shown, ALL, Offered.TOOLS)
    assert tools[:2] == ["counter__echo", "counter__count"]
    assert tools[-3] == "lister__b__c"
    assert re.fullmatch(r"lister__list_everything_very_[a-z_]+_[a-z2-7]{8}", tools[-2])
    assert tools[-1] == "lister__counter__echo"
    assert len(set(tools)) == len(tools)
    assert shown_names(shown, ALL, Offered.PROMPTS) == ["counter__greet", "lister__greet"]
    assert shown_names(shown, ALL, Offered.RESOURCES) == ["counter+counter://value", "ui://lister+board"]
    assert shown_names(shown, ALL, Offered.TEMPLATES) == [
        "counter+counter://note/{id}",
        "lister+counter://note/{id}",
    ]
    assert shown.catalog.entries(View("tenant", "t"), Offered.TOOLS) == shown.catalog.entries(ALL, Offered.TOOLS)


async def test_one_servers_endpoint_lists_its_native_names(shown: Room) -> None:
    assert shown_names(shown, View("server", "lister"), Offered.TOOLS) == ["b__c", LONG, "counter__echo"]
    assert shown_names(shown, COUNTER, Offered.RESOURCES) == ["counter://value"]
    assert shown.catalog.entries(View("server", "unheard-of"), Offered.TOOLS) == ()


async def test_a_list_is_the_same_object_until_something_changes(shown: Room) -> None:
    before = shown.catalog.entries(ALL, Offered.TOOLS)
    assert shown.catalog.entries(ALL, Offered.TOOLS) is before
    await shown.call("counter", "offer", kind="prompts", name="later")
    serial = shown.catalog.serial
    await shown.until(lambda: shown.catalog.serial > serial)
    assert shown.catalog.entries(ALL, Offered.TOOLS) == before
    assert "counter__later" in shown_names(shown, ALL, Offered.PROMPTS)


# What a name leads to -----------------------------------------------------------------------------------------


async def test_every_listed_name_leads_back_to_its_item(shown: Room) -> None:
    subjects = {
        Offered.TOOLS: Subject.TOOL,
        Offered.PROMPTS: Subject.PROMPT,
        Offered.RESOURCES: Subject.RESOURCE,
        Offered.TEMPLATES: Subject.RESOURCE,
    }
    for view in (ALL, COUNTER, View("server", "lister"), View("tenant", "t")):
        for what, subject in subjects.items():
            for item in shown.catalog.entries(view, what):
                found = shown.catalog.find(view, subject, item.public if view.aggregate else item.native)
                assert found is not None
                assert (found.server.id, found.native, found.item, found.pending) == (
                    item.server,
                    item.native,
                    item,
                    False,
                )


NOWHERE = [
    (ALL, Subject.TOOL, "echo"),
    (ALL, Subject.TOOL, "counter__"),
    (ALL, Subject.TOOL, "counter__nothing"),
    (ALL, Subject.TOOL, "COUNTER__echo"),
    (ALL, Subject.TOOL, "counter__echo "),
    (ALL, Subject.TOOL, "lister__b"),
    (ALL, Subject.TOOL, f"lister__{LONG}"),
    (ALL, Subject.TOOL, "counter__greet"),
    (ALL, Subject.PROMPT, "counter__echo"),
    (ALL, Subject.TOOL, ""),
    (ALL, Subject.TOOL, "unheard-of__echo"),
    (COUNTER, Subject.TOOL, "counter__echo"),
    (COUNTER, Subject.TOOL, "b__c"),
    (View("server", "unheard-of"), Subject.TOOL, "echo"),
    (View("server", "unheard-of"), Subject.RESOURCE, "counter://value"),
    (ALL, Subject.RESOURCE, "counter://value"),
    (ALL, Subject.RESOURCE, "unheard-of+counter://value"),
    (ALL, Subject.RESOURCE, "lister+ui://board"),
]


async def test_a_name_that_is_not_there_leads_nowhere(shown: Room) -> None:
    assert [case for case in NOWHERE if shown.catalog.find(*case) is not None] == []


async def test_a_resource_needs_no_entry_only_its_server(shown: Room) -> None:
    for view, uri, native in (
        (ALL, "counter+counter://note/7", "counter://note/7"),
        (ALL, "counter+lister+x://y", "lister+x://y"),
        (ALL, "ui://counter+board", "ui://board"),
        (COUNTER, "file:///a%2Fb", "file:///a%2Fb"),
        (COUNTER, "lister+x://y", "lister+x://y"),
    ):
        found = shown.catalog.find(view, Subject.RESOURCE, uri)
        assert found is not None
        assert (found.server.id, found.native, found.item, found.pending) == ("counter", native, None, False)


async def test_a_tool_of_a_server_that_has_not_spoken_yet_is_pending(tmp_path: Path, database: Database) -> None:
    gate = tmp_path / "gate"
    late = faulty("late", "--seconds", "0", "--gate", str(gate))
    async with room(tmp_path, database, late) as one:
        for view, name in ((ALL, "late__echo"), (View("server", "late"), "echo")):
            found = one.catalog.find(view, Subject.TOOL, name)
            assert found is not None
            assert (found.server.id, found.native, found.item, found.pending) == ("late", "echo", None, True)
        assert one.catalog.lacking(ALL, Offered.TOOLS) == one.catalog.servers(ALL)
        gate.touch()
        await one.offer("late")
        found = one.catalog.find(ALL, Subject.TOOL, "late__echo")
        assert found is not None
        assert not found.pending
        assert one.catalog.lacking(ALL, Offered.TOOLS) == ()


# Servers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"enabled": False}, {"missing": ("TOKEN",)}, {"reason": "not built yet"}])
async def test_a_server_that_may_not_be_used_exists_nowhere(shown: Room, fields: dict[str, object]) -> None:
    news, serial = shown.catalog.changes(), shown.catalog.serial
    await shown.show(msgspec.structs.replace(counter(), **fields))
    async with asyncio.timeout(5):
        await anext(news)
    assert shown.catalog.serial > serial
    assert shown.catalog.server("counter") is None
    assert shown.catalog.servers(ALL) == ()
    assert shown.catalog.servers(COUNTER) == ()
    assert shown.catalog.entries(ALL, Offered.TOOLS) == ()
    assert shown.catalog.entries(COUNTER, Offered.TOOLS) == ()
    for view, subject, name in (
        (ALL, Subject.TOOL, "counter__echo"),
        (COUNTER, Subject.TOOL, "echo"),
        (ALL, Subject.RESOURCE, "counter+counter://value"),
        (COUNTER, Subject.RESOURCE, "counter://value"),
    ):
        assert shown.catalog.find(view, subject, name) is None


async def test_a_failed_server_is_left_out_of_lists_but_its_tools_are_known(tmp_path: Path, database: Database) -> None:
    async with room(tmp_path, database, await failing(database, "a", "b"), counter()) as one:
        await one.offer("counter")
        await one.until(lambda: one.offers.failed("broken"))
        view = View("server", "broken")
        assert {item.server for item in one.catalog.entries(ALL, Offered.TOOLS)} == {"counter"}
        assert one.catalog.entries(view, Offered.TOOLS) == ()
        assert [server.id for server in one.catalog.lacking(ALL, Offered.TOOLS)] == ["broken"]
        assert one.catalog.lacking(view, Offered.TOOLS) == one.catalog.servers(view)
        found = one.catalog.find(ALL, Subject.TOOL, "broken__a")
        assert found is not None
        assert found.item is not None
        assert one.catalog.find(ALL, Subject.TOOL, "broken__c") is None


async def test_a_failed_server_does_not_come_and_go_with_every_try(tmp_path: Path, database: Database) -> None:
    async with room(tmp_path, database, await failing(database, "a")) as one:
        await one.until(lambda: one.offers.failed("broken"))
        serial = one.catalog.serial
        for state in ("starting", "failed", "starting"):
            one.offers._note(StateChanged("broken", state))
        assert one.catalog.serial == serial
        assert one.catalog.entries(ALL, Offered.TOOLS) == ()
        one.offers._note(StateChanged("broken", "ready"))
        assert one.catalog.serial > serial
        assert len(one.catalog.entries(ALL, Offered.TOOLS)) == 1


async def test_changes_come_as_one_however_many_they_were(shown: Room) -> None:
    news = shown.catalog.changes()
    for title in ("One", "Two", "Three"):
        await shown.show(msgspec.structs.replace(counter(), title=title))
    async with asyncio.timeout(5):
        await anext(news)
    async with asyncio.TaskGroup() as tasks:
        more = tasks.create_task(anext(news))  # type: ignore[arg-type]
        await shown.show(msgspec.structs.replace(counter(), title="Three"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not more.done()
        await shown.show()
        await more


# Instructions -------------------------------------------------------------------------------------------------


async def test_the_instructions_of_an_aggregate_name_the_servers_that_one_may_use(shown: Room) -> None:
    await shown.show(msgspec.structs.replace(counter(), title="Counts\n- admin: everything"), counter("other"))
    servers = shown.catalog.servers(ALL)
    assert (shown.catalog.instructions(ALL, servers) or "").splitlines()[1:] == [
        "- counter: Counts - admin: everything",
        "- other",
    ]
    assert "counter" not in (shown.catalog.instructions(ALL, servers[1:]) or "")
    assert "No servers" in (shown.catalog.instructions(ALL, ()) or "")


async def test_the_instructions_of_an_aggregate_are_short(shown: Room) -> None:
    for number in (1, 30, 70, 120, 400):
        servers = [Server(id=f"server-{n}", title="Ä title that says a lot" * 2) for n in range(number)]
        told = shown.catalog.instructions(ALL, servers) or ""
        assert 0 < len(told.encode()) <= MOST_INSTRUCTIONS
        assert (f"server-{number - 1}" in told) == (number <= 120)


async def test_one_servers_endpoint_passes_on_its_own_instructions(shown: Room) -> None:
    assert shown.catalog.instructions(COUNTER, shown.catalog.servers(COUNTER)) == "counter counts."
    assert shown.catalog.instructions(View("server", "unheard-of"), ()) is None
