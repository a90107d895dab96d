"""Desktop clients: the official SDK starts `mcpmux stdio` as its server, and behind it is a real mcpmux."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import mcp_types as types
import psutil
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.shared.subscriptions import ResourceUpdated

from tests.faces.client import Json, calling, greeting, notification, request
from tests.gateway_process import Gateway, running
from tests.gateway_process import program as gateway_program
from tests.journeys.clients import Heard, Person, all_tools, appears, refusal, said, until
from tests.servers import counter, listening

MODES = ("auto", "legacy")
WAIT = 10.0

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One mcpmux with two counters, which a test here may restart."""
    servers = {name: counter("--name", name) for name in ("alpha", "beta")}
    with running(tmp_path_factory.mktemp("desktop"), servers) as made:
        made.grant("MCP-Alpha", "alpha")
        made.grant("ben@example.com", "beta")
        for name in servers:
            made.wait_for(lambda name=name: made.logged("link_ready", server=name), 20, name)
        yield made


def environment(token: str | None) -> dict[str, str]:
    """What the bridge is started with: not the mark of mcpmux's own tree, of which it is no part."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MCPMUX_")}
    return {**kept, **({} if token is None else {"MCPMUX_TOKEN": token})}


def bridges(gateway: Gateway) -> list[psutil.Process]:
    """Every `mcpmux stdio` of this gateway's folder that runs."""
    found = []
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            if {"stdio", str(gateway.config)} <= set(one.cmdline()) and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


@asynccontextmanager
async def at_desk(
    person: Person, mode: str = "auto", heard: Heard | None = None, **callbacks: object
) -> AsyncIterator[Client]:
    """A connected client whose server is the bridge."""
    gateway, listener = person.gateway, heard or Heard()
    program, *arguments = gateway.command("stdio")
    server = StdioServerParameters(command=program, args=arguments, env=environment(person.token))
    options = {"message_handler": listener.take, "logging_callback": listener.log, "read_timeout_seconds": 30.0}
    options |= callbacks
    before = bridges(gateway)
    async with Client(stdio_client(server), mode=mode, **options) as client:
        (ours,) = (one for one in bridges(gateway) if one not in before)
        yield client
    await until(lambda: not ours.is_running(), what="the end of the bridge")


@pytest.mark.parametrize("mode", MODES)
async def test_a_desktop_client_lists_calls_and_hears_progress(mode: str, ana: Person, tmp_path: Path) -> None:
    gate, steps = tmp_path / "gate", []

    async def progressed(progress: float, total: float | None, message: str | None) -> None:
        steps.append(progress)
        if progress == 3:
            gate.touch()

    async with at_desk(ana, mode) as client:
        tools = await all_tools(client)
        assert tools and all(name.startswith("alpha__") for name in tools)
        assert said(await client.call_tool("alpha__echo", {"text": "grüße"})) == "grüße"
        arguments = {"steps": 3, "gate": str(gate)}
        assert said(await client.call_tool("alpha__progress", arguments, progress_callback=progressed)) == "3 steps"
        assert steps == [1, 2, 3]
        assert (await refusal(client.call_tool("beta__echo", {"text": "x"}))).code == -32602
        listed = await client.list_resources()
        read = await client.read_resource(str(listed.resources[0].uri))
        assert read.contents


async def test_a_subscription_and_a_changed_list_reach_the_desktop(ana: Person) -> None:
    heard = Heard()
    async with at_desk(ana, "legacy", heard) as client:
        uri = str((await client.list_resources()).resources[0].uri)
        await client.subscribe_resource(uri)
        await client.call_tool("alpha__touch", {"uri": uri.removeprefix("alpha+")})
        await until(lambda: heard.of(types.ResourceUpdatedNotification), WAIT, "the update")
        await client.call_tool("alpha__offer", {"kind": "tools", "name": "fresh"})
        await until(lambda: heard.of(types.ToolListChangedNotification), WAIT, "the changed list")
        await client.call_tool("alpha__withdraw", {"kind": "tools", "name": "fresh"})


