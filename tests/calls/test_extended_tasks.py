"""Tasks of the modern era: the extension `io.modelcontextprotocol/tasks`, between clients and servers that know it.

Source: SEP-2663.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.calls.upstream import params
from tests.faces.client import WAIT, Json, Session, bearer, error_of
from tests.faces.modern import PREFIX, Modern, asking
from tests.gateway_process import Gateway, running

PROGRAM = Path(__file__).resolve().parent.parent / "servers" / "tasks_modern.py"
EXTENSION = PREFIX + "tasks"
ABLE = {PREFIX + "clientCapabilities": {"elicitation": {}, "extensions": {EXTENSION: {}, "x.example/y": {"z": 1}}}}
UNKNOWN = (-32602, "Task not found")


@dataclass(frozen=True)
class Place:
    """A running mcpmux with `tasker` and `lent` (pooled), and what `tasker` heard."""

    gateway: Gateway
    record: Path

    def who(self, http: aiohttp.ClientSession, name: str, *servers: str, under: str = "") -> Modern:
        """Somebody with these servers, or with `tasker`."""
        granted = (f"MCP-{server}" for server in servers or ("tasker",))
        return Modern(http, f"{self.gateway.url}{under}/mcp", bearer(self.gateway, f"{name}@example.com", *granted))

    def heard(self, method: str) -> list[Json]:
        """What `tasker` was told by this method."""
        messages = [json.loads(line) for line in self.record.read_text().splitlines()]
        return [params(one) for one in messages if one.get("method") == method]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("extended")

    def section(name: str, **more: object) -> dict[str, object]:
        command = [sys.executable, str(PROGRAM), "--record", str(folder / f"{name}.record")]
        return {"transport": "stdio", "command": command, **more}

    servers = {"tasker": section("tasker"), "lent": section("lent", isolation="pooled", links=1)}
    with running(folder, servers) as gateway:
        for name in servers:
            gateway.grant(f"MCP-{name}", name)
            gateway.wait_for(lambda name=name: gateway.logged("link_ready", server=name), 30, name)
        yield Place(gateway, folder / "tasker.record")


@pytest.fixture(scope="module")
def outer(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Another mcpmux in front of that one, which it reaches over Streamable HTTP as `far`."""
    who = bearer(place.gateway, "outer@example.com", "MCP-tasker")
    far = {"transport": "http", "url": f"{place.gateway.url}/servers/tasker/mcp", "headers": who}
    with running(tmp_path_factory.mktemp("outer"), {"far": far}) as gateway:
        gateway.grant("MCP-far", "far")
        gateway.wait_for(lambda: gateway.logged("link_ready", server="far"), 30, "far")
        yield Place(gateway, place.record)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def ana(place: Place, http: aiohttp.ClientSession) -> Modern:
    """Has `tasker`."""
    return place.who(http, "ana")


async def made(who: Modern, tool: str) -> str:
    """The id of a new task."""
    task = await who.ask("tools/call", {"name": tool, "arguments": {}}, **ABLE)
    assert task["resultType"] == "task"
    assert "task-" not in json.dumps(task)
    return str(task["taskId"])


async def about(who: Modern, task: str, method: str = "tasks/get", **more: object) -> Json:
    """The answer to a request about a task."""
    return (await who.post(asking(method, {"taskId": task, **more}, **ABLE))).json


def result(answer: Mapping[str, object]) -> Json:
    """The result in an answer."""
    found = answer["result"]
    assert isinstance(found, dict), answer
    return found


@pytest.mark.parametrize("under", ["", "/servers/tasker"])
async def test_a_call_becomes_a_task_that_is_polled_asks_and_ends(
    under: str, place: Place, http: aiohttp.ClientSession
) -> None:
    who = place.who(http, "ana", under=under)
    task = await made(who, "confirm" if under else "tasker__confirm")
    asked = result(await about(who, task))
    assert (asked["resultType"], asked["taskId"], asked["status"]) == ("complete", task, "input_required")
    assert list(asked["inputRequests"]) == ["name"]  # type: ignore[call-overload]
    answers = {"name": {"action": "accept", "content": {"name": "Ana"}}}
    assert result(await about(who, task, "tasks/update", inputResponses=answers)).keys() == {"resultType", "_meta"}
    ended = result(await about(who, task))
    assert ended["status"] == "completed"
    assert json.loads(ended["result"]["content"][0]["text"]) == answers  # type: ignore[index]
    assert place.heard("tasks/get")[-1]["taskId"].startswith("task-")  # type: ignore[union-attr]


async def test_a_task_of_a_remote_server_outlives_us(outer: Place, http: aiohttp.ClientSession) -> None:
    who = outer.who(http, "ana", "far")
    task = await made(who, "far__confirm")
    outer.gateway.end()
    outer.gateway.start()
    outer.gateway.wait_for(lambda: outer.gateway.logged("link_ready", server="far"), 30, "far")
    again = Modern(http, f"{outer.gateway.url}/mcp", who.who)
    assert result(await about(again, task))["status"] == "input_required"
    assert result(await about(again, task, "tasks/update", inputResponses={"name": {"action": "decline"}}))
    assert "decline" in json.dumps(result(await about(again, task))["result"])


