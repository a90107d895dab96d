"""Servers that speak the modern era alone, over pipes, used by clients of the official SDK in every era."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import mcp_types as types
import pytest

from tests.gateway_process import Gateway, running
from tests.journeys.clients import FACES, SESSIONS, Heard, Person, said, until
from tests.servers import modern

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]
ISOLATIONS = ("shared", "pooled", "session")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One for each way to share links."""
    with running(
        tmp_path_factory.mktemp("modern"), {name: modern("--name", name, isolation=name) for name in ISOLATIONS}
    ) as made:
        for name in ISOLATIONS:
            made.wait_for(lambda name=name: made.logged("link_ready", server=name), 30, name)
        yield made


@pytest.fixture
def ana(gateway: Gateway) -> Person:
    return Person(gateway, "ana@example.com", ("MCP-Admin",))


@pytest.fixture
def ben(gateway: Gateway) -> Person:
    return Person(gateway, "ben@example.com", ("MCP-Admin",))


async def elicit(_: object, __: Any) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={"name": "ana"})


async def refuse(_: object, __: Any) -> types.ElicitResult:
    return types.ElicitResult(action="decline")


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("face", FACES)
async def test_tools_prompts_and_resources_come_through(face: str, isolation: str, ana: Person) -> None:
    async with ana.connected(f"/servers/{isolation}", face=face) as client:
        assert said(await client.call_tool("echo", {"text": "hello"})) == "hello"
        assert "greet" in {prompt.name for prompt in (await client.list_prompts()).prompts}
        assert (await client.get_prompt("greet", {"who": "ana"})).messages
        (contents,) = (await client.read_resource("modern://value")).contents
        assert isinstance(contents, types.TextResourceContents) and contents.text == "value"


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("face", FACES)
async def test_what_a_modern_server_asks_reaches_a_client_of_any_era(face: str, isolation: str, ana: Person) -> None:
    async with ana.connected(f"/servers/{isolation}", face=face, elicitation_callback=elicit) as client:
        answered = said(await client.call_tool("ask", {"kinds": ["form"], "rounds": 2}))
        assert "ana" in answered and "accept" in answered
    async with ana.connected(f"/servers/{isolation}", face=face, elicitation_callback=refuse) as client:
        assert "decline" in said(await client.call_tool("ask", {"kinds": ["form"], "rounds": 1}))


@pytest.mark.parametrize("face", SESSIONS)
async def test_two_people_are_asked_at_once_on_one_link_each_for_their_own_call(
    face: str, ana: Person, ben: Person
) -> None:
    together = asyncio.Barrier(2)

    async def work(person: Person) -> None:
        async def answer(_: object, __: Any) -> types.ElicitResult:
            await together.wait()
            return types.ElicitResult(action="accept", content={"name": person.email})

        async with person.connected("/servers/shared", face=face, elicitation_callback=answer) as client:
            answered = said(await client.call_tool("ask", {"kinds": ["form"], "rounds": 1}))
            assert person.email in answered

    async with asyncio.TaskGroup() as tasks:
        for person in (ana, ben):
            tasks.create_task(work(person))


@pytest.mark.parametrize("isolation", ["shared", "session"])  # of several processes only one tells
async def test_a_session_hears_of_a_resource_of_a_modern_server(isolation: str, ana: Person) -> None:
    heard = Heard()
    async with ana.connected(f"/servers/{isolation}", heard=heard) as client:
        await client.session.subscribe_resource("modern://value")
        await client.call_tool("touch", {"uri": "modern://value"})
        await until(lambda: heard.of(types.ResourceUpdatedNotification))
        await client.session.unsubscribe_resource("modern://value")


async def test_a_session_hears_the_log_of_its_own_calls(ana: Person) -> None:
    heard = Heard()
    async with ana.connected("/servers/session", heard=heard) as client:
        await client.session.set_logging_level("info")
        await client.call_tool("log", {"level": "info", "text": "mine"})
        await until(lambda: heard.logs)


def test_the_status_says_which_era_is_spoken(gateway: Gateway) -> None:
    found = gateway.status().values()
    assert {(server["era"], server["revision"]) for server in found} == {("modern", "2026-07-28")}