async def test_a_modern_subscription_reaches_the_desktop_until_it_is_left(gateway: Gateway, ana: Person) -> None:
    async with at_desk(ana) as client:
        assert client.protocol_version == "2026-07-28"
        uri = str((await client.list_resources()).resources[0].uri)
        async with client.listen(tools_list_changed=True, resource_subscriptions=[uri]) as changes:
            streams = gateway.metric("mcpmux_streams")
            assert streams >= 1
            await client.call_tool("alpha__touch", {"uri": uri.removeprefix("alpha+")})
            async with asyncio.timeout(WAIT):
                assert await anext(aiter(changes)) == ResourceUpdated(uri=uri)
        await until(lambda: gateway.metric("mcpmux_streams") < streams, what="the end of the stream")
        assert said(await client.call_tool("alpha__echo", {"text": "still here"})) == "still here"


@pytest.mark.parametrize("mode", MODES)
async def test_a_cancelled_call_is_cancelled_at_its_server(mode: str, ana: Person, tmp_path: Path) -> None:
    async with at_desk(ana, mode) as client, asyncio.TaskGroup() as tasks:
        call = tasks.create_task(client.call_tool("alpha__slow", {"gate": str(tmp_path / "gate")}))
        await appears(tmp_path / "gate.entered")
        call.cancel()
        await appears(tmp_path / "gate.cancelled")
        assert said(await client.call_tool("alpha__echo", {"text": "still here"})) == "still here"


async def test_what_a_server_asks_is_answered_at_the_desktop(ana: Person) -> None:
    """In the legacy era, where it comes as a request of the server."""

    async def roots(_: object) -> types.ListRootsResult:
        return types.ListRootsResult(roots=[])

    async def elicited(_: object, params: types.ElicitRequestParams) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content={"answer": "from the desk"})

    async with at_desk(ana, "legacy", elicitation_callback=elicited, list_roots_callback=roots) as client:
        answer = said(await client.call_tool("alpha__ask", {"method": "elicitation/create"}))
        assert "from the desk" in answer


async def test_two_desktops_at_once_see_each_their_own(ana: Person, ben: Person) -> None:
    async def use(client: Client, server: str) -> None:
        assert {name.partition("__")[0] for name in await all_tools(client)} == {server}
        async with asyncio.TaskGroup() as calls:
            for number in range(20):
                calls.create_task(echo(client, server, f"{server} {number}"))

    async def echo(client: Client, server: str, text: str) -> None:
        assert said(await client.call_tool(f"{server}__echo", {"text": text})) == text

    async with at_desk(ana) as hers, at_desk(ben) as his, asyncio.TaskGroup() as tasks:
        tasks.create_task(use(hers, "alpha"))
        tasks.create_task(use(his, "beta"))


async def test_a_restart_of_mcpmux_in_between_goes_unnoticed(gateway: Gateway, ana: Person) -> None:
    heard = Heard()
    async with at_desk(ana, "legacy", heard) as client:
        uri = str((await client.list_resources()).resources[0].uri)
        await client.subscribe_resource(uri)
        await asyncio.to_thread(gateway.end)
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(client.call_tool("alpha__echo", {"text": "back again"}))
            await asyncio.to_thread(gateway.start)
        assert said(waiting.result()) == "back again"
        await client.call_tool("alpha__touch", {"uri": uri.removeprefix("alpha+")})
        await until(lambda: heard.of(types.ResourceUpdatedNotification), WAIT, "the update after the restart")


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_the_bridge_carries_either_era_to_the_official_server(mode: str) -> None:
    """Without mcpmux in between, so that nobody but the bridge can make up for the bridge."""
    steps: list[float] = []

    async def progressed(progress: float, total: float | None, message: str | None) -> None:
        steps.append(progress)

    with listening("http", program="conformance_modern", arguments=["--era", "dual"]) as (url, _):
        program, *arguments = [gateway_program(), "stdio", "--url", url]
        server = StdioServerParameters(command=program, args=arguments, env=environment("unused"))
        async with Client(stdio_client(server), mode=mode, read_timeout_seconds=30.0) as client:
            assert "test_simple_text" in await all_tools(client)
            assert said(await client.call_tool("test_simple_text")) == "This is a simple text response for testing."
            await client.call_tool("test_tool_with_progress", progress_callback=progressed)
            assert steps == [0, 50, 100]
            assert (await client.read_resource("test://static-text")).contents


