"""Event streams of a session: who gets what, and how a client that lost one goes on where it stopped.

Source: MCP 2025-11-25 basic/transports, "Listening for Messages from the Server", "Multiple Connections",
"Resumability and Redelivery".
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from tests.calls.upstream import until
from tests.faces.client import NEWEST, REVISIONS, Event, Events, Json, Session, calling, error_of, request, said
from tests.faces.conftest import Place, Who

Http = aiohttp.ClientSession
each_revision = pytest.mark.parametrize("revision", REVISIONS)
CHANGED = "notifications/tools/list_changed"


@pytest.fixture
async def session(place: Place, http: Http, ana: Who) -> Session:
    """One of ana's, at the newest revision."""
    return await Session.opened(http, f"{place.url}/mcp", ana)


async def primed(events: Events) -> Event:
    """The priming event of a stream of the newest revision."""
    event = await events.next()
    assert event is not None and event.data == "" and event.id, event
    assert event.retry is not None and event.retry > 0
    return event


async def change(session: Session, name: str) -> None:
    """Let alpha change its list of tools."""
    await session.call("alpha__offer", kind="tools", name=name)


async def back(session: Session, name: str) -> None:
    """Let alpha take that back."""
    await session.call("alpha__withdraw", kind="tools", name=name)


def methods(messages: list[Json]) -> list[object]:
    """Which notifications these are."""
    return [message.get("method") for message in messages]


# The GET stream -----------------------------------------------------------------------------------------------------


@each_revision
async def test_a_changed_list_is_told_on_the_get_stream(revision: str, place: Place, http: Http, ana: Who) -> None:
    session = await Session.opened(http, f"{place.url}/mcp", ana, revision)
    async with session.listening() as events:
        if revision == NEWEST:
            await primed(events)
        await change(session, f"added_{revision}")
        event = await events.next()
        assert event is not None and event.id
        assert event.json == {"jsonrpc": "2.0", "method": CHANGED}
        await back(session, f"added_{revision}")
        assert (await events.message())["method"] == CHANGED


@each_revision
async def test_an_updated_resource_is_told_on_the_get_stream_under_its_public_name(
    revision: str, place: Place, http: Http, ana: Who
) -> None:
    session = await Session.opened(http, f"{place.url}/mcp", ana, revision)
    await session.ask("resources/subscribe", {"uri": "alpha+counter://value"})
    async with session.listening() as events:
        assert await session.call("alpha__touch", uri="counter://value") == "subscribed"
        assert await events.message() == {
            "jsonrpc": "2.0",
            "method": "notifications/resources/updated",
            "params": {"uri": "alpha+counter://value"},
        }


async def test_what_happened_before_the_stream_was_open_waits_for_it(place: Place, session: Session, ana: Who) -> None:
    watcher = await Session.opened(session.http, session.url, ana)
    await session.ask("resources/subscribe", {"uri": "alpha+counter://value"})
    await watcher.ask("resources/subscribe", {"uri": "alpha+counter://value"})
    async with watcher.listening() as told:
        for _ in range(3):
            await session.call("alpha__touch", uri="counter://value")
            await told.message()
    async with session.listening() as events:
        assert (await events.message())["method"] == "notifications/resources/updated"
        # The three said the same, so that one waits (`faces/inbox.py`): what comes next is something else.
        await change(session, "waited")
        assert (await events.message())["method"] == CHANGED
        await back(session, "waited")


async def test_of_several_streams_exactly_one_gets_a_message_and_another_takes_over(session: Session) -> None:
    async with session.listening() as older:
        await primed(older)
        async with session.listening() as newer:
            await primed(newer)
            await change(session, "first")
            assert (await newer.message())["method"] == CHANGED
        await back(session, "first")
        await session.ask("resources/subscribe", {"uri": "alpha+counter://value"})
        await session.call("alpha__touch", uri="counter://value")
        got = [await older.message() for _ in range(2)]
    # Had the older stream got the first message too, there would be two of these.
    assert sorted(map(str, methods(got))) == ["notifications/resources/updated", CHANGED]


async def test_a_get_stream_is_resumed_after_the_last_event_that_arrived(session: Session, place: Place) -> None:
    await session.ask("resources/subscribe", {"uri": "alpha+counter://value"})
    async with session.listening() as events:
        start = await primed(events)
        await change(session, "lost")
        await events.message()
        kept = events.last
        await session.call("alpha__touch", uri="counter://value")
        await events.message()
        await back(session, "lost")
        await events.message()
    assert start.id and kept
    async with session.listening(kept) as events:
        found = [await events.message() for _ in range(2)]
        assert methods(found) == ["notifications/resources/updated", CHANGED]
    async with session.listening(start.id) as events:
        found = [await events.message() for _ in range(3)]
        assert methods(found) == [CHANGED, "notifications/resources/updated", CHANGED]
        # And it is a living stream.
        await session.call("alpha__touch", uri="counter://value")
        assert (await events.message())["method"] == "notifications/resources/updated"


