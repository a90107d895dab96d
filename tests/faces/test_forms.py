"""The forms of requests to a Streamable HTTP endpoint, what is answered to wrong ones, and what every answer carries.

Source: MCP basic/transports of 2025-03-26 to 2025-11-25.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from tests.faces.client import (
    ACCEPT,
    REVISIONS,
    WAIT,
    Events,
    Session,
    calling,
    error_of,
    notification,
    read,
    request,
)
from tests.faces.conftest import Place, Who

Http = aiohttp.ClientSession
each_revision = pytest.mark.parametrize("revision", REVISIONS)


@pytest.fixture
async def session(place: Place, http: Http, ana: Who) -> Session:
    """One of ana's, at the newest revision."""
    return await Session.opened(http, f"{place.url}/mcp", ana)


# Forms of a request -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["PUT", "PATCH", "HEAD", "TRACE", "PROPFIND"])
async def test_another_http_method_is_405_and_says_which_there_are(method: str, session: Session) -> None:
    async with session.http.request(method, session.url, headers=session.headers) as answer:
        assert answer.status == 405
        assert answer.headers["Allow"] == "POST, GET, DELETE"


@pytest.mark.parametrize(
    "accept",
    ["application/json", "text/event-stream", "text/html", "application/json;q=0, text/event-stream", "a/b;;;"],
)
async def test_a_client_that_does_not_take_both_forms_is_406(accept: str, session: Session) -> None:
    answer = await session.post(request("ping"), Accept=accept)
    assert (answer.status, answer.code) == (406, -32000)


@pytest.mark.parametrize("accept", ["*/*", "application/*, text/*", "TEXT/EVENT-STREAM, Application/Json;q=0.1"])
async def test_ranges_and_case_of_accept_are_understood(accept: str, session: Session) -> None:
    assert (await session.post(request("ping"), Accept=accept)).status == 200


@pytest.mark.parametrize("accept", ["application/json", "text/html", "text/event-stream;q=0"])
async def test_a_get_that_does_not_take_events_is_406(accept: str, session: Session) -> None:
    assert (await session.get(Accept=accept)).status == 406


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "", "application/json; charset=utf-16", "application/jsonx"],
)
async def test_a_body_that_does_not_say_json_is_415(kind: str, session: Session) -> None:
    assert (await session.post(request("ping"), Content_Type=kind)).status == 415


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
async def test_the_ways_to_say_json_are_understood(kind: str, session: Session) -> None:
    assert (await session.post(request("ping"), Content_Type=kind)).status == 200


@pytest.mark.parametrize(
    "header", ["1.0", "2025-13-45", "2026-07-29", "9999-12-31", "", "2025-06-18, 2025-03-26", "x" * 500]
)
async def test_an_unknown_protocol_version_is_400(header: str, session: Session) -> None:
    versioned = {"MCP_Protocol_Version": header}
    for answer in (await session.post(request("ping"), **versioned), await session.get(**versioned),
                   await session.post(notification("notifications/initialized"), **versioned),
                   await session.delete(**versioned)):  # fmt: skip
        assert (answer.status, answer.code) == (400, -32600)
        assert "protocol version" in str(answer.error["message"])
    assert len(answer.body) < 400


@each_revision
async def test_no_protocol_version_at_all_is_fine(revision: str, place: Place, http: Http, ana: Who) -> None:
    session = await Session.opened(http, f"{place.url}/mcp", ana, revision)
    session.headers.pop("MCP-Protocol-Version", None)
    assert (await session.ask("ping"))["result"] == {}


# Bodies over the limit ----------------------------------------------------------------------------------------------


async def test_a_body_over_the_limit_is_413_when_it_says_so_and_when_it_does_not(session: Session) -> None:
    big = json.dumps(calling("alpha__echo", {"text": "x" * (4 << 20)})).encode()

    async def chunks():
        for start in range(0, len(big), 1 << 16):
            yield big[start : start + (1 << 16)]

    headers = {**session.headers, "Content-Type": "application/json"}
    for data in (big, chunks()):
        async with session.http.post(session.url, data=data, headers=headers) as answer:
            found = await read(answer)
        assert (found.status, found.code) == (413, -32000)
        assert "4194304" in str(found.error["message"])
    assert await session.call("alpha__echo", text="after") == "after"


async def test_a_body_just_below_the_limit_passes(session: Session) -> None:
    text = "x" * ((4 << 20) - 1000)
    assert len(await session.call("alpha__echo", text=text)) == len(text)


# On every answer ----------------------------------------------------------------------------------------------------


async def test_every_answer_has_a_request_id_of_its_own_and_may_not_be_stored(
    place: Place, session: Session, ana: Who
) -> None:
    answers = [
        await session.post(request("ping")), await session.post(request("no/such")), await session.post(b"{"),
        await session.post(notification("notifications/initialized")), await session.get(Accept="text/html"),
        await Session(session.http, place.url + "/nowhere", {}).get(),
        await Session(session.http, session.url, {}).get(),
        await Session(session.http, place.url + "/servers/beta/mcp", {**ACCEPT, **ana}).post(request("ping")),
        await Session(session.http, session.url, {"Origin": "https://evil.example"}).get(), await session.delete(),
    ]  # fmt: skip
    ids = [answer.headers["X-Request-Id"] for answer in answers]
    assert len(set(ids)) == len(answers)
    assert all(answer.headers["Cache-Control"] == "no-store" for answer in answers)
    assert {answer.status for answer in answers} == {200, 202, 204, 400, 401, 403, 404, 406}


async def test_the_request_id_leads_to_the_log_line_of_the_call(place: Place, session: Session) -> None:
    answer = await session.post(calling("alpha__echo", {"text": "x"}))
    await place.gateway.soon(
        lambda: place.gateway.logged("call_finished", request_id=answer.headers["X-Request-Id"], tool="echo")
    )


async def test_an_unknown_method_is_answered_in_the_session(session: Session) -> None:
    answer = await session.post(request("no/such/method", {}, 4))
    assert (answer.status, error_of(answer.json)) == (200, (-32601, "Method not found: no/such/method"))


async def test_a_client_that_hangs_up_before_its_answer_leaves_no_trace_of_an_error(
    place: Place, session: Session, tmp_path: Path
) -> None:
    for number in range(10):
        gate = tmp_path / f"gate{number}"
        async with session.streaming(calling("alpha__progress", {"steps": 50, "gate": str(gate)}, number, 1)) as events:
            await Events(events.answer).next()
            gate.touch()
            events.answer.close()
    async with asyncio.timeout(WAIT):
        assert await session.call("alpha__echo", text="after") == "after"
    await place.gateway.soon(lambda: place.gateway.metric("mcpmux_streams", kind="reply") == 0)
    assert place.gateway.logged("request_failed") == []
    assert place.gateway.logged("connection_failed") == []


async def test_the_chat_that_open_webui_names_is_in_the_log_of_the_call_and_cut(place: Place, session: Session) -> None:
    """It proves nothing and decides nothing; a header may be 32 kB long, and a log line should not."""
    for chat, logged in (("8f2c-chat", "8f2c-chat"), ("x" * 20_000, "x" * 64)):
        answer = await session.post(calling("alpha__echo", {"text": "x"}), X_OpenWebUI_Chat_Id=chat)
        asked = answer.headers["X-Request-Id"]
        await place.gateway.soon(lambda asked=asked: place.gateway.logged("call_finished", request_id=asked))
        assert place.gateway.logged("call_finished", request_id=asked)[0]["chat"] == logged