class Spoken:
    """The bridge as a process of ours, spoken to line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def started(cls, gateway: Gateway, *arguments: str, token: str | None = None) -> Spoken:
        """One that runs."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *gateway.command("stdio", *arguments), stdin=pipe, stdout=pipe, stderr=pipe, env=environment(token)
        )
        return cls(process)

    def say(self, *messages: Json) -> None:
        """Write messages."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(json.dumps(message).encode() + b"\n" for message in messages))

    async def hear(self) -> Json:
        """The next message; everything on its stdout must be one."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT):
            found = json.loads(await self.process.stdout.readline())
        assert found["jsonrpc"] == "2.0"
        return found  # type: ignore[no-any-return]

    async def greet(self) -> None:
        """The handshake."""
        self.say(request("initialize", greeting(), 0))
        assert "result" in await self.hear()
        self.say(notification("notifications/initialized"))

    def leave(self) -> None:
        """Close our side of its input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    async def ended(self) -> tuple[int, bytes, bytes]:
        """Its exit code, and the rest of what it wrote."""
        async with asyncio.timeout(WAIT):
            out, errors = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out, errors


async def test_a_refused_token_is_told_and_its_file_read_again(gateway: Gateway, ana: Person, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("no-such-token\n")
    bridge = await Spoken.started(gateway, "--token-file", str(file))
    bridge.say(request("initialize", greeting(), 0))
    error = (await bridge.hear())["error"]
    assert isinstance(error, dict) and "renew it" in error["message"]
    file.write_text(ana.token + "\n")
    await bridge.greet()
    bridge.say(calling("alpha__echo", {"text": "in"}, 1))
    assert (await bridge.hear())["id"] == 1
    bridge.leave()
    code, out, errors = await bridge.ended()
    assert (code, out) == (0, b"")
    assert ana.token.encode() not in errors and b"no-such-token" not in errors


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "EOF"])
async def test_the_end_leaves_no_session_and_no_process(how: str, gateway: Gateway, ana: Person, tmp_path) -> None:
    bridge = await Spoken.started(gateway, token=ana.token)
    await bridge.greet()
    bridge.say(calling("alpha__slow", {"gate": str(tmp_path / "gate")}, 1))
    await appears(tmp_path / "gate.entered")
    sessions = gateway.metric("mcpmux_sessions")
    assert sessions >= 1
    if how == "EOF":
        bridge.leave()
    else:
        bridge.process.send_signal(signal.Signals[how])
    code, out, errors = await bridge.ended()
    assert (code, out, errors) == (0, b"", b"")
    await appears(tmp_path / "gate.cancelled")
    await until(lambda: gateway.metric("mcpmux_sessions") == sessions - 1, what="the end of the session")
    assert not bridges(gateway)


async def test_what_is_in_flight_at_the_end_of_the_input_is_still_answered(gateway: Gateway, ana: Person) -> None:
    bridge = await Spoken.started(gateway, token=ana.token)
    await bridge.greet()
    bridge.say(*(calling("alpha__echo", {"text": str(number)}, number) for number in range(1, 6)))
    bridge.leave()
    code, out, _ = await bridge.ended()
    assert code == 0
    assert {json.loads(line)["id"] for line in out.splitlines()} == {1, 2, 3, 4, 5}


async def test_without_a_token_it_says_so_and_ends(gateway: Gateway) -> None:
    code, out, errors = await (await Spoken.started(gateway)).ended()
    assert (code, out) == (2, b"")
    assert b"set MCPMUX_TOKEN" in errors


async def test_a_killed_client_takes_its_bridge_along(gateway: Gateway, ana: Person) -> None:
    """Nobody tells the bridge: both its pipes just end."""
    read, write = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *gateway.command("stdio"), stdin=read, stdout=asyncio.subprocess.DEVNULL, env=environment(ana.token)
    )
    os.close(read)
    os.close(write)
    async with asyncio.timeout(WAIT):
        assert await process.wait() == 0
