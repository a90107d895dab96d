"""Tasks of servers of 2025-11-25, for clients of the modern era that know the extension: `calls/crossing.py`.

Source: MCP 2025-11-25 basic/utilities/tasks; the extension io.modelcontextprotocol/tasks (SEP-2663).
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

from tests.calls.upstream import Json, Witness, params, until
from tests.faces.client import WAIT, Session, bearer, error_of
from tests.faces.modern import PREFIX, Modern, asking
from tests.gateway_process import Gateway, running
from tests.servers import HERE

EXTENSION = PREFIX + "tasks"
KNOWS = {"extensions": {EXTENSION: {}}}
ABLE = {PREFIX + "clientCapabilities": {"elicitation": {}, **KNOWS}}
ACCEPTED: Json = {"action": "accept", "content": {"name": "Ana"}}
RELATED = "io.modelcontextprotocol/related-task"
UNKNOWN = (-32602, "Task not found")


class Tasker(Witness):
    """A server of 2025-11-25 with tasks, and what it was told."""

    def section(self, *arguments: str | int, **more: object) -> dict[str, object]:
        command = [sys.executable, str(HERE / "tasks_server.py"), "--name", self.name, "--record", str(self.record)]
        return {"transport": "stdio", "command": [*command, *map(str, arguments)], **more}


@dataclass(frozen=True)
class Place:
    """A running mcpmux with `optional`, `strict` (its tools are tasks or nothing) and `own` (links of sessions)."""

    gateway: Gateway
    servers: Mapping[str, Tasker]

    def who(self, http: aiohttp.ClientSession, name: str, under: str = "") -> Modern:
        """Somebody with all of them."""
        who = bearer(self.gateway, f"{name}@example.com", *(f"MCP-{server}" for server in self.servers))
        return Modern(http, f"{self.gateway.url}{under}/mcp", who)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("crossing")
    servers = {name: Tasker(name, folder) for name in ("optional", "strict", "own")}
    sections = {
        "optional": servers["optional"].section(),
        "strict": servers["strict"].section("--required"),
        "own": servers["own"].section(isolation="session"),
    }
    with running(folder, sections) as gateway:
        for name in servers:
            gateway.grant(f"MCP-{name}", name)
            gateway.wait_for(lambda name=name: gateway.logged("link_ready", server=name), 30, name)
        yield Place(gateway, servers)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def ana(place: Place, http: aiohttp.ClientSession) -> Modern:
    return place.who(http, "ana")


async def made(who: Modern, tool: str, **arguments: object) -> str:
    """The id of a new task."""
    task = await who.ask("tools/call", {"name": tool, "arguments": arguments}, **ABLE)
    assert task["resultType"] == "task"
    assert task["status"] == "working"
    assert isinstance(task["ttlMs"], int) and isinstance(task["pollIntervalMs"], int)
    assert not {"ttl", "pollInterval", "task"} & task.keys()
    assert "task-" not in json.dumps(task)
    return str(task["taskId"])


async def about(who: Modern, task: str, method: str = "tasks/get", **more: object) -> Json:
    """The answer to a request about a task."""
    return (await who.post(asking(method, {"taskId": task, **more}, **ABLE))).json


async def state(who: Modern, task: str) -> Json:
    """How it stands."""
    answer = await about(who, task)
    found = answer.get("result")
    assert isinstance(found, dict), answer
    assert (found["resultType"], found["taskId"]) == ("complete", task)
    assert "task-" not in json.dumps({name: value for name, value in found.items() if name != "result"})
    return found


async def state_after(who: Modern, task: str, status: str) -> Json:
    """How it stands when it does so."""
    async with asyncio.timeout(WAIT):
        while (found := await state(who, task))["status"] != status:
            await asyncio.sleep(0.01)
    return found


def said(found: Json) -> str:
    """The text of a completed task's result."""
    result = found["result"]
    assert isinstance(result, dict)
    assert RELATED not in json.dumps(result.get("_meta", {}))
    return str(result["content"][0]["text"])


