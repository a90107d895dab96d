"""`calls/task_news.py`: who subscribes to a task of the modern era is told how it stands, and nobody else is.

Source: the extension io.modelcontextprotocol/tasks (SEP-2663), "Task Status Notifications".
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.calls.upstream import params, until
from tests.faces.client import WAIT, Json, bearer
from tests.faces.modern import PREFIX, SUBSCRIPTION, Modern, Stream, asking
from tests.gateway_process import Gateway, running
from tests.servers import listening, stdio

EXTENSION = PREFIX + "tasks"
ABLE = {PREFIX + "clientCapabilities": {"elicitation": {}, "extensions": {EXTENSION: {}}}}
NEWS = "notifications/tasks"


@dataclass(frozen=True)
class Place:
    """A running mcpmux with `piped` and `posted`, and what each of them was told."""

    gateway: Gateway
    folder: Path

    def who(self, http: aiohttp.ClientSession, name: str, under: str = "") -> Modern:
        """Somebody with both servers."""
        who = bearer(self.gateway, f"{name}@example.com", "MCP-piped", "MCP-posted")
        return Modern(http, f"{self.gateway.url}{under}/mcp", who)

    def wanted(self, server: str) -> list[object]:
        """The tasks that each subscription of mcpmux at a server named, in order."""
        lines = (self.folder / server).read_text().splitlines()
        messages = [json.loads(line)["message"] for line in lines]
        listens = [one for one in messages if one["method"] == "subscriptions/listen"]
        return [one["params"]["notifications"].get("taskIds", []) for one in listens]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("news")
    seen = {name: ["--seen", str(folder / name)] for name in ("piped", "posted")}
    with listening("http", program="tasks_suite", arguments=seen["posted"]) as (url, _):
        servers = {
            "piped": stdio("tasks_suite", "stdio", *seen["piped"]),
            "posted": {"transport": "http", "url": url},
        }
        with running(folder, servers) as gateway:
            for name in servers:
                gateway.grant(f"MCP-{name}", name)
                gateway.wait_for(lambda name=name: gateway.logged("link_ready", server=name), 30, name)
            yield Place(gateway, folder)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def made(who: Modern, tool: str, **arguments: object) -> str:
    """The id of a new task."""
    task = await who.ask("tools/call", {"name": tool, "arguments": arguments}, **ABLE)
    assert task["resultType"] == "task"
    return str(task["taskId"])


def hearing(*tasks: str) -> Json:
    """A subscription to tasks."""
    return asking("subscriptions/listen", {"notifications": {"taskIds": tasks}}, "listen-1", **ABLE)


async def told(stream: Stream) -> Json:
    """The next news of a task."""
    news = await stream.events.next()
    assert news is not None
    assert news.json["method"] == NEWS
    found = params(news.json)
    assert found["_meta"] == {SUBSCRIPTION: "listen-1"}
    return found


async def honored(stream: Stream) -> object:
    """The tasks that the acknowledgement names."""
    said = params(await stream.message())["notifications"]
    assert isinstance(said, dict)
    return said.get("taskIds", [])


@pytest.mark.parametrize("server", ["piped", "posted"])
@pytest.mark.parametrize("under", ["", "/servers/{}"])
async def test_whoever_subscribes_to_a_task_hears_all_that_its_state_says(
    server: str, under: str, place: Place, http: aiohttp.ClientSession
) -> None:
    ana = place.who(http, "ana", under.format(server))
    task = await made(ana, "multi_input" if under else f"{server}__multi_input")
    async with ana.streaming(hearing(task)) as stream:
        assert await honored(stream) == [task]
        answers = {key: {"action": "accept", "content": {"name": "Ana"}} for key in ("first", "second")}
        await ana.post(asking("tasks/update", {"taskId": task, "inputResponses": answers}, **ABLE))
        # What is newer on the same task takes the place of what has not been told yet.
        while (ended := await told(stream))["status"] == "working":
            assert ended["taskId"] == task
    assert (ended["taskId"], ended["status"]) == (task, "completed")
    assert "Ana" in json.dumps(ended["result"])
    assert "task-" not in json.dumps(ended)


async def test_ids_that_are_not_the_callers_are_not_promised_and_nobody_else_is_told(
    place: Place, http: aiohttp.ClientSession
) -> None:
    ana, eve = place.who(http, "ana"), place.who(http, "eve")
    hers, another = await made(ana, "piped__confirm_delete", filename="a"), await made(eve, "piped__gated", gate="none")
    async with ana.streaming(hearing(hers)) as stream, eve.streaming(hearing(hers, "task-1", another)) as other:
        assert await honored(stream) == [hers]
        assert await honored(other) == [another]
        for who, task in ((ana, hers), (eve, another)):
            await who.post(asking("tasks/cancel", {"taskId": task}, **ABLE))
        assert (await told(stream))["taskId"] == hers
        assert (await told(other))["taskId"] == another


async def test_two_subscriptions_to_one_task_are_one_at_its_server(place: Place, http: aiohttp.ClientSession) -> None:
    ana = place.who(http, "ana")
    task = await made(ana, "piped__confirm_delete", filename="both")
    async with ana.streaming(hearing(task)) as one, ana.streaming(hearing(task)) as two:
        assert await honored(one) == [task]
        count = len(place.wanted("piped"))
        assert await honored(two) == [task]
        assert len(place.wanted("piped")) == count
        await ana.post(asking("tasks/cancel", {"taskId": task}, **ABLE))
        assert [(await told(stream))["status"] for stream in (one, two)] == ["cancelled", "cancelled"]


async def test_the_last_one_who_leaves_takes_the_task_out_of_the_links_subscription(
    place: Place, http: aiohttp.ClientSession
) -> None:
    ana = place.who(http, "ana")
    task = await made(ana, "posted__confirm_delete", filename="left")
    async with ana.streaming(hearing(task)) as stream:
        await honored(stream)
        (named,) = place.wanted("posted")[-1:]
    assert len(named) == 1  # type: ignore[arg-type]
    again = await made(ana, "posted__confirm_delete", filename="next")
    async with ana.streaming(hearing(again)) as stream:
        await honored(stream)
        await until(lambda: named != place.wanted("posted")[-1], "the next subscription")
        assert not set(named) & set(place.wanted("posted")[-1])  # type: ignore[call-overload]


async def test_a_subscription_ends_when_its_task_can_be_heard_of_no_more(
    place: Place, http: aiohttp.ClientSession
) -> None:
    ana = place.who(http, "ana")
    task = await made(ana, "piped__confirm_delete", filename="gone")
    count = len(place.gateway.logged("link_ready", server="piped"))
    async with ana.streaming(hearing(task)) as stream:
        assert await honored(stream) == [task]
        await ana.post(asking("tools/call", {"name": "piped__die", "arguments": {"code": 1}}, **ABLE))
        async with asyncio.timeout(WAIT):
            (last,) = await stream.events.rest()
        assert last.json["id"] == "listen-1"
        assert "result" in last.json
    await place.gateway.soon(lambda: len(place.gateway.logged("link_ready", server="piped")) > count, 20)


@pytest.mark.parametrize(("server", "how"), [("piped", "graceful"), ("posted", "graceful"), ("posted", "abrupt")])
async def test_when_a_server_ends_the_links_own_subscription_those_that_wait_for_tasks_end_too(
    server: str, how: str, place: Place, http: aiohttp.ClientSession
) -> None:
    ana = place.who(http, "ana")
    task = await made(ana, f"{server}__confirm_delete", filename=how)
    async with ana.streaming(hearing(task)) as stream:
        assert await honored(stream) == [task]
        await ana.post(asking("tools/call", {"name": f"{server}__unlisten", "arguments": {"how": how}}, **ABLE))
        async with asyncio.timeout(WAIT):
            (last,) = await stream.events.rest()
        assert last.json["id"] == "listen-1"
        assert "result" in last.json
        async with ana.streaming(hearing(task)) as again:
            assert await honored(again) == [task]
            await ana.post(asking("tasks/cancel", {"taskId": task}, **ABLE))
            assert (await told(again))["status"] == "cancelled"


async def test_what_was_revoked_is_not_told(place: Place, http: aiohttp.ClientSession, tmp_path: Path) -> None:
    place.gateway.grant("MCP-Brief", "piped")
    who = Modern(http, f"{place.gateway.url}/mcp", bearer(place.gateway, "ivy@example.com", "MCP-Brief", "MCP-posted"))
    gates = {name: tmp_path / name for name in ("before", "after")}
    before, after = [await made(who, "piped__gated", gate=str(gate)) for gate in gates.values()]
    other = await made(who, "posted__confirm_delete", filename="y")
    async with who.streaming(hearing(before, after, other)) as stream:
        assert await honored(stream) == [before, after, other]
        gates["before"].touch()
        assert (await told(stream))["taskId"] == before
        place.gateway.revoke("MCP-Brief", "piped")
        async with asyncio.timeout(WAIT):
            while "error" not in (await who.post(asking("tasks/get", {"taskId": after}, **ABLE))).json:
                pass
        gates["after"].touch()
        await until(gates["after"].with_suffix(".told").exists, "the news at the server")
        # What comes on the same pipe later has been read later, and news are told one after the other.
        await place.who(http, "ana").ask("tools/call", {"name": "piped__greet", "arguments": {"name": "Ana"}})
        await who.post(asking("tasks/cancel", {"taskId": other}, **ABLE))
        assert (await told(stream))["taskId"] == other
