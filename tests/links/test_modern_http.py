"""Links to modern servers over Streamable HTTP, on real sockets: what goes up is as headers and schema say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from msgspec import Raw

from mcpmux.config.schema import Limits
from mcpmux.credentials import LinkKey
from mcpmux.errors import LinkLost, UpstreamBroken, UpstreamRefused
from mcpmux.links import Link, Pool
from mcpmux.links.changes import OfferChanged, ResourceUpdated
from mcpmux.protocol import headers
from mcpmux.protocol.events import Ask, Failure, Log, Offered, Opening, Progress, Result
from tests.links.harness import PATIENCE, call, ending, events, link_of, of, running, text, tool, until
from tests.links.servers.http_server import streamable_server
from tests.links.servers.modern import Remote, modern_remote
from tests.links.test_streamable import http
from tests.schemas import MODERN
from tests.schemas.wire import Wire
from tests.servers.modern_server import TOOLS, Json

ABLE = {"elicitation": Raw(b'{"form":{}}'), "roots": Raw(b"{}")}
LOCATE = json.dumps(next(entry for entry in TOOLS if entry["name"] == "locate")).encode()


@asynccontextmanager
async def linked(tmp_path: Path, *options: str, **fields: object) -> AsyncIterator[tuple[Remote, Pool, Link]]:
    """A ready link to one, which is content with all that it was sent; so is the schema."""
    async with modern_remote(*options) as remote, running(tmp_path, http(remote.url, **fields)) as pool:
        yield remote, pool, await link_of(pool, "remote")
        wire = Wire(MODERN, "Client")
        for message, _ in remote.server.seen:
            wire.sent(message)


def about(method: str, uri: str) -> Opening:
    """A subscription, or its end."""
    return Opening(method, {"uri": Raw(json.dumps(uri).encode())}, "")


async def seen(remote: Remote, method: str, count: int = 1) -> None:
    """Wait until it has seen so many requests of one method."""
    await noticed(remote, lambda: remote.server.count(method) >= count)


async def noticed(remote: Remote, condition: Callable[[], object]) -> None:
    """Wait for something that the server notices."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            remote.server.changed.clear()
            await remote.server.changed.wait()


async def test_it_is_greeted_and_called_by_single_requests_without_a_session(tmp_path: Path) -> None:
    async with linked(tmp_path) as (remote, pool, link):
        assert link.greeting is not None
        assert link.greeting.protocol_version == MODERN
        assert await call(link, "echo", text="héllo") == "héllo"
        (status,) = pool.status()
        assert (status.era, status.revision) == ("modern", MODERN)
        assert remote.server.count("initialize") == 0
        for message, said in remote.server.seen:
            assert said["Mcp-Method"] == message["method"]
            assert said["MCP-Protocol-Version"] == MODERN
            assert "Mcp-Session-Id" not in said


async def test_no_id_comes_twice_to_one_server_whatever_link_it_comes_from(tmp_path: Path) -> None:
    async with linked(tmp_path, isolation="pooled", links=2) as (remote, pool, link):
        await until(lambda: remote.server.count("server/discover") == 2)
        assert await call(link, "echo", text="x") == "x"
        pool.apply(of(http(remote.url + "?new")))  # a new link, in a new fleet
        await until(lambda: remote.server.count("server/discover") == 3)
        ids = [message["id"] for message, _ in remote.server.seen]
        assert len(ids) == len(set(map(str, ids)))


@pytest.mark.parametrize("as_events", [False, True])
async def test_answers_come_as_json_or_as_a_stream(tmp_path: Path, as_events: bool) -> None:
    async with linked(tmp_path) as (remote, _, link):
        remote.face.events = as_events
        assert await call(link, "echo", text="x") == "x"
        assert await ending(link.open(tool("refuse"))) == Failure(
            -32050, "This tool refuses", Raw(b'{"why": "because"}')
        )
        assert await ending(link.open(tool("nobody"))) == Failure(-32602, "Unknown tool: nobody")


async def test_a_method_that_it_does_not_know_is_its_answer_and_no_doubt(tmp_path: Path) -> None:
    async with modern_remote() as remote, running(tmp_path, http(remote.url)) as pool:
        link = await link_of(pool, "remote")
        unknown = await ending(link.open(Opening("com.example/odd", None, "ana")))
        assert unknown == Failure(-32601, "Method not found: com.example/odd")
        assert await call(link, "echo", text="x") == "x"


async def test_progress_and_logs_come_on_the_stream_of_their_call(tmp_path: Path) -> None:
    async with linked(tmp_path) as (_, _, link):
        both = [link.open(tool("progress", caller=name, progress=True, steps=2)) for name in ("ana", "ben")]
        for exchange in both:
            assert [type(event) for event in await events(exchange)] == [Progress, Progress, Result]
        wanting = msgspec.structs.replace(tool("log", level="info", text="x"), log_level="info")
        assert [type(event) for event in await events(link.open(wanting))] == [Log, Result]


