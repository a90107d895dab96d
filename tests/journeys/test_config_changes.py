"""Saving the config file while mcpmux runs applies the difference, and nothing but the difference."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import mcp_types as types
import pytest

from tests.gateway_process import Gateway, running
from tests.journeys.clients import Heard, Person, all_tools, appears, refusal, said, until
from tests.servers import counter

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    servers = {"stays": counter("--name", "one"), "changes": counter("--name", "two"), "goes": counter()}
    with running(tmp_path / "gateway", servers) as made:
        for name in servers:
            made.wait_for(lambda name=name: made.logged("link_ready", server=name), 20, name)
        yield made


@pytest.fixture
def person(gateway: Gateway) -> Person:
    return Person(gateway, "ana@example.com", ("MCP-Admin",))


def servers_in(names: list[str]) -> set[str]:
    return {name.partition("__")[0] for name in names}


async def test_a_new_server_starts_a_changed_one_is_replaced_a_removed_one_ends(
    gateway: Gateway, person: Person, tmp_path: Path
) -> None:
    heard, gate = Heard(), tmp_path / "gate"
    unchanged = [one.pid for one in gateway.children_of("stays")]
    gone = gateway.children_of("goes")
    async with person.connected(heard=heard) as client, asyncio.TaskGroup() as tasks:
        assert servers_in(await all_tools(client)) == {"stays", "changes", "goes"}
        waiting = tasks.create_task(client.call_tool("stays__slow", {"gate": str(gate)}))
        await appears(tmp_path / "gate.entered")
        kept = {name: gateway.servers[name] for name in ("stays",)}
        gateway.save({**kept, "changes": counter("--name", "two", "--tools", 1), "comes": counter()})
        await gateway.ready("comes")
        await until(lambda: heard.of(types.ToolListChangedNotification), what="list_changed")
        names: list[str] = []

        async def shown() -> bool:
            names[:] = await all_tools(client)
            return servers_in(names) == {"stays", "changes", "comes"} and "changes__generated_0" in names

        async with asyncio.timeout(10):
            while not await shown():
                await asyncio.sleep(0.05)
        assert said(await client.call_tool("comes__echo", {"text": "new"})) == "new"
        assert (await refusal(client.call_tool("goes__echo", {"text": "x"}))).message == "Unknown tool: goes__echo"
        await until(lambda: not any(one.is_running() for one in gone), 15, "the end of the removed server")
        assert [one.pid for one in gateway.children_of("stays")] == unchanged
        assert not waiting.done(), "a call to an unchanged server goes on"
        gate.touch()
        assert said(await waiting) == f"{gate} is open"


async def test_calls_in_flight_on_a_replaced_server_finish_on_the_old_one(
    gateway: Gateway, person: Person, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with person.connected() as client, asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(client.call_tool("changes__slow", {"gate": str(gate)}))
        await appears(tmp_path / "gate.entered")
        ready = len(gateway.logged("link_ready", server="changes"))
        gateway.save({**gateway.servers, "changes": counter("--name", "other")})
        await gateway.soon(lambda: len(gateway.logged("link_ready", server="changes")) > ready, 20, "the new one")
        assert said(await client.call_tool("changes__count", {})) == "1"
        gate.touch()
        assert said(await waiting) == f"{gate} is open"


async def test_a_disabled_server_is_invisible_to_everyone_and_ends(gateway: Gateway, person: Person) -> None:
    heard = Heard()
    ended = gateway.children_of("goes")
    async with person.connected(heard=heard) as client:
        gateway.save({**gateway.servers, "goes": counter(enabled=False)})
        await until(lambda: heard.of(types.ToolListChangedNotification), what="list_changed")
        assert servers_in(await all_tools(client)) == {"stays", "changes"}
        assert (await refusal(client.call_tool("goes__echo", {"text": "x"}))).code == -32602
        await until(lambda: not any(one.is_running() for one in ended), 15, "its end")


async def test_a_tool_that_is_denied_now_is_gone_at_once_and_its_server_is_not_restarted(
    gateway: Gateway, person: Person
) -> None:
    heard = Heard()
    async with person.connected(heard=heard) as client:
        before = [one.pid for one in gateway.children_of("stays")]
        assert said(await client.call_tool("stays__count", {})) == "1"
        gateway.save({**gateway.servers, "stays": counter("--name", "one", tools={"deny": ["delete_*", "big"]})})
        await until(lambda: heard.of(types.ToolListChangedNotification), what="list_changed")
        names = await all_tools(client)
        assert "stays__big" not in names
        assert "stays__delete_all" not in names
        assert (await refusal(client.call_tool("stays__big", {"bytes": 1}))).message == "Unknown tool: stays__big"
        assert said(await client.call_tool("stays__count", {})) == "2", "the same process"
        assert [one.pid for one in gateway.children_of("stays")] == before


async def test_a_file_with_any_error_changes_nothing_and_says_so(gateway: Gateway, person: Person) -> None:
    good = gateway.config.read_text()
    async with person.connected() as client:
        before = await all_tools(client)
        gateway.config.write_text(good.replace('"transport"', '"transprot"'))
        await until(lambda: gateway.logged("config_refused"), what="the refusal in the log")
        assert gateway.metric("mcpmux_config_valid") == 0
        status = json.loads((await asyncio.to_thread(gateway.run, "status", "--json", check=False)).stdout)
        assert status["config"]["ok"] is False
        assert "transprot" in str(status["config"]["errors"])
        checked = await asyncio.to_thread(gateway.run, "check", check=False)
        assert checked.returncode == 1
        assert f"{gateway.config}:" in checked.stdout + checked.stderr
        assert await all_tools(client) == before
        assert said(await client.call_tool("stays__echo", {"text": "still"})) == "still"
        gateway.config.write_text(good)
        await until(lambda: gateway.metric("mcpmux_config_valid") == 1, what="the file to be good again")


async def test_an_unset_variable_leaves_its_server_unconfigured_and_names_it(gateway: Gateway) -> None:
    gateway.save({**gateway.servers, "github": counter(env={"GITHUB_TOKEN": "${env:NOT_SET_ANYWHERE}"})})
    await until(lambda: gateway.metric("mcpmux_config_applied_total") >= 2, what="the new config")
    states = await asyncio.to_thread(gateway.status)
    assert states["github"]["state"] == "unconfigured"
    assert states["github"]["missing"] == ["NOT_SET_ANYWHERE"]
    assert gateway.children_of("github") == []


async def test_a_secret_in_a_file_is_reread_when_the_file_changes(
    gateway: Gateway, person: Person, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("first\n")
    gateway.save({**gateway.servers, "secretive": counter(env={"KEY": f"${{file:{secret}}}"})})
    await gateway.ready("secretive")

    async def key() -> str:
        async with person.connected() as client:
            where = json.loads(said(await client.call_tool("secretive__whereami", {})))
            return str(where["environment"]["KEY"])

    assert await key() == "first"
    ready = len(gateway.logged("link_ready", server="secretive"))
    secret.write_text("second\n")
    await gateway.soon(lambda: len(gateway.logged("link_ready", server="secretive")) > ready, 20, "the restart")
    assert await key() == "second"
    assert "second" not in gateway.log.read_text()


async def test_a_change_of_the_gateway_section_is_told_and_the_servers_part_still_applies(gateway: Gateway) -> None:
    gateway.section["metrics"] = {"public": False}
    gateway.save({**gateway.servers, "comes": counter()})
    await gateway.ready("comes")
    told = (await asyncio.to_thread(gateway.run, "status")).stdout
    assert "restart needed" in told
    assert gateway.metrics(), "the metrics are as public as they were"
