"""As Open WebUI does it: a new connection for every chat message, modern protocol first, everything listed, closed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import mcp_types as types
import pytest
from mcp.shared.subscriptions import ToolsListChanged

from tests.gateway_process import Gateway, running
from tests.journeys.clients import Heard, Person, all_tools, said, until
from tests.servers import counter, faulty

CHATS = 240
AT_ONCE = 20
TOOLS = 19  # of one counter
KINDS = {"MCP-Sales": ("crm", "mail"), "MCP-Engineering": ("git", "mail", "wiki"), "MCP-Board": ("wiki",)}
SERVERS = ("crm", "mail", "git", "wiki", "secret")

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("webui"), {name: counter("--name", name) for name in SERVERS}) as made:
        for group, servers in KINDS.items():
            for server in servers:
                made.grant(group, server)
        for name in SERVERS:
            made.wait_for(lambda name=name: made.logged("link_ready", server=name), 30, name)
        yield made


async def chat(person: Person, servers: tuple[str, ...], number: int) -> None:
    """One message of one chat, as the backend of Open WebUI serves it."""
    async with person.connected(face="modern") as client:
        assert client.protocol_version == "2026-07-28"
        tools = await all_tools(client)
        assert {name.partition("__")[0] for name in tools} == set(servers)
        assert len(tools) == TOOLS * len(servers)
        for server in servers:
            text = f"{person.email} asks {server} in chat {number}"
            assert said(await client.call_tool(f"{server}__echo", {"text": text})) == text


async def test_240_chats_of_three_kinds_of_people_20_at_once_leave_no_error_and_make_no_session(
    gateway: Gateway,
) -> None:
    people = [
        (Person(gateway, f"{group.removeprefix('MCP-').lower()}{number}@example.com", (group,)), servers)
        for group, servers in KINDS.items()
        for number in range(4)
    ]
    errors = len([event for event in gateway.events() if event["level"] in ("warning", "error", "critical")])
    places = asyncio.Semaphore(AT_ONCE)
    at_once = peak = 0

    async def one(number: int) -> None:
        nonlocal at_once, peak
        person, servers = people[number % len(people)]
        async with places:
            at_once += 1
            peak = max(peak, at_once)
            await chat(person, servers, number)
            at_once -= 1

    async with asyncio.TaskGroup() as tasks:
        for number in range(CHATS):
            tasks.create_task(one(number))
    assert peak == AT_ONCE
    await until(lambda: gateway.metric("mcpmux_streams") == 0, what="the end of every stream")
    assert gateway.metric("mcpmux_calls_in_flight") == 0
    assert gateway.metric("mcpmux_sessions_opened_total") == 0, "nobody had to fall back"
    assert gateway.metric("mcpmux_calls_total", method="server/discover", outcome="ok") == CHATS
    calls = sum(len(servers) for _, servers in people) * CHATS // len(people)
    assert gateway.metric("mcpmux_calls_total", method="tools/call", outcome="ok") == calls
    # One encoding for each kind of people, not for each chat: what a list costs is what everybody's chat costs.
    assert gateway.metric("mcpmux_lists_encoded_total", method="tools/list") <= 2 * len(KINDS)
    now = [event for event in gateway.events() if event["level"] in ("warning", "error", "critical")]
    assert now[errors:] == []


async def test_a_chat_of_a_client_that_knows_no_modern_era_leaves_no_session(gateway: Gateway) -> None:
    person = Person(gateway, "sales0@example.com", ("MCP-Sales",))
    async with person.connected() as client:
        assert client.protocol_version == "2025-11-25"
        assert len(await all_tools(client)) == TOOLS * len(KINDS["MCP-Sales"])
    await until(lambda: gateway.metric("mcpmux_sessions") == 0, what="the end of the session")


async def test_the_first_chat_after_a_cold_start_with_30_servers_has_its_full_list_within_2_seconds(
    tmp_path: Path,
) -> None:
    """From what the servers offered last time: they take a minute to start, the chat does not wait for them."""
    gate = tmp_path / "started"
    gate.touch()
    servers = {f"slow{n:02}": late(gate) for n in range(30)}
    with running(tmp_path / "gateway", servers) as gateway:
        await gateway.ready(wait=90)
        person = Person(gateway, "eva@example.com", ("MCP-Admin",))
        async with person.connected(face="modern") as client:
            wanted = sorted(await all_tools(client))
        assert len(wanted) == 30 * TOOLS
        gateway.end()
        gate.unlink()
        await asyncio.to_thread(gateway.start)
        async with asyncio.timeout(2.0):
            async with person.connected(face="modern") as client:
                assert sorted(await all_tools(client)) == wanted
        assert gateway.logged("link_ready") == [], "the servers are still starting"
        gate.touch()
        await gateway.ready(wait=90)
        async with person.connected(face="modern") as client:
            assert said(await client.call_tool("slow07__echo", {"text": "now"})) == "now"
            assert sorted(await all_tools(client)) == wanted


def late(gate: Path) -> dict[str, object]:
    """A server that reads nothing before the gate is open."""
    return faulty("late", "--gate", gate)


async def test_a_call_to_a_server_that_is_still_starting_waits_for_it(tmp_path: Path) -> None:
    gate = tmp_path / "started"
    with running(tmp_path / "gateway", {"slow": late(gate), "quick": counter()}) as gateway:
        person = Person(gateway, "eva@example.com", ("MCP-Admin",))
        await gateway.ready("quick")
        async with person.connected(face="modern") as client, asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(client.call_tool("slow__echo", {"text": "at last"}))
            assert said(await client.call_tool("quick__echo", {"text": "at once"})) == "at once"
            assert not waiting.done()
            gate.touch()
            assert said(await waiting) == "at last"


async def test_a_server_that_was_never_seen_before_is_told_of_when_it_appears(tmp_path: Path) -> None:
    gate = tmp_path / "started"
    with running(tmp_path / "gateway", {"slow": late(gate), "quick": counter()}) as gateway:
        person = Person(gateway, "eva@example.com", ("MCP-Admin",))
        await gateway.ready("quick")
        async with (
            person.connected(face="modern") as client,
            client.listen(tools_list_changed=True) as changes,
            asyncio.timeout(30),
        ):
            assert len(await all_tools(client)) == TOOLS, "not an empty success, and no waiting for ever"
            gate.touch()
            assert isinstance(await anext(changes), ToolsListChanged)
            assert len(await all_tools(client)) == 2 * TOOLS


async def test_a_client_of_a_legacy_era_is_told_as_well(tmp_path: Path) -> None:
    gate, heard = tmp_path / "started", Heard()
    with running(tmp_path / "gateway", {"slow": late(gate), "quick": counter()}) as gateway:
        person = Person(gateway, "eva@example.com", ("MCP-Admin",))
        await gateway.ready("quick")
        async with person.connected(heard=heard) as client:
            assert len(await all_tools(client)) == TOOLS, "not an empty success, and no waiting for ever"
            gate.touch()
            await until(lambda: heard.of(types.ToolListChangedNotification), what="list_changed")
            assert len(await all_tools(client)) == 2 * TOOLS
