"""Servers that misbehave: what the caller gets and when; other servers' users see nothing; nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from tests.gateway_process import Gateway, running
from tests.journeys.clients import Person, all_tools, appears, lines, said, until
from tests.servers import Section, counter, faulty

PROMPT = 1.5  # seconds: an answer of a healthy server beside a faulty one, on a busy machine
AT_ONCE = 3.0  # seconds from the death of a server to the answer of a call that was in flight

pytestmark = pytest.mark.timeout(180)


def section(mode: str, *arguments: str | Path | int, **more: object) -> Section:
    return faulty(mode, *arguments, **{"timeout": "3s", **more})


MODES = {
    "silent-start": section("silent-start"),
    "silent-call": section("silent-call"),
    "silent-list": section("silent-list"),
    "deaf": section("deaf"),
    "exit-start": section("exit-start", "--code", 78),
    "refuses-greeting": section("refuses-greeting"),
    "strange-revision": section("strange-revision"),
    "no-tools": section("no-tools"),
    "chatter": section("chatter"),
    "garbage": section("garbage"),
    "long-line": section("long-line", timeout="20s"),
    "long-noise": section("long-noise", timeout="20s"),
    "flood-stderr": section("flood-stderr"),
    "die-in-call": section("die-in-call", "--code", 7),
    "die-in-answer": section("die-in-answer"),
    "closes-output": section("closes-output"),
    "huge-list": section("huge-list"),
    "endless-pages": section("endless-pages"),
    "strange-requests": section("strange-requests"),
    "wrong-ids": section("wrong-ids"),
    "strange-results": section("strange-results"),
    "deep-result": section("deep-result"),
    "wrapper": section("wrapper", timeout="20s"),
    "missing": {"transport": "stdio", "command": ["mcpmux-test-no-such-program"]},
}
# Their tools can be called although something is wrong with them.
HEALTHY_ENOUGH = ("chatter", "garbage", "long-noise", "flood-stderr", "strange-requests", "wrong-ids", "wrapper")
NEVER_READY = ("silent-start", "exit-start", "refuses-greeting", "strange-revision", "missing")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """All of them at once, beside one good server."""
    with running(tmp_path_factory.mktemp("faulty"), {"good": counter(), **MODES}) as made:
        made.wait_for(lambda: made.logged("link_ready", server="good"), 20, "the good server")
        yield made


@pytest.fixture
def person(gateway: Gateway) -> Person:
    return Person(gateway, "ana@example.com", ("MCP-Admin",))


@asynccontextmanager
async def undisturbed(gateway: Gateway) -> AsyncIterator[None]:
    """Meanwhile somebody else calls the good server again and again: every answer is right, and prompt."""
    ben = Person(gateway, "ben@example.com", ("MCP-Admin",))
    slowest = 0.0
    stopping = asyncio.Event()

    async def call() -> None:
        nonlocal slowest
        async with ben.connected("/servers/good") as client:
            while not stopping.is_set():
                begun = time.monotonic()
                assert said(await client.call_tool("echo", {"text": "good"})) == "good"
                slowest = max(slowest, time.monotonic() - begun)
                await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(call())
        yield
        stopping.set()
    assert slowest < PROMPT, f"a neighbour's call took {slowest:.2f} s"


async def test_serve_is_ready_and_good_servers_answer_whatever_the_others_do(gateway: Gateway, person: Person) -> None:
    async with person.connected() as client:
        assert said(await client.call_tool("good__echo", {"text": "hello"})) == "hello"


@pytest.mark.parametrize("mode", HEALTHY_ENOUGH)
async def test_a_fault_that_can_be_passed_over_is_passed_over(mode: str, gateway: Gateway, person: Person) -> None:
    await gateway.ready(mode)
    async with undisturbed(gateway), person.connected(f"/servers/{mode}") as client:
        assert "echo" in await all_tools(client)
        for number in range(3):
            assert said(await client.call_tool("echo", {"text": str(number)})) == str(number)


@pytest.mark.parametrize("mode", NEVER_READY)
async def test_a_server_that_never_comes_up_fails_clearly_and_costs_the_others_nothing(
    mode: str, gateway: Gateway, person: Person
) -> None:
    async with undisturbed(gateway), person.connected() as client:
        assert not [name for name in await all_tools(client) if name.startswith(f"{mode}__")]
        async with asyncio.timeout(15):
            result = await client.call_tool(f"{mode}__echo", {"text": "x"})
        assert result.is_error
        assert f"'{mode}' is not available" in said(result)


async def test_status_says_why_a_server_is_not_there(gateway: Gateway) -> None:
    states = await asyncio.to_thread(gateway.status)
    assert states["good"]["state"] == "ready"
    assert "78" in str(states["exit-start"]["reason"])
    assert "FAULTY_TOKEN is not set" in str(states["exit-start"]["reason"])
    assert "No licence" in str(states["refuses-greeting"]["reason"])
    assert "mcpmux-test-no-such-program" in str(states["missing"]["reason"])
    for mode in NEVER_READY:
        assert states[mode]["state"] in ("starting", "failed"), mode


@pytest.mark.parametrize("mode", ["silent-call", "deaf", "closes-output"])
async def test_a_call_that_is_never_answered_ends_at_its_deadline_with_a_text_for_people(
    mode: str, gateway: Gateway, person: Person
) -> None:
    await gateway.ready(mode)
    async with undisturbed(gateway), person.connected(f"/servers/{mode}") as client:
        begun = time.monotonic()
        result = await client.call_tool("echo", {"text": "x"})
        assert time.monotonic() - begun < 3 + AT_ONCE
        assert result.is_error
        assert mode in said(result)


@pytest.mark.parametrize("mode", ["die-in-call", "die-in-answer"])
async def test_a_server_that_dies_in_a_call_ends_it_at_once_and_comes_back(
    mode: str, gateway: Gateway, person: Person
) -> None:
    await gateway.ready(mode)
    started = len(gateway.logged("link_ready", server=mode))
    async with undisturbed(gateway), person.connected(f"/servers/{mode}") as client:
        begun = time.monotonic()
        result = await client.call_tool("echo", {"text": "x"})
        assert time.monotonic() - begun < AT_ONCE
        assert result.is_error
        assert mode in said(result)
        await gateway.soon(lambda: len(gateway.logged("link_ready", server=mode)) > started, 20, "the restart")
        assert "count" in await all_tools(client)
    assert gateway.metric("mcpmux_link_restarts_total", server=mode) >= 1


async def test_the_stderr_line_of_a_dying_server_is_in_the_log(gateway: Gateway, person: Person) -> None:
    await gateway.ready("die-in-call")
    async with person.connected("/servers/die-in-call") as client:
        await client.call_tool("echo", {"text": "x"})
    await gateway.soon(
        lambda: [
            event
            for event in gateway.logged("server_stderr", server="die-in-call")
            if "dying in the middle of a call" in str(event)
        ]
    )


async def test_a_line_of_100_megabytes_ends_its_call_and_not_mcpmux(gateway: Gateway, person: Person) -> None:
    await gateway.ready("long-line")
    before = gateway.memory()
    async with undisturbed(gateway), person.connected("/servers/long-line") as client:
        result = await client.call_tool("echo", {"text": "x"})
        assert result.is_error
        assert "long-line" in said(result)
    assert gateway.memory() - before < 80e6, "the line was not kept in memory"


async def test_a_flood_on_stderr_costs_neither_memory_nor_a_log_that_fills_the_disk(gateway: Gateway) -> None:
    size, memory = gateway.log.stat().st_size, gateway.memory()
    await asyncio.sleep(2)  # What is measured is a rate: how much the flood makes us write in this time.
    assert gateway.log.stat().st_size - size < 2e6
    assert gateway.memory() - memory < 30e6


async def test_strange_results_and_deep_ones_become_errors_of_their_own_call(gateway: Gateway, person: Person) -> None:
    await gateway.ready("strange-results", "deep-result")
    async with undisturbed(gateway):
        async with person.connected("/servers/deep-result") as client:
            result = await client.call_tool("echo", {"text": "x"})
            assert result.is_error
        async with person.connected("/servers/strange-results") as client:
            for _ in range(5):
                try:
                    await client.call_tool("echo", {"text": "x"})
                except Exception as exc:
                    assert "validation" in str(exc).lower() or "strange-results" in str(exc)
    assert gateway.process is not None
    assert gateway.process.poll() is None


async def test_a_huge_list_arrives_whole_and_an_endless_one_ends(gateway: Gateway, person: Person) -> None:
    await gateway.ready("huge-list", "endless-pages")
    async with person.connected("/servers/huge-list") as client:
        tools = (await client.list_tools()).tools
        assert (len(tools), len(tools[0].description or "")) == (100, 11_000)
    async with asyncio.timeout(10), person.connected("/servers/endless-pages") as client:
        names = await all_tools(client)
        assert len(names) == len(set(names))


async def test_requests_that_no_revision_knows_are_answered_and_logged(gateway: Gateway, person: Person) -> None:
    await gateway.ready("strange-requests")
    async with person.connected("/servers/strange-requests") as client:
        assert said(await client.call_tool("echo", {"text": "x"})) == "x"
    assert gateway.metric("mcpmux_messages_stray_total", server="strange-requests") >= 1
    assert gateway.metric("mcpmux_messages_stray_total", server="garbage") >= 1
    assert gateway.metric("mcpmux_messages_stray_total", server="good") == 0


async def test_one_that_is_killed_with_calls_in_flight_gives_each_a_clear_error_at_once(
    gateway: Gateway, person: Person, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    ready = len(gateway.logged("link_ready", server="good"))
    async with person.connected() as client, asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(client.call_tool("good__slow", {"gate": str(gate)})) for _ in range(5)]
        await until(lambda: lines(tmp_path / "gate.entered") == 5)
        begun = time.monotonic()
        for child in gateway.children_of("good"):
            child.send_signal(signal.SIGKILL)
        for one in waiting:
            result = await one
            assert result.is_error
            assert "good" in said(result)
        assert time.monotonic() - begun < AT_ONCE
        # A call that comes while it restarts waits for it.
        assert said(await client.call_tool("good__echo", {"text": "back"})) == "back"
    await gateway.soon(lambda: len(gateway.logged("link_ready", server="good")) == ready + 1, what="one restart")


async def test_a_restarted_server_leaves_no_process_of_its_former_life(gateway: Gateway, person: Person) -> None:
    async with person.connected() as client:
        sleeper = int(said(await client.call_tool("good__spawn", {})))
        assert psutil.pid_exists(sleeper)
        ready = len(gateway.logged("link_ready", server="good"))
        died = await client.call_tool("good__die", {"code": 9})
        assert died.is_error
        await gateway.soon(lambda: len(gateway.logged("link_ready", server="good")) > ready, 20)
        await until(lambda: not _alive(sleeper), what="the end of the grandchild")


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_servers_that_will_not_end_and_their_families_are_ended_with_mcpmux(tmp_path: Path) -> None:
    born = tmp_path / "born"
    servers = {"stubborn": faulty("stubborn"), "family": faulty("family", "--gate", born), "wrapper": faulty("wrapper")}
    with running(tmp_path / "gateway", servers) as gateway:
        await gateway.ready()
        await appears(born)
        begun = time.monotonic()
        assert gateway.end() == 0
        assert time.monotonic() - begun < 20
    assert not _alive(int(born.read_text()))


async def test_a_server_that_takes_20_seconds_to_start_delays_nothing_and_then_is_there(tmp_path: Path) -> None:
    begun = time.monotonic()
    servers = {"late": faulty("late", "--seconds", 20), "good": counter()}
    with running(tmp_path / "gateway", servers) as gateway:
        await gateway.ready("good")
        assert time.monotonic() - begun < 18, "ready before the late one"
        person = Person(gateway, "ana@example.com", ("MCP-Admin",))
        async with person.connected() as client:
            assert said(await client.call_tool("good__echo", {"text": "x"})) == "x"
            await gateway.ready("late", wait=40)
            assert said(await client.call_tool("late__echo", {"text": "late"})) == "late"


async def test_a_server_that_exits_at_its_first_start_is_started_again(tmp_path: Path) -> None:
    servers = {"unsteady": faulty("exit-once", "--gate", tmp_path / "gate")}
    with running(tmp_path / "gateway", servers) as gateway:
        await gateway.ready()
        assert os.path.exists(tmp_path / "gate")
