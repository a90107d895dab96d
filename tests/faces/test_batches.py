"""JSON-RPC batches: revision 2025-03-26 alone, each entry decided on singly, bounded in number.

Source: MCP 2025-03-26 basic/transports, "Sending Messages to the Server"; JSON-RPC 2.0 section 6; attack 71.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from tests.calls.upstream import params, until
from tests.faces.client import (
    Json,
    Session,
    calling,
    error_of,
    failed,
    greeting,
    notification,
    old_session,
    request,
    said,
)
from tests.faces.conftest import Place, Who

Http = aiohttp.ClientSession


@pytest.fixture
async def session(place: Place, http: Http, ana: Who) -> Session:
    """One of ana's at the only revision that has batches; she has alpha, not beta."""
    return await Session.opened(http, f"{place.url}/mcp", ana, "2025-03-26")


async def answers(session: Session, batch: object) -> dict[object, Json]:
    """The answers to a batch by id, which come as one event stream; those without an id under None."""
    async with session.streaming(batch) as events:
        found = [one for one in await events.messages() if "method" not in one]
    by_id = {one["id"]: one for one in found}
    assert len(by_id) == len(found), found
    return by_id


async def test_each_entry_of_a_batch_gets_its_own_answer(session: Session) -> None:
    batch = [
        calling("alpha__echo", {"text": "one"}, 1), request("ping", None, "two"), request("tools/list", {}, 3),
        calling("alpha__fail", {}, 4),
    ]  # fmt: skip
    found = await answers(session, batch)
    assert sorted(map(str, found)) == ["1", "3", "4", "two"]
    assert said(found[1]) == "one"
    assert found["two"]["result"] == {}
    assert "alpha__echo" in str(found[3])
    assert failed(found[4])


async def test_each_entry_is_decided_on_singly(session: Session, place: Place) -> None:
    """A forbidden call gains nothing from allowed neighbours, and costs them nothing."""
    before = len(place.beta.heard("tools/call"))
    batch = [
        calling("alpha__echo", {"text": "mine"}, 1), calling("beta__count", {}, 2),
        calling("alpha__echo", {"text": "too"}, 3),
        calling("off__count", {}, 4), request("resources/read", {"uri": "beta+counter://value"}, 5),
    ]  # fmt: skip
    found = await answers(session, batch)
    assert (said(found[1]), said(found[3])) == ("mine", "too")
    assert error_of(found[2]) == (-32602, "Unknown tool: beta__count")
    assert error_of(found[4]) == (-32602, "Unknown tool: off__count")
    assert error_of(found[5]) == (-32002, "Resource not found: beta+counter://value")
    assert len(place.beta.heard("tools/call")) == before


async def test_bad_entries_are_refused_in_their_places_and_the_good_ones_served(session: Session) -> None:
    batch = [
        calling("alpha__echo", {"text": "good"}, 1), [request("ping", None, 2)], 42, "text", None, {},
        {"jsonrpc": "1.0"},
        {"jsonrpc": "2.0", "id": 7, "method": 5}, {"jsonrpc": "2.0", "id": None, "method": "ping"},
        request("no/such/method", {}, 9), request("initialize", greeting(), 10),
    ]  # fmt: skip
    async with session.streaming(batch) as events:
        found = await events.messages()
    assert said(next(one for one in found if one["id"] == 1)) == "good"
    codes = sorted((str(one["id"]), one["error"]["code"]) for one in found if "error" in one)  # type: ignore[index]
    assert codes == sorted([("None", -32600)] * 7 + [("7", -32600), ("9", -32601), ("10", -32600)])
    assert not any(one["id"] == 2 for one in found), "an entry of a batch inside a batch was served"


async def test_an_id_that_stands_twice_is_served_once(session: Session) -> None:
    async with session.streaming([calling("alpha__echo", {"text": word}, 1) for word in ("a", "b")]) as events:
        found = await events.messages()
    assert [one["id"] for one in found] == [1, 1]
    results = [said(one) for one in found if "result" in one]
    refusals = [error_of(one)[0] for one in found if "error" in one]
    assert (results, refusals) == (["a"], [-32600])


