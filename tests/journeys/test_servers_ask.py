"""Servers ask in the middle of calls, and the official SDK answers: three people at once, each for their own call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import mcp_types as types
import pytest

from tests.gateway_process import Gateway, running
from tests.journeys.clients import FACES, Person, appears, said
from tests.servers import counter, listening, modern

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]
NAMES = ("ana", "ben", "cem")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One pipe for each person, one pipe for all of them, and a server that has a stream for each call."""
    with listening("http") as (http, _), listening("sse") as (sse, _):
        servers = {name: counter("--name", name) for name in (*NAMES, "everybody")}
        servers["pooled"] = counter(isolation="pooled")
        servers["own"] = counter(isolation="session")
        servers["modern"] = modern()
        servers["http"] = {"transport": "http", "url": http}
        servers["sse"] = {"transport": "sse", "url": sse}
        with running(tmp_path_factory.mktemp("asking"), servers) as made:
            for name in servers:
                made.wait_for(lambda name=name: made.logged("link_ready", server=name), 20, name)
            yield made


@pytest.fixture
def people(gateway: Gateway) -> dict[str, Person]:
    return {name: Person(gateway, f"{name}@example.com", ("MCP-Admin",)) for name in NAMES}


class Answering:
    """What one person answers: their own name, and when everybody has been asked."""

    def __init__(self, name: str, together: asyncio.Barrier | None = None) -> None:
        self.name = name
        self.together = together
        self.asked: list[str] = []

    async def elicit(self, _: object, params: Any) -> types.ElicitResult:
        self.asked.append("elicitation")
        await self._wait()
        return types.ElicitResult(action="accept", content={"name": self.name})

    async def sample(self, _: object, params: Any) -> types.CreateMessageResult:
        self.asked.append("sampling")
        await self._wait()
        text = types.TextContent(type="text", text=f"{self.name}'s model")
        return types.CreateMessageResult(role="assistant", content=text, model="m")

    async def _wait(self) -> None:
        if self.together is not None:
            await self.together.wait()

    async def root(self, _: object) -> types.ListRootsResult:
        self.asked.append("roots")
        await self._wait()
        return types.ListRootsResult(roots=[types.Root(uri=f"file:///home/{self.name}")])  # type: ignore[arg-type]

    @property
    def modern(self) -> dict[str, object]:
        """The same for a client that speaks the modern era where it can."""
        return {**self.callbacks, "list_roots_callback": self.root, "mode": "auto"}

    @property
    def callbacks(self) -> dict[str, object]:
        return {"elicitation_callback": self.elicit, "sampling_callback": self.sample, "mode": "legacy"}


@pytest.mark.parametrize("face", FACES)
async def test_three_people_are_asked_at_once_each_by_their_own_server(face: str, people: dict[str, Person]) -> None:
    together = asyncio.Barrier(len(people))

    async def work(name: str) -> None:
        mine = Answering(name, together)
        async with people[name].connected(face=face, **mine.callbacks) as client:
            elicited = json.loads(said(await client.call_tool(f"{name}__ask", {"method": "elicitation/create"})))
            assert elicited["result"] == {"action": "accept", "content": {"name": name}}
            sampled = json.loads(said(await client.call_tool(f"{name}__ask", {"method": "sampling/createMessage"})))
            assert sampled["result"]["content"]["text"] == f"{name}'s model"
        assert mine.asked == ["elicitation", "sampling"]

    async with asyncio.TaskGroup() as tasks:
        for name in people:
            tasks.create_task(work(name))


@pytest.mark.parametrize("face", FACES)
async def test_three_people_are_asked_at_once_by_one_server_with_a_stream_for_each_call(
    face: str, people: dict[str, Person]
) -> None:
    together = asyncio.Barrier(len(people))

    async def work(name: str) -> None:
        mine = Answering(name, together)
        async with people[name].connected("/servers/http", face, **mine.callbacks) as client:
            for _ in range(3):
                elicited = said(await client.call_tool("test_elicitation", {"message": name}))
                assert json.dumps({"name": name}) in elicited
                assert f"{name}'s model" in said(await client.call_tool("test_sampling", {"prompt": name}))
        assert len(mine.asked) == 6

    async with asyncio.TaskGroup() as tasks:
        for name in people:
            tasks.create_task(work(name))


