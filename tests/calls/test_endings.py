"""How a call ends when it does not end by itself: deadline, cancellation, a grant taken away, a server switched off.

Each time its server is told to stop, by the id that the call has there, and nobody else notices.
Source: design sections 4 and 6; MCP basic/utilities/cancellation, basic/lifecycle ("Timeouts").
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from tests.calls.conftest import Place
from tests.calls.upstream import Json, params, until
from tests.faces.client import Session, calling, error_of, failed, notification, request, said

Http = aiohttp.ClientSession
SOON = 2.0  # seconds: how long a change of rights may take


def of(gate: Path) -> Callable[[Json], bool]:
    """Says whether a call at a server is the one with this gate."""
    return lambda message: str(gate) in str(params(message).get("arguments"))


async def begun(place: Place, server: str, gate: Path) -> object:
    """Wait until a call with this gate has reached its server; its id there."""
    await until(gate.with_name(f"{gate.name}.entered").exists, f"the call at {server}")
    return next(one["id"] for one in place.servers[server].heard("tools/call") if of(gate)(one))


# The deadline -------------------------------------------------------------------------------------------------------


async def test_a_call_over_its_time_limit_ends_with_words_for_people_and_models(
    place: Place, http: Http, tmp_path: Path
) -> None:
    session = await place.session(http, "tim", "brief")
    gate = tmp_path / "gate"
    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(session.ask("tools/call", {"name": "brief__slow", "arguments": {"gate": str(gate)}}))
        upstream = await begun(place, "brief", gate)
    assert 0.9 < time.monotonic() - began < 4.0
    answer = asked.result()
    assert failed(answer)
    words = said(answer)
    assert "'brief'" in words
    assert "1 s" in words
    request_id = re.search(r"\(request ([0-9a-f-]+)\)", words)
    assert request_id is not None, words
    await place.servers["brief"].hears("notifications/cancelled", lambda one: params(one)["requestId"] == upstream)
    await place.gateway.soon(lambda: place.gateway.logged("call_finished", request_id=request_id[1], outcome="timeout"))
    assert place.gateway.metric("mcpmux_calls_total", server="brief", outcome="timeout") >= 1
    # A late answer is nobody's, and the next call is not disturbed by it.
    gate.touch()
    assert await session.call("brief__echo", text="next") == "next"


async def test_progress_moves_the_deadline(place: Place, http: Http, tmp_path: Path) -> None:
    """Each step comes within the second that `brief` has; all of them together take longer."""
    session = await place.session(http, "tim", "brief")
    began = time.monotonic()
    (tmp_path / "1").touch()
    async with session.streaming(calling("brief__walk", {"folder": str(tmp_path), "steps": 5}, 1, "t")) as events:
        for step in range(2, 6):
            await events.message()
            await until((tmp_path / f"{step}.entered").exists, f"step {step}")
            while time.monotonic() < began + 0.4 * (step - 1):
                assert (await session.ask("ping"))["result"] == {}
            (tmp_path / str(step)).touch()
        (tmp_path / "end").touch()
        assert said((await events.messages())[-1]) == "walked 5"
    assert time.monotonic() - began > 1.5


async def test_a_server_that_dies_ends_every_call_on_it_at_once_and_serves_again(
    place: Place, http: Http, tmp_path: Path
) -> None:
    session = await place.session(http, "tim", "delta")
    slow = {"name": "delta__slow", "arguments": {"gate": str(tmp_path / "gate")}}
    async with asyncio.TaskGroup() as tasks:
        beside = tasks.create_task(session.ask("tools/call", slow))
        await begun(place, "delta", tmp_path / "gate")
        answer = (await session.post(calling("delta__die", {"code": 7}, "die"))).json
    for ended in (answer, beside.result()):
        assert failed(ended)
        assert "'delta'" in said(ended)
        assert "(request " in said(ended)
    # The next call waits for the restart.
    assert await session.call("delta__echo", text="restarted") == "restarted"


# Cancellation -------------------------------------------------------------------------------------------------------


async def test_a_cancelled_call_is_cancelled_at_its_server_by_its_id_there_and_no_other(
    place: Place, http: Http, tmp_path: Path
) -> None:
    """Two sessions use the same id; only one of them gives up."""
    one, other = [await place.session(http, name, "alpha") for name in ("cara", "carl")]
    hers, his = tmp_path / "hers", tmp_path / "his"
    async with asyncio.TaskGroup() as tasks:
        given_up = tasks.create_task(one.post(calling("alpha__slow", {"gate": str(hers)}, 1)))
        kept = tasks.create_task(other.post(calling("alpha__slow", {"gate": str(his)}, 1)))
        ids = [await begun(place, "alpha", gate) for gate in (hers, his)]
        assert ids[0] != ids[1]
        await one.post(notification("notifications/cancelled", {"requestId": 1, "reason": "enough"}))
        found = await place.servers["alpha"].hears(
            "notifications/cancelled", lambda message: params(message)["requestId"] == ids[0]
        )
        assert params(found[0]) == {"requestId": ids[0], "reason": "enough"}
        # Again, and for what is long over: nothing happens.
        for _ in range(2):
            await one.post(notification("notifications/cancelled", {"requestId": 1}))
        his.touch()
    assert (given_up.result().status, given_up.result().body) == (200, b"")
    assert b"is open" in kept.result().body
    cancelled = [params(message)["requestId"] for message in place.servers["alpha"].heard("notifications/cancelled")]
    assert cancelled.count(ids[0]) == 1
    assert ids[1] not in cancelled


async def test_a_call_that_waits_for_its_turn_is_cancelled_at_once(place: Place, http: Http, tmp_path: Path) -> None:
    session = await place.session(http, "seth", "single")
    gate = tmp_path / "gate"
    echo = {"name": "single__echo", "arguments": {"text": "late"}}
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(session.post(calling("single__slow", {"gate": str(gate)}, "first")))
        await begun(place, "single", gate)
        waiting = tasks.create_task(session.post(request("tools/call", echo, "waits")))
        await place.gateway.soon(lambda: place.gateway.metric("mcpmux_calls_in_flight", server="single") == 2)
        await session.post(notification("notifications/cancelled", {"requestId": "waits"}))
        async with asyncio.timeout(SOON):
            answer = await waiting
        assert (answer.status, answer.body) == (200, b"")
        assert not first.done()
        gate.touch()
    assert b"is open" in first.result().body
    assert await session.call("single__echo", text="next") == "next"
    asked = [params(one).get("arguments") for one in place.servers["single"].heard("tools/call")]
    assert {"text": "late"} not in asked


async def test_what_is_answered_is_never_cancelled(place: Place, http: Http) -> None:
    session = await place.session(http, "cara", "beta")
    before = len(place.servers["beta"].heard("notifications/cancelled"))
    for number in range(20):
        assert said((await session.post(calling("beta__echo", {"text": "x"}, number))).json) == "x"
        await session.post(notification("notifications/cancelled", {"requestId": number}))
    assert (await session.delete()).status == 204
    other = await place.session(http, "carl", "beta")
    assert await other.call("beta__echo", text="after") == "after"
    assert len(place.servers["beta"].heard("notifications/cancelled")) == before


# Rights taken away --------------------------------------------------------------------------------------------------


async def test_a_call_in_flight_ends_when_the_right_to_it_is_taken(place: Place, http: Http, tmp_path: Path) -> None:
    await asyncio.to_thread(place.gateway.grant, "rob@example.com", "gamma")
    loser, keeper = await place.session(http, "rob"), await place.session(http, "kim", "gamma")
    gates = {name: tmp_path / name for name in ("rob", "kim", "read")}
    async with asyncio.TaskGroup() as tasks:
        lost = tasks.create_task(
            loser.ask("tools/call", {"name": "gamma__slow", "arguments": {"gate": str(gates["rob"])}})
        )
        kept = tasks.create_task(
            keeper.ask("tools/call", {"name": "gamma__slow", "arguments": {"gate": str(gates["kim"])}})
        )
        upstream = await begun(place, "gamma", gates["rob"])
        await begun(place, "gamma", gates["kim"])
        await asyncio.to_thread(place.gateway.revoke, "rob@example.com", "gamma")
        revoked = time.monotonic()
        await place.servers["gamma"].hears("notifications/cancelled", lambda one: params(one)["requestId"] == upstream)
        await asyncio.wait([lost], timeout=SOON)
        assert time.monotonic() - revoked < SOON
        gates["kim"].touch()
    assert error_of(lost.result()) == (-32602, "Unknown tool: gamma__slow")
    assert said(kept.result()).endswith("is open")
    words = {"principal": "rob@example.com", "decision": "denied", "reason": "no_grant", "tenant": None}
    await place.gateway.soon(lambda: place.gateway.logged("call_refused", **words))


async def test_a_call_keeps_going_when_its_right_comes_another_way(place: Place, http: Http, tmp_path: Path) -> None:
    await asyncio.to_thread(place.gateway.grant, "sue@example.com", "gamma")
    session = await place.session(http, "sue", "gamma")
    gate = tmp_path / "gate"
    async with asyncio.TaskGroup() as tasks:
        kept = tasks.create_task(session.ask("tools/call", {"name": "gamma__slow", "arguments": {"gate": str(gate)}}))
        await begun(place, "gamma", gate)
        reloads = place.gateway.metric("mcpmux_grants_reloaded_total")
        await asyncio.to_thread(place.gateway.revoke, "sue@example.com", "gamma")
        await place.gateway.soon(lambda: place.gateway.metric("mcpmux_grants_reloaded_total") > reloads)
        assert await session.call("gamma__echo", text="still granted") == "still granted"
        gate.touch()
    assert said(kept.result()).endswith("is open")


async def test_a_session_at_an_endpoint_that_was_taken_away_is_refused_like_a_stranger(
    place: Place, http: Http
) -> None:
    await asyncio.to_thread(place.gateway.grant, "uma@example.com", "gamma")
    session = await place.session(http, "uma", under="/servers/gamma")
    async with session.listening() as events:
        await events.next()
        await asyncio.to_thread(place.gateway.revoke, "uma@example.com", "gamma")
        async with asyncio.timeout(SOON):
            assert [event for event in await events.rest() if event.data] == []
    assert (await session.post(request("ping"))).status == 403


# A server that is switched off --------------------------------------------------------------------------------------


async def test_calls_of_a_server_that_is_disabled_end_at_once_and_everybody_sees_it_go(
    place: Place, http: Http, tmp_path: Path
) -> None:
    session = await place.session(http, "zoe", "alpha", "beta")
    admin = await place.session(http, "admin", "Admin")
    gates = {name: tmp_path / name for name in ("alpha", "beta")}
    disabled = {name: {**section, "enabled": name not in ("off", "beta")} for name, section in place.sections.items()}
    async with asyncio.TaskGroup() as tasks:
        calls = {
            name: tasks.create_task(
                session.ask("tools/call", {"name": f"{name}__slow", "arguments": {"gate": str(gate)}})
            )
            for name, gate in gates.items()
        }
        for name, gate in gates.items():
            await begun(place, name, gate)
        async with session.listening() as events:
            await events.next()
            place.gateway.save(disabled)
            assert (await events.message())["method"] == "notifications/tools/list_changed"
        await asyncio.wait([calls["beta"]], timeout=SOON)
        ended = calls["beta"].result()
        assert failed(ended) or error_of(ended) == (-32602, "Unknown tool: beta__slow")
        for one in (session, admin):
            assert error_of(await one.ask("tools/call", {"name": "beta__echo", "arguments": {}}))[0] == -32602
            assert "beta__" not in str(await one.ask("tools/list"))
        assert not calls["alpha"].done(), "a call of another server was harmed"
        gates["alpha"].touch()
    assert said(calls["alpha"].result()).endswith("is open")
    place.gateway.save(dict(place.sections))
    await place.gateway.soon(lambda: len(place.gateway.logged("link_ready", server="beta")) >= 2, 20.0)
    assert await session.call("beta__echo", text="back") == "back"


@pytest.mark.parametrize("rules", [{"allow": ["*"], "deny": ["slow"]}, {"allow": ["echo"]}])
async def test_a_tool_that_the_config_hides_is_hidden_at_once_without_a_restart_of_its_server(
    rules: dict[str, object], place: Place, http: Http
) -> None:
    session = await place.session(http, "zoe", "gamma")
    assert "gamma__slow" in str(await session.ask("tools/list"))
    greeted = len(place.servers["gamma"].heard("initialize"))
    hidden = {
        name: {**section, "tools": rules} if name == "gamma" else section for name, section in place.sections.items()
    }
    async with session.listening() as events:
        await events.next()
        place.gateway.save(hidden)
        assert (await events.message())["method"] == "notifications/tools/list_changed"
        assert "gamma__slow" not in str(await session.ask("tools/list"))
        assert error_of(await session.ask("tools/call", {"name": "gamma__slow", "arguments": {}}))[0] == -32602
        assert await session.call("gamma__echo", text="shown") == "shown"
        place.gateway.save(dict(place.sections))
        assert (await events.message())["method"] == "notifications/tools/list_changed"
    assert "gamma__slow" in str(await session.ask("tools/list"))
    assert len(place.servers["gamma"].heard("initialize")) == greeted


async def test_an_administrators_call_in_flight_ends_with_its_server_too(
    place: Place, http: Http, tmp_path: Path
) -> None:
    admin = await place.session(http, "admin", "Admin", under="/servers/delta")
    gate = tmp_path / "gate"
    off = {name: {**section, "enabled": name not in ("off", "delta")} for name, section in place.sections.items()}
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(admin.post(calling("slow", {"gate": str(gate)}), Accept="*/*"))
        await begun(place, "delta", gate)
        place.gateway.save(off)
        await asyncio.wait([call], timeout=SOON)
        assert call.done()
    await place.gateway.soon(lambda: place.gateway.logged("config_applied"))
    assert (await admin.post(request("ping"))).status in (403, 404)
    bare = Session(http, admin.url, admin.headers)
    assert (await bare.get(Accept="text/event-stream")).status in (403, 404)
    place.gateway.save(dict(place.sections))
    await place.gateway.soon(
        lambda: "delta" in place.gateway.status() and place.gateway.status()["delta"]["state"] == "ready", 20.0
    )
