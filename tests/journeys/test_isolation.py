"""Three people on a pooled server and on one with a link for each session: theirs is theirs, and nothing is left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import mcp_types as types
import psutil
import pytest
from mcp import Client

from tests.gateway_process import Gateway, running
from tests.journeys.clients import FACES, Heard, Person, all_tools, appears, said, until
from tests.journeys.test_servers_ask import Answering
from tests.servers import counter

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """mcpmux with `pool` of two links, `wide` of three, and `own` with one for each of at most three sessions."""
    servers = {
        "pool": counter("--name", "pool", isolation="pooled", links=2, timeout="20s"),
        "wide": counter("--name", "wide", isolation="pooled", links=3),
        "own": counter("--name", "own", isolation="session", max_links=3, timeout="20s"),
    }
    with running(tmp_path_factory.mktemp("gateway"), servers) as made:
        made.wait_for(lambda: len(made.logged("link_ready", server="pool")) == 2, 20, "both links of pool")
        made.wait_for(lambda: len(made.logged("link_ready", server="wide")) == 3, 20, "the links of wide")
        made.wait_for(lambda: made.logged("link_ready", server="own"), 20, "own")
        yield made


@pytest.fixture
def people(gateway: Gateway) -> list[Person]:
    """Three people who may use everything."""
    return [Person(gateway, f"{name}@example.com", ("MCP-Admin",)) for name in ("ana", "ben", "cem")]


async def process_of(client: Client, server: str) -> int:
    """The process that this client's calls go to now."""
    return int(json.loads(said(await client.call_tool(f"{server}__whereami", {})))["pid"])


def links(gateway: Gateway, server: str) -> list[dict[str, object]]:
    """What `mcpmux status` says of the links of one server."""
    found = gateway.status()[server]["links"]
    assert isinstance(found, list)
    return found


# A pool ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("face", FACES)
async def test_log_messages_of_a_pooled_server_reach_the_call_that_they_belong_to(
    face: str, people: list[Person]
) -> None:
    """On a shared one nobody would get any, with three people at once."""
    together = asyncio.Barrier(len(people))

    async def calls(person: Person) -> None:
        heard = Heard()
        async with person.connected(face=face, heard=heard, mode="legacy") as client:
            await client.set_logging_level("info")
            await together.wait()
            for number in range(5):
                text = f"{person.email} {number}"
                await client.call_tool("pool__log", {"level": "info", "text": text, "times": 2})
            await until(lambda: len(heard.logs) == 10, what=f"all log messages for {person.email}")
            assert [log.data["text"] for log in heard.logs] == [f"{person.email} {n}" for n in range(5) for _ in "12"]

    async with asyncio.TaskGroup() as tasks:
        for person in people:
            tasks.create_task(calls(person))


async def test_a_pooled_server_works_on_as_many_calls_as_it_has_links_and_the_others_wait(
    people: list[Person], gateway: Gateway, tmp_path
) -> None:
    async def call(person: Person, number: int) -> str:
        async with person.connected(mode="legacy") as client:
            return said(await client.call_tool("pool__slow", {"gate": str(tmp_path / f"gate{number}")}))

    def entered() -> list[int]:
        return [number for number in range(3) if (tmp_path / f"gate{number}.entered").exists()]

    async with asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(call(person, number)) for number, person in enumerate(people)]
        await until(lambda: len(entered()) == 2, what="two calls at work")
        assert gateway.status()["pool"]["in_flight"] == 2
        (tmp_path / f"gate{entered()[0]}").touch()
        await until(lambda: len(entered()) == 3, what="the third call at work")
        for number in range(3):
            (tmp_path / f"gate{number}").touch()
    assert [task.result() for task in answers] == [f"{tmp_path}/gate{number} is open" for number in range(3)]