async def test_one_person_is_asked_by_a_server_over_http_and_sse(people: dict[str, Person]) -> None:
    mine = Answering("ana")
    async with people["ana"].connected("/servers/sse", **mine.callbacks) as client:
        assert json.dumps({"name": "ana"}) in said(await client.call_tool("test_elicitation", {"message": "?"}))
        assert "ana's model" in said(await client.call_tool("test_sampling", {"prompt": "?"}))


async def test_on_a_pipe_that_others_use_nobody_is_asked_and_the_server_is_told_why(
    people: dict[str, Person], gateway: Gateway, tmp_path
) -> None:
    gate = tmp_path / "gate"
    hers, his = Answering("ana"), Answering("ben")
    async with (
        people["ana"].connected(**hers.callbacks) as one,
        people["ben"].connected(**his.callbacks) as other,
        asyncio.TaskGroup() as tasks,
    ):
        waiting = tasks.create_task(other.call_tool("everybody__slow", {"gate": str(gate)}))
        await appears(tmp_path / "gate.entered")
        for method in ("elicitation/create", "sampling/createMessage"):
            answer = json.loads(said(await one.call_tool("everybody__ask", {"method": method})))
            assert "shared by several clients" in answer["error"]["message"]
        gate.touch()
        assert said(await waiting) == f"{gate} is open"
    assert hers.asked == his.asked == []
    await gateway.soon(lambda: gateway.logged("ask_unattributed", server="everybody"))


# In the modern era ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["pooled", "own", "modern"])
async def test_modern_clients_are_asked_at_once_and_each_call_gets_its_own_answer(
    server: str, people: dict[str, Person]
) -> None:
    together = asyncio.Barrier(len(people))

    async def work(name: str) -> None:
        mine = Answering(name, together)
        async with people[name].connected(face="modern", **mine.modern) as client:
            assert client.session.protocol_version == "2026-07-28"
            if server == "modern":
                told = json.loads(said(await client.call_tool("modern__ask", {"kinds": ["form"], "rounds": 2})))
                assert [one[f"form_{place}"]["content"] for place, one in enumerate(told)] == [{"name": name}] * 2
                return
            tool = f"{server}__ask"
            elicited = json.loads(said(await client.call_tool(tool, {"method": "elicitation/create"})))
            assert elicited["result"]["content"] == {"name": name}
            sampled = json.loads(said(await client.call_tool(tool, {"method": "sampling/createMessage"})))
            assert sampled["result"]["content"]["text"] == f"{name}'s model"

    async with asyncio.TaskGroup() as tasks:
        for name in people:
            tasks.create_task(work(name))


async def test_a_modern_client_is_asked_by_a_server_that_others_use_while_they_do_not(
    people: dict[str, Person],
) -> None:
    mine = Answering("ana")
    async with people["ana"].connected(face="modern", **mine.modern) as client:
        elicited = json.loads(said(await client.call_tool("ana__ask", {"method": "elicitation/create"})))
        assert elicited["result"]["content"] == {"name": "ana"}
        rooted = json.loads(said(await client.call_tool("own__ask", {"method": "roots/list"})))
        assert rooted["result"]["roots"][0]["uri"] == "file:///home/ana"
        assert json.dumps({"name": "ana"}) in said(await client.call_tool("http__test_elicitation", {"message": "?"}))
    assert mine.asked == ["elicitation", "roots", "elicitation"]


async def test_a_modern_client_that_declines_is_heard(people: dict[str, Person]) -> None:
    async def declined(_: object, params: Any) -> types.ElicitResult:
        return types.ElicitResult(action="decline")

    async with people["ana"].connected(face="modern", elicitation_callback=declined) as client:
        elicited = json.loads(said(await client.call_tool("pooled__ask", {"method": "elicitation/create"})))
        assert elicited["result"] == {"action": "decline"}
