"""`faces/sessions.py`: how many sessions, for whom, until when, and that nothing is left of them.

Two gateways of its own: one with small limits and short clocks, one whose sessions are idle after a second.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.calls.upstream import Witness, params, until
from tests.faces.client import (
    ACCEPT,
    SESSION,
    WAIT,
    Events,
    Session,
    bearer,
    calling,
    error_of,
    greeting,
    old_session,
    read,
    request,
    said,
)
from tests.faces.conftest import Place
from tests.faces.quick import quick
from tests.gateway_process import Gateway, running
from tests.servers import faulty

Http = aiohttp.ClientSession
MOST = 3


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """At most three sessions each; who does not read for a second is cut off, and what it lost is kept for another.

    `late` starts when its gate opens.
    """
    folder = tmp_path_factory.mktemp("small")
    alpha, beta = Witness("alpha", folder), Witness("beta", folder)
    servers = {
        "alpha": alpha.section(),
        "beta": beta.section(),
        "late": faulty("late", "--gate", folder / "late.gate"),
    }
    clocks = {"mcpmux.faces.sessions.RESUME": 1.0, "mcpmux.faces.eventstream.SLOW_READER": 1.0}
    with quick(folder, servers, clocks, limits={"sessions_per_user": MOST}) as gateway:
        for name in ("alpha", "beta", "late"):
            gateway.grant(f"MCP-{name.title()}", name)
        gateway.wait_for(lambda: gateway.logged("link_ready", server="alpha"), 20, "alpha")
        yield Place(gateway, alpha, beta)


async def settled(gateway: Gateway) -> None:
    """Wait until no session, stream or call is left."""
    for name in ("mcpmux_sessions", "mcpmux_streams", "mcpmux_calls_in_flight"):
        await gateway.soon(lambda name=name: gateway.metric(name) == 0, WAIT, f"{name} is 0")


# How many -----------------------------------------------------------------------------------------------------------


async def test_one_session_too_many_is_429_for_this_person_and_nobody_else(small: Place, http: Http) -> None:
    url = f"{small.url}/mcp"
    ana, ben = (bearer(small.gateway, f"{name}@example.com", "MCP-Alpha") for name in ("ana", "ben"))
    sessions = [await Session.opened(http, url, ana) for _ in range(MOST)]
    over = await Session(http, url, {**ACCEPT, **ana}).post(request("initialize", greeting(), 8))
    assert (over.status, over.code, over.json["id"]) == (429, -32000, 8)
    assert int(over.headers["Retry-After"]) > 0
    assert SESSION not in over.headers
    async with http.get(f"{small.url}/sse", headers=ana) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (429, over.headers["Retry-After"])
    await small.gateway.soon(
        lambda: small.gateway.logged("message_refused", reason="too_many_sessions", principal="ana@example.com")
    )
    assert small.gateway.metric("mcpmux_http_refused_total", status="429") == 2
    other = await Session.opened(http, url, ben)
    assert [await one.call("alpha__echo", text="x") for one in (*sessions, other)] == ["x"] * (MOST + 1)
    # One less, and there is room again.
    await sessions.pop().delete()
    sessions.append(await Session.opened(http, url, ana))
    for session in (*sessions, other):
        assert (await session.delete()).status == 204
    await settled(small.gateway)


async def test_sessions_of_both_transports_and_all_endpoints_count_together(small: Place, http: Http) -> None:
    who = bearer(small.gateway, "count@example.com", "MCP-Alpha")
    async with old_session(http, small.url, who):
        one = await Session.opened(http, f"{small.url}/mcp", who)
        two = await Session.opened(http, f"{small.url}/servers/alpha/mcp", who)
        over = await Session(http, two.url, {**ACCEPT, **who}).post(request("initialize", greeting()))
        assert over.status == 429
        for session in (one, two):
            await session.delete()
    await settled(small.gateway)


async def test_opening_many_at_once_opens_no_more_than_the_limit(small: Place, http: Http) -> None:
    who = bearer(small.gateway, "race@example.com", "MCP-Alpha")
    async with asyncio.TaskGroup() as tasks:
        bare = Session(http, f"{small.url}/mcp", {**ACCEPT, **who})
        tries = [tasks.create_task(bare.post(request("initialize", greeting()))) for _ in range(20)]
    assert sorted(one.result().status for one in tries) == [200] * MOST + [429] * (20 - MOST)
    for one in tries:
        if one.result().status == 200:
            await Session(http, bare.url, {**bare.headers, SESSION: one.result().headers[SESSION]}).delete()
    await settled(small.gateway)


async def test_a_client_that_leaves_in_the_middle_of_initialize_leaves_no_session(small: Place, http: Http) -> None:
    """The greeting of a server's own endpoint waits for that server; nobody would ever end this session."""
    who = bearer(small.gateway, "hasty@example.com", "MCP-Late")
    before = small.gateway.metric("mcpmux_sessions_opened_total")
    for _ in range(MOST + 1):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await Session.opened(http, f"{small.url}/servers/late/mcp", who)
    assert small.gateway.metric("mcpmux_sessions_opened_total") > before
    await settled(small.gateway)


