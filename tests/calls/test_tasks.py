"""Tasks of revision 2025-11-25 through mcpmux: found again by sealed ids, decided on anew, told to nobody else.

The server's own ids are `task-1`, `task-2`, … in every process: whoever guesses one, or keeps one, must get nothing.
Source: MCP 2025-11-25 basic/utilities/tasks; design section 3.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from mcpmux.calls.tasks import PER_PRINCIPAL
from tests.calls.upstream import Json, Witness, params, until
from tests.faces.client import WAIT, Session, bearer, calling, error_of, request, said
from tests.faces.modern import Modern
from tests.gateway_process import Gateway, running

Http = aiohttp.ClientSession

PROGRAM = Path(__file__).resolve().parent.parent / "servers" / "tasks_server.py"
RELATED = "io.modelcontextprotocol/related-task"
ABLE = {"elicitation": {"form": {}}}
UNKNOWN = (-32602, "Task not found")
NO_METHOD = -32601
SERVERS = ("tasker", "eager", "own", "lent", "bare", "busy")


class Tasker(Witness):
    """One server with tasks that remembers what it was told."""

    def section(self, *arguments: str | int, **more: object) -> dict[str, object]:
        command = [sys.executable, str(PROGRAM), "--name", self.name, "--record", str(self.record)]
        return {"transport": "stdio", "command": [*command, *map(str, arguments)], **more}


@dataclass(frozen=True)
class Place:
    """A running mcpmux and its servers by name."""

    gateway: Gateway
    servers: dict[str, Tasker]

    def who(self, name: str, *servers: str) -> dict[str, str]:
        """Somebody with these servers."""
        return bearer(self.gateway, f"{name}@example.com", *(f"MCP-{server}" for server in servers))

    async def session(
        self, http: Http, name: str, *servers: str, under: str = "", revision: str = "2025-11-25"
    ) -> Session:
        """A session of somebody with these servers, who can be asked."""
        url = f"{self.gateway.url}{under}/mcp"
        return await Session.opened(http, url, self.who(name, *servers), revision, ABLE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """`tasker`, `eager` (asks whenever it likes), `own` and `lent` (isolations), `bare` (announces no tasks)."""
    folder = tmp_path_factory.mktemp("tasks")
    servers = {name: Tasker(name, folder) for name in SERVERS}
    sections = {
        "tasker": servers["tasker"].section(),
        "eager": servers["eager"].section("--eager"),
        "own": servers["own"].section(isolation="session"),
        "lent": servers["lent"].section(isolation="pooled", links=1),
        "bare": servers["bare"].section("--untasked"),
        "busy": servers["busy"].section(),
    }
    with running(folder, sections) as gateway:
        for name in SERVERS:
            gateway.grant(f"MCP-{name}", name)
            gateway.wait_for(lambda name=name: gateway.logged("link_ready", server=name), 30, name)
        yield Place(gateway, servers)


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    """A client of many connections."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


@pytest.fixture
async def ana(place: Place, http: Http) -> Session:
    """Has `tasker`."""
    return await place.session(http, "ana", "tasker")


def tasking(tool: str, ttl: object = 60_000, /, **arguments: object) -> Json:
    """A call that is to be a task."""
    wanted = {} if ttl is None else {"ttl": ttl}
    return request("tools/call", {"name": tool, "arguments": arguments, "task": wanted})


async def made(session: Session, tool: str, ttl: object = 60_000, /, **arguments: object) -> str:
    """The id of a new task."""
    (answer,) = (await session.post(tasking(tool, ttl, **arguments))).messages
    task = answer["result"]["task"]  # type: ignore[index]
    assert task["status"] == "working"
    return str(task["taskId"])


async def state(session: Session, task: str) -> object:
    """The status of a task, whose id must be the one that was asked for."""
    result = (await session.ask("tasks/get", {"taskId": task}))["result"]
    assert isinstance(result, dict)
    assert result["taskId"] == task
    return result["status"]


async def refused(session: Session, task: object, method: str = "tasks/get") -> tuple[object, object]:
    """The error for this id."""
    return error_of(await session.ask(method, {"taskId": task}))


