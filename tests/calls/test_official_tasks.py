"""Tasks of an official server of 2025-11-25, over stdio and Streamable HTTP, for clients of every kind.

Source: MCP 2025-11-25 basic/utilities/tasks, basic/transports.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from tests import pypi
from tests.calls.asker import ACCEPTED, Asker, fitting, heard, needed
from tests.calls.upstream import Json, params
from tests.faces.client import WAIT, Session, bearer, calling, error_of, notification, request, said
from tests.faces.modern import PREFIX, Modern, asking
from tests.gateway_process import Gateway, running
from tests.servers import HERE

PROGRAM = HERE / "tasks_official.py"
TRANSPORTS = ("stdio", "http")
ABLE = {"elicitation": {"form": {}}}
KNOWS = {PREFIX + "clientCapabilities": {**ABLE, "extensions": {PREFIX + "tasks": {}}}}


@contextmanager
def serving(python: Path) -> Iterator[str]:
    """The server over Streamable HTTP; its URL."""
    with subprocess.Popen([python, PROGRAM, "http"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.kill()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    python = pypi.python("mcp-1.30.0", "mcp==1.30.0")
    with serving(python) as url:
        servers = {
            "stdio": {"transport": "stdio", "command": [str(python), str(PROGRAM), "stdio"]},
            "http": {"transport": "http", "url": url},
        }
        with running(tmp_path_factory.mktemp("official"), servers) as found:
            for name in servers:
                found.grant(f"MCP-{name}", name)
                found.wait_for(lambda name=name: found.logged("link_ready", server=name), 30, name)
            yield found


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def who(gateway: Gateway) -> dict[str, str]:
    return bearer(gateway, "ana@example.com", *(f"MCP-{name}" for name in TRANSPORTS))


async def opened(gateway: Gateway, http: aiohttp.ClientSession, revision: str = "2025-11-25") -> Session:
    return await Session.opened(http, f"{gateway.url}/mcp", who(gateway), revision, ABLE)


async def made(session: Session, tool: str, token: str | None = None, **arguments: object) -> str:
    """The id of a new task of a client of 2025-11-25."""
    call = calling(tool, arguments, token=token)
    params(call)["task"] = {"ttl": 60_000}
    answer = (await session.post(call)).messages[-1]
    return str(answer["result"]["task"]["taskId"])  # type: ignore[index]


@pytest.mark.parametrize("server", TRANSPORTS)
async def test_a_client_of_its_own_era_has_its_tasks(
    server: str, gateway: Gateway, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    session, gate = await opened(gateway, http), tmp_path / "gate"
    async with session.listening() as events:
        task = await made(session, f"{server}__work", token="mine", gate=str(gate), text="at last")
        if server == "stdio":  # over HTTP the SDK sends it on the stream of the call, which has ended
            while (told := await events.message())["method"] != "notifications/progress":
                pass
            assert params(told)["progressToken"] == "mine"
        state = (await session.ask("tasks/get", {"taskId": task}))["result"]
        assert (state["taskId"], state["status"]) == (task, "working")  # type: ignore[index]
        async with session.streaming(request("tasks/result", {"taskId": task}, 2)) as result:
            gate.touch()
            assert said((await result.messages())[-1]) == "at last"
    task = await made(session, f"{server}__confirm")
    async with session.streaming(request("tasks/result", {"taskId": task}, 3)) as result:
        asked = await result.message()
        assert asked["method"] == "elicitation/create"
        await session.post({"jsonrpc": "2.0", "id": asked["id"], "result": {"action": "decline"}})
        assert "decline" in said((await result.messages())[-1])
    task = await made(session, f"{server}__confirm")
    async with session.streaming(request("tasks/result", {"taskId": task}, 4)) as result:
        await result.message()
        await session.ask("tasks/cancel", {"taskId": task})
        await result.messages()
    assert await session.call(f"{server}__must", text="it lives") == "it lives"
    task = await made(session, f"{server}__work", gate="/nowhere")
    cancelled = (await session.ask("tasks/cancel", {"taskId": task}))["result"]
    assert cancelled["status"] == "cancelled"  # type: ignore[index]


@pytest.mark.parametrize("server", TRANSPORTS)
@pytest.mark.parametrize("revision", ["2025-11-25", "2025-06-18"])
async def test_a_legacy_client_without_tasks_gets_results(
    server: str, revision: str, gateway: Gateway, http: aiohttp.ClientSession
) -> None:
    session = await opened(gateway, http, revision)
    assert await session.call(f"{server}__must", text="mine") == "mine"
    async with session.streaming(calling(f"{server}__confirm", id_=7)) as events:
        asked = await events.message()
        await session.post({"jsonrpc": "2.0", "id": asked["id"], "result": {"action": "decline"}})
        assert "decline" in said((await events.messages())[-1])
    async with session.streaming(calling(f"{server}__confirm", id_=8)) as events:
        await events.message()
        await session.post(notification("notifications/cancelled", {"requestId": 8}))
    await gateway.soon(lambda: not gateway.metric("mcpmux_calls_in_flight", server=server))
    assert await session.call(f"{server}__must", text="again") == "again"


@pytest.mark.parametrize("server", TRANSPORTS)
async def test_a_modern_client_without_tasks_gets_results(server: str, gateway: Gateway) -> None:
    ana = Asker(gateway, who(gateway))
    assert said((await ana.ask(f"{server}__must", {"text": "mine"})).messages[-1]) == "mine"
    asked = needed(await ana.ask(f"{server}__confirm", {}))
    assert heard(await ana.answered(f"{server}__confirm", asked, fitting(asked)))["action"] == "accept"  # type: ignore[index]
    broken = (await ana.ask(f"{server}__fails", {})).messages[-1]
    assert error_of(broken) == (-32603, "The task has ended without a result")


@pytest.mark.parametrize("server", TRANSPORTS)
async def test_a_modern_client_that_knows_tasks_has_them(
    server: str, gateway: Gateway, http: aiohttp.ClientSession
) -> None:
    ana = Modern(http, f"{gateway.url}/mcp", who(gateway))
    task = (await ana.ask("tools/call", {"name": f"{server}__confirm", "arguments": {}}, **KNOWS))["taskId"]

    async def state(status: str) -> Json:
        async with asyncio.timeout(WAIT):
            while (found := await ana.ask("tasks/get", {"taskId": task}, **KNOWS))["status"] != status:
                await asyncio.sleep(0.02)
        return found

    asked = await state("input_required")
    assert asked["inputRequests"]
    await ana.post(asking("tasks/cancel", {"taskId": task}, **KNOWS))
    await state("cancelled")
    task = (await ana.ask("tools/call", {"name": f"{server}__confirm", "arguments": {}}, **KNOWS))["taskId"]
    asked = await state("input_required")
    answers = dict.fromkeys(asked["inputRequests"], ACCEPTED)  # type: ignore[union-attr]
    await ana.post(asking("tasks/update", {"taskId": task, "inputResponses": answers}, **KNOWS))
    assert "hers" in json.dumps((await state("completed"))["result"])