# For whom -----------------------------------------------------------------------------------------------------------


async def test_each_request_is_decided_by_the_token_that_it_carries(small: Place, http: Http) -> None:
    """A session belongs to a person; what may be done in it depends on the token of each single request."""
    strong = bearer(small.gateway, "eva@example.com", "MCP-Alpha", "MCP-Beta")
    weak = bearer(small.gateway, "eva@example.com", "MCP-Alpha")
    session = await Session.opened(http, f"{small.url}/mcp", strong)
    assert await session.call("beta__echo", text="strong") == "strong"
    session.headers |= weak
    assert error_of(await session.ask("tools/call", {"name": "beta__echo", "arguments": {}}))[0] == -32602
    assert "beta__" not in str(await session.ask("tools/list"))
    assert await session.call("alpha__echo", text="weak") == "weak"
    session.headers |= strong
    assert "beta__" in str(await session.ask("tools/list"))
    await session.delete()
    await settled(small.gateway)


# Until when ---------------------------------------------------------------------------------------------------------


async def test_a_stream_ends_when_its_token_expires_and_the_session_goes_on_with_a_newer_one(
    small: Place, http: Http
) -> None:
    brief = bearer(small.gateway, "brief@example.com", "MCP-Alpha", ttl=2)
    session = await Session.opened(http, f"{small.url}/mcp", brief)
    async with session.listening() as events:
        assert [event for event in await events.rest() if event.data] == []
    answer = await session.post(request("ping"))
    assert (answer.status, answer.headers["WWW-Authenticate"][:27]) == (401, 'Bearer error="invalid_token')
    session.headers |= bearer(small.gateway, "brief@example.com", "MCP-Alpha")
    assert await session.call("alpha__echo", text="newer") == "newer"
    await session.delete()
    await settled(small.gateway)


async def test_a_lost_reply_stream_that_nobody_resumes_is_cancelled_at_its_server(
    small: Place, http: Http, tmp_path: Path
) -> None:
    session = await Session.opened(http, f"{small.url}/mcp", bearer(small.gateway, "lost@example.com", "MCP-Alpha"))
    gate = str(tmp_path / "gate")
    async with session.streaming(calling("alpha__progress", {"steps": 1, "gate": gate}, 5, "t")) as events:
        await events.message()
        last = events.last
        events.answer.close()
    call = next(one for one in small.alpha.tools("progress") if params(one)["arguments"]["gate"] == gate)  # type: ignore[index]
    # At its server it lives on for a while, and then it does not.
    await small.alpha.hears("notifications/cancelled", lambda one: params(one)["requestId"] == call["id"])
    async with session.listening(last) as events:
        assert await events.messages() == []
    await small.gateway.soon(lambda: small.gateway.logged("call_finished", outcome="cancelled", tool="progress"))
    # Its id is free again.
    assert said((await session.post(calling("alpha__echo", {"text": "again"}, 5))).json) == "again"
    await session.delete()
    await settled(small.gateway)


async def test_a_call_whose_client_left_before_there_was_a_stream_is_cancelled_too(
    small: Place, http: Http, tmp_path: Path
) -> None:
    session = await Session.opened(http, f"{small.url}/mcp", bearer(small.gateway, "left@example.com", "MCP-Alpha"))
    async with asyncio.TaskGroup() as tasks:
        calls = tasks.create_task(session.post(calling("alpha__slow", {"gate": str(tmp_path / "gate")}, 5)))
        await until((tmp_path / "gate.entered").exists, "the call at its server")
        calls.cancel()
    await until((tmp_path / "gate.cancelled").exists, "the cancellation at the server")
    await session.delete()
    await settled(small.gateway)


@pytest.mark.parametrize("face", ["streamable", "sse"])
async def test_a_client_that_does_not_read_is_cut_off_and_keeps_nobody_waiting(
    face: str, small: Place, http: Http
) -> None:
    who = bearer(small.gateway, f"deaf-{face}@example.com", "MCP-Alpha")
    other = await Session.opened(http, f"{small.url}/mcp", bearer(small.gateway, "ear@example.com", "MCP-Alpha"))
    call = calling("alpha__big", {"bytes": 16_000_000}, 1)
    kind = "reply" if face == "streamable" else "sse"
    async with contextlib.AsyncExitStack() as stack:
        if face == "streamable":
            session = await Session.opened(http, f"{small.url}/mcp", who)
            session.headers["Accept"] = "text/event-stream, application/json"
            answer = await stack.enter_async_context(session.posting(call))
        else:
            old = await stack.enter_async_context(old_session(http, small.url, who))
            answer = old.events.answer
            assert (await old.post(call)).status == 202
        assert await other.call("alpha__echo", text="meanwhile") == "meanwhile"
        await small.gateway.soon(lambda: small.gateway.metric("mcpmux_streams", kind=kind) == 0, WAIT, "the cut")
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
    assert small.gateway.logged("request_failed") == []
    if face == "streamable":
        await session.delete()
    await other.delete()
    await settled(small.gateway)


