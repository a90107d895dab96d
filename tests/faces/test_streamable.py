"""`faces/streamable.py`: POST, GET and DELETE of an endpoint, as the three revisions of Streamable HTTP have them.

Source of what is expected: MCP basic/transports and basic/lifecycle of 2025-03-26, 2025-06-18 and 2025-11-25.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from tests.calls.upstream import params, until
from tests.faces.client import (
    ACCEPT,
    NEWEST,
    REVISIONS,
    SESSION,
    Session,
    calling,
    greeting,
    notification,
    read,
    request,
    said,
)
from tests.faces.conftest import Place, Who

Http = aiohttp.ClientSession
each_revision = pytest.mark.parametrize("revision", REVISIONS)


@pytest.fixture
async def session(place: Place, http: Http, ana: Who) -> Session:
    """One of ana's, at the newest revision."""
    return await Session.opened(http, f"{place.url}/mcp", ana)


# The handshake ------------------------------------------------------------------------------------------------------


@each_revision
async def test_initialize_agrees_on_the_revision_and_gives_a_session(
    revision: str, place: Place, http: Http, ana: Who
) -> None:
    session = await Session.opened(http, f"{place.url}/mcp", ana, revision)
    assert session.greeted["protocolVersion"] == revision
    assert len(session.id) >= 22  # 128 bits in base64
    assert session.id.isascii() and session.id.isprintable()
    assert await session.call("alpha__echo", text="hello") == "hello"


@pytest.mark.parametrize("asked", ["2023-01-01", "2099-12-31", "2026-07-28", ""])
async def test_a_client_that_asks_for_another_revision_is_offered_the_newest(
    asked: str, place: Place, http: Http, ana: Who
) -> None:
    headers = {**ACCEPT, **ana}
    async with http.post(f"{place.url}/mcp", json=request("initialize", greeting(asked)), headers=headers) as answer:
        assert (await read(answer)).json["result"]["protocolVersion"] == NEWEST


async def test_every_session_has_an_id_of_its_own_whatever_the_client_proposes(
    place: Place, http: Http, ana: Who
) -> None:
    ids = set()
    for _ in range(5):
        headers = {**ACCEPT, **ana, SESSION: "chosen-by-the-client"}
        async with http.post(f"{place.url}/mcp", json=request("initialize", greeting()), headers=headers) as answer:
            ids.add((await read(answer)).headers[SESSION])
    assert len(ids) == 5
    assert "chosen-by-the-client" not in ids


async def test_the_endpoint_of_one_server_greets_as_that_server(place: Place, http: Http, ana: Who) -> None:
    session = await Session.opened(http, f"{place.url}/servers/alpha/mcp", ana)
    assert session.greeted["serverInfo"]["name"] == "alpha"
    assert session.greeted["instructions"] == "alpha counts."
    assert await session.call("echo", text="native") == "native"
    aggregate = await Session.opened(http, f"{place.url}/mcp", ana)
    assert aggregate.greeted["serverInfo"]["name"] == "mcpmux"
    assert "alpha" in aggregate.greeted["instructions"]
    assert "beta" not in aggregate.greeted["instructions"]


async def test_initialize_inside_a_session_begins_another_and_leaves_it_alone(session: Session) -> None:
    answer = await session.post(request("initialize", greeting(), 9))
    assert (answer.status, answer.headers[SESSION] != session.id) == (200, True)
    assert await session.call("alpha__echo", text="still here") == "still here"


# What an answer looks like ------------------------------------------------------------------------------------------


@each_revision
async def test_an_answer_without_anything_to_stream_is_json(revision: str, place: Place, http: Http, ana: Who) -> None:
    session = await Session.opened(http, f"{place.url}/mcp", ana, revision)
    for id_ in (7, "seven", 0, -3, "", "ü" * 256):
        answer = await session.post(calling("alpha__echo", {"text": "x"}, id_))
        assert answer.status == 200
        assert answer.json["id"] == id_
        assert type(answer.json["id"]) is type(id_)


@each_revision
@pytest.mark.parametrize("token", [7, "seven", "0"])
async def test_progress_turns_the_answer_into_an_event_stream(
    revision: str, token: object, place: Place, http: Http, ana: Who
) -> None:
    session = await Session.opened(http, f"{place.url}/mcp", ana, revision)
    async with session.streaming(calling("alpha__progress", {"steps": 3}, 5, token)) as events:
        assert events.answer.headers["X-Request-Id"]
        assert "no-store" in events.answer.headers["Cache-Control"]
        first = await events.next()
        assert first is not None and first.id
        if revision == NEWEST:
            assert (first.data, first.retry is not None and first.retry > 0) == ("", True)
            found = await events.messages()
        else:
            assert first.data != ""  # older SDKs choke on an event without data
            found = [first.json, *await events.messages()]
    steps = [one["params"] for one in found[:-1]]
    assert steps == [{"progressToken": token, "progress": n, "total": 3, "message": f"step {n}"} for n in (1, 2, 3)]
    assert all(type(step["progressToken"]) is type(token) for step in steps)
    assert (found[-1]["id"], said(found[-1])) == (5, "3 steps")


