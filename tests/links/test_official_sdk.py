"""Links to a server of the official SDK, over each transport: the same calls, the same answers."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import pytest

from mcpmux.config.schema import Server
from mcpmux.protocol.events import Ask, Failure, Log, Opening, Progress, Result
from tests.links.harness import PATIENCE, SERVERS, call, ending, events, link_of, running, tool, with_section
from tests.servers import listening

TRANSPORTS = ["stdio", "http", "sse"]


@pytest.fixture(params=TRANSPORTS)
def server(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    """The config of the conformance server on one transport."""
    if request.param == "stdio":
        command = (sys.executable, str(SERVERS / "conformance_server.py"), "stdio")
        yield with_section(Server(id="sdk", command=command))
        return
    with listening(request.param) as (url, _):
        yield with_section(Server(id="sdk", transport=request.param, url=url))


async def test_calls_lists_progress_and_logs_come_through(tmp_path: Path, server: Server) -> None:
    async with running(tmp_path, server) as pool:
        link = await link_of(pool, "sdk", 20)
        assert link.greeting is not None
        assert link.greeting.protocol_version == "2025-11-25"
        assert await call(link, "test_simple_text")
        listed = await ending(link.open(Opening("tools/list", None, "")))
        assert isinstance(listed, Result)
        assert len(msgspec.json.decode(listed.result)["tools"]) > 5
        await ending(link.open(Opening("logging/setLevel", {"level": msgspec.Raw(b'"debug"')}, "")))
        found = await events(link.open(tool("test_tool_with_progress", progress=True)))
        assert [type(event) for event in found if not isinstance(event, Log)] == [Progress] * 3 + [Result]
        found = await events(link.open(tool("test_tool_with_logging")))
        assert [type(event) for event in found] == [Log] * 3 + [Result]


async def test_many_calls_at_once_and_what_the_server_asks_is_answered(tmp_path: Path, server: Server) -> None:
    async with running(tmp_path, server) as pool:
        link = await link_of(pool, "sdk", 20)
        exchanges = [link.open(tool("test_simple_text")) for _ in range(20)]
        assert all([isinstance(await ending(exchange), Result) for exchange in exchanges])
        asking = link.open(tool("test_sampling", prompt="x"))
        async with asyncio.timeout(PATIENCE):
            asked = await asking.next()
        assert isinstance(asked, Ask)
        asking.answer(asked.id, Failure(-1, "nobody is there"))
        await ending(asking)
        assert link.in_flight == 0
