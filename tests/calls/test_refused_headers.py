"""Calls whose headers a modern server refuses, because its tools ask for others by now.

Source: MCP 2026-07-28 basic/transports/streamable-http, "Client Behavior".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.faces.client import Json, Session, bearer
from tests.faces.modern import Modern, asking
from tests.gateway_process import Gateway, running
from tests.servers import listening


@dataclass(frozen=True)
class Place:
    """A running mcpmux, and what its one server has seen."""

    gateway: Gateway
    record: Path

    def seen(self, method: str, tool: str | None = None) -> list[Json]:
        """The headers of the requests of one method, and of one tool."""
        lines = [json.loads(line) for line in self.record.read_text().splitlines()]
        found = [one for one in lines if one["message"].get("method") == method]
        return [one["headers"] for one in found if tool in (None, one["message"]["params"].get("name"))]

    def person(self, http: aiohttp.ClientSession) -> Modern:
        """A client of the modern era at the server's own endpoint."""
        return Modern(
            http, f"{self.gateway.url}/servers/moody/mcp", bearer(self.gateway, "ana@example.com", "MCP-Admin")
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One server over HTTP that announces its changes."""
    folder = tmp_path_factory.mktemp("refused")
    record = folder / "seen"
    with (
        listening("http", program="modern_server", arguments=["--seen", str(record)]) as (url, _),
        running(folder / "mux", {"moody": {"transport": "http", "url": url}}) as gateway,
    ):
        gateway.wait_for(lambda: gateway.logged("offer_changed", server="moody", live=True))
        yield Place(gateway, record)


async def test_its_tools_are_listed_again_and_the_call_is_made_once_more(place: Place) -> None:
    async with aiohttp.ClientSession() as http:
        who = bearer(place.gateway, "ana@example.com", "MCP-Admin")
        session = await Session.opened(http, f"{place.gateway.url}/mcp", who)
        lists = len(place.seen("tools/list"))
        assert await session.call("moody__annotate", header="Elsewhere") == "Elsewhere"
        assert json.loads(await session.call("moody__locate", region="north")) == {"region": "north"}
    refused, taken = place.seen("tools/call", "locate")
    assert (refused.get("Mcp-Param-Region"), refused.get("Mcp-Param-Elsewhere")) == ("north", None)
    assert (taken.get("Mcp-Param-Region"), taken.get("Mcp-Param-Elsewhere")) == (None, "north")
    assert len(place.seen("tools/list")) == lists + 1


async def test_a_modern_client_that_said_what_was_listed_notices_nothing(place: Place) -> None:
    async with aiohttp.ClientSession() as http:
        ana = place.person(http)
        ana.more[await listed(ana)] = "north"
        await ana.call("annotate", header="Third")
        assert json.loads(await ana.call("locate", region="north")) == {"region": "north"}
        assert await listed(ana) == "Mcp-Param-Third"


async def test_a_server_that_still_refuses_is_not_asked_for_ever(place: Place) -> None:
    async with aiohttp.ClientSession() as http:
        ana = place.person(http)
        calls = len(place.seen("tools/call", "locate"))
        # It lists what it listed at first, which is not what it wants.
        await ana.call("annotate", header="Hidden", lies=True)
        ana.more[await listed(ana)] = "north"
        result = await ana.ask("tools/call", {"name": "locate", "arguments": {"region": "north"}})
    assert result["isError"] is True
    assert "it refuses the headers of the call: Header mismatch: Mcp-Param-Hidden" in str(result["content"])
    assert len(place.seen("tools/call", "locate")) == calls + 2


async def test_any_other_error_is_passed_on_as_it_is(place: Place) -> None:
    async with aiohttp.ClientSession() as http:
        ana = place.person(http)
        lists = len(place.seen("tools/list"))
        answer = await ana.post(asking("tools/call", {"name": "refuse", "arguments": {}}))
    assert answer.error["message"] == "This tool refuses"
    assert len(place.seen("tools/call", "refuse")) == 1
    assert len(place.seen("tools/list")) == lists


async def listed(client: Modern) -> str:
    """The header in which `locate` is said to have its region."""
    tools = (await client.ask("tools/list"))["tools"]
    assert isinstance(tools, list)
    (schema,) = [tool["inputSchema"] for tool in tools if tool["name"] == "locate"]
    return f"Mcp-Param-{schema['properties']['region']['x-mcp-header']}"