async def test_links_in_a_result_lead_back_here_and_a_task_can_be_cancelled(ana: Modern) -> None:
    done = result(await about(ana, await made(ana, "tasker__points")))
    assert done["result"]["content"][0]["uri"] == "tasker+tasks://note"  # type: ignore[index]
    task = await made(ana, "tasker__work")
    assert result(await about(ana, task, "tasks/cancel")).keys() == {"resultType", "_meta"}
    assert result(await about(ana, task))["status"] == "cancelled"


async def test_whoever_does_not_know_tasks_gets_none(place: Place, http: aiohttp.ClientSession, ana: Modern) -> None:
    assert await ana.call("tasker__work") == "at once"
    answer = await ana.post(asking("tasks/get", {"taskId": await made(ana, "tasker__work")}))
    assert (answer.status, answer.code) == (400, -32021)
    assert answer.error["data"] == {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
    able = {"extensions": {EXTENSION: {}}}
    legacy = await Session.opened(http, f"{place.gateway.url}/mcp", ana.who, "2025-11-25", able)
    assert await legacy.call("tasker__work") == "at once"


async def test_what_a_client_knows_besides_goes_on(place: Place, ana: Modern) -> None:
    await made(ana, "tasker__work")
    meta = place.heard("tools/call")[-1]["_meta"]
    assert meta[PREFIX + "clientCapabilities"]["extensions"] == {EXTENSION: {}, "x.example/y": {"z": 1}}  # type: ignore[index]


async def test_on_a_pooled_link_no_call_becomes_a_task(place: Place, http: aiohttp.ClientSession) -> None:
    who = place.who(http, "ana", "lent")
    answer = await who.ask("tools/call", {"name": "lent__work", "arguments": {}}, **ABLE)
    assert answer["content"][0]["text"] == "at once"  # type: ignore[index]
    assert "extensions" not in (await who.ask("server/discover"))["capabilities"]  # type: ignore[operator]


@pytest.mark.parametrize("method", ["tasks/get", "tasks/update", "tasks/cancel"])
async def test_a_foreign_or_native_id_leads_nowhere(
    method: str, place: Place, http: aiohttp.ClientSession, ana: Modern
) -> None:
    task = await made(ana, "tasker__work")
    before = len(place.heard(method))
    legacy = await Session.opened(http, f"{place.gateway.url}/mcp", ana.who)
    eve, elsewhere = place.who(http, "eve"), place.who(http, "ana", under="/servers/tasker")
    for who, named in ((eve, task), (elsewhere, task), (ana, "task-1"), (ana, task[:-2] + "AA")):
        assert error_of(await about(who, named, method, inputResponses={})) == UNKNOWN
    if method != "tasks/update":
        assert error_of(await legacy.ask(method, {"taskId": task})) == UNKNOWN
    assert len(place.heard(method)) == before


async def test_news_that_the_server_does_not_tell_is_promised_to_nobody(ana: Modern) -> None:
    task = await made(ana, "tasker__work")
    wanted = {"notifications": {"toolsListChanged": True, "taskIds": [task]}}
    answer = await ana.post(asking("subscriptions/listen", wanted))
    assert (answer.status, answer.code) == (400, -32021)
    async with ana.streaming(asking("subscriptions/listen", wanted, **ABLE)) as stream:
        assert params(await stream.message())["notifications"] == {"toolsListChanged": True}


async def test_the_header_must_name_the_task_that_the_body_names(ana: Modern) -> None:
    task = await made(ana, "tasker__work")
    answer = await ana.post(asking("tasks/get", {"taskId": task}, **ABLE), Mcp_Name="another")
    assert (answer.status, answer.code) == (400, -32020)


async def test_a_revoked_grant_cuts_off_the_tasks_too(place: Place, http: aiohttp.ClientSession) -> None:
    place.gateway.grant("MCP-Brief", "tasker")
    who = Modern(http, f"{place.gateway.url}/mcp", bearer(place.gateway, "ivy@example.com", "MCP-Brief", "MCP-lent"))
    task = await made(who, "tasker__work")
    place.gateway.revoke("MCP-Brief", "tasker")
    async with asyncio.timeout(WAIT):
        while "error" not in await about(who, task):
            pass
    assert error_of(await about(who, task)) == UNKNOWN


async def test_the_extension_is_announced_where_a_server_has_it(ana: Modern) -> None:
    capabilities = (await ana.ask("server/discover"))["capabilities"]
    assert capabilities["extensions"] == {EXTENSION: {}}  # type: ignore[index]
    assert (await ana.post(asking("tasks/result", {"taskId": "x"}, **ABLE))).code == -32601
