"""Progress, logs, cancellation, updates and changed lists reach exactly the session and call that they belong to."""

from __future__ import annotations

import asyncio

import mcp_types as types
import pytest

from tests.gateway_process import WAIT, Gateway
from tests.journeys.clients import FACES, SESSIONS, Heard, Person, all_tools, appears, lines, said, until
from tests.journeys.raw import GREETING, Raw, notification, request
from tests.schemas.watched import watching

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")


@pytest.mark.parametrize("face", FACES)
async def test_progress_reaches_the_call_that_asked_for_it_in_order(
    face: str, ana: Person, ben: Person, tmp_path
) -> None:
    """Both clients number their requests alike, so that their progress tokens are the same."""
    steps: dict[str, list[float]] = {"ana": [], "ben": []}
    gate = tmp_path / "gate"

    async def call(person: Person, name: str, count: int) -> None:
        async def progressed(progress: float, total: float | None, message: str | None) -> None:
            assert (total, message) == (count, f"step {int(progress)}")
            steps[name].append(progress)

        async with person.connected(face=face) as client:
            arguments = {"steps": count, "gate": str(gate)}
            result = await client.call_tool("alpha__progress", arguments, progress_callback=progressed)
            assert said(result) == f"{count} steps"

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(call(ana, "ana", 7))
        tasks.create_task(call(ben, "ben", 4))
        await until(lambda: len(steps["ana"]) == 7 and len(steps["ben"]) == 4, what="all progress before the answers")
        gate.touch()
    assert steps == {"ana": [1, 2, 3, 4, 5, 6, 7], "ben": [1, 2, 3, 4]}


@pytest.mark.parametrize("face", FACES)
async def test_a_cancelled_call_is_cancelled_at_its_server_and_its_neighbour_is_not(
    face: str, ana: Person, ben: Person, tmp_path
) -> None:
    hers, his = tmp_path / "hers", tmp_path / "his"
    async with ana.connected(face=face) as one, ben.connected(face=face) as other, asyncio.TaskGroup() as tasks:
        given_up = tasks.create_task(one.call_tool("alpha__slow", {"gate": str(hers)}))
        kept = tasks.create_task(other.call_tool("alpha__slow", {"gate": str(his)}))
        await appears(tmp_path / "hers.entered")
        await appears(tmp_path / "his.entered")
        given_up.cancel()
        await appears(tmp_path / "hers.cancelled")
        his.touch()
        assert said(await kept) == f"{his} is open"
        assert not (tmp_path / "his.cancelled").exists()
        assert said(await one.call_tool("alpha__echo", {"text": "still here"})) == "still here"


async def test_the_end_of_a_session_cancels_its_calls(gateway: Gateway, ana: Person, tmp_path) -> None:
    arguments = {"gate": str(tmp_path / "gate")}
    async with watching() as http, asyncio.TaskGroup() as tasks:
        session = await Raw.greeted(http, f"{gateway.url}/mcp", ana.token)
        calling = tasks.create_task(session.call("alpha__slow", arguments))
        await appears(tmp_path / "gate.entered")
        assert await session.delete() in (200, 202, 204)
        await appears(tmp_path / "gate.cancelled")
        async with asyncio.timeout(WAIT):
            await calling


async def test_the_end_of_the_event_stream_of_a_2024_session_cancels_its_calls(
    gateway: Gateway, ana: Person, tmp_path
) -> None:
    headers = {"Authorization": f"Bearer {ana.token}"}
    asked = {"name": "alpha__slow", "arguments": {"gate": str(tmp_path / "gate")}}
    async with watching(headers=headers) as http:
        async with http.get(f"{gateway.url}/sse") as stream:
            await stream.content.readline()
            path = (await stream.content.readline()).decode().partition("data: ")[2].strip()
            for message in (request("initialize", GREETING), notification("notifications/initialized")):
                async with http.post(gateway.url + path, json=message) as answer:
                    assert answer.status == 202
            async with http.post(gateway.url + path, json=request("tools/call", asked, 2)) as answer:
                assert answer.status == 202
            await appears(tmp_path / "gate.entered")
        await appears(tmp_path / "gate.cancelled")


async def test_a_log_message_reaches_its_call_or_nobody(gateway: Gateway, cem: Person, ben: Person) -> None:
    """On a shared pipe it belongs to a call only if no other principal's call was there lately (design, section 3)."""
    hers, his = Heard(), Heard()
    async with cem.connected(heard=hers) as one, ben.connected(heard=his) as other:
        await one.set_logging_level("info")
        await other.set_logging_level("info")
        await one.call_tool("gamma__log", {"level": "info", "text": "for cem", "times": 3})
        await until(lambda: len(hers.logs) == 3, what="three log messages")
        await one.call_tool("gamma__log", {"level": "debug", "text": "too quiet"})
        await other.call_tool("alpha__echo", {"text": "."})
        assert [one.data["text"] for one in hers.logs] == ["for cem"] * 3
        assert his.logs == []


