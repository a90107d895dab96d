"""`faces/sse.py`: HTTP+SSE, the transport of revision 2024-11-05.

Source: MCP 2024-11-05 basic/transports, "HTTP with SSE"; design sections 2 and 8.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest

from tests.calls.upstream import until
from tests.faces.client import (
    REVISIONS,
    SESSION,
    Answer,
    Events,
    Json,
    OldSession,
    bearer,
    calling,
    error_of,
    failed,
    greeting,
    notification,
    old_session,
    read,
    request,
    said,
)
from tests.faces.conftest import Place, Who

Http = aiohttp.ClientSession


async def answers(old: OldSession, count: int) -> dict[object, Json]:
    """So many answers, by id; notifications are left out."""
    found: dict[object, Json] = {}
    while len(found) < count:
        message = await old.events.message()
        if "method" not in message:
            found[message["id"]] = message
    return found


async def post(http: Http, url: str, who: Mapping[str, str], message: object) -> Answer:
    """POST a message to any address."""
    async with http.post(url, json=message, headers=who) as answer:
        return await read(answer)


# The session --------------------------------------------------------------------------------------------------------


async def test_the_first_event_says_where_messages_go(place: Place, http: Http, ana: Who) -> None:
    seen = set()
    for under in ("", "/servers/alpha"):
        async with old_session(http, place.url, ana, under, revision=None) as old:
            parts = urlsplit(old.path)
            assert (parts.scheme, parts.netloc, parts.path) == ("", "", f"{under}/messages")
            (id_,) = parse_qs(parts.query)["session_id"]
            assert len(id_) >= 22  # 128 random bits in base64
            assert old.events.answer.headers["X-Request-Id"]
            assert old.events.answer.headers["Cache-Control"] == "no-store"
            assert SESSION not in old.events.answer.headers
            seen.add(id_)
    assert len(seen) == 2


@pytest.mark.parametrize("revision", ["2024-11-05", *REVISIONS])
async def test_messages_are_taken_with_202_and_answered_on_the_stream(
    revision: str, place: Place, http: Http, ana: Who
) -> None:
    async with old_session(http, place.url, ana, revision=None) as old:
        greeted = await old.ask("initialize", greeting(revision))
        assert greeted["result"]["protocolVersion"] == revision
        answer = await old.post(notification("notifications/initialized"))
        assert (answer.status, answer.body) == (202, b"")
        assert answer.headers["X-Request-Id"]
        assert said(await old.ask("tools/call", {"name": "alpha__echo", "arguments": {"text": "old"}})) == "old"
        assert (await old.ask("ping"))["result"] == {}


async def test_events_are_messages_without_an_id(place: Place, http: Http, ana: Who) -> None:
    """The old transport has no redelivery, so that an id would promise too much."""
    async with old_session(http, place.url, ana) as old:
        await old.post(request("ping"))
        event = await old.events.next()
    assert event is not None
    assert (event.kind, event.id, event.retry) == ("message", None, None)


async def test_the_endpoint_of_one_server_has_native_names(place: Place, http: Http, ana: Who, ben: Who) -> None:
    async with old_session(http, place.url, ben, "/servers/beta") as old:
        tools = (await old.ask("tools/list"))["result"]["tools"]
        assert "echo" in [tool["name"] for tool in tools]
        assert said(await old.ask("tools/call", {"name": "echo", "arguments": {"text": "native"}})) == "native"
    for server in ("beta", "off", "nobody"):
        async with http.get(f"{place.url}/servers/{server}/sse", headers=ana) as answer:
            assert answer.status == 403


async def test_progress_and_logs_come_before_the_answer(place: Place, http: Http, ana: Who) -> None:
    async with old_session(http, place.url, ana) as old:
        await old.post(calling("alpha__progress", {"steps": 3}, 8, "my token"))
        found = [await old.events.message() for _ in range(4)]
    assert [one["params"]["progress"] for one in found[:3]] == [1, 2, 3]  # type: ignore[index]
    assert {one["params"]["progressToken"] for one in found[:3]} == {"my token"}  # type: ignore[index]
    assert said(found[3]) == "3 steps"


async def test_changed_lists_and_updated_resources_come_on_the_same_stream(place: Place, http: Http, ana: Who) -> None:
    async with old_session(http, place.url, ana) as old:
        await old.ask("resources/subscribe", {"uri": "alpha+counter://value"})
        await old.post(calling("alpha__touch", {"uri": "counter://value"}, 1))
        await old.post(calling("alpha__offer", {"kind": "tools", "name": "seen"}, 2))
        wanted = {"notifications/resources/updated", "notifications/tools/list_changed", 1, 2}
        while wanted:
            message = await old.events.message()
            wanted.discard(message.get("method") or message["id"])  # type: ignore[arg-type]
        await old.post(calling("alpha__withdraw", {"kind": "tools", "name": "seen"}, 3))
        await answers(old, 1)


async def test_a_slow_call_keeps_no_other_answer_from_the_stream(
    place: Place, http: Http, ana: Who, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with old_session(http, place.url, ana) as old:
        await old.post(calling("alpha__slow", {"gate": str(gate)}, "slow"))
        await until((tmp_path / "gate.entered").exists, "the call at its server")
        assert (await old.ask("ping"))["result"] == {}
        await old.post(calling("alpha__echo", {"text": "twin"}, "slow"))
        assert error_of(await old.events.message())[0] == -32600, "an id in flight was taken a second time"
        gate.touch()
        assert said((await answers(old, 1))["slow"]).endswith("is open")


async def test_a_cancelled_call_gets_no_answer(place: Place, http: Http, ana: Who, tmp_path: Path) -> None:
    async with old_session(http, place.url, ana) as old:
        await old.post(calling("alpha__slow", {"gate": str(tmp_path / "gate")}, "slow"))
        await until((tmp_path / "gate.entered").exists, "the call at its server")
        await old.post(notification("notifications/cancelled", {"requestId": "slow"}))
        await until((tmp_path / "gate.cancelled").exists, "the cancellation")
        assert (await old.ask("ping"))["result"] == {}


# Its end ------------------------------------------------------------------------------------------------------------


async def test_when_the_stream_closes_calls_are_cancelled_and_the_session_is_gone(
    place: Place, http: Http, ana: Who, tmp_path: Path
) -> None:
    async with old_session(http, place.url, ana) as old:
        for number in range(3):
            await old.post(calling("alpha__slow", {"gate": str(tmp_path / f"gate{number}")}, number))
        for number in range(3):
            await until((tmp_path / f"gate{number}.entered").exists, "the call at its server")
    for number in range(3):
        await until((tmp_path / f"gate{number}.cancelled").exists, "the cancellation")
    await place.gateway.soon(lambda: place.gateway.metric("mcpmux_streams", kind="sse") == 0)
    assert (await old.post(request("ping"))).status == 404


async def test_a_client_that_is_cut_off_in_the_middle_of_a_flood_leaves_no_error(
    place: Place, http: Http, ana: Who
) -> None:
    for _ in range(5):
        async with old_session(http, place.url, ana) as old:
            for number in range(20):
                await old.post(calling("alpha__progress", {"steps": 100}, number, number))
            await old.events.next()
            old.events.answer.close()
    await place.gateway.soon(lambda: place.gateway.metric("mcpmux_streams", kind="sse") == 0)
    async with old_session(http, place.url, ana) as old:
        assert (await old.ask("ping"))["result"] == {}
    assert place.gateway.logged("request_failed") == []
    assert place.gateway.logged("call_failed") == []


# Who may use it -----------------------------------------------------------------------------------------------------


async def test_with_another_persons_token_a_session_does_not_exist(
    place: Place, http: Http, ana: Who, ben: Who, dan: Who
) -> None:
    async with old_session(http, place.url, ana) as old, old_session(http, place.url, ana, "/servers/alpha") as narrow:
        unknown = f"{place.url}/messages?session_id=never-was-one"
        asked = [
            (ben, place.url + old.path), (dan, place.url + old.path), (ana, unknown), (ana, f"{place.url}/messages"),
            (ana, f"{place.url}/messages?session_id="), (ana, place.url + narrow.path.replace("/servers/alpha", "")),
            (ana, place.url + old.path.replace("/messages", "/servers/alpha/messages")),
            (ana, place.url + old.path[:-1]),
        ]  # fmt: skip
        seen = set()
        for who, url in asked:
            answer = await post(http, url, who, calling("alpha__count", {}, 1))
            seen.add((answer.status, answer.body))
        assert len(seen) == 1, seen
        assert seen.pop()[0] == 404
        assert (await old.ask("ping"))["result"] == {}, "something of them reached her stream"
    for who in ({}, {"Authorization": "Bearer nonsense"}):
        assert (await post(http, place.url + old.path, who, request("ping"))).status == 401


async def test_sessions_of_the_two_transports_are_not_each_others(place: Place, http: Http, ana: Who) -> None:
    async with old_session(http, place.url, ana) as old:
        (id_,) = parse_qs(urlsplit(old.path).query)["session_id"]
        headers = {**ana, SESSION: id_, "Accept": "*/*"}
        assert (await post(http, f"{place.url}/mcp", headers, calling("alpha__echo", {"text": "x"}))).status == 404
        async with http.delete(f"{place.url}/mcp", headers=headers) as answer:
            assert answer.status == 404
    async with http.post(
        f"{place.url}/mcp", json=request("initialize", greeting()), headers={**ana, "Accept": "*/*"}
    ) as made:
        new = made.headers[SESSION]
    answer = await post(http, f"{place.url}/messages?session_id={new}", ana, request("ping"))
    assert answer.status == 404


# Order and form -----------------------------------------------------------------------------------------------------


async def test_before_initialize_only_ping_is_answered(place: Place, http: Http, ana: Who) -> None:
    async with old_session(http, place.url, ana, revision=None) as old:
        for method, params in (("tools/list", {}), ("tools/call", {"name": "alpha__count"}), ("no/such", None)):
            assert error_of(await old.ask(method, params)) == (-32600, "Invalid request: send initialize first")
        assert (await old.ask("ping"))["result"] == {}
        assert "result" in await old.ask("initialize", greeting("2024-11-05"))
        assert error_of(await old.ask("initialize", greeting("2024-11-05")))[0] == -32600
        assert "result" in await old.ask("tools/list")


@pytest.mark.parametrize("params", [{}, {"protocolVersion": 5}, {"protocolVersion": "2024-11-05", "capabilities": []}])
async def test_a_broken_initialize_is_refused_and_may_be_tried_again(
    params: Json, place: Place, http: Http, ana: Who
) -> None:
    async with old_session(http, place.url, ana, revision=None) as old:
        assert error_of(await old.ask("initialize", params))[0] == -32602
        assert "result" in await old.ask("initialize", greeting("2024-11-05"))


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, -32700),
        (b"", 400, -32700),
        (b'{"jsonrpc":"2.0"}', 400, -32600),
        (b'"text"', 400, -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","id":2}', 400, -32700),
        (b'{"jsonrpc":"2.0","id":{},"method":"ping"}', 400, -32600),
        (b"[" * 50_000, 400, -32700),
    ],
)
async def test_what_is_no_message_is_refused_at_once_and_the_stream_lives_on(
    body: bytes, status: int, code: int, place: Place, http: Http, ana: Who
) -> None:
    async with old_session(http, place.url, ana) as old:
        answer = await old.post(body)
        assert (answer.status, answer.code) == (status, code)
        assert (await old.ask("ping"))["result"] == {}


async def test_forms_that_are_refused(place: Place, http: Http, ana: Who) -> None:
    async with old_session(http, place.url, ana) as old:
        assert (await old.post(request("ping"), Content_Type="text/plain")).status == 415
        assert (await old.post(request("ping"), Content_Encoding="gzip")).status == 415
        big = json.dumps(calling("alpha__echo", {"text": "x" * (4 << 20)})).encode()
        assert (await old.post(big)).status == 413
        assert (await old.ask("ping"))["result"] == {}
    async with http.get(f"{place.url}/sse", headers={**ana, "Accept": "application/json"}) as answer:
        assert answer.status == 406
    for method, path, allowed in (("POST", "/sse", "GET"), ("GET", "/messages", "POST"), ("DELETE", "/sse", "GET")):
        async with http.request(method, place.url + path, headers=ana) as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, allowed)


async def test_errors_of_calls_come_on_the_stream(place: Place, http: Http, ana: Who) -> None:
    async with old_session(http, place.url, ana) as old:
        refused = await old.ask("tools/call", {"name": "beta__echo", "arguments": {"text": "x"}})
        assert error_of(refused) == (-32602, "Unknown tool: beta__echo")
        assert error_of(await old.ask("no/such/method"))[0] == -32601
        assert failed(await old.ask("tools/call", {"name": "alpha__fail", "arguments": {}}))


async def test_a_stream_whose_token_expires_ends_and_its_session_with_it(place: Place, http: Http) -> None:
    brief = bearer(place.gateway, "brief@example.com", "MCP-Alpha", ttl=2)
    async with old_session(http, place.url, brief) as old:
        # Other tests change what there is to list; nothing else is said, and then the stream ends.
        said = [event.data for event in await Events(old.events.answer).rest() if event.data]
        assert all("list_changed" in data for data in said)
    lasting = bearer(place.gateway, "brief@example.com", "MCP-Alpha")
    assert (await post(http, place.url + old.path, lasting, request("ping"))).status == 404