@pytest.mark.parametrize("server", ["optional", "strict"])
@pytest.mark.parametrize("under", ["", "/servers/{}"])
async def test_a_task_is_made_looked_at_and_its_result_is_in_its_state(
    server: str, under: str, place: Place, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    ana, gate = place.who(http, "ana", under.format(server)), tmp_path / "gate"
    task = await made(ana, "work" if under else f"{server}__work", gate=str(gate), text="at last")
    assert (await state(ana, task))["status"] == "working"
    gate.touch()
    assert said(await state_after(ana, task, "completed")) == "at last"
    assert said(await state(ana, task)) == "at last"
    assert params(place.servers[server].tools("work")[-1])["task"] == {"ttl": 3_600_000}


async def test_what_a_task_asks_is_in_its_state_and_the_answers_go_back(place: Place, ana: Modern) -> None:
    task = await made(ana, "strict__confirm")
    asked = await state_after(ana, task, "input_required")
    ((key, question),) = asked["inputRequests"].items()  # type: ignore[union-attr]
    assert question["method"] == "elicitation/create"
    assert RELATED not in json.dumps(question)
    assert (await state(ana, task))["inputRequests"] == asked["inputRequests"]
    wrong = await about(ana, task, "tasks/update", inputResponses={key: {"action": "maybe"}})
    assert error_of(wrong)[0] == -32602
    assert error_of(await about(ana, task, "tasks/update", inputResponses=[]))[0] == -32602
    assert "result" in await about(ana, task, "tasks/update", inputResponses={"another": ACCEPTED})
    assert (await state(ana, task))["inputRequests"] == asked["inputRequests"]
    for _ in range(2):  # a late or repeated answer means nothing
        updated = await about(ana, task, "tasks/update", inputResponses={key: ACCEPTED})
        assert updated["result"]["resultType"] == "complete"  # type: ignore[index]
    heard = json.loads(said(await state_after(ana, task, "completed")))["result"]
    assert heard["content"] == ACCEPTED["content"]
    assert heard["_meta"][RELATED]["taskId"].startswith("task-")
    waited = [params(one)["taskId"] for one in place.servers["strict"].heard("tasks/result")]
    assert len(waited) == len(set(waited))  # once for each task


async def test_who_cannot_be_asked_is_not(ana: Modern) -> None:
    task = await made(ana, "strict__confirm")
    unable = {PREFIX + "clientCapabilities": KNOWS}
    async with asyncio.timeout(WAIT):
        while (found := await ana.ask("tasks/get", {"taskId": task}, **unable))["status"] != "completed":
            assert found["status"] == "working"
    assert "elicitation" in said(found)


async def test_an_error_as_a_result_is_completed_and_an_error_without_one_failed(ana: Modern) -> None:
    found = await state_after(ana, await made(ana, "optional__fails"), "completed")
    assert found["result"]["isError"] is True  # type: ignore[index]
    found = await state_after(ana, await made(ana, "optional__refuses"), "failed")
    assert found["error"] == {"code": -32050, "message": "This tool refuses", "data": {"why": "because"}}


async def test_links_in_a_result_lead_back_here(ana: Modern) -> None:
    found = await state_after(ana, await made(ana, "optional__points"), "completed")
    assert found["result"]["content"][0]["uri"] == "optional+counter://note/1"  # type: ignore[index]


async def test_a_task_is_cancelled_and_to_cancel_it_again_is_no_error(ana: Modern, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    task = await made(ana, "strict__work", gate=str(gate))
    for _ in range(2):
        cancelled = (await about(ana, task, "tasks/cancel"))["result"]
        assert isinstance(cancelled, dict)
        assert cancelled.keys() <= {"resultType", "_meta"}
    await until(gate.with_suffix(".cancelled").exists, "the cancellation")
    found = await state(ana, task)
    assert found["status"] == "cancelled"
    assert not {"result", "error"} & found.keys()


@pytest.mark.parametrize("method", ["tasks/get", "tasks/update", "tasks/cancel"])
async def test_an_id_is_good_for_one_person_in_one_era(
    method: str, place: Place, http: aiohttp.ClientSession, ana: Modern
) -> None:
    task = await made(ana, "strict__confirm")
    await state_after(ana, task, "input_required")
    elsewhere = place.who(http, "ana", "/servers/strict")
    for who, named in ((place.who(http, "eve"), task), (elsewhere, task), (ana, "task-1")):
        assert error_of(await about(who, named, method, inputResponses={})) == UNKNOWN
    if method != "tasks/update":
        legacy = await Session.opened(http, f"{place.gateway.url}/mcp", ana.who)
        assert error_of(await legacy.ask(method, {"taskId": task})) == UNKNOWN
    assert (await state(ana, task))["status"] == "input_required"


async def test_who_does_not_know_tasks_or_has_no_shared_link_gets_none(place: Place, ana: Modern) -> None:
    assert await ana.call("strict__must", text="plain") == "plain"
    answer = await ana.ask("tools/call", {"name": "own__must", "arguments": {"text": "plain"}}, **ABLE)
    assert answer["resultType"] == "complete"
    answer = await ana.ask("tools/call", {"name": "optional__echo", "arguments": {"text": "x"}}, **ABLE)
    assert answer["resultType"] == "complete"
    assert "task" not in params(place.servers["optional"].tools("echo")[-1])
    answer = await ana.post(asking("tasks/get", {"taskId": "x"}))
    assert answer.code == -32021


async def test_the_extension_is_announced_for_a_server_with_older_tasks(
    place: Place, http: aiohttp.ClientSession
) -> None:
    for under, announced in (("", True), ("/servers/optional", True), ("/servers/own", False)):
        capabilities = (await place.who(http, "ana", under).ask("server/discover"))["capabilities"]
        extensions = capabilities.get("extensions", {})  # type: ignore[union-attr]
        assert (EXTENSION in extensions) is announced, under


async def test_a_task_ends_with_its_process(place: Place, ana: Modern) -> None:
    task = await made(ana, "optional__confirm")
    await state_after(ana, task, "input_required")
    count = len(place.gateway.logged("link_ready", server="optional"))
    for process in place.gateway.children_of("optional"):
        process.kill()
    await place.gateway.soon(lambda: len(place.gateway.logged("link_ready", server="optional")) > count, 20)
    assert error_of(await about(ana, task)) == UNKNOWN
