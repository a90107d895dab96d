"""Servers that are reached over HTTP: Streamable HTTP and HTTP+SSE, lost and found again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import mcp_types as types
import pytest

from tests.gateway_process import Gateway, running
from tests.journeys.clients import FACES, Heard, Person, all_tools, said, until
from tests.servers import counter, listening

TRANSPORTS = ("http", "sse")

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with listening("http") as (http, _), listening("sse") as (sse, _):
        servers = {
            "http": {"transport": "http", "url": http},
            "sse": {"transport": "sse", "url": sse},
            "stdio": counter(),
        }
        with running(tmp_path_factory.mktemp("over-http"), servers) as made:
            for name in servers:
                made.wait_for(lambda name=name: made.logged("link_ready", server=name), 20, name)
            yield made


@pytest.fixture
def person(gateway: Gateway) -> Person:
    return Person(gateway, "ana@example.com", ("MCP-Admin",))


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_everything_of_it_is_there(transport: str, face: str, person: Person) -> None:
    async with person.connected(f"/servers/{transport}", face) as client:
        assert len(await all_tools(client)) == 19
        assert said(await client.call_tool("test_simple_text", {})) == "This is a simple text response for testing."
        picture = (await client.call_tool("test_image_content", {})).content[0]
        assert isinstance(picture, types.ImageContent)
        blob = (await client.read_resource("test://static-binary")).contents[0]
        assert blob.blob == picture.data
        filled = (await client.read_resource("test://template/7/data")).contents[0]
        assert json.loads(filled.text)["id"] == "7"
        assert len((await client.list_prompts()).prompts) == 4


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_progress_and_logs_of_calls_at_once_reach_each_its_own(transport: str, gateway: Gateway) -> None:
    people = [Person(gateway, f"{name}@example.com", ("MCP-Admin",)) for name in ("ana", "ben", "cem")]

    async def call(person: Person) -> None:
        heard, steps = Heard(), []

        async def progressed(progress: float, total: float | None, message: str | None) -> None:
            steps.append(progress)

        async with person.connected(f"/servers/{transport}", heard=heard) as client:
            await client.call_tool("test_tool_with_progress", {}, progress_callback=progressed)
            await until(lambda: steps == [0, 50, 100], what="progress")
            await client.set_logging_level("info")
            await client.call_tool("test_tool_with_logging", {})
            if transport == "http":
                # A streamed message belongs to the stream of its call; on HTTP+SSE all share one stream.
                await until(lambda: len(heard.logs) == 3, what="three log messages")

    async with asyncio.TaskGroup() as tasks:
        for person in people:
            tasks.create_task(call(person))


async def test_a_server_that_cuts_its_stream_in_the_middle_of_a_call_is_gone_back_to(person: Person) -> None:
    async with person.connected("/servers/http") as client:
        assert said(await client.call_tool("test_reconnection", {})) == "The call outlived its stream."


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_server_that_was_restarted_elsewhere_forgot_its_sessions_and_is_greeted_anew(
    transport: str, tmp_path: Path
) -> None:
    with listening(transport) as (url, process):
        port = int(url.split(":")[2].partition("/")[0])
        servers = {"remote": {"transport": transport, "url": url, "timeout": "20s"}, "good": counter()}
        with running(tmp_path / "gateway", servers) as gateway:
            await gateway.ready()
            person = Person(gateway, "ana@example.com", ("MCP-Admin",))
            async with person.connected() as client:
                assert said(await client.call_tool("remote__test_simple_text", {}))
                process.kill()
                process.wait()
                assert said(await client.call_tool("good__echo", {"text": "fine"})) == "fine"
                with listening(transport, port):
                    # The first may find out that the session is lost; from then on it is greeted anew, soon.
                    await client.call_tool("remote__test_simple_text", {})
                    again = await client.call_tool("remote__test_simple_text", {})
                    assert said(again) == "This is a simple text response for testing."


async def test_a_server_that_nobody_listens_for_fails_clearly(tmp_path: Path) -> None:
    servers = {"nobody": {"transport": "http", "url": "http://127.0.0.1:9/mcp"}, "good": counter()}
    with running(tmp_path / "gateway", servers) as gateway:
        await gateway.ready("good")
        person = Person(gateway, "ana@example.com", ("MCP-Admin",))
        async with person.connected() as client:
            assert {name.partition("__")[0] for name in await all_tools(client)} == {"good"}
        state = (await asyncio.to_thread(gateway.status))["nobody"]
        assert state["state"] in ("starting", "failed")
        assert state["reason"]
