"""Pooled links and links of sessions over Streamable HTTP and HTTP+SSE: as with child processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from mcpmux.config.schema import Server
from mcpmux.credentials import LinkKey
from mcpmux.errors import LinkLost
from mcpmux.links import Link, Pool, hold
from mcpmux.protocol.events import Log, Result
from tests.links.harness import PATIENCE, ending, events, link_of, running, tool, until, with_section
from tests.links.servers.http_server import Json, StreamableServer, begun, reply, streamable_server
from tests.servers import listening

KEY = LinkKey("remote")


def remote(transport: str, url: str, **fields: object) -> Server:
    return with_section(Server(id="remote", transport=transport, url=url, **fields))  # type: ignore[arg-type]


async def full(pool: Pool, links: int) -> None:
    """Wait until so many links are ready."""
    await until(lambda: [link.state for link in pool.status()[0].links] == ["ready"] * links, PATIENCE * 2)


@pytest.mark.parametrize("transport", ["http", "sse"])
async def test_what_a_remote_server_logs_belongs_to_the_call_that_has_the_link(tmp_path: Path, transport: str) -> None:
    with listening(transport) as (url, _):
        async with running(tmp_path, remote(transport, url, isolation="pooled", links=2)) as pool:
            await full(pool, 2)
            used: set[Link] = set()

            async def heard(caller: str) -> None:
                link = await pool.link(KEY, PATIENCE)
                used.add(link)
                found = await events(link.open(tool("test_tool_with_logging", caller)))
                assert [type(event) for event in found] == [Log, Log, Log, Result]

            async with asyncio.TaskGroup() as tasks:
                for caller in ("ana", "ben", "cem"):
                    tasks.create_task(heard(caller))
            assert len(used) == 2


@pytest.mark.parametrize("transport", ["http", "sse"])
async def test_each_session_has_a_session_of_its_own_at_a_remote_server(tmp_path: Path, transport: str) -> None:
    with listening(transport) as (url, _):
        async with running(tmp_path, remote(transport, url, isolation="session")) as pool:
            lists = await link_of(pool, "remote")
            own = [await pool.link(LinkKey("remote", name), PATIENCE) for name in ("ana-1", "ben-1", "ana-1")]
            assert len({lists, *own}) == 3
            for link in own:
                assert isinstance((await events(link.open(tool("test_simple_text"))))[-1], Result)
            pool.end("ana-1")
            assert own[0].lost
            await full(pool, 2)


class Held:
    """A tool that answers when the test says so."""

    def __init__(self, server: StreamableServer) -> None:
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        server.tools["held"] = self.answer

    async def answer(self, _: web.Request, message: Json) -> web.StreamResponse:
        self.entered.set()
        await self.gate.wait()
        return web.json_response(reply(message, {"content": []}))


async def test_a_remote_link_waits_for_the_answer_to_a_cancelled_call(tmp_path: Path) -> None:
    async with streamable_server() as server:
        held = Held(server)
        async with running(tmp_path, remote("http", server.url, isolation="pooled", links=1)) as pool:
            link = await link_of(pool, "remote")
            exchange = link.open(tool("held"))
            await held.entered.wait()
            exchange.cancel("enough")
            assert pool.ready(KEY) is None
            async with asyncio.TaskGroup() as tasks:
                waits = tasks.create_task(pool.link(KEY, PATIENCE))
                await asyncio.sleep(0)
                held.gate.set()
            assert waits.result() is link
        assert server.count("POST", "initialize") == 1


async def test_a_remote_link_whose_cancelled_call_is_never_answered_gets_another_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold, "SETTLE", 0.1)
    async with streamable_server() as server:
        held = Held(server)
        async with running(tmp_path, remote("http", server.url, isolation="pooled", links=1)) as pool:
            link = await link_of(pool, "remote")
            exchange = link.open(tool("held"))
            await held.entered.wait()
            exchange.cancel("enough")
            assert await pool.link(KEY, PATIENCE) is not link
            assert server.sessions == {"session-2"}
            held.gate.set()


async def test_a_remote_link_that_lost_a_call_on_the_way_gets_another_session(tmp_path: Path) -> None:
    """The server may be at work on it: what it says of it must not reach the next call."""
    async with streamable_server() as server:

        async def cut(request: web.Request, _: Json) -> web.StreamResponse:
            return await begun(request)

        server.tools["cut"] = cut
        async with running(tmp_path, remote("http", server.url, isolation="pooled", links=1)) as pool:
            link = await link_of(pool, "remote")
            with pytest.raises(LinkLost):
                await ending(link.open(tool("cut")))
            assert pool.ready(KEY) is None
            assert await pool.link(KEY, PATIENCE) is not link
            assert pool.state("remote") == "ready"
            assert server.sessions == {"session-2"}