async def test_an_updated_resource_is_told_to_those_who_subscribed_and_nobody_else(cem: Person, ben: Person) -> None:
    subscribed, unsubscribed, silent = Heard(), Heard(), Heard()
    uri = "beta+counter://value"
    async with (
        cem.connected(heard=subscribed) as one,
        ben.connected(heard=unsubscribed) as two,
        ben.connected(heard=silent) as three,
    ):
        await one.subscribe_resource(uri)
        await two.subscribe_resource(uri)
        await two.unsubscribe_resource(uri)
        assert said(await three.call_tool("beta__touch", {"uri": "counter://value"})) == "subscribed"
        await until(lambda: subscribed.of(types.ResourceUpdatedNotification), what="the update")
        updated = subscribed.of(types.ResourceUpdatedNotification)[0]
        assert str(updated.params.uri) == uri
        # Had they been sent, they would have come before these answers.
        await two.call_tool("beta__echo", {"text": "."})
        await three.call_tool("beta__echo", {"text": "."})
        await one.unsubscribe_resource(uri)
        assert said(await three.call_tool("beta__touch", {"uri": "counter://value"})) == "nobody is subscribed"
    assert unsubscribed.of(types.ResourceUpdatedNotification) == []
    assert silent.of(types.ResourceUpdatedNotification) == []


@pytest.mark.parametrize("face", SESSIONS)
@pytest.mark.parametrize(
    ("kind", "notification"),
    [
        ("tools", types.ToolListChangedNotification),
        ("prompts", types.PromptListChangedNotification),
        ("resources", types.ResourceListChangedNotification),
    ],
)
async def test_a_list_that_a_server_changes_is_told_to_those_who_see_it(
    kind: str, notification: type[types.ServerNotification], face: str, cem: Person, ana: Person
) -> None:
    sees, does_not = Heard(), Heard()
    async with cem.connected(face=face, heard=sees) as one, ana.connected(face=face, heard=does_not) as other:
        await all_tools(other)
        await one.call_tool("gamma__offer", {"kind": kind, "name": f"added_{face}"})
        await until(lambda: sees.of(notification), what="list_changed")
        names = {
            "tools": lambda: one.list_tools(cache_mode="bypass"),
            "prompts": lambda: one.list_prompts(cache_mode="bypass"),
            "resources": lambda: one.list_resources(cache_mode="bypass"),
        }
        assert f"added_{face}" in (await names[kind]()).model_dump_json()
        await one.call_tool("gamma__withdraw", {"kind": kind, "name": f"added_{face}"})
        await until(lambda: len(sees.of(notification)) >= 2, what="the second list_changed")
        assert f"added_{face}" not in (await names[kind]()).model_dump_json()
        await other.call_tool("alpha__echo", {"text": "."})
    assert does_not.of(notification) == []


@pytest.mark.parametrize("method", ["sampling/createMessage", "elicitation/create", "roots/list"])
async def test_what_a_server_asks_of_a_client_that_cannot_gets_a_clear_error(method: str, cem: Person) -> None:
    """`gamma` has no other caller."""
    async with cem.connected(mode="legacy") as client:
        answer = said(await client.call_tool("gamma__ask", {"method": method}))
    assert '"error"' in answer
    assert "The client does not support" in answer


async def test_large_and_structured_results_arrive_unchanged(ana: Person) -> None:
    async with ana.connected() as client:
        assert len(said(await client.call_tool("alpha__big", {"bytes": 3_000_000}))) == 3_000_000
        structured = await client.call_tool("alpha__structured", {"number": 12})
        assert structured.structured_content == {"number": 12}
        failed = await client.call_tool("alpha__fail", {"text": "broken"})
        assert (failed.is_error, said(failed)) == (True, "broken")


async def test_an_upstream_error_passes_verbatim(ana: Person) -> None:
    async with ana.connected() as client:
        with pytest.raises(Exception, match="This tool refuses") as caught:
            await client.call_tool("alpha__refuse", {})
    assert caught.value.error.code == -32050
    assert caught.value.error.data == {"why": "because"}


async def test_many_calls_of_one_session_are_in_flight_at_once(ana: Person, tmp_path) -> None:
    gate = tmp_path / "gate"
    async with ana.connected() as client, asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(client.call_tool("alpha__slow", {"gate": str(gate)})) for _ in range(20)]
        await until(lambda: lines(tmp_path / "gate.entered") == 20)
        gate.touch()
    assert all(said(one.result()) == f"{gate} is open" for one in waiting)