async def test_arguments_that_a_tool_wants_in_headers_go_there_too(tmp_path: Path) -> None:
    async with linked(tmp_path) as (remote, _, link):
        for arguments in (
            {"region": "us-west1"},
            {"region": "Grüße ☃", "count": 7, "place": {"zone": " padded "}},
            {"region": "=?base64?eA==?=", "place": {}},
            {"region": "x\r\nEvil: 1"},
        ):
            mirrored = headers.mirrored_headers(LOCATE, Raw(json.dumps(arguments).encode()))
            opening = msgspec.structs.replace(tool("locate", **arguments), mirrored=mirrored)
            assert json.loads(await text(link.open(opening))) == arguments
        assert all("Evil" not in said for _, said in remote.server.seen)


async def test_a_server_that_misses_a_header_says_so(tmp_path: Path) -> None:
    async with linked(tmp_path) as (remote, _, link):
        end = await ending(link.open(tool("locate", region="here")))
        assert isinstance(end, Failure)
        assert end.code == -32020
        remote.server.problems.clear()


async def test_what_it_asks_in_rounds_is_answered_by_the_same_call(tmp_path: Path) -> None:
    async with linked(tmp_path) as (_, _, link):
        opening = msgspec.structs.replace(tool("ask", kinds=["form", "roots"], rounds=2), client=ABLE)
        exchange = link.open(opening)
        for _ in range(2):
            for _ in range(2):
                ask = await exchange.next()
                assert isinstance(ask, Ask)
                answer = b'{"roots":[]}' if ask.method == "roots/list" else b'{"action":"decline"}'
                exchange.answer(ask.id, Result(Raw(answer)))
        assert [list(told) for told in json.loads(await text(exchange))] == [
            ["form_0", "roots_0"],
            ["form_1", "roots_1"],
        ]


async def test_closing_the_response_is_how_a_call_is_cancelled(tmp_path: Path) -> None:
    async with linked(tmp_path) as (remote, _, link):
        gate = tmp_path / "gate"
        exchange = link.open(tool("slow", gate=str(gate)))
        await until((tmp_path / "gate.entered").exists)
        exchange.cancel("enough")
        await until((tmp_path / "gate.cancelled").exists)
        assert link.in_flight == 0
        assert remote.server.count("notifications/cancelled") == 0


async def test_changes_and_updates_come_on_its_subscription(tmp_path: Path) -> None:
    async with linked(tmp_path) as (remote, pool, link):
        changes = pool.changes()
        await noticed(remote, lambda: remote.server.listens)
        await call(link, "offer", kind="prompts", name="new")
        await _until(changes, OfferChanged("remote", LinkKey("remote"), Offered.PROMPTS))
        assert isinstance(await ending(link.open(about("resources/subscribe", "modern://value"))), Result)
        await call(link, "touch", uri="modern://value")
        async with asyncio.timeout(PATIENCE):
            async for change in changes:
                if isinstance(change, ResourceUpdated):
                    assert change.uri == "modern://value"
                    break
        await noticed(remote, lambda: len(remote.server.listens) == 1)


@pytest.mark.parametrize("how", ["graceful", "abrupt"])
async def test_a_subscription_that_ends_is_begun_again_and_lists_count_as_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("mcpmux.protocol.upstream.listening.FIRST_PAUSE", 0.05)
    async with linked(tmp_path) as (remote, pool, link):
        await noticed(remote, lambda: remote.server.listens)
        changes = pool.changes()
        await call(link, "unlisten", how=how)
        await seen(remote, "subscriptions/listen", 2)
        await _until(changes, OfferChanged("remote", LinkKey("remote"), Offered.TOOLS))
        assert len({message["id"] for message, _ in remote.server.seen}) == len(remote.server.seen)
        assert await call(link, "echo", text="x") == "x"


async def _until(changes, wanted: object) -> None:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(PATIENCE):
        async for change in changes:
            if change == wanted:
                return


async def test_an_answer_over_the_limit_fails_its_call_and_no_other(tmp_path: Path) -> None:
    async with (
        modern_remote() as remote,
        running(tmp_path, http(remote.url), limits=Limits(upstream_message=64 * 1024)) as pool,
    ):
        link = await link_of(pool, "remote")
        for remote.face.events in (False, True):
            with pytest.raises(UpstreamBroken, match="too large"):
                await call(link, "echo", text="x" * 300_000)
        assert await call(link, "echo", text="x") == "x"


async def test_a_response_that_ends_without_an_answer_fails_its_call_at_once_and_is_not_asked_for_again(
    tmp_path: Path,
) -> None:
    async with linked(tmp_path) as (remote, _, link):
        remote.face.refuse = _only("tools/call", lambda: web.Response(content_type="text/event-stream"))
        with pytest.raises(LinkLost):
            await call(link, "echo", text="x")
        remote.face.refuse = _only("tools/call", lambda: web.Response(status=202))
        with pytest.raises(UpstreamBroken):
            await call(link, "echo", text="x")
        assert remote.server.count("tools/call") == 2


def _only(method: str, refusal: Callable[[], web.Response]) -> Callable[[Json], web.Response | None]:
    return lambda message: refusal() if message.get("method") == method else None


