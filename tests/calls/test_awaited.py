"""Tools that are a task or nothing, called by clients that want no task: mcpmux waits for the result in their place.

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

from tests.calls.asker import ACCEPTED, Asker, fitting, heard, needed, person
from tests.calls.upstream import Json, Witness, params, until
from tests.faces.client import Session, bearer, calling, error_of, failed, notification, old_session, said
from tests.faces.modern import Modern, asking
from tests.gateway_process import Gateway, running
from tests.servers import HERE, listening, stdio

ABLE = {"elicitation": {"form": {}}}
RELATED = "io.modelcontextprotocol/related-task"
OLDER: Mapping[str, Json] = {
    "shared": {"timeout": "1s"},
    "pooled": {"isolation": "pooled", "links": 1},
    "own": {"isolation": "session"},
}
NEWER = ("piped", "posted", "lent")


class Strict(Witness):
    """A server of 2025-11-25 whose tools are tasks or nothing, and what it was told."""

    def section(self, *arguments: str | int, **more: object) -> dict[str, object]:
        program = HERE / "tasks_server.py"
        command = [sys.executable, str(program), "--name", self.name, "--record", str(self.record), "--required"]
        return {"transport": "stdio", "command": [*command, *map(str, arguments)], **more}


@dataclass(frozen=True)
class Place:
    """A running mcpmux and its servers: those of 2025-11-25, and what those of the modern era saw."""

    gateway: Gateway
    older: Mapping[str, Strict]
    folder: Path

    def saw(self, server: str, method: str) -> list[Json]:
        """The requests of one method that a modern server got."""
        messages = [json.loads(line)["message"] for line in (self.folder / server).read_text().splitlines()]
        return [one for one in messages if one.get("method") == method]

    def asker(self, *servers: str, name: str = "ana") -> Asker:
        """A client of the modern era that does not know tasks."""
        return person(self.gateway, name, *servers)

    async def session(self, http: aiohttp.ClientSession, *servers: str, revision: str = "2025-11-25") -> Session:
        """One of a legacy era."""
        who = bearer(self.gateway, "ana@example.com", *(f"MCP-{server}" for server in servers))
        return await Session.opened(http, f"{self.gateway.url}/mcp", who, revision, ABLE)

    async def nothing_is_left(self) -> None:
        """Wait until no call is in flight at any server."""
        names = (*self.older, *NEWER)
        await self.gateway.soon(
            lambda: not any(self.gateway.metric("mcpmux_calls_in_flight", server=name) for name in names)
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("awaited")
    older = {name: Strict(name, folder) for name in OLDER}
    seen = {name: ["--seen", str(folder / name)] for name in NEWER}
    with listening("http", program="tasks_suite", arguments=seen["posted"]) as (url, _):
        servers = {
            **{name: one.section(**OLDER[name]) for name, one in older.items()},
            "piped": stdio("tasks_suite", "stdio", *seen["piped"]),
            "posted": {"transport": "http", "url": url},
            "lent": stdio("tasks_suite", "stdio", *seen["lent"], isolation="pooled", links=1),
        }
        with running(folder, servers) as gateway:
            for name in servers:
                gateway.grant(f"MCP-{name}", name)
                gateway.wait_for(lambda name=name: gateway.logged("link_ready", server=name), 30, name)
            yield Place(gateway, older, folder)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


# Servers of 2025-11-25 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", OLDER)
@pytest.mark.parametrize("revision", ["2025-11-25", "2025-06-18", "2025-03-26"])
async def test_a_legacy_client_gets_the_plain_result(
    server: str, revision: str, place: Place, http: aiohttp.ClientSession
) -> None:
    session = await place.session(http, server, revision=revision)
    answer = await session.ask("tools/call", {"name": f"{server}__must", "arguments": {"text": "mine"}})
    assert said(answer) == "mine"
    assert "_meta" not in answer["result"]  # type: ignore[operator]
    assert params(place.older[server].tools("must")[-1])["task"] == {"ttl": 3_600_000}
    assert failed(await session.ask("tools/call", {"name": f"{server}__fails", "arguments": {}}))
    refused = await session.ask("tools/call", {"name": f"{server}__refuses", "arguments": {}})
    assert error_of(refused) == (-32050, "This tool refuses")
    assert not place.older[server].heard("tasks/cancel")


@pytest.mark.parametrize("server", OLDER)
@pytest.mark.parametrize("under", ["", "/servers/{}"])
async def test_tools_say_what_they_can_be_here(
    server: str, under: str, place: Place, http: aiohttp.ClientSession
) -> None:
    who = bearer(place.gateway, "ana@example.com", f"MCP-{server}")
    session = await Session.opened(http, f"{place.gateway.url}{under.format(server)}/mcp", who)
    tools = (await session.ask("tools/list"))["result"]["tools"]  # type: ignore[index]
    said_ = {tool["name"].rpartition("__")[2]: tool.get("execution") for tool in tools}
    assert said_["must"] == (None if server == "pooled" else {"taskSupport": "optional"})
    assert said_["echo"] is None
    assert len(tools[0]) > 2


async def test_a_client_of_http_and_sse_gets_the_plain_result(place: Place, http: aiohttp.ClientSession) -> None:
    who = bearer(place.gateway, "ana@example.com", "MCP-shared")
    async with old_session(http, place.gateway.url, who) as session:
        answer = await session.ask("tools/call", {"name": "shared__must", "arguments": {"text": "old"}})
        assert said(answer) == "old"


@pytest.mark.parametrize("server", OLDER)
async def test_a_modern_client_gets_the_plain_result_and_is_asked_in_rounds(server: str, place: Place) -> None:
    ana = place.asker(server)
    assert (await ana.ask(f"{server}__must", {"text": "x"})).json["result"]["content"][0]["text"] == "x"  # type: ignore[index]
    first = await ana.ask(f"{server}__reports", {}, progressToken="one")
    assert [params(one)["progress"] for one in first.messages[:-1]] == [1]
    asked = needed(first)
    assert RELATED not in json.dumps(asked)
    again = {"inputResponses": fitting(asked), "requestState": asked["requestState"]}
    second = await ana.ask(f"{server}__reports", {}, again, progressToken="two")
    assert [params(one)["progressToken"] for one in second.messages[:-1]] == ["two"]
    told = heard(second)
    assert isinstance(told, dict)
    assert told["result"]["content"] == ACCEPTED["content"]
    assert told["result"]["_meta"][RELATED]["taskId"].startswith("task-")


async def test_a_legacy_client_is_asked_on_the_stream_of_its_call(place: Place, http: aiohttp.ClientSession) -> None:
    session = await place.session(http, "shared")
    async with session.streaming(calling("shared__reports", token="t")) as events:
        assert params(await events.message())["progress"] == 1
        asked = await events.message()
        assert asked["method"] == "elicitation/create"
        assert RELATED not in json.dumps(asked)
        await session.post({"jsonrpc": "2.0", "id": asked["id"], "result": {"action": "decline"}})
        *told, end = await events.messages()
        assert [params(one)["progress"] for one in told] == [2]
        assert "decline" in said(end)


async def test_a_task_at_work_may_be_silent_for_longer_than_other_calls(
    place: Place, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    session, gate = await place.session(http, "shared"), tmp_path / "gate"
    async with session.streaming(calling("shared__work", {"gate": str(gate)})) as events:
        await until(gate.with_suffix(".entered").exists, "the task")
        overdue = asyncio.get_running_loop().time() + 1.5  # the server has one second
        await until(lambda: asyncio.get_running_loop().time() > overdue, "its server's timeout")
        gate.touch()
        assert said((await events.messages())[-1]) == "done"


@pytest.mark.parametrize("server", OLDER)
async def test_a_call_that_is_given_up_cancels_its_task(
    server: str, place: Place, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    session, gate = await place.session(http, server), tmp_path / "gate"
    async with session.streaming(calling(f"{server}__work", {"gate": str(gate)}, 7)):
        await until(gate.with_suffix(".entered").exists, "the task")
        before = len(place.older[server].heard("tasks/cancel"))
        await session.post(notification("notifications/cancelled", {"requestId": 7}))
        await until(gate.with_suffix(".cancelled").exists, "the cancellation")
    assert len(place.older[server].heard("tasks/cancel")) == before + 1
    # On a link that is lent, the next one gets another process.
    assert await session.call(f"{server}__must", text="next") == "next"
    await place.nothing_is_left()


async def test_a_call_that_is_given_up_before_there_is_a_task_cancels_it_when_there_is_one(
    place: Place, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    session, late, gate = await place.session(http, "own"), tmp_path / "late", tmp_path / "gate"
    arguments = {"late": str(late), "gate": str(gate)}
    async with session.streaming(calling("own__work", arguments, 7)):
        await until(late.with_suffix(".entered").exists, "the call")
        await session.post(notification("notifications/cancelled", {"requestId": 7}))
        late.touch()
        await until(gate.with_suffix(".cancelled").exists, "the cancellation")
    await place.nothing_is_left()


async def test_a_modern_client_that_goes_cancels_its_task(
    place: Place, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    ana, gate = Modern(http, f"{place.gateway.url}/mcp", place.asker("shared").who), tmp_path / "gate"
    count = len(place.older["shared"].heard("tasks/cancel"))
    call = {"name": "shared__work", "arguments": {"gate": str(gate)}}
    async with ana.streaming(asking("tools/call", call)):
        await until(gate.with_suffix(".entered").exists, "the task")
    await place.older["shared"].hears("tasks/cancel", count=count + 1)
    await place.nothing_is_left()


async def test_what_is_revoked_while_its_client_is_away_is_cancelled(place: Place) -> None:
    place.gateway.grant("MCP-Brief", "shared")
    ivy = Asker(place.gateway, bearer(place.gateway, "ivy@example.com", "MCP-Brief", "MCP-pooled"))
    await ivy.asked("shared__reports")
    count = len(place.older["shared"].heard("tasks/cancel"))
    place.gateway.revoke("MCP-Brief", "shared")
    await place.older["shared"].hears("tasks/cancel", count=count + 1)
    await place.nothing_is_left()


async def test_a_server_that_dies_at_work_is_a_clear_error(
    place: Place, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    session, gate = await place.session(http, "pooled"), tmp_path / "gate"
    async with session.streaming(calling("pooled__work", {"gate": str(gate)})) as events:
        await until(gate.with_suffix(".entered").exists, "the task")
        for process in place.gateway.children_of("pooled"):
            process.kill()
        (end,) = await events.messages()
        assert failed(end)
        assert "pooled" in said(end)
    await place.nothing_is_left()


# Servers of the modern era ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", NEWER)
async def test_a_modern_tool_that_is_a_task_or_nothing_gives_its_result(
    server: str, place: Place, http: aiohttp.ClientSession
) -> None:
    session = await place.session(http, server)
    answer = await session.ask("tools/call", {"name": f"{server}__failing_job", "arguments": {}})
    assert failed(answer)
    assert said(answer) == "this job fails"
    calls = place.saw(server, "tools/call")
    able = [params(one)["_meta"]["io.modelcontextprotocol/clientCapabilities"].get("extensions") for one in calls]  # type: ignore[index]
    assert able[-2:] == [None, {"io.modelcontextprotocol/tasks": {}}]
    # Whatever needs no task is answered as before, at once.
    count = len(calls)
    assert await session.call(f"{server}__slow_compute", seconds=0, label="at once") == "at once took 0 s"
    assert len(place.saw(server, "tools/call")) == count + 1


@pytest.mark.parametrize("server", NEWER)
async def test_what_a_modern_task_asks_is_asked_of_a_legacy_client(
    server: str, place: Place, http: aiohttp.ClientSession
) -> None:
    session = await place.session(http, server)
    async with session.streaming(calling(f"{server}__insist")) as events:
        for _ in range(2):
            question = await events.message()
            assert question["method"] == "elicitation/create"
            await session.post({"jsonrpc": "2.0", "id": question["id"], "result": {"action": "decline"}})
        assert json.loads(said((await events.messages())[-1]))["second"] == {"action": "decline"}
    await place.nothing_is_left()


@pytest.mark.parametrize("server", NEWER)
async def test_a_modern_client_that_does_not_know_tasks_is_told_so_by_a_modern_server(
    server: str, place: Place
) -> None:
    answer = await place.asker(server).ask(f"{server}__failing_job", {})
    assert (answer.status, answer.code) == (400, -32021)


async def test_a_modern_client_that_knows_tasks_gets_the_result_where_there_are_none(place: Place) -> None:
    ana = Asker(place.gateway, place.asker("lent").who, {**ABLE, "extensions": {"io.modelcontextprotocol/tasks": {}}})
    assert said((await ana.ask("lent__failing_job", {})).json) == "this job fails"
    asked = await ana.asked("lent__insist")
    again = needed(await ana.answered("lent__insist", asked, fitting(asked)))
    told = heard(await ana.answered("lent__insist", again, fitting(again)))
    assert told == {"first": ACCEPTED, "second": ACCEPTED}


@pytest.mark.parametrize("server", NEWER)
async def test_a_modern_task_is_cancelled_with_its_call(
    server: str, place: Place, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    session, gate = await place.session(http, server), tmp_path / "gate"
    async with session.streaming(calling(f"{server}__held", {"gate": str(gate)}, 7)):
        await until(gate.with_suffix(".entered").exists, "the task")
        await session.post(notification("notifications/cancelled", {"requestId": 7}))
        await until(gate.with_suffix(".cancelled").exists, "the cancellation")
    assert await session.call(f"{server}__greet", name="Ana") == "Hello, Ana!"
    await place.nothing_is_left()


async def test_a_modern_server_that_dies_at_work_is_a_clear_error(
    place: Place, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    session, gate = await place.session(http, "piped"), tmp_path / "gate"
    async with session.streaming(calling("piped__held", {"gate": str(gate)})) as events:
        await until(gate.with_suffix(".entered").exists, "the task")
        for process in place.gateway.children_of("piped"):
            process.kill()
        assert failed((await events.messages())[-1])
    await place.nothing_is_left()