async def test_no_message_of_a_reply_stream_comes_on_the_get_stream_or_the_other_way_round(
    session: Session,
) -> None:
    await session.ask("resources/subscribe", {"uri": "alpha+counter://value"})
    async with session.listening() as events:
        await primed(events)
        async with session.streaming(calling("alpha__progress", {"steps": 3}, 5, 1)) as reply:
            answers = await reply.messages()
        await session.call("alpha__touch", uri="counter://value")
        assert (await events.message())["method"] == "notifications/resources/updated"
    assert methods(answers) == ["notifications/progress"] * 3 + [None]
    async with session.listening("0-0") as events:
        assert (await events.message())["method"] == "notifications/resources/updated"


# Reply streams that were lost ---------------------------------------------------------------------------------------


class Walk:
    """One call that makes its steps when the test lets it."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder = folder
        self.message = calling("alpha__walk", {"folder": str(folder), "steps": steps}, "walk", "t")

    def let(self, *gates: int | str) -> None:
        """Open these gates."""
        for gate in gates:
            (self.folder / str(gate)).touch()

    async def gone_to(self, gate: int | str) -> None:
        """Wait until the server waits at this gate: the steps before it have been reported."""
        await until((self.folder / f"{gate}.entered").exists, f"gate {gate}")

    @property
    def cancelled(self) -> bool:
        """Whether the server was told to stop."""
        return any(self.folder.glob("*.cancelled"))


def steps(messages: list[Json]) -> list[object]:
    """The steps reported, and the ids of the answers."""
    return [one.get("id") or one["params"]["progress"] for one in messages]  # type: ignore[index]


async def lost(place: Place, events: Events) -> None:
    """Cut the connection, and wait until mcpmux has seen it."""
    events.answer.close()
    await place.gateway.soon(lambda: place.gateway.metric("mcpmux_streams", kind="reply") == 0)


@each_revision
async def test_a_lost_reply_stream_goes_on_where_it_stopped(
    revision: str, place: Place, http: Http, ana: Who, tmp_path: Path
) -> None:
    """What was missed comes exactly once, in order, and so does the result; the server notices nothing."""
    session = await Session.opened(http, f"{place.url}/mcp", ana, revision)
    walk = Walk(tmp_path, 6)
    async with session.streaming(walk.message) as events:
        walk.let(1, 2)
        first = [await events.message() for _ in range(2)]
        last = events.last
        await walk.gone_to(3)
        await lost(place, events)
    walk.let(3, 4)
    await walk.gone_to(5)
    async with session.listening(last) as events:
        again = [await events.message() for _ in range(2)]
        walk.let(5, 6, "end")
        again += await events.messages()
    assert steps(first + again) == [1, 2, 3, 4, 5, 6, "walk"]
    assert said(again[-1]) == "walked 6"
    assert not walk.cancelled


async def test_it_can_be_lost_more_than_once_and_resumed_from_any_of_its_events(
    session: Session, place: Place, tmp_path: Path
) -> None:
    walk = Walk(tmp_path, 4)
    async with session.streaming(walk.message) as events:
        start = (await primed(events)).id
        walk.let(1)
        await events.message()
        await walk.gone_to(2)
        await lost(place, events)
    async with session.listening(start) as events:
        assert steps([await events.message()]) == [1]
        walk.let(2)
        assert steps([await events.message()]) == [2]
        last = events.last
        await lost(place, events)
    walk.let(3, 4, "end")
    async with session.listening(last) as events:
        assert steps(await events.messages()) == [3, 4, "walk"]
    # It is over, and can still be had again.
    async with session.listening(last) as events:
        assert steps(await events.messages()) == [3, 4, "walk"]
    async with session.listening(start) as events:
        assert steps(await events.messages()) == [1, 2, 3, 4, "walk"]


async def test_who_comes_back_before_we_saw_that_it_was_gone_takes_the_stream_over(
    session: Session, tmp_path: Path
) -> None:
    walk = Walk(tmp_path, 3)
    async with session.streaming(walk.message) as first:
        walk.let(1)
        await primed(first)
        await first.message()
        async with session.listening(first.last) as second:
            walk.let(2, 3, "end")
            found = await second.messages()
    assert steps(found) == [2, 3, "walk"]


async def test_a_result_that_was_lost_on_its_way_can_be_had(session: Session, place: Place, tmp_path: Path) -> None:
    walk = Walk(tmp_path, 1)
    async with session.streaming(walk.message) as events:
        start = (await primed(events)).id
        await lost(place, events)
    walk.let(1, "end")
    async with session.listening(start) as events:
        assert steps(await events.messages()) == [1, "walk"]


async def test_streams_of_two_calls_are_resumed_each_for_itself(session: Session, place: Place, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = Walk(tmp_path / "a", 2), Walk(tmp_path / "b", 2)
    other.message["id"] = "other"
    async with session.streaming(one.message) as hers, session.streaming(other.message) as his:
        starts = [(await primed(events)).id for events in (hers, his)]
        for walk, events in ((one, hers), (other, his)):
            walk.let(1)
            await events.message()
        hers.answer.close()
        await lost(place, his)
    for walk in (one, other):
        walk.let(2, "end")
    async with session.listening(starts[0]) as hers, session.listening(starts[1]) as his:
        assert steps(await his.messages()) == [1, 2, "other"]
        assert steps(await hers.messages()) == [1, 2, "walk"]


async def test_a_call_can_be_cancelled_while_its_stream_is_lost(session: Session, place: Place, tmp_path: Path) -> None:
    walk = Walk(tmp_path, 1)
    async with session.streaming(walk.message) as events:
        start = (await primed(events)).id
        await walk.gone_to(1)
        await lost(place, events)
    assert not walk.cancelled
    cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "walk"}}
    assert (await session.post(cancelled)).status == 202
    await until(lambda: walk.cancelled, "the cancellation at the server")
    async with session.listening(start) as events:
        assert await events.messages() == []


@pytest.mark.parametrize("last", ["nonsense", "1", "1-", "-1", "1-2-3", "x-1", "9" * 500, "٣-١", "1-1\u00a0"])
async def test_an_event_id_that_is_none_of_ours_is_400(last: str, session: Session) -> None:
    answer = await session.get(Accept="text/event-stream", Last_Event_ID=last)
    assert (answer.status, answer.code) == (400, -32600)
    assert last[:20] not in str(answer.error["message"])


async def test_an_event_id_of_another_session_gives_nothing_of_that_session(
    session: Session, place: Place, http: Http, ana: Who, ben: Who, tmp_path: Path
) -> None:
    """Event ids are counted per session: only the session's own streams can be meant."""
    walk = Walk(tmp_path, 1)
    for who in (ana, ben):
        stranger = await Session.opened(http, session.url, who)
        async with session.streaming(walk.message) as events:
            start = (await primed(events)).id
            walk.let(1)
            await events.message()
            async with stranger.listening(start) as strange:
                assert await strange.messages() == []
            await lost(place, events)
        async with session.listening(start) as events:
            walk.let("end")
            assert steps(await events.messages()) == [1, "walk"]