async def test_without_a_progress_token_nothing_is_streamed(session: Session) -> None:
    assert said((await session.post(calling("alpha__progress", {"steps": 3}))).json) == "3 steps"


@each_revision
async def test_every_event_has_an_id_of_its_own(revision: str, place: Place, http: Http, ana: Who) -> None:
    session = await Session.opened(http, f"{place.url}/mcp", ana, revision)
    ids: list[str | None] = []
    for _ in range(2):
        async with session.streaming(calling("alpha__progress", {"steps": 4}, 5, 1)) as events:
            ids += [event.id for event in await events.rest()]
    assert None not in ids
    assert len(set(ids)) == len(ids)


async def test_log_messages_of_a_call_come_on_its_own_stream(place: Place, http: Http, ben: Who) -> None:
    """Nobody else has ever called beta, so that the messages are ben's for certain (design, section 3)."""
    session = await Session.opened(http, f"{place.url}/mcp", ben)
    async with session.streaming(calling("beta__log", {"level": "warning", "text": "careful", "times": 2})) as events:
        found = await events.messages()
    assert [one.get("method") for one in found] == ["notifications/message"] * 2 + [None]
    assert found[0]["params"] == {"level": "warning", "logger": "counter", "data": {"text": "careful", "number": 0}}


async def test_a_call_that_is_quiet_for_a_second_becomes_a_stream_that_can_be_resumed(
    session: Session, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with session.streaming(calling("alpha__slow", {"gate": str(gate)}, 5)) as events:
        primed = await events.next()
        assert primed is not None and (primed.data, bool(primed.id)) == ("", True)
        gate.touch()
        found = await events.messages()
    assert [one["id"] for one in found] == [5]
    assert said(found[0]).endswith("is open")


async def test_a_result_that_a_server_wrote_over_many_lines_is_one_event(place: Place, session: Session) -> None:
    """Server-sent events are framed by lines, and a result travels as the bytes it came in."""
    async with session.streaming(calling("alpha__pretty", {}, 5, 1)) as events:
        found = await events.messages()
    assert [one.get("id") for one in found] == [None, 5]
    assert said(found[1]) == "line one\nline two"


# What has no answer -------------------------------------------------------------------------------------------------


@each_revision
@pytest.mark.parametrize(
    "message",
    [
        notification("notifications/initialized"),
        notification("notifications/roots/list_changed"),
        notification("notifications/progress", {"progressToken": 1, "progress": 1}),
        notification("notifications/cancelled", {"requestId": "never-sent", "reason": "no"}),
        notification("notifications/nobody/knows", {"a": 1}),
        notification("tools/call", {"name": "alpha__count", "arguments": {}}),
        {"jsonrpc": "2.0", "id": 3, "result": {}},
        {"jsonrpc": "2.0", "id": "x", "error": {"code": -1, "message": "no"}},
    ],
    ids=lambda message: str(message.get("method") or sorted(message)),
)
async def test_notifications_and_responses_are_accepted_without_a_body(
    revision: str, message: dict[str, object], place: Place, http: Http, ana: Who
) -> None:
    session = await Session.opened(http, f"{place.url}/mcp", ana, revision)
    answer = await session.post(message)
    assert (answer.status, answer.body) == (202, b"")
    assert answer.headers["X-Request-Id"]
    assert place.alpha.tools("count") == []


async def test_a_cancelled_call_is_told_upstream_by_its_own_id_there_and_gets_no_answer(
    session: Session, place: Place, tmp_path: Path
) -> None:
    async with asyncio.TaskGroup() as tasks:
        calls = tasks.create_task(session.post(calling("alpha__slow", {"gate": str(tmp_path / "gate")}, "mine")))
        await until((tmp_path / "gate.entered").exists, "the call at its server")
        cancel = notification("notifications/cancelled", {"requestId": "mine", "reason": "changed my mind"})
        assert (await session.post(cancel)).status == 202
        await until((tmp_path / "gate.cancelled").exists, "the cancellation at the server")
    answer = calls.result()
    # A request gets JSON or an event stream, never 202: this stream says nothing.
    assert (answer.status, answer.headers["Content-Type"], answer.body) == (200, "text/event-stream", b"")
    upstream = [
        one["id"] for one in place.alpha.tools("slow") if params(one)["arguments"] == {"gate": str(tmp_path / "gate")}
    ]
    told = [params(one) for one in place.alpha.heard("notifications/cancelled")]
    assert {"requestId": upstream[0], "reason": "changed my mind"} in told


async def test_ids_of_calls_to_cancel_are_typed_and_each_sessions_own(
    session: Session, place: Place, http: Http, ana: Who, tmp_path: Path
) -> None:
    other = await Session.opened(http, f"{place.url}/mcp", ana)
    gate = tmp_path / "gate"
    async with asyncio.TaskGroup() as tasks:
        calls = tasks.create_task(session.post(calling("alpha__slow", {"gate": str(gate)}, 1), Accept="*/*"))
        await until((tmp_path / "gate.entered").exists, "the call at its server")
        for asking, wrong in ((session, "1"), (session, 1.5), (session, None), (session, [1]), (other, 1)):
            assert (await asking.post(notification("notifications/cancelled", {"requestId": wrong}))).status == 202
        assert await session.call("alpha__echo", text="after them") == "after them"
        gate.touch()
    assert not (tmp_path / "gate.cancelled").exists()
    assert b"is open" in calls.result().body


async def test_a_request_id_may_be_used_again_once_it_has_its_answer_and_not_before(
    session: Session, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with asyncio.TaskGroup() as tasks:
        calls = tasks.create_task(session.post(calling("alpha__slow", {"gate": str(gate)}, 1)))
        await until((tmp_path / "gate.entered").exists, "the call at its server")
        twin = await session.post(calling("alpha__echo", {"text": "twin"}, 1))
        assert (twin.status, twin.code, twin.json["id"]) == (400, -32600, 1)
        assert said((await session.post(calling("alpha__echo", {"text": "typed"}, "1"))).json) == "typed"
        gate.touch()
    assert b"is open" in calls.result().body
    assert said((await session.post(calling("alpha__echo", {"text": "again"}, 1))).json) == "again"


# Sessions that are not there ----------------------------------------------------------------------------------------


async def test_without_a_session_id_nothing_but_initialize_is_served(session: Session) -> None:
    bare = Session(session.http, session.url, {key: value for key, value in session.headers.items() if key != SESSION})
    for answer in (await bare.post(request("tools/list")), await bare.post(notification("notifications/initialized")),
                   await bare.get(Accept="text/event-stream"), await bare.delete()):  # fmt: skip
        assert (answer.status, answer.code) == (400, -32600)
        assert SESSION in str(answer.error["message"])


async def test_unknown_ended_and_foreign_sessions_are_the_same_404(
    place: Place, http: Http, ana: Who, ben: Who, dan: Who
) -> None:
    hers = await Session.opened(http, f"{place.url}/mcp", ana)
    ended = await Session.opened(http, f"{place.url}/mcp", ana)
    assert (await ended.delete()).status == 204
    narrow = await Session.opened(http, f"{place.url}/servers/alpha/mcp", ana)
    url, everywhere = f"{place.url}/mcp", f"{place.url}/servers/alpha/mcp"
    presented = [
        (ana, url, "never-was-one"), (ana, url, ended.id), (ben, url, hers.id), (dan, url, hers.id),
        (ana, everywhere, hers.id), (ana, url, narrow.id), (ana, url, hers.id[:-1]), (ana, url, hers.id.swapcase()),
        (ana, url, "x" * 10_000),
    ]  # fmt: skip
    seen = set()
    for who, where, id_ in presented:
        stranger = Session(http, where, {**ACCEPT, **who, SESSION: id_})
        for answer in (await stranger.post(request("ping")), await stranger.get(Accept="text/event-stream"),
                       await stranger.delete()):  # fmt: skip
            seen.add((answer.status, answer.body, answer.headers["Content-Type"]))
    assert len(seen) == 1, seen
    assert seen.pop()[0] == 404
    assert await hers.call("alpha__echo", text="unharmed") == "unharmed"
    assert await narrow.call("echo", text="unharmed") == "unharmed"


async def test_the_end_of_a_session_ends_its_calls_upstream_and_its_streams(session: Session, tmp_path: Path) -> None:
    async with session.listening() as events, asyncio.TaskGroup() as tasks:
        calls = tasks.create_task(session.post(calling("alpha__slow", {"gate": str(tmp_path / "gate")})))
        await until((tmp_path / "gate.entered").exists, "the call at its server")
        answer = await session.delete()
        assert (answer.status, answer.body) == (204, b"")
        await until((tmp_path / "gate.cancelled").exists, "the cancellation at the server")
        assert [event for event in await events.rest() if event.data] == []
    assert (calls.result().status, calls.result().body) == (200, b"")
    assert (await session.post(request("ping"))).status == 404