async def test_a_client_that_goes_away_costs_the_pool_at_most_one_link_for_a_moment(
    people: list[Person], gateway: Gateway, tmp_path
) -> None:
    gate = tmp_path / "gate"
    async with people[0].connected(mode="legacy") as one, people[1].connected(mode="legacy") as other:
        async with asyncio.TaskGroup() as tasks:
            calling = tasks.create_task(one.call_tool("pool__slow", {"gate": str(gate)}))
            await appears(tmp_path / "gate.entered")
            calling.cancel()
        await appears(tmp_path / "gate.cancelled")
        for _ in range(3):
            assert said(await other.call_tool("pool__echo", {"text": "here"})) == "here"
        # The counter says nothing more about a cancelled call, so its link is replaced.
        await until(lambda: gateway.logged("link_replaced", server="pool"), 10, "the replacement")
        await gateway.soon(lambda: [link["state"] for link in links(gateway, "pool")] == ["ready"] * 2, 10, "two links")
    assert gateway.metric("mcpmux_links", server="pool", state="ready") == 2


@pytest.mark.parametrize("face", FACES)
async def test_a_pooled_server_asks_many_people_at_once_each_for_their_own_call(
    face: str, people: list[Person]
) -> None:
    """Everybody answers when everybody has been asked: all three questions are open at the same time."""
    together = asyncio.Barrier(len(people))

    async def work(person: Person) -> None:
        mine = Answering(person.email, together)
        async with person.connected(face=face, **mine.callbacks) as client:
            for _ in range(3):
                elicited = json.loads(said(await client.call_tool("wide__ask", {"method": "elicitation/create"})))
                assert elicited["result"]["content"] == {"name": person.email}
                sampled = json.loads(said(await client.call_tool("wide__ask", {"method": "sampling/createMessage"})))
                assert sampled["result"]["content"]["text"] == f"{person.email}'s model"

    async with asyncio.TaskGroup() as tasks:
        for person in people:
            tasks.create_task(work(person))


# A link for each session -----------------------------------------------------------------------------------------


async def test_a_modern_call_that_is_given_up_is_cancelled_before_its_own_process_ends(
    people: list[Person], gateway: Gateway, tmp_path
) -> None:
    async with people[0].connected(face="modern") as client:
        async with asyncio.TaskGroup() as tasks:
            calling = tasks.create_task(client.call_tool("own__slow", {"gate": str(tmp_path / "gate")}))
            await appears(tmp_path / "gate.entered")
            calling.cancel()
        await appears(tmp_path / "gate.cancelled")
    await gateway.soon(lambda: len(links(gateway, "own")) == 1, 10, "the end of its link")


@pytest.mark.parametrize("face", FACES)
async def test_each_session_has_its_own_process_until_it_ends(
    face: str, people: list[Person], gateway: Gateway
) -> None:
    together = asyncio.Barrier(len(people))
    processes: set[int] = set()

    async def counts(person: Person) -> None:
        async with person.connected(face=face, mode="legacy") as client:
            assert "own__count" in await all_tools(client)
            assert [said(await client.call_tool("own__count", {})) for _ in range(3)] == ["1", "2", "3"]
            processes.add(await process_of(client, "own"))
            await together.wait()

    async with asyncio.TaskGroup() as tasks:
        for person in people:
            tasks.create_task(counts(person))
    assert len(processes) == 3
    await until(lambda: not any(map(psutil.pid_exists, processes)), what="the end of the sessions' processes")
    assert [link["state"] for link in links(gateway, "own")] == ["ready"]


