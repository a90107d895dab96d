"""The server of the modern era: what it sends is as its schema has it, and the official SDK can use it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import mcp_types as types
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.context import ClientRequestContext

from tests import schemas
from tests.faces.modern import Modern, asking
from tests.links.servers.modern import Remote, modern_remote
from tests.schemas.wire import Wire
from tests.servers import HERE, modern

ABLE = {"elicitation": {"form": {}, "url": {}}, "sampling": {}, "roots": {}}
CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"


@asynccontextmanager
async def asked(*options: str) -> AsyncIterator[tuple[Remote, Modern]]:
    """It, and a plain client of it."""
    async with modern_remote(*options) as remote, aiohttp.ClientSession() as http:
        yield remote, Modern(http, remote.url, {})


async def elicited(context: ClientRequestContext, params: types.ElicitRequestParams) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={"name": "Ana"})


@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_the_official_sdk_uses_it(transport: str) -> None:
    section = modern()["command"]
    assert isinstance(section, list)
    async with modern_remote() as remote:
        place = remote.url if transport == "http" else StdioServerParameters(command=section[0], args=section[1:])
        async with Client(place, elicitation_callback=elicited) as client:
            assert client.protocol_version == schemas.MODERN
            assert len((await client.list_tools()).tools) > 10
            assert (await client.call_tool("echo", {"text": "héllo"})).content[0].text == "héllo"
            told = json.loads((await client.call_tool("ask", {"rounds": 2})).content[0].text)
            assert [list(answers) for answers in told] == [["form_0"], ["form_1"]]
            read = await client.read_resource("modern://note/7")
            assert read.contents[0].text == "7"


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("server/discover", {}),
        *((f"{kind}/list", {}) for kind in ("tools", "prompts", "resources", "resources/templates")),
        ("prompts/get", {"name": "greet", "arguments": {"who": "Ana"}}),
        ("resources/read", {"uri": "modern://value"}),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "greet"},
                                 "argument": {"name": "who", "value": "a"}}),
        *(("tools/call", {"name": name, "arguments": arguments}) for name, arguments in (
            ("fail", {}), ("refuse", {}), ("structured", {"number": 1}), ("links", {}), ("nobody", {}),
            ("progress", {"steps": 2}), ("log", {"level": "error", "text": "x"}), ("ask", {}),
        )),
    ],
)  # fmt: skip
async def test_what_it_sends_is_as_the_schema_has_it(method: str, params: dict[str, object]) -> None:
    wire = Wire(schemas.MODERN, "Server")
    async with asked() as (_, client):
        message = asking(method, params, progressToken="p", log="debug", **{CAPABILITIES: ABLE})
        wire.heard(message)
        async with client.posting(message) as answer:
            text = await answer.text()
        events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
        for one in events or [text]:
            wire.sent(json.loads(one))


async def test_it_asks_in_rounds_and_knows_its_own_state() -> None:
    async with asked() as (remote, client):
        call = {"name": "ask", "arguments": {"kinds": ["roots", "url"], "rounds": 2}}
        first = await _result(client, call)
        assert first["inputRequests"].keys() == {"roots_0", "url_0"}
        answers = {"roots_0": {"roots": []}, "url_0": {"action": "accept"}}
        retry = {**call, "inputResponses": answers, "requestState": first["requestState"]}
        second = await _result(client, retry)
        assert second["inputRequests"].keys() == {"roots_1", "url_1"}
        other = {**retry, "arguments": {}, "requestState": second["requestState"]}
        assert (await _error(client, other))["code"] == -32602
        assert (await _error(client, {**retry, "requestState": "AAAA"}))["code"] == -32602
        assert (await _error(client, call, able={}))["code"] == -32021
        assert len(remote.server.problems) == 2
        remote.server.problems.clear()


async def _message(client: Modern, call: dict[str, object], able: object = ABLE) -> dict[str, dict[str, object]]:
    async with client.posting(asking("tools/call", call, **{CAPABILITIES: able})) as answer:
        found = await answer.json()
    assert isinstance(found, dict)
    return found


async def _result(client: Modern, call: dict[str, object]) -> dict[str, object]:
    return (await _message(client, call))["result"]


async def _error(client: Modern, call: dict[str, object], able: object = ABLE) -> dict[str, object]:
    return (await _message(client, call, able))["error"]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"Mcp_Name": "wrong"}, -32020),
        ({"Mcp_Method": None}, -32020),
        ({"Mcp_Param_Region": None}, -32020),
        ({"Mcp_Param_Region": "=?base64?ZmFy?="}, -32020),
        ({"Mcp_Param_Count": "1"}, -32020),
        ({}, None),
        ({"Mcp_Param_Region": "=?base64?aGVyZQ==?="}, None),
    ],
)
async def test_it_holds_headers_against_the_body(said: dict[str, str | None], code: int | None) -> None:
    async with asked() as (remote, client):
        call = {"name": "locate", "arguments": {"region": "here"}}
        answer = await client.post(asking("tools/call", call), **{"Mcp_Param_Region": "here", **said})
        assert answer.messages[0].get("error", {}).get("code") == code  # type: ignore[union-attr]
        assert answer.status == (200 if code is None else 400)
        assert bool(remote.server.problems) == (code is not None)
        remote.server.problems.clear()


async def test_subscriptions_are_told_and_ended() -> None:
    async with asked() as (_, client):
        wants = {"toolsListChanged": True, "resourceSubscriptions": ["modern://value"]}
        async with client.listening(wants) as stream:
            assert stream.honored == wants
            await client.call("offer", kind="tools", name="new")
            assert (await stream.message())["method"] == "notifications/tools/list_changed"
            assert await client.call("touch", uri="modern://value") == "1 listen"
            assert (await stream.message())["method"] == "notifications/resources/updated"
            await client.call("unlisten", how="graceful")
            assert [message["id"] for message in await stream.rest()] == ["listen-1"]
        async with client.listening({}) as stream:
            await client.call("unlisten", how="abrupt")
            assert await stream.rest() == []


async def test_a_closed_response_is_a_cancelled_call(tmp_path: Path) -> None:
    async with asked() as (_, client), asyncio.timeout(5):
        gate = tmp_path / "gate"
        call = asking("tools/call", {"name": "slow", "arguments": {"gate": str(gate)}})
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(client.post(call))
            await _until(lambda: (tmp_path / "gate.entered").exists())
            waiting.cancel()
        await _until(lambda: (tmp_path / "gate.cancelled").exists())


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def test_a_dual_one_answers_both_eras_on_one_pipe() -> None:
    command = [sys.executable, str(HERE / "modern_server.py"), "stdio", "--era", "dual"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    greeting = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}}
    lines = [greeting, asking("server/discover", {}, 2), {"jsonrpc": "2.0", "id": 3, "method": "ping"}]
    async with asyncio.timeout(5):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        found = [json.loads(await process.stdout.readline()) for _ in lines]
        process.stdin.close()
        await process.wait()
    by_id = {message["id"]: message["result"] for message in found}
    assert by_id[1]["protocolVersion"] == "2025-11-25"
    assert by_id[2]["supportedVersions"] == ["2026-07-28", "2025-11-25"]
    assert by_id[3] == {}