async def test_notifications_in_a_batch_have_no_answer_and_take_effect(session: Session, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with asyncio.TaskGroup() as tasks:
        calls = tasks.create_task(session.post(calling("alpha__slow", {"gate": str(gate)}, "slow")))
        await until((tmp_path / "gate.entered").exists, "the call at its server")
        cancel = notification("notifications/cancelled", {"requestId": "slow"})
        found = await answers(session, [cancel, request("ping", None, 1), notification("notifications/initialized")])
        await until((tmp_path / "gate.cancelled").exists, "the cancellation")
    assert list(found) == [1]
    assert (calls.result().status, calls.result().body) == (200, b"")


async def test_a_batch_without_any_request_is_accepted_without_a_body(session: Session) -> None:
    batch = [notification("notifications/initialized"), {"jsonrpc": "2.0", "id": 1, "result": {}}]
    answer = await session.post(batch)
    assert (answer.status, answer.body) == (202, b"")


@pytest.mark.parametrize("count", [0, 65, 30_000])
async def test_a_batch_of_none_or_of_too_many_is_refused_as_a_whole(count: int, session: Session, place: Place) -> None:
    before = len(place.alpha.tools("count"))
    answer = await session.post([calling("alpha__count", {}, n) for n in range(count)])
    assert (answer.status, answer.code, "id" in answer.json) == (400, -32600, False)
    assert len(place.alpha.tools("count")) == before


async def test_sixty_four_are_not_too_many(session: Session) -> None:
    found = await answers(session, [calling("alpha__echo", {"text": str(n)}, n) for n in range(64)])
    assert {id_: said(one) for id_, one in found.items()} == {n: str(n) for n in range(64)}


async def test_progress_of_every_call_of_a_batch_arrives_before_its_answer(session: Session) -> None:
    batch = [calling("alpha__progress", {"steps": 2}, id_, f"token {id_}") for id_ in (1, 2)]
    async with session.streaming(batch) as events:
        found = await events.messages()
    for id_ in (1, 2):
        mine = [one for one in found if one.get("id") == id_ or params(one).get("progressToken") == f"token {id_}"]
        assert ["method" in one for one in mine] == [True, True, False]


@pytest.mark.parametrize("revision", ["2025-06-18", "2025-11-25"])
@pytest.mark.parametrize("batch", [[request("ping")], [notification("notifications/initialized")], []])
async def test_later_revisions_have_no_batches(
    batch: list[Json], revision: str, place: Place, http: Http, ana: Who
) -> None:
    session = await Session.opened(http, f"{place.url}/mcp", ana, revision)
    answer = await session.post(batch)
    assert (answer.status, answer.code, "id" in answer.json) == (400, -32600, False)


async def test_a_batch_is_no_way_around_the_handshake(place: Place, http: Http, ana: Who) -> None:
    bare = Session(http, f"{place.url}/mcp", {"Accept": "*/*", **ana})
    for batch in (
        [request("initialize", greeting())],
        [request("initialize", greeting()), request("tools/list", {}, 2)],
    ):
        assert (await bare.post(batch)).status == 400
    async with old_session(http, place.url, ana, revision=None) as old:
        assert (await old.post([calling("alpha__count", {}, 1), request("tools/list", {}, 2)])).status == 400


async def test_the_old_transport_takes_batches_too(place: Place, http: Http, ana: Who) -> None:
    async with old_session(http, place.url, ana, revision="2025-03-26") as old:
        assert (await old.post([])).status == 400
        assert (await old.post([request("ping", None, 1), calling("beta__count", {}, 2), [], 5])).status == 202
        found = [await old.events.message() for _ in range(4)]
    assert sorted((str(one["id"]), "result" in one) for one in found) == [
        ("1", True), ("2", False), ("None", False), ("None", False),
    ]  # fmt: skip


@pytest.mark.parametrize("revision", ["2024-11-05", "2025-06-18"])
async def test_the_old_transport_has_none_in_any_other_revision(
    revision: str, place: Place, http: Http, ana: Who
) -> None:
    async with old_session(http, place.url, ana, revision=revision) as old:
        answer = await old.post([request("ping", None, 1)])
        assert (answer.status, answer.code) == (400, -32600)