# The life of a task ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("under", ["", "/servers/tasker"])
async def test_a_task_is_made_polled_and_its_result_fetched(
    under: str, place: Place, http: Http, tmp_path: Path
) -> None:
    session = await place.session(http, "ana", "tasker", under=under)
    gate = tmp_path / "gate"
    task = await made(session, f"{'' if under else 'tasker__'}work", gate=str(gate), text="at last")
    assert "task-" not in task
    assert await state(session, task) == "working"
    gate.touch()
    answer = await session.ask("tasks/result", {"taskId": task})
    assert said(answer) == "at last"
    assert answer["result"]["_meta"] == {RELATED: {"taskId": task}}  # type: ignore[index]
    assert await state(session, task) == "completed"
    asked = [one for one in place.servers["tasker"].heard() if str(one.get("method")).startswith("tasks/")]
    assert all(str(params(one)["taskId"]).startswith("task-") for one in asked)


async def test_a_result_is_waited_for_on_a_stream_while_others_poll(ana: Session, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    task = await made(ana, "tasker__work", gate=str(gate))
    async with ana.streaming(request("tasks/result", {"taskId": task}, 2)) as events:
        assert await state(ana, task) == "working"
        gate.touch()
        assert said((await events.messages())[-1]) == "done"


async def test_a_cancelled_task_is_cancelled_at_its_server(ana: Session, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    task = await made(ana, "tasker__work", gate=str(gate))
    result = (await ana.ask("tasks/cancel", {"taskId": task}))["result"]
    assert isinstance(result, dict)
    assert (result["taskId"], result["status"]) == (task, "cancelled")
    await until((tmp_path / "gate.cancelled").exists, "the cancellation")
    assert "already in terminal status" in str((await refused(ana, task, "tasks/cancel"))[1])


async def test_what_fails_says_what_the_call_would_have_said(ana: Session) -> None:
    task = await made(ana, "tasker__fails")
    answer = await ana.ask("tasks/result", {"taskId": task})
    assert answer["result"]["isError"] is True  # type: ignore[index]
    assert await state(ana, task) == "failed"
    task = await made(ana, "tasker__refuses")
    assert await refused(ana, task, "tasks/result") == (-32050, "This tool refuses")


async def test_links_in_a_result_lead_back_here(ana: Session) -> None:
    task = await made(ana, "tasker__points")
    answer = await ana.ask("tasks/result", {"taskId": task})
    assert answer["result"]["content"][0]["uri"] == "tasker+counter://note/1"  # type: ignore[index]


async def test_an_id_outlives_its_session_but_not_its_ttl(place: Place, http: Http, ana: Session) -> None:
    task = await made(ana, "tasker__work", gate="/nowhere")
    await ana.delete()
    again = await place.session(http, "ana", "tasker")
    assert await state(again, task) == "working"
    short = await made(again, "tasker__work", 0, gate="/nowhere")
    assert await refused(again, short) == UNKNOWN


async def test_nobody_has_more_tasks_at_work_than_may_be(place: Place, http: Http) -> None:
    session = await place.session(http, "max", "tasker")
    first = await made(session, "tasker__work", gate="/nowhere")
    for _ in range(PER_PRINCIPAL - 1):
        await made(session, "tasker__work", gate="/nowhere")
    (answer,) = (await session.post(tasking("tasker__work", gate="/nowhere"))).messages
    assert "Too many tasks" in str(error_of(answer)[1])
    await session.ask("tasks/cancel", {"taskId": first})
    await made(session, "tasker__work", gate="/nowhere")
    other = await place.session(http, "moe", "tasker")
    await made(other, "tasker__work", gate="/nowhere")


# Whose a task is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tasks/get", "tasks/result", "tasks/cancel"])
async def test_a_foreign_forged_or_native_id_leads_nowhere(method: str, place: Place, http: Http, ana: Session) -> None:
    task = await made(ana, "tasker__work", gate="/nowhere")
    eve = await place.session(http, "eve", "tasker")
    elsewhere = await place.session(http, "ana", "tasker", under="/servers/tasker")
    before = len(place.servers["tasker"].heard(method))
    for session, named in ((eve, task), (elsewhere, task)):
        assert await refused(session, named, method) == UNKNOWN
    for forged in ("task-1", "", task[:-1] + ("A" if task[-1] != "A" else "B"), task + "A", "x" * 20_000):
        assert await refused(ana, forged, method) == UNKNOWN
    for nothing in (1, None, {"taskId": task}):
        assert (await refused(ana, nothing, method))[0] == -32602
    assert len(place.servers["tasker"].heard(method)) == before
    assert await state(ana, task) == "working"


async def test_a_revoked_grant_cuts_off_the_tasks_too(place: Place, http: Http) -> None:
    place.gateway.grant("MCP-Brief", "tasker")
    who = bearer(place.gateway, "ivy@example.com", "MCP-Brief", "MCP-bare")
    session = await Session.opened(http, f"{place.gateway.url}/mcp", who, "2025-11-25", ABLE)
    task = await made(session, "tasker__work", gate="/nowhere")
    async with session.streaming(request("tasks/result", {"taskId": task}, 9)) as events:
        place.gateway.revoke("MCP-Brief", "tasker")
        assert error_of((await events.messages())[-1]) == UNKNOWN
    assert await refused(session, task) == UNKNOWN


async def test_news_of_a_task_whose_grant_was_revoked_are_not_told(place: Place, http: Http, tmp_path: Path) -> None:
    place.gateway.grant("MCP-Short", "tasker")
    who = bearer(place.gateway, "ida@example.com", "MCP-Short", "MCP-busy")
    session = await Session.opened(http, f"{place.gateway.url}/mcp", who, "2025-11-25", ABLE)
    ana = await place.session(http, "ana", "tasker")
    gates = [tmp_path / name for name in ("before", "after")]
    before, after = [await made(session, "tasker__work", gate=str(gate)) for gate in gates]
    async with session.listening() as events:
        gates[0].touch()
        assert params(await events.message())["taskId"] == before
        place.gateway.revoke("MCP-Short", "tasker")
        async with asyncio.timeout(WAIT):
            while "error" not in await session.ask("tasks/get", {"taskId": after}):
                pass
        gates[1].touch()
        assert await ana.call("tasker__slow", gate=str(gates[1])) == f"{gates[1]} is open"
        # Whatever the server says of an open gate it says before it reads on, and news are told one after the other.
        assert await ana.call("tasker__echo", text="x") == "x"
        theirs = await made(session, "busy__fails")
        told = [await events.message()]
        while told[-1]["method"] != "notifications/tasks/status":
            told.append(await events.message())
        assert params(told[-1])["taskId"] == theirs


async def test_the_next_process_gives_the_same_ids_to_others(place: Place, http: Http, tmp_path: Path) -> None:
    ana = await place.session(http, "ana", "busy")
    first = await made(ana, "busy__work", gate="/nowhere")
    count = len(place.gateway.logged("link_ready", server="busy"))
    await ana.ask("tools/call", {"name": "busy__die", "arguments": {"code": 1}})
    await place.gateway.soon(lambda: len(place.gateway.logged("link_ready", server="busy")) > count, 20)
    ben = await place.session(http, "ben", "busy")
    async with ana.listening() as events:
        gate = tmp_path / "gate"
        theirs = await made(ben, "busy__work", gate=str(gate), text="Ben's")
        assert await refused(ana, first) == UNKNOWN
        gate.touch()
        assert said(await ben.ask("tasks/result", {"taskId": theirs})) == "Ben's"
        mine = await made(ana, "busy__work", gate=str(gate))
        told = await events.message()
        assert params(told)["taskId"] == mine


async def test_a_session_of_its_own_has_its_tasks_for_itself(place: Place, http: Http) -> None:
    one, other = [await place.session(http, "ana", "own") for _ in range(2)]
    task = await made(one, "own__work", gate="/nowhere")
    assert await state(one, task) == "working"
    assert await refused(other, task) == UNKNOWN
    await one.delete()
    assert await refused(other, task) == UNKNOWN


# What is announced -----------------------------------------------------------------------------------------------


def announced(session: Session) -> object:
    """What the endpoint says of tasks."""
    capabilities = session.greeted["capabilities"]
    assert isinstance(capabilities, dict)
    return capabilities.get("tasks")


async def test_tasks_are_announced_where_a_server_has_them(place: Place, http: Http) -> None:
    whole = {"cancel": {}, "requests": {"tools": {"call": {}}}}
    for servers, under, expected in (
        (("tasker",), "", whole),
        (("tasker", "bare"), "", whole),
        (("own",), "/servers/own", whole),
        (("bare",), "", None),
        (("bare",), "/servers/bare", None),
        (("lent",), "", None),
    ):
        assert announced(await place.session(http, "ana", *servers, under=under)) == expected
    for revision in ("2025-06-18", "2025-03-26"):
        assert announced(await place.session(http, "ana", "tasker", revision=revision)) is None


async def test_tasks_are_never_listed(ana: Session) -> None:
    assert error_of(await ana.ask("tasks/list"))[0] == NO_METHOD


@pytest.mark.parametrize("revision", ["2025-06-18", "2025-03-26"])
async def test_a_client_of_an_older_revision_never_sees_a_task(revision: str, place: Place, http: Http) -> None:
    session = await place.session(http, "ana", "tasker", revision=revision)
    (answer,) = (await session.post(tasking("tasker__fails"))).messages
    assert said(answer) == "it failed"
    assert "task" not in params(place.servers["tasker"].tools("fails")[-1])
    for method in ("tasks/get", "tasks/result", "tasks/cancel"):
        assert (await refused(session, "task-1", method))[0] == NO_METHOD


async def test_a_client_of_the_modern_era_never_sees_a_legacy_task(place: Place, http: Http) -> None:
    modern = Modern(http, f"{place.gateway.url}/mcp", place.who("ana", "tasker"))
    result = await modern.ask("tools/call", {"name": "tasker__fails", "arguments": {}, "task": {"ttl": 1}})
    assert result["isError"] is True
    assert "task" not in params(place.servers["tasker"].tools("fails")[-1])


async def test_a_tool_that_cannot_be_a_task_is_refused_as_one(place: Place, http: Http) -> None:
    session = await place.session(http, "ana", "tasker", "bare", "lent")
    for tool in ("tasker__never", "tasker__echo", "bare__fails", "lent__fails"):
        (answer,) = (await session.post(tasking(tool))).messages
        assert error_of(answer)[0] == NO_METHOD, tool
    # Where no tasks are announced, nobody can mean one.
    for alone in ("bare", "lent"):
        session = await place.session(http, "ben", alone)
        (answer,) = (await session.post(tasking(f"{alone}__fails"))).messages
        assert said(answer) == "it failed"
        assert "task" not in params(place.servers[alone].tools("fails")[-1])


async def test_tools_say_whether_they_can_be_tasks(ana: Session) -> None:
    tools = (await ana.ask("tools/list"))["result"]["tools"]  # type: ignore[index]
    support = {tool["name"]: tool.get("execution") for tool in tools}
    assert support["tasker__work"] == {"taskSupport": "optional"}
    assert support["tasker__echo"] is None
    task = await made(ana, "tasker__must", text="needed")
    assert said(await ana.ask("tasks/result", {"taskId": task})) == "needed"


# What a server says of a task ------------------------------------------------------------------------------------


async def test_how_a_task_stands_is_told_to_the_session_that_made_it(
    place: Place, http: Http, ana: Session, tmp_path: Path
) -> None:
    others = [await place.session(http, name, "tasker") for name in ("ana", "eve")]
    gate = tmp_path / "gate"
    async with ana.listening() as hers, others[0].listening() as same, others[1].listening() as foreign:
        task = await made(ana, "tasker__work", gate=str(gate))
        gate.touch()
        told = await hers.message()
        assert told["method"] == "notifications/tasks/status"
        assert (params(told)["taskId"], params(told)["status"]) == (task, "completed")
        assert "task-" not in json.dumps(told)
        for session, events in zip(others, (same, foreign), strict=True):
            theirs = await made(session, "tasker__fails")
            first = await events.message()
            assert (params(first)["taskId"], params(first)["status"]) == (theirs, "failed")


@pytest.mark.parametrize("server", ["tasker", "own"])
async def test_progress_of_a_task_is_told_to_its_session_after_the_call(
    server: str, place: Place, http: Http, tmp_path: Path
) -> None:
    session, gate = await place.session(http, "ana", server), tmp_path / "gate"
    other = await place.session(http, "ana", server)
    async with session.listening() as events, other.listening() as nothing:
        call = tasking(f"{server}__reports", gate=str(gate))
        params(call)["_meta"] = {"progressToken": "mine"}
        *told, made_ = (await session.post(call)).messages
        task = made_["result"]["task"]["taskId"]  # type: ignore[index]
        async with session.streaming(request("tasks/result", {"taskId": task}, 2)) as result:
            asked = await result.message()
            await session.post({"jsonrpc": "2.0", "id": asked["id"], "result": {"action": "decline"}})
            while not any(params(one).get("progress") == 2 for one in told):
                told.append(await events.message())
            gate.touch()
            assert "decline" in said((await result.messages())[-1])
        found = [one for one in told if one["method"] == "notifications/progress"]
        assert {params(one)["progressToken"] for one in found} == {"mine"}
        assert "task-" not in json.dumps(told)
        theirs = await made(other, f"{server}__fails")
        assert params(await nothing.message())["taskId"] == theirs


@pytest.mark.parametrize("server", ["tasker", "own"])
async def test_a_task_asks_on_the_stream_of_its_result(server: str, place: Place, http: Http) -> None:
    session = await place.session(http, "ana", server)
    task = await made(session, f"{server}__confirm")
    assert await state(session, task) == "input_required"
    async with session.streaming(request("tasks/result", {"taskId": task}, 2)) as events:
        asked = await events.message()
        assert asked["method"] == "elicitation/create"
        assert params(asked)["_meta"] == {RELATED: {"taskId": task}}
        answer = {"action": "accept", "content": {"name": "Ana"}, "_meta": {RELATED: {"taskId": task}}}
        await session.post({"jsonrpc": "2.0", "id": asked["id"], "result": answer})
        heard = json.loads(said((await events.messages())[-1]))["result"]
    assert heard["content"] == {"name": "Ana"}
    assert heard["_meta"][RELATED]["taskId"].startswith("task-")


async def test_a_question_of_a_task_reaches_its_own_client_while_others_call(
    place: Place, http: Http, ana: Session, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    eve = await place.session(http, "eve", "tasker")
    task = await made(ana, "tasker__confirm")
    async with asyncio.TaskGroup() as running_:
        slow = running_.create_task(eve.post(calling("tasker__slow", {"gate": str(gate)})))
        await until((tmp_path / "gate.entered").exists, "the other call at the server")
        async with ana.streaming(request("tasks/result", {"taskId": task}, 2)) as events:
            asked = await events.message()
            await ana.post({"jsonrpc": "2.0", "id": asked["id"], "result": {"action": "decline"}})
            assert "decline" in said((await events.messages())[-1])
        gate.touch()
    assert [one.get("method") for one in slow.result().messages] == [None]


async def test_what_nobody_waits_for_is_asked_of_nobody(place: Place, http: Http, tmp_path: Path) -> None:
    ana, eve = [await place.session(http, name, "eager") for name in ("ana", "eve")]
    gate = tmp_path / "gate"
    async with asyncio.TaskGroup() as running_:
        slow = running_.create_task(eve.post(calling("eager__slow", {"gate": str(gate)})))
        await until((tmp_path / "gate.entered").exists, "the other call at the server")
        task = await made(ana, "eager__confirm")
        answer = said(await ana.ask("tasks/result", {"taskId": task}))
        gate.touch()
    assert "tasks/result" in json.loads(answer)["error"]["message"]
    assert [one.get("method") for one in slow.result().messages] == [None]


async def test_what_a_task_logs_reaches_nobody_else(place: Place, http: Http, tmp_path: Path) -> None:
    ana, eve = [await place.session(http, name, "busy") for name in ("ana", "eve")]
    count = len(place.gateway.logged("link_ready", server="busy"))
    await ana.ask("tools/call", {"name": "busy__die", "arguments": {"code": 1}})
    await place.gateway.soon(lambda: len(place.gateway.logged("link_ready", server="busy")) > count, 20)
    word, gate = tmp_path / "word", tmp_path / "gate"
    await made(ana, "busy__chatter", gate=str(word), word="SECRET")
    async with asyncio.TaskGroup() as running_:
        slow = running_.create_task(eve.post(calling("busy__slow", {"gate": str(gate)})))
        await until((tmp_path / "gate.entered").exists, "the other call at the server")
        word.touch()
        await place.gateway.soon(lambda: place.gateway.logged("message_strayed", reason="unattributed", server="busy"))
        gate.touch()
    assert "SECRET" not in json.dumps(slow.result().messages)