async def test_a_hundred_streams_of_one_session_end_with_it(session: Session, place: Place) -> None:
    async with asyncio.TaskGroup() as tasks:
        opened = asyncio.Semaphore(0)

        async def listen() -> list[Event]:
            async with session.listening() as events:
                await primed(events)
                opened.release()
                return await events.rest()

        listeners = [tasks.create_task(listen()) for _ in range(100)]
        for _ in listeners:
            await opened.acquire()
        assert (await session.delete()).status == 204
    assert all(task.result() == [] for task in listeners)
    await place.gateway.soon(lambda: place.gateway.metric("mcpmux_streams", kind="get") == 0)


async def test_the_answers_of_a_batch_can_be_resumed(place: Place, http: Http, ana: Who, tmp_path: Path) -> None:
    session = await Session.opened(http, f"{place.url}/mcp", ana, "2025-03-26")
    walk = Walk(tmp_path, 1)
    batch = [request("ping", None, "ping"), walk.message, calling("alpha__echo", {"text": "x"}, "echo")]
    async with session.streaming(batch) as events:
        assert (await events.message())["id"] == "ping"
        last = events.last
        await walk.gone_to(1)
        await lost(place, events)
    walk.let(1, "end")
    async with session.listening(last) as events:
        assert steps(await events.messages()) == [1, "walk", "echo"]


async def test_a_stream_that_never_was_cannot_be_resumed(session: Session, tmp_path: Path) -> None:
    """A call that has not become a stream has given nobody an event id: guessing one is no way to take it over."""
    gate = tmp_path / "gate"
    async with asyncio.TaskGroup() as tasks:
        calls = tasks.create_task(session.post(calling("alpha__slow", {"gate": str(gate)}, 5)))
        await until((tmp_path / "gate.entered").exists, "the call at its server")
        for number in range(1, 4):
            answer = await session.get(Accept="text/event-stream", Last_Event_ID=f"{number}-0")
            assert answer.status == 400 or b"id" not in answer.body
        gate.touch()
    assert b"is open" in calls.result().body
    assert error_of((await session.post(request("no/such"))).json)[0] == -32601
