"""Links over HTTP+SSE of 2024-11-05, against a server on a real socket."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mcpmux.config.schema import Server
from mcpmux.credentials import LinkKey
from mcpmux.errors import LinkLost, UpstreamRefused
from tests.links.harness import PATIENCE, call, ending, link_of, running, tool, until, with_section
from tests.links.servers.http_server import sse_server


def sse(url: str, **fields: object) -> Server:
    return with_section(Server(id="old", transport="sse", url=url, **fields))  # type: ignore[arg-type]


async def test_messages_are_posted_to_the_endpoint_and_answered_on_the_stream(tmp_path: Path) -> None:
    async with sse_server() as server, running(tmp_path, sse(server.url)) as pool:
        link = await link_of(pool, "old")
        assert link.greeting is not None
        assert link.greeting.protocol_version == "2024-11-05"
        assert await call(link, "echo") == "did tools/call"
        assert [post.get("method") for post in server.posts] == [
            "initialize",
            "notifications/initialized",
            "tools/call",
        ]


async def test_an_endpoint_on_another_origin_is_refused(tmp_path: Path) -> None:
    async with sse_server() as server:
        server.endpoint = "http://127.0.0.1:1/messages"
        async with running(tmp_path, sse(server.url)) as pool:
            await until(lambda: pool.status()[0].state == "failed")
            assert pool.status()[0].reason == "its endpoint event leads to another origin"
        assert server.posts == []


async def test_when_the_stream_ends_calls_fail_at_once_and_a_new_one_is_opened(tmp_path: Path) -> None:
    async with sse_server() as server, running(tmp_path, sse(server.url)) as pool:
        link = await link_of(pool, "old")
        server.silent = True
        exchange = link.open(tool("echo"))
        await until(lambda: server.posts and server.posts[-1].get("method") == "tools/call")
        server.end.set()
        with pytest.raises(LinkLost):
            await ending(exchange)
        server.end.clear()
        server.silent = False
        again = await link_of(pool, "old")
        assert again is not link


async def test_a_message_that_is_not_taken_fails_its_call(tmp_path: Path) -> None:
    async with sse_server() as server, running(tmp_path, sse(server.url)) as pool:
        link = await link_of(pool, "old")
        server.post_status = 400
        with pytest.raises(UpstreamRefused):
            await call(link, "echo")
        server.post_status = 202
        assert await call(link, "echo") == "did tools/call"


async def test_a_refused_stream_is_a_clear_reason_and_is_not_hammered(tmp_path: Path) -> None:
    async with sse_server() as server:
        server.stream_status = 403
        async with running(tmp_path, sse(server.url)) as pool:
            await until(lambda: pool.status()[0].state == "failed")
            assert pool.status()[0].reason == "no event stream: HTTP status 403: check its credentials"
            assert pool.ready(LinkKey("old")) is None


async def test_a_server_that_never_names_its_endpoint_is_given_up(tmp_path: Path) -> None:
    async with sse_server() as server:
        server.endpoint = None
        async with running(tmp_path, sse(server.url)) as pool:
            await until(lambda: server.streams)
            assert pool.status()[0].state == "starting"
            async with asyncio.timeout(PATIENCE):
                await pool.close(PATIENCE)