async def test_a_forbidden_call_fails_alone_and_revoked_credentials_end_the_link(tmp_path: Path) -> None:
    async with linked(tmp_path) as (remote, pool, link):
        remote.face.refuse = _only("tools/call", lambda: web.Response(status=403))
        with pytest.raises(UpstreamRefused, match="403"):
            await call(link, "echo", text="x")
        assert pool.ready(LinkKey("remote")) is link
        remote.face.refuse = _only("tools/call", lambda: web.Response(status=401))
        with pytest.raises(UpstreamRefused):
            await call(link, "echo", text="x")
        await until(lambda: pool.status()[0].state == "failed")


async def test_a_pooled_link_is_lent_again_at_once_after_a_cancelled_call(tmp_path: Path) -> None:
    async with modern_remote() as remote, running(tmp_path, http(remote.url, isolation="pooled", links=1)) as pool:
        link = await link_of(pool, "remote")
        gate = tmp_path / "gate"
        exchange = link.open(tool("slow", gate=str(gate)))
        await until((tmp_path / "gate.entered").exists)
        exchange.cancel("enough")
        assert pool.ready(LinkKey("remote")) is link
        assert await call(link, "echo", text="x") == "x"


# Which era it is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, '{"jsonrpc":"2.0","id":"server-error","error":{"code":-32600,"message":"Missing session ID"}}'),
        (400, '{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"Server not initialized"}}'),
        (400, "Bad Request"),
        (400, ""),
        (404, "Not Found"),
        (404, '{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"Session not found"}}'),
        (405, ""),
        (406, "Not Acceptable"),
        (415, ""),
        (422, '{"detail":[]}'),
        (500, "Internal Server Error"),
        (501, ""),
        (200, '{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"Method not found"}}'),
        (200, "<html>"),
        (200, ""),
        (202, ""),
    ],
)
async def test_whoever_answers_the_greeting_in_another_way_is_of_a_legacy_era(
    tmp_path: Path, status: int, body: str
) -> None:
    async with streamable_server() as server:
        kind = "application/json" if body.startswith("{") else "text/plain"
        server.refuse = lambda method, rpc: (
            web.Response(status=status, text=body, content_type=kind) if rpc == "server/discover" else None
        )
        async with running(tmp_path, http(server.url)) as pool:
            link = await link_of(pool, "remote")
            assert await call(link, "echo") == "did tools/call"
            assert pool.status()[0].era == "legacy"
            assert server.count("POST", "server/discover") == 1


@pytest.mark.parametrize("status", [401, 403, 429, 502, 503, 504])
async def test_who_refuses_us_or_is_busy_has_not_said_what_it_is(tmp_path: Path, status: int) -> None:
    async with streamable_server() as server:
        server.refuse = lambda method, rpc: web.Response(status=status)
        async with running(tmp_path, http(server.url)) as pool:
            await until(lambda: pool.status()[0].reason)
            assert server.count("POST", "initialize") == 0


async def test_a_modern_server_of_other_revisions_is_not_taken_for_a_legacy_one(tmp_path: Path) -> None:
    async with modern_remote("--discover", "unsupported") as remote, running(tmp_path, http(remote.url)) as pool:
        await until(lambda: pool.status()[0].reason)
        assert "2099-01-01" in (pool.status()[0].reason or "")
        assert remote.server.count("initialize") == 0


async def test_a_server_of_both_eras_is_used_in_the_modern_one(tmp_path: Path) -> None:
    async with linked(tmp_path, "--era", "dual") as (remote, _, link):
        assert link.greeting is not None
        assert link.greeting.protocol_version == MODERN
        assert remote.server.count("initialize") == 0


async def test_a_server_that_is_silent_is_greeted_in_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcpmux.links.supervisor.PROBE_LIMIT", 0.2)
    silent = modern_remote("--era", "dual", "--discover", "silent")
    async with silent as remote, running(tmp_path, http(remote.url)) as pool:
        link = await link_of(pool, "remote")
        assert link.greeting is not None
        assert link.greeting.protocol_version == "2025-11-25"
        assert await call(link, "echo", text="x") == "x"


async def test_a_server_that_leaves_the_modern_era_is_found_in_its_older_one(tmp_path: Path) -> None:
    error = {"code": -32022, "message": "no", "data": {"supported": ["2025-11-25"], "requested": MODERN}}

    def older(message: Json) -> web.Response | None:
        if "_meta" not in (message.get("params") or {}):
            return None
        return web.json_response({"jsonrpc": "2.0", "id": message["id"], "error": error}, status=400)

    async with modern_remote("--era", "dual") as remote, running(tmp_path, http(remote.url)) as pool:
        link = await link_of(pool, "remote")
        await noticed(remote, lambda: remote.server.listens)
        remote.face.refuse = older
        with pytest.raises(UpstreamBroken, match="2025-11-25"):
            await call(link, "echo", text="x")
        await until(lambda: pool.ready(LinkKey("remote")))
        assert pool.status()[0].era == "legacy"
        assert await call(await link_of(pool, "remote"), "echo", text="x") == "x"
