"""Clients of the modern era that come back to a call that was left, and what may have happened meanwhile.

`old` is a server of 2025-11-25, `new` one of 2026-07-28; each is one of several processes, so that a call stays open
at the one that asks.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.calls.asker import ACCEPTED, NEVER_OURS, Asker, fitting, heard, needed, person, requests, shown
from tests.calls.upstream import Json, Witness, until
from tests.faces.client import bearer
from tests.faces.modern import Modern, asking
from tests.gateway_process import Gateway, running
from tests.servers import modern

ASKING = {"old": "old__talk", "new": "new__ask"}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """With one process of each, so that it is known which one has the call."""
    folder = tmp_path_factory.mktemp("back")
    sections: dict[str, Json] = {
        "old": Witness("old", folder).section(isolation="pooled", links=1),
        "new": modern(isolation="pooled", links=1),
    }
    with running(folder, sections) as made:
        for name in sections:
            made.grant(f"MCP-{name}", name)
            made.wait_for(lambda name=name: made.logged("link_ready", server=name), 30, name)
        yield made


@pytest.fixture(scope="module")
def ana(gateway: Gateway) -> Asker:
    return person(gateway, "ana", *ASKING)


@pytest.fixture(autouse=True)
async def _nothing_is_left(gateway: Gateway) -> AsyncIterator[None]:
    yield
    for name in ("mcpmux_calls_parked", "mcpmux_calls_in_flight"):
        await gateway.soon(lambda name=name: gateway.metric(name) == 0, what=name)  # type: ignore[misc]


async def test_who_comes_back_twice_while_the_first_is_at_work_does_not_disturb_it(ana: Asker, tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    asked = await ana.asked("old__talk", gate=gate)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(ana.answered("old__talk", asked, fitting(asked), gate=gate))
        await until(Path(f"{gate}.entered").exists, "the call at its gate")
        for answers in (fitting(asked), {}):
            assert shown(await ana.answered("old__talk", asked, answers, gate=gate)) == NEVER_OURS
        Path(gate).touch()
    assert heard(first.result())["result"] == ACCEPTED  # type: ignore[index]


@pytest.mark.parametrize("server", ASKING)
async def test_when_its_process_has_died_who_comes_back_is_told_and_the_next_call_works(
    server: str, gateway: Gateway, ana: Asker
) -> None:
    ready = len(gateway.logged("link_ready", server=server))
    asked = await ana.asked(ASKING[server])
    (process,) = gateway.children_of(server)
    os.kill(process.pid, signal.SIGKILL)
    await gateway.soon(lambda: len(gateway.logged("link_ready", server=server)) > ready, 20)
    answer = await ana.answered(ASKING[server], asked, fitting(asked))
    assert "stopped while it worked on this call" in json.dumps(answer.json["result"])
    assert shown(await ana.answered(ASKING[server], asked, fitting(asked))) == NEVER_OURS
    again = await ana.asked(ASKING[server])
    heard(await ana.answered(ASKING[server], again, fitting(again)))


@pytest.mark.parametrize("server", ASKING)
async def test_when_its_server_was_replaced_the_former_one_still_gets_the_answer(
    server: str, gateway: Gateway, ana: Asker
) -> None:
    asked = await ana.asked(ASKING[server])
    replaced = len(gateway.logged("server_replaced", server=server))
    section = gateway.servers[server]
    assert isinstance(section, dict)
    gateway.save({**gateway.servers, server: {**section, "env": {"ROUND": str(replaced)}}})
    await gateway.soon(lambda: len(gateway.logged("server_replaced", server=server)) > replaced, 20)
    heard(await ana.answered(ASKING[server], asked, fitting(asked)))


@pytest.mark.parametrize("server", ASKING)
async def test_a_client_that_says_by_now_that_it_cannot_is_not_asked_again(
    server: str, gateway: Gateway, ana: Asker
) -> None:
    asked = await ana.asked(ASKING[server])
    unable = Asker(gateway, ana.who, able={})
    told = heard(await unable.answered(ASKING[server], asked, {}))
    assert '"accept"' not in json.dumps(told)


async def test_a_client_that_says_by_now_that_it_cannot_may_still_answer(gateway: Gateway, ana: Asker) -> None:
    asked = await ana.asked("old__twice")
    unable = Asker(gateway, ana.who, able={})
    assert heard(await unable.answered("old__twice", asked, fitting(asked))) == [ACCEPTED, None]


async def test_names_of_other_rounds_and_other_calls_answer_nothing(ana: Asker) -> None:
    asked = await ana.asked("old__twice")
    more = needed(await ana.answered("old__twice", asked, fitting(asked)))
    again = needed(await ana.answered("old__twice", more, {**fitting(asked), "99": ACCEPTED}))
    assert requests(again) == requests(more)
    assert heard(await ana.answered("old__twice", again, fitting(again))) == [ACCEPTED, ACCEPTED]


async def test_while_mcpmux_drains_nobody_comes_back_and_the_call_is_cancelled(tmp_path: Path) -> None:
    server, gate = Witness("old", tmp_path), tmp_path / "gate"
    with running(tmp_path, {"old": server.section(isolation="pooled")}) as gateway:
        await gateway.ready("old")
        ana = Asker(gateway, bearer(gateway, "ana@example.com", "MCP-Admin"))
        asked = await ana.asked("old__talk")
        async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as tasks:
            client = Modern(http, f"{gateway.url}/mcp", ana.who)
            slow = asking("tools/call", {"name": "old__slow", "arguments": {"gate": str(gate)}})
            working = tasks.create_task(client.post(slow))
            await until(tmp_path.joinpath("gate.entered").exists, "the call at its gate")
            ending = tasks.create_task(asyncio.to_thread(gateway.end))
            await gateway.soon(lambda: gateway.logged("parked_dropped", tool="talk"))
            again = {"inputResponses": fitting(asked), "requestState": asked["requestState"]}
            back = await client.post(asking("tools/call", {"name": "old__talk", "arguments": {}, **again}))
            assert (back.status, back.headers["Retry-After"]) == (503, "5")
            await server.hears("notifications/cancelled")
            gate.touch()
            assert "is open" in json.dumps((await working).json)
            assert await ending == 0
