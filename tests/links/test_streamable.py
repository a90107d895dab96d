"""Links over Streamable HTTP, against servers on real sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from mcpmux.config.schema import Limits, Server
from mcpmux.credentials import LinkKey
from mcpmux.errors import LinkLost, ServerUnavailable, UpstreamBroken, UpstreamRefused
from mcpmux.links import Link, Pool
from mcpmux.links.changes import LinkReady, OfferChanged
from mcpmux.protocol.events import Failure, Log, Offered, Progress, Result
from mcpmux.seal import Secret
from tests.links.harness import (
    PATIENCE,
    call,
    ending,
    events,
    link_of,
    running,
    text,
    tool,
    until,
    with_section,
)
from tests.links.servers.http_server import Json, StreamableServer, begun, reply, say, streamable_server

GREETINGS = ("server/discover", "initialize")
NOTE: Json = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "working"}}


def http(url: str, **fields: object) -> Server:
    return with_section(Server(id="remote", transport="http", url=url, **fields))  # type: ignore[arg-type]


async def seen(server: StreamableServer, method: str, count: int = 1) -> None:
    """Wait until the server has seen so many requests of one kind."""
    async with asyncio.timeout(PATIENCE):
        while server.count(method) < count:
            server.changed.clear()
            await server.changed.wait()


async def test_a_session_is_opened_used_and_ended(tmp_path: Path) -> None:
    async with streamable_server() as server:
        config = http(server.url, headers={"Authorization": Secret("Bearer s3cret")})
        async with running(tmp_path, config) as pool:
            link = await link_of(pool, "remote")
            assert await call(link, "echo") == "did tools/call"
        rpcs = [(method, rpc) for method, rpc, _ in server.seen if method != "GET"]
        assert rpcs == [
            ("POST", "server/discover"),
            ("POST", "initialize"),
            ("POST", "notifications/initialized"),
            ("POST", "tools/call"),
            ("DELETE", None),
        ]
        assert [session for method, rpc, session in server.seen if rpc not in GREETINGS] == ["session-1"] * 4
        assert all(headers["Authorization"] == "Bearer s3cret" for headers in server.headers)
        versions = [headers.get("MCP-Protocol-Version") for headers in server.headers]
        assert versions[:2] == ["2026-07-28", None]
        assert set(versions[2:]) == {"2025-11-25"}


async def test_what_comes_on_the_stream_of_a_call_belongs_to_that_call(tmp_path: Path) -> None:
    async with streamable_server() as server:

        async def chatty(request: web.Request, message: Json) -> web.StreamResponse:
            stream = await begun(request)
            await say(stream, NOTE)
            token = message["params"]["_meta"]["progressToken"]  # type: ignore[index]
            progress = {"progressToken": token, "progress": 1}
            await say(stream, {"jsonrpc": "2.0", "method": "notifications/progress", "params": progress})
            await say(stream, reply(message, {"content": []}))
            return stream

        server.tools["chatty"] = chatty
        async with running(tmp_path, http(server.url)) as pool:
            link = await link_of(pool, "remote")
            # Two callers at the same time: the stream says whose a log message is, however busy the link.
            both = [link.open(tool("chatty", caller=name, progress=True)) for name in ("ana", "ben")]
            for exchange in both:
                assert [type(event) for event in await events(exchange)] == [Log, Progress, Result]


async def test_a_change_on_the_get_stream_is_published_and_a_log_there_is_nobodys(tmp_path: Path) -> None:
    async with streamable_server() as server:

        async def slow(request: web.Request, message: Json) -> web.StreamResponse:
            await say(server.streams[0], NOTE)
            await say(server.streams[0], {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
            return web.json_response(reply(message, {"content": []}))

        server.tools["slow"] = slow
        async with running(tmp_path, http(server.url)) as pool:
            changes = pool.changes()
            link = await link_of(pool, "remote")
            await seen(server, "GET")
            await until(lambda: server.streams)
            assert [type(event) for event in await events(link.open(tool("slow")))] == [Result]
            async with asyncio.timeout(PATIENCE):
                found = [change async for change in _until_offer(changes)]
            assert found[-1] == OfferChanged("remote", LinkKey("remote"), Offered.TOOLS)


async def _until_offer(changes):  # type: ignore[no-untyped-def]
    async for change in changes:
        yield change
        if isinstance(change, OfferChanged):
            return


async def test_a_server_without_a_get_stream_is_asked_for_one_only_once(tmp_path: Path) -> None:
    async with streamable_server() as server:
        server.has_get = False
        async with running(tmp_path, http(server.url)) as pool:
            link = await link_of(pool, "remote")
            await seen(server, "GET")
            for _ in range(3):
                await call(link, "echo")
        assert server.count("GET") == 1


async def test_a_lost_session_is_made_anew_once_and_the_call_does_not_notice(tmp_path: Path) -> None:
    async with streamable_server() as server, running(tmp_path, http(server.url)) as pool:
        link = await link_of(pool, "remote")
        await call(link, "echo")
        changes = pool.changes()
        server.sessions.clear()
        both = [link.open(tool("echo")) for _ in range(5)]
        assert [await text(exchange) for exchange in both] == ["did tools/call"] * 5
        assert server.made == 2
        assert pool.ready(LinkKey("remote")) is link
        async with asyncio.timeout(PATIENCE):
            found = [await anext(changes) for _ in range(2)]
        assert LinkReady("remote", LinkKey("remote")) in found


@pytest.mark.parametrize(
    "body", ["Bad Request: No valid session ID provided", '{"error":{"message":"unknown Session"}}']
)
async def test_a_server_that_says_400_to_an_unknown_session_is_understood_as_well(tmp_path: Path, body: str) -> None:
    async with streamable_server() as server, running(tmp_path, http(server.url)) as pool:
        link = await link_of(pool, "remote")
        refusals = iter([web.Response(status=400, text=body)])
        server.refuse = lambda method, rpc: next(refusals, None) if rpc == "tools/call" else None
        assert await call(link, "echo") == "did tools/call"
        assert server.made == 2


async def test_a_session_that_is_lost_over_and_over_fails_the_call(tmp_path: Path) -> None:
    async with streamable_server() as server, running(tmp_path, http(server.url)) as pool:
        link = await link_of(pool, "remote")
        server.refuse = lambda method, rpc: web.Response(status=404) if rpc == "tools/call" else None
        with pytest.raises(UpstreamRefused):
            await call(link, "echo")
        assert server.made == 2


async def test_a_broken_response_stream_is_resumed_after_the_last_event(tmp_path: Path) -> None:
    async with streamable_server() as server:

        async def breaking(request: web.Request, message: Json) -> web.StreamResponse:
            server.kept["e2"] = [reply(message, {"content": [{"type": "text", "text": "resumed"}]})]
            stream = await begun(request)
            await stream.write(b"id: e1\nretry: 10\ndata:\n\n")
            await say(stream, NOTE, "e2")
            return stream

        server.tools["breaking"] = breaking
        async with running(tmp_path, http(server.url)) as pool:
            link = await link_of(pool, "remote")
            found = await events(link.open(tool("breaking")))
            assert [type(event) for event in found] == [Log, Result]
            assert b"resumed" in bytes(found[-1].result)  # type: ignore[union-attr]


async def test_a_broken_response_stream_that_cannot_be_resumed_fails_the_call_at_once(tmp_path: Path) -> None:
    async with streamable_server() as server:

        async def breaking(request: web.Request, message: Json) -> web.StreamResponse:
            stream = await begun(request)
            await say(stream, NOTE)
            return stream

        server.tools["breaking"] = breaking
        async with running(tmp_path, http(server.url)) as pool:
            link = await link_of(pool, "remote")
            with pytest.raises(LinkLost):
                await events(link.open(tool("breaking")))
            assert await call(link, "echo") == "did tools/call"


@pytest.mark.parametrize("status", [401, 403])
async def test_a_server_that_refuses_our_credentials_is_failed_and_not_hammered(tmp_path: Path, status: int) -> None:
    async with streamable_server() as server:
        server.refuse = lambda method, rpc: web.Response(status=status)
        async with running(tmp_path, http(server.url)) as pool:
            await until(lambda: pool.status()[0].state == "failed")
            found = pool.status()[0]
            assert found.reason == f"HTTP status {status}: check its credentials"
            assert server.count("POST") == 1
            with pytest.raises(ServerUnavailable) as refused:
                await pool.link(LinkKey("remote"), 5)
            assert refused.value.retry_after is not None
            assert refused.value.retry_after > 45


async def test_credentials_that_are_revoked_meanwhile_fail_the_server(tmp_path: Path) -> None:
    async with streamable_server() as server, running(tmp_path, http(server.url)) as pool:
        link = await link_of(pool, "remote")
        server.refuse = lambda method, rpc: web.Response(status=401)
        with pytest.raises(UpstreamRefused):
            await call(link, "echo")
        await until(lambda: pool.status()[0].state == "failed")


async def test_a_forbidden_call_fails_alone(tmp_path: Path) -> None:
    async with streamable_server() as server, running(tmp_path, http(server.url)) as pool:
        link = await link_of(pool, "remote")
        server.refuse = lambda method, rpc: web.Response(status=403) if rpc == "tools/call" else None
        with pytest.raises(UpstreamRefused, match="403"):
            await call(link, "echo")
        server.refuse = lambda method, rpc: None
        assert await call(link, "echo") == "did tools/call"
        assert pool.ready(LinkKey("remote")) is link


async def test_a_json_rpc_error_in_a_400_is_the_servers_answer(tmp_path: Path) -> None:
    async with streamable_server() as server, running(tmp_path, http(server.url)) as pool:
        link = await link_of(pool, "remote")
        error: Json = {"jsonrpc": "2.0", "id": None, "error": {"code": -32602, "message": "no such thing"}}
        server.refuse = lambda m, rpc: web.json_response(error, status=400) if rpc == "tools/call" else None
        assert await ending(link.open(tool("echo"))) == Failure(-32602, "no such thing")


async def test_an_answer_over_the_limit_fails_its_call_and_no_other(tmp_path: Path) -> None:
    async with streamable_server() as server:

        async def big(request: web.Request, message: Json) -> web.StreamResponse:
            server.events = message["params"]["arguments"]["events"]  # type: ignore[index]
            return await server.answer(request, message, {"content": [{"type": "text", "text": "x" * 300_000}]})

        server.tools["big"] = big
        async with running(tmp_path, http(server.url), limits=Limits(upstream_message=64 * 1024)) as pool:
            link = await link_of(pool, "remote")
            for as_events in (False, True):
                with pytest.raises(UpstreamBroken, match="too large"):
                    await call(link, "big", events=as_events)
            assert await call(link, "echo") == "did tools/call"


async def test_a_server_that_is_down_at_first_is_connected_when_it_comes(tmp_path: Path) -> None:
    async with streamable_server() as first:
        port = int(first.url.split(":")[2].split("/")[0])
    async with running(tmp_path, http(first.url)) as pool:
        await until(lambda: pool.status()[0].reason)
        assert pool.status()[0].reason == "connection refused"
        async with streamable_server(port):
            assert await call(await link_of(pool, "remote"), "echo") == "did tools/call"


async def test_a_server_that_goes_away_fails_calls_at_once_and_comes_back(tmp_path: Path) -> None:
    async with streamable_server() as server:
        port = int(server.url.split(":")[2].split("/")[0])
        entered = asyncio.Event()

        async def hang(request: web.Request, message: Json) -> web.StreamResponse:
            entered.set()
            await asyncio.Event().wait()
            raise AssertionError

        server.tools["hang"] = hang
        pool_running = running(tmp_path, http(server.url))
        pool: Pool = await pool_running.__aenter__()
        link: Link = await link_of(pool, "remote")
        exchange = link.open(tool("hang"))
        await entered.wait()
    try:
        with pytest.raises((LinkLost, ServerUnavailable)):
            await ending(exchange)
        async with streamable_server(port):
            again = await link_of(pool, "remote", 15)
            assert await call(again, "echo") == "did tools/call"
    finally:
        await pool_running.__aexit__(None, None, None)


async def test_a_redirect_to_another_origin_is_not_followed(tmp_path: Path) -> None:
    async with streamable_server() as server, streamable_server() as thief:
        server.refuse = lambda method, rpc: web.Response(status=307, headers={"Location": thief.url})
        config = http(server.url, headers={"Authorization": Secret("Bearer s3cret")})
        async with running(tmp_path, config) as pool:
            await until(lambda: pool.status()[0].reason)
            assert "redirects to another origin" in (pool.status()[0].reason or "")
        assert thief.seen == []


async def test_a_cancelled_call_closes_its_response_and_tells_the_server(tmp_path: Path) -> None:
    async with streamable_server() as server:
        entered, left = asyncio.Event(), asyncio.Event()

        async def hang(request: web.Request, message: Json) -> web.StreamResponse:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                left.set()
            raise AssertionError

        server.tools["hang"] = hang
        async with running(tmp_path, http(server.url)) as pool:
            link = await link_of(pool, "remote")
            exchange = link.open(tool("hang"))
            await entered.wait()
            exchange.cancel("enough")
            async with asyncio.timeout(PATIENCE):
                await left.wait()
            await until(lambda: server.count("POST", "notifications/cancelled"))
            assert link.in_flight == 0


async def test_a_redirect_on_the_same_origin_is_followed_and_remembered(tmp_path: Path) -> None:
    async with streamable_server() as server:
        config = http(server.url.replace("/mcp", "/old"))
        async with running(tmp_path, config) as pool:
            link = await link_of(pool, "remote")
            assert await call(link, "echo") == "did tools/call"
            assert await call(link, "echo") == "did tools/call"
        assert server.redirected == 1


async def test_what_a_server_asks_on_a_stream_is_answered_by_a_post_of_its_own(tmp_path: Path) -> None:
    async with streamable_server() as server:

        async def asking(request: web.Request, message: Json) -> web.StreamResponse:
            stream = await begun(request)
            await say(stream, {"jsonrpc": "2.0", "id": "ask-1", "method": "roots/list", "params": {}})
            async with asyncio.timeout(PATIENCE):
                while not server.answers:
                    server.changed.clear()
                    await server.changed.wait()
            await say(stream, reply(message, {"content": []}))
            return stream

        server.tools["asking"] = asking
        async with running(tmp_path, http(server.url)) as pool:
            assert isinstance(await ending((await link_of(pool, "remote")).open(tool("asking"))), Result)
        assert [(answer["id"], answer["error"]["code"]) for answer in server.answers] == [("ask-1", -32601)]  # type: ignore[index]


async def test_a_get_stream_that_always_ends_at_once_is_opened_ever_more_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcpmux.links.streamable.FIRST_PAUSE", 0.02)
    async with streamable_server() as server:
        server.gate.set()
        async with running(tmp_path, http(server.url)) as pool:
            link = await link_of(pool, "remote")
            loop = asyncio.get_running_loop()
            await seen(server, "GET", 3)
            began = loop.time()
            await seen(server, "GET", 5)
            # 0.08 and 0.16 s after the third.
            assert loop.time() - began > 0.2
            assert await call(link, "echo") == "did tools/call"


async def test_the_get_stream_goes_on_after_the_last_event_when_the_server_says_so(tmp_path: Path) -> None:
    async with streamable_server() as server:
        changed: Json = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
        server.kept["g1"] = [changed]
        server.greeting_events = b"id: g1\nretry: 20\ndata:\n\n"
        server.gate.set()
        async with running(tmp_path, http(server.url)) as pool:
            changes = pool.changes()
            async with asyncio.timeout(PATIENCE):
                found = [change async for change in _until_offer(changes)]
            assert found[-1] == OfferChanged("remote", LinkKey("remote"), Offered.TOOLS)


async def test_an_idle_server_that_has_gone_is_noticed_by_its_stream(tmp_path: Path) -> None:
    async with streamable_server() as server:
        pool_running = running(tmp_path, http(server.url))
        pool: Pool = await pool_running.__aenter__()
        link = await link_of(pool, "remote")
        await until(lambda: server.streams)
    try:
        await until(lambda: link.lost, 20)
    finally:
        await pool_running.__aexit__(None, None, None)