async def test_a_call_that_was_cancelled_while_its_server_starts_never_reaches_it(small: Place, http: Http) -> None:
    """Last in this module: it lets `late` start."""
    who = bearer(small.gateway, "patient@example.com", "MCP-Late")
    session = await Session.opened(http, f"{small.url}/mcp", who)
    async with asyncio.TaskGroup() as tasks:
        calls = tasks.create_task(session.post(calling("late__count", {}, "waits")))
        await small.gateway.soon(lambda: small.gateway.metric("mcpmux_sessions") == 1)
        cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "waits"}}
        while not small.gateway.logged("call_finished", outcome="cancelled", principal="patient@example.com"):
            # Until the call is there to be cancelled: the two requests are on two connections.
            assert (await session.post(cancelled)).status == 202
        (small.gateway.folder / "late.gate").touch()
        await small.gateway.ready("late", wait=WAIT)
    assert (calls.result().status, calls.result().body) == (200, b"")
    assert await session.call("late__count") == "1", "the cancelled call was carried out"
    await session.delete()
    await settled(small.gateway)


async def test_an_idle_session_ends_and_one_in_use_does_not(tmp_path: Path, http: Http) -> None:
    alpha = Witness("alpha", tmp_path)
    with running(tmp_path / "idle", {"alpha": alpha.section()}, limits={"session_idle": "1s"}) as gateway:
        await gateway.ready("alpha")
        who = bearer(gateway, "ana@example.com", "MCP-Admin")
        idle = await Session.opened(http, f"{gateway.url}/mcp", who)
        listens = await Session.opened(http, f"{gateway.url}/mcp", who)
        calls = await Session.opened(http, f"{gateway.url}/mcp", who)
        gate = tmp_path / "gate"
        async with listens.listening() as events, asyncio.TaskGroup() as tasks:
            await events.next()
            slow = tasks.create_task(calls.ask("tools/call", {"name": "alpha__slow", "arguments": {"gate": str(gate)}}))
            await gateway.soon(lambda: gateway.metric("mcpmux_sessions") == 2, WAIT, "the end of the idle session")
            assert (await idle.post(request("ping"))).status == 404
            assert (await listens.ask("ping"))["result"] == {}
            gate.touch()
            assert said(await slow) == f"{gate} is open"
        await settled(gateway)
        assert (await calls.post(request("ping"))).status == 404


# What is left -------------------------------------------------------------------------------------------------------


async def test_after_a_crowd_with_every_kind_of_end_nothing_is_left(small: Place, http: Http, tmp_path: Path) -> None:
    guests = [bearer(small.gateway, f"guest{number}@example.com", "MCP-Alpha") for number in range(40)]

    async def visit(number: int) -> None:
        who = guests[number]
        gate = str(tmp_path / f"gate{number}")
        if number % 4 == 0:
            async with old_session(http, small.url, who) as old:
                await old.post(calling("alpha__slow", {"gate": gate}, 1))
                assert (await old.ask("ping"))["result"] == {}
            return
        session = await Session.opened(http, f"{small.url}/mcp", who)
        await session.ask("resources/subscribe", {"uri": "alpha+counter://value"})
        async with session.listening() as events:
            await Events(events.answer).next()
            if number % 4 == 1:
                async with session.streaming(calling("alpha__progress", {"steps": 2, "gate": gate}, 1, 1)) as reply:
                    await reply.message()
                    reply.answer.close()
            if number % 4 == 2:
                assert (await session.post(calling("alpha__big", {"bytes": 500_000}))).status == 200
        assert (await session.delete()).status == 204

    async with asyncio.TaskGroup() as tasks:
        for number in range(40):
            tasks.create_task(visit(number))
    await settled(small.gateway)
    status = await asyncio.to_thread(small.gateway.run, "status", "--json")
    assert '"sessions": 0' in status.stdout.replace('":0', '": 0')
    assert small.gateway.logged("request_failed") == []
    assert small.gateway.logged("call_failed") == []
    async with http.get(f"{small.url}/healthz") as answer:
        assert (await read(answer)).status == 200
