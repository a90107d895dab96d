"""Grants change while sessions run: within two seconds they see and may call only what is granted now."""

from __future__ import annotations

import asyncio

import mcp_types as types
import pytest

from tests.gateway_process import Gateway
from tests.journeys.clients import SESSIONS, Heard, Person, all_tools, appears, refusal, said, until

SOON = 2.0  # seconds from the change to its effect


@pytest.mark.parametrize("face", SESSIONS)
async def test_a_grant_reaches_a_running_session_and_a_revocation_takes_it_away(face: str, gateway: Gateway) -> None:
    heard = Heard()
    eva = Person(gateway, f"eva-{face}@example.com")
    async with eva.connected(face=face, heard=heard) as client:
        assert await all_tools(client) == []
        await asyncio.to_thread(gateway.grant, eva.email, "gamma")
        await until(lambda: heard.of(types.ToolListChangedNotification), SOON, "list_changed")
        assert "gamma__echo" in await all_tools(client)
        assert said(await client.call_tool("gamma__echo", {"text": "granted"})) == "granted"
        heard.notifications.clear()
        await asyncio.to_thread(gateway.revoke, eva.email, "gamma")
        await until(lambda: heard.of(types.ToolListChangedNotification), SOON, "list_changed")
        assert await all_tools(client) == []
        assert (await refusal(client.call_tool("gamma__echo", {"text": "gone"}))).message == "Unknown tool: gamma__echo"


async def test_a_lower_level_leaves_only_the_tools_that_read(gateway: Gateway) -> None:
    heard = Heard()
    fay = Person(gateway, "fay@example.com", ("MCP-Fay",))
    await asyncio.to_thread(gateway.grant, "MCP-Fay", "gamma", "write")
    async with fay.connected(heard=heard) as client:
        assert "gamma__count" in await all_tools(client)
        await asyncio.to_thread(gateway.grant, "MCP-Fay", "gamma", "read")
        await until(lambda: heard.of(types.ToolListChangedNotification), SOON, "list_changed")
        names = await all_tools(client)
        assert "gamma__count" not in names
        assert "gamma__echo" in names
        assert (await refusal(client.call_tool("gamma__count", {}))).code == -32602


async def test_only_those_whose_grants_changed_are_told(gateway: Gateway, ana: Person, ben: Person) -> None:
    hers, his = Heard(), Heard()
    gil = Person(gateway, "gil@example.com")
    async with ana.connected(heard=hers) as one, ben.connected(heard=Heard()), gil.connected(heard=his) as other:
        before = await all_tools(one)
        await asyncio.to_thread(gateway.grant, gil.email, "beta")
        await until(lambda: his.of(types.ToolListChangedNotification), SOON, "list_changed")
        assert await all_tools(one) == before
        assert await all_tools(other) != []
    assert hers.of(types.ToolListChangedNotification) == []


async def test_a_call_in_flight_ends_when_the_right_to_it_is_taken(gateway: Gateway, tmp_path) -> None:
    gate = tmp_path / "gate"
    hal = Person(gateway, "hal@example.com")
    await asyncio.to_thread(gateway.grant, hal.email, "gamma")
    async with hal.connected() as client, asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(refusal(client.call_tool("gamma__slow", {"gate": str(gate)})))
        await appears(tmp_path / "gate.entered")
        await asyncio.to_thread(gateway.revoke, hal.email, "gamma")
        await appears(tmp_path / "gate.cancelled", SOON)
        async with asyncio.timeout(SOON):
            # What a new call would be told from now on.
            assert (await waiting).message == "Unknown tool: gamma__slow"