@pytest.mark.parametrize("face", FACES)
async def test_a_session_s_own_link_announces_what_its_client_can_do_and_asks_it(
    face: str, people: list[Person]
) -> None:
    """Roots are announced to nobody's but a session's own link."""

    async def roots(_: object) -> types.ListRootsResult:
        return types.ListRootsResult(roots=[types.Root(uri="file:///home/ana")])

    mine = Answering("ana")
    async with (
        people[0].connected(face=face, list_roots_callback=roots, **mine.callbacks) as able,
        people[1].connected(face=face, mode="legacy") as unable,
    ):
        answer = json.loads(said(await able.call_tool("own__ask", {"method": "roots/list"})))
        assert answer["result"]["roots"] == [{"uri": "file:///home/ana"}]
        answer = json.loads(said(await able.call_tool("own__ask", {"method": "elicitation/create"})))
        assert answer["result"]["content"] == {"name": "ana"}
        for method in ("roots/list", "elicitation/create", "sampling/createMessage"):
            answer = json.loads(said(await unable.call_tool("own__ask", {"method": method})))
            assert answer["error"]["code"] == -32601
        answer = json.loads(said(await able.call_tool("wide__ask", {"method": "roots/list"})))
        assert answer["error"]["code"] == -32601


async def test_two_sessions_of_one_person_do_not_share_either(people: list[Person]) -> None:
    async with people[0].connected(mode="legacy") as one, people[0].connected(mode="legacy") as other:
        assert said(await one.call_tool("own__count", {})) == "1"
        assert said(await other.call_tool("own__count", {})) == "1"
        assert await process_of(one, "own") != await process_of(other, "own")


async def test_whoever_finds_every_link_in_use_comes_in_when_one_is_free(people: list[Person], tmp_path) -> None:
    async def holds(person: Person, number: int) -> None:
        async with person.connected(mode="legacy") as client:
            await client.call_tool("own__progress", {"steps": 1, "gate": str(tmp_path / f"gate{number}")})

    async with asyncio.TaskGroup() as tasks, people[0].connected(mode="legacy") as client:
        for number, person in enumerate(people):
            tasks.create_task(holds(person, number))
        await until(
            lambda: all((tmp_path / f"gate{number}.entered").exists() for number in range(3)), what="three at work"
        )
        for number in range(3):
            (tmp_path / f"gate{number}").touch()
        assert said(await client.call_tool("own__count", {})) == "1"


async def test_an_update_reaches_the_session_whose_own_server_says_it(people: list[Person]) -> None:
    uri = "own+counter://value"
    hers, his = Heard(), Heard()
    async with (
        people[0].connected(heard=hers, mode="legacy") as one,
        people[1].connected(heard=his, mode="legacy") as other,
    ):
        for client in (one, other):
            await client.subscribe_resource(uri)
        assert said(await one.call_tool("own__touch", {"uri": "counter://value"})) == "subscribed"
        await until(lambda: hers.of(types.ResourceUpdatedNotification), what="the update")
        await other.call_tool("own__echo", {"text": "."})
        assert his.of(types.ResourceUpdatedNotification) == []


async def test_the_log_level_of_a_session_is_that_of_its_own_link(people: list[Person]) -> None:
    hers, his = Heard(), Heard()
    async with (
        people[0].connected(heard=hers, mode="legacy") as one,
        people[1].connected(heard=his, mode="legacy") as other,
    ):
        await one.set_logging_level("debug")
        await other.set_logging_level("error")
        for client in (one, other):
            for _ in range(2):  # the link is told when its first call has started it, beside that call
                await client.call_tool("own__echo", {"text": "."})
            await client.call_tool("own__log", {"level": "info", "text": "for one"})
            await client.call_tool("own__log", {"level": "error", "text": "for both"})
        await until(lambda: len(hers.logs) == 2 and len(his.logs) == 1, what="the messages")
        assert [log.data["text"] for log in his.logs] == ["for both"]


# Both ------------------------------------------------------------------------------------------------------------


async def test_the_status_and_the_metrics_say_how_many_links_there_are(people: list[Person], gateway: Gateway) -> None:
    async with people[0].connected(mode="legacy") as client:
        pid = await process_of(client, "own")
        told = gateway.status()
        assert told["own"]["isolation"] == "session"
        assert sorted(link["pid"] for link in links(gateway, "own")) == sorted({pid, told["own"]["pid"]})
        assert gateway.metric("mcpmux_links", server="own", state="ready") == 2
        assert told["pool"]["isolation"] == "pooled"
        assert "2 links" in gateway.run("status").stdout
