"""mcpmux ends, gently or by force, with calls in flight: nothing is left running, and it starts again on its data."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.gateway_process import Gateway, prepared
from tests.journeys.clients import Person, all_tools, appears, said, until
from tests.journeys.raw import ACCEPT, GREETING, Raw, request
from tests.schemas.watched import watching
from tests.servers import counter, faulty

pytestmark = pytest.mark.timeout(180)

DRAIN = 3.0  # seconds


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """Not started yet: servers of every kind that is hard to end."""
    servers = {
        "good": counter(timeout="60s"),
        "wrapper": faulty("wrapper"),
        "stubborn": faulty("stubborn"),
        "family": faulty("family", "--gate", tmp_path / "born"),
    }
    with prepared(tmp_path / "gateway", servers, limits={"drain": f"{DRAIN:.0f}s"}) as made:
        yield made


async def started(gateway: Gateway) -> Person:
    await asyncio.to_thread(gateway.start)
    await gateway.ready()
    return Person(gateway, "ana@example.com", ("MCP-Admin",))


async def test_kill_9_during_calls_leaves_nothing_and_it_starts_again_on_the_same_data(
    gateway: Gateway, tmp_path: Path
) -> None:
    person = await started(gateway)
    await asyncio.to_thread(gateway.grant, "ben@example.com", "good")
    async with watching() as http, asyncio.TaskGroup() as tasks:
        session = await Raw.greeted(http, f"{gateway.url}/mcp", person.token)
        status, answer = await session.call("good__spawn", {})
        assert status == 200, answer
        calling = tasks.create_task(broken(session, {"gate": str(tmp_path / "gate")}))
        await appears(tmp_path / "gate.entered")
        seen = gateway.note_tree()
        assert any("postgres" in " ".join(one.cmdline()) for one in seen)
        await asyncio.to_thread(gateway.end, signal.SIGKILL)  # proves that nothing of the tree is left
        await calling
    await asyncio.to_thread(gateway.start)
    await gateway.ready("good")
    ben = Person(gateway, "ben@example.com")
    async with ben.connected() as client:
        assert "good__echo" in await all_tools(client), "the grant has outlived it"
        assert said(await client.call_tool("good__echo", {"text": "again"})) == "again"


async def broken(session: Raw, arguments: dict[str, str]) -> None:
    """A call that must end with its connection."""
    with pytest.raises(aiohttp.ClientError):
        await session.call("good__slow", arguments)


async def test_sigterm_lets_calls_in_flight_finish_and_refuses_new_sessions_meanwhile(
    gateway: Gateway, tmp_path: Path
) -> None:
    person = await started(gateway)
    gate = tmp_path / "gate"
    async with watching() as http, asyncio.TaskGroup() as tasks:
        session = await Raw.greeted(http, f"{gateway.url}/mcp", person.token)
        calling = tasks.create_task(session.call("good__slow", {"gate": str(gate)}))
        await appears(tmp_path / "gate.entered")
        ending = tasks.create_task(asyncio.to_thread(gateway.end))
        await until(lambda: gateway.logged("drain_begun"), what="draining")
        async with http.get(f"{gateway.url}/readyz") as ready:
            assert ready.status == 503
        headers = {**ACCEPT, "Authorization": f"Bearer {person.token}"}
        async with http.post(f"{gateway.url}/mcp", json=request("initialize", GREETING), headers=headers) as new:
            assert new.status == 503
        gate.touch()
        status, answer = await calling
        assert (status, "is open" in answer) == (200, True)
        assert await ending == 0
    assert gateway.logged("stopped")


async def test_sigterm_ends_a_call_that_does_not_finish_within_the_limit_with_a_clear_error(
    gateway: Gateway, tmp_path: Path
) -> None:
    person = await started(gateway)
    async with watching() as http, asyncio.TaskGroup() as tasks:
        session = await Raw.greeted(http, f"{gateway.url}/mcp", person.token)
        calling = tasks.create_task(session.call("good__slow", {"gate": str(tmp_path / "gate")}))
        await appears(tmp_path / "gate.entered")
        begun = time.monotonic()
        assert await asyncio.to_thread(gateway.end) == 0
        assert time.monotonic() - begun < DRAIN + 15
        status, answer = await calling
        assert status == 200
        assert '"isError":true' in answer.replace(" ", "")


async def test_event_streams_end_properly_at_sigterm(gateway: Gateway) -> None:
    person = await started(gateway)
    async with watching() as http, asyncio.TaskGroup() as tasks:
        session = await Raw.greeted(http, f"{gateway.url}/mcp", person.token)
        headers = {"Authorization": f"Bearer {person.token}"}
        async with session.stream() as stream, http.get(f"{gateway.url}/sse", headers=headers) as sse:
            assert (stream.status, sse.status) == (200, 200)
            ending = tasks.create_task(asyncio.to_thread(gateway.end))
            # Without a chunked end both would raise ClientPayloadError here.
            await stream.read()
            await sse.read()
            assert await ending == 0


async def test_a_second_sigterm_skips_the_waiting(gateway: Gateway, tmp_path: Path) -> None:
    gateway.section["limits"] = {"drain": "60s"}
    gateway.save()
    person = await started(gateway)
    async with watching() as http, asyncio.TaskGroup() as tasks:
        session = await Raw.greeted(http, f"{gateway.url}/mcp", person.token)
        calling = tasks.create_task(session.call("good__slow", {"gate": str(tmp_path / "gate")}))
        await appears(tmp_path / "gate.entered")
        assert gateway.process is not None
        process = gateway.process
        begun = time.monotonic()
        ending = tasks.create_task(asyncio.to_thread(gateway.end))
        await until(lambda: gateway.logged("drain_begun"))
        process.send_signal(signal.SIGTERM)
        assert await ending == 0
        assert time.monotonic() - begun < 20
        await calling


async def test_a_second_serve_on_the_same_data_ends_with_one_clear_line(gateway: Gateway) -> None:
    await started(gateway)
    second = await asyncio.to_thread(gateway.run, "serve", "--port", "0", check=False)
    assert second.returncode == 2
    told = [line for line in second.stderr.splitlines() if '"error"' in line or '"critical"' in line]
    assert len(told) == 1, second.stderr
    assert str(gateway.data) in told[0]
    async with watching() as http, http.get(f"{gateway.url}/readyz") as ready:
        assert ready.status == 200, "the first one is unharmed"


async def test_a_guardian_that_is_killed_is_replaced_and_does_its_work_again(gateway: Gateway) -> None:
    person = await started(gateway)
    guardian = guardian_of(gateway)
    guardian.kill()
    await until(lambda: guardian_of(gateway, guardian.pid) is not None, 10, "another guardian")
    async with person.connected() as client:
        assert said(await client.call_tool("good__echo", {"text": "x"})) == "x"
    await asyncio.to_thread(gateway.end, signal.SIGKILL)


def guardian_of(gateway: Gateway, former: int = 0) -> psutil.Process | None:
    """The process that outlives mcpmux to end the others."""
    for one in gateway.note_tree():
        try:
            if one.pid != former and any("mcpmux/guardian/" in word for word in one.cmdline()) and one.is_running():
                return one
        except psutil.Error:
            continue
    return None


async def test_commands_work_while_it_runs_and_while_it_does_not(gateway: Gateway) -> None:
    assert gateway.run("status", "--json", check=False).returncode == 1, "none runs"
    await asyncio.to_thread(gateway.grant, "ana@example.com", "good", "read")
    await started(gateway)
    await asyncio.to_thread(gateway.grant, "ben@example.com", "good")
    listed = (await asyncio.to_thread(gateway.run, "access", "list")).stdout
    assert "ana@example.com" in listed
    assert "ben@example.com" in listed
    explained = await asyncio.to_thread(
        gateway.run, "access", "explain", "ana@example.com", "good", "count", "--json", check=False
    )
    assert explained.returncode == 1, "ana may only read"
    await asyncio.to_thread(gateway.end)
    await asyncio.to_thread(gateway.revoke, "ben@example.com", "good")
    assert "ben@example.com" not in gateway.run("access", "list").stdout
    assert gateway.left() == [], "the commands' own database has ended with them"
