"""Wrong input of every kind: it gets the error that the specification names, leaves a log line, and harms nobody else.

Issue 3 item 8; attacks 55, 56, 70, 72 and 73. Around every test another person's call is in flight.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.calls.upstream import params, until
from tests.faces.client import NEWEST, Answer, Session, calling, error_of, failed, greeting, request, said
from tests.faces.conftest import Place, Who
from tests.schemas.watched import watching

Http = aiohttp.ClientSession
PARSE, INVALID, UNKNOWN, PARAMS = -32700, -32600, -32601, -32602


@pytest.fixture
async def session(place: Place, http: Http, ana: Who) -> Session:
    """One of ana's."""
    return await Session.opened(http, f"{place.url}/mcp", ana)


@pytest.fixture(autouse=True)
async def unharmed(place: Place, ben: Who, tmp_path: Path) -> AsyncIterator[None]:
    """While the test runs a call of ben's is in flight; afterwards it ends well."""
    gate = tmp_path / "bens.gate"
    async with watching() as http, asyncio.TaskGroup() as tasks:
        his = await Session.opened(http, f"{place.url}/mcp", ben)
        calls = tasks.create_task(his.ask("tools/call", {"name": "alpha__slow", "arguments": {"gate": str(gate)}}))
        await until((tmp_path / "bens.gate.entered").exists, "ben's call at its server")
        yield
        assert not calls.done()
        gate.touch()
        assert said(await calls) == f"{gate} is open"
        assert (await his.delete()).status == 204


async def refused(place: Place, answer: Answer, status: int, code: int, id_: object = None) -> None:
    """The answer is this error, and the log has a line of it without what was sent."""
    assert (answer.status, answer.code) == (status, code), answer
    assert answer.json.get("id", "none") == ("none" if id_ is None else id_), answer
    asked = answer.headers["X-Request-Id"]
    events = ("request_refused", "message_refused", "call_refused", "call_finished")
    await place.gateway.soon(lambda: [line for name in events for line in place.gateway.logged(name, request_id=asked)])
    assert place.gateway.logged("request_failed", request_id=asked) == []
    assert place.gateway.logged("call_failed", request_id=asked) == []


# What is no JSON ----------------------------------------------------------------------------------------------------

BROKEN = {
    "nothing": b"", "white space": b" \r\n\t ", "half a message": b'{"jsonrpc":"2.0","id":1,"method":"ping"',
    "two messages": b'{"jsonrpc":"2.0","id":1,"method":"ping"}{"jsonrpc":"2.0","id":2,"method":"ping"}',
    "a comma too many": b'{"jsonrpc":"2.0","id":1,"method":"ping",}', "a comment": b'{"jsonrpc":"2.0",/**/"id":1}',
    "single quotes": b"{'jsonrpc':'2.0'}", "NaN": b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":NaN}}',
    "Infinity": b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":-Infinity}}',
    "a leading zero": b'{"jsonrpc":"2.0","id":01,"method":"ping"}',
    "a NUL": b'{"jsonrpc":"2.0","id":1,"method":"pi\0ng"}',
    "a raw line end in a string": b'{"jsonrpc":"2.0","id":1,"method":"pi\nng"}',
    "a byte order mark": b'\xef\xbb\xbf{"jsonrpc":"2.0","id":1,"method":"ping"}',
    "UTF-16": '{"jsonrpc":"2.0","id":1,"method":"ping"}'.encode("utf-16"),
    "UTF-32": '{"jsonrpc":"2.0","id":1,"method":"ping"}'.encode("utf-32-le"),
    "Latin-1": '{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"é"}}'.encode("latin-1"),
    "an overlong form": b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"\xc0\xaf"}}',
    "a surrogate as UTF-8": b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"\xed\xa0\x80"}}',
    "a bad byte deep inside": b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":{"b":["\xff"]}}}',
    "a lone surrogate as method": b'{"jsonrpc":"2.0","id":1,"method":"\\ud800"}',
    "a lone surrogate as id": b'{"jsonrpc":"2.0","id":"\\udfff","method":"ping"}',
    "a lone surrogate as tool": b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"alpha__\\ud800"}}',
    "a lone surrogate deep inside": b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":[{"b":"\\udc00\\ud800"}]}}',
    "HTML": b"<html></html>", "a form": b"jsonrpc=2.0&id=1&method=ping",
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
async def test_what_is_no_json_is_a_parse_error(kind: str, place: Place, session: Session) -> None:
    await refused(place, await session.post(BROKEN[kind]), 400, PARSE)


DEEP = {
    "arrays": b"[" * 100_000, "closed arrays": b"[" * 100_000 + b"]" * 100_000, "objects": b'{"a":' * 100_000,
    "params": b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}}",
    "arguments": b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"alpha__echo","arguments":'
    + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}}",
    "with spaces": b'{ "jsonrpc": "2.0", "id": 1, "method": "ping", "params": ' + b'{"a": [' * 50_000,
}  # fmt: skip


@pytest.mark.parametrize("kind", DEEP)
async def test_json_that_is_too_deep_is_a_parse_error(kind: str, place: Place, session: Session) -> None:
    await refused(place, await session.post(DEEP[kind]), 400, PARSE)


async def test_json_as_deep_as_people_write_it_passes(session: Session) -> None:
    deep: object = "bottom"
    for _ in range(100):
        deep = {"next": [deep]}
    answer = await session.post(calling("alpha__echo", {"text": "x", "extra": deep}))
    assert error_of(answer.json)[0] == PARAMS  # the server's own word: it knows no such argument


# A name that stands twice -------------------------------------------------------------------------------------------

TWICE = {
    "method": b'{"jsonrpc":"2.0","id":1,"method":"tools/list","method":"ping"}',
    "method, spaced": b'{ "jsonrpc": "2.0", "id": 1, "method": "ping", "method": "ping" }',
    "id": b'{"jsonrpc":"2.0","id":1,"method":"ping","id":1}',
    "jsonrpc": b'{"jsonrpc":"2.0","id":1,"method":"ping","jsonrpc":"2.0"}',
    "params": b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"alpha__echo"},'
    b'"params":{"name":"alpha__count"}}',
    "an escaped name": b'{"jsonrpc":"2.0","id":1,"method":"ping","m\\u0065thod":"tools/list"}',
    "the tool": b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"alpha__echo","name":"alpha__count"}}',
    "the tool, escaped": b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":'
    b'{"name":"alpha__echo","n\\u0061me":"alpha__count","arguments":{}}}',
    "the tool, spaced": b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params": '
    b'{"name": "alpha__echo", "arguments": {}, "name": "alpha__count"}}',
    "an unknown member": b'{"jsonrpc":"2.0","id":1,"method":"ping","x":1,"x":1}',
    "result": b'{"jsonrpc":"2.0","id":1,"result":{},"result":{}}',
}


@pytest.mark.parametrize("kind", TWICE)
async def test_a_name_that_stands_twice_is_a_parse_error(kind: str, place: Place, session: Session) -> None:
    before = len(place.alpha.tools("count"))
    await refused(place, await session.post(TWICE[kind]), 400, PARSE)
    assert len(place.alpha.tools("count")) == before


async def test_what_a_server_gets_was_written_by_us(place: Place, session: Session) -> None:
    """Names are decoded and encoded again, so that nobody can read another name out of the same bytes."""
    message = (
        b'{"jsonrpc":"2.0","id":"\\u0069d","m\\u0065thod":"tools/call","params":{"n\\u0061me":"alpha\\u005f_echo",'
    )
    message += b'"arguments":{"t\\u0065xt":"wr\\u0069tten"},"extra":{"a":1,"a":2}}}'
    answer = await session.post(message)
    assert (answer.json["id"], said(answer.json)) == ("id", "written")
    got = place.alpha.tools("echo")[-1]
    assert params(got) == {"name": "echo", "arguments": {"text": "written"}, "extra": {"a": 2}}


# JSON that is no message --------------------------------------------------------------------------------------------

NO_MESSAGE: dict[str, tuple[object, object]] = {
    "a number": (42, None), "a string": ("ping", None), "null": (None, None), "true": (True, None),
    "an empty object": ({}, None), "no version": ({"id": 1, "method": "ping"}, 1),
    "version 1": ({"jsonrpc": "1.0", "id": 1, "method": "ping"}, 1),
    "a number as version": ({"jsonrpc": 2.0, "id": 1, "method": "ping"}, 1),
    "no method": ({"jsonrpc": "2.0", "id": 1}, 1), "a method that is null": ({"jsonrpc": "2.0",
    "id": 1, "method": None}, 1),
    "a list as method": ({"jsonrpc": "2.0", "id": 1, "method": ["ping"]}, 1),
    "a number as method": ({"jsonrpc": "2.0", "id": 1, "method": 5}, 1),
    "a list as params": ({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": [1]}, 1),
    "a string as params": ({"jsonrpc": "2.0", "id": "x", "method": "ping", "params": "x"}, "x"),
    "a number as params": ({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": 0}, 1),
    "params of a notification": ({"jsonrpc": "2.0", "method": "notifications/initialized", "params": []}, None),
    "a result and an error": ({"jsonrpc": "2.0", "id": 1, "result": {}, "error": {"code": 1, "message": ""}}, 1),
    "neither of them": ({"jsonrpc": "2.0", "id": 1, "resalt": {}}, 1),
    "an error that is a string": ({"jsonrpc": "2.0", "id": 1, "error": "no"}, 1),
}  # fmt: skip
IDS: dict[str, object] = {
    "null": None, "true": True, "an object": {}, "a list": [1], "a fraction": 1.5, "a whole fraction": 1.0,
    "far too big": 10**30, "too long": "x" * 257, "a megabyte": "x" * (1 << 20),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_MESSAGE)
async def test_json_that_is_no_message_is_an_invalid_request(kind: str, place: Place, session: Session) -> None:
    message, id_ = NO_MESSAGE[kind]
    await refused(place, await session.post(message), 400, INVALID, id_)


@pytest.mark.parametrize("kind", IDS)
async def test_an_id_that_mcp_does_not_know_is_an_invalid_request(kind: str, place: Place, session: Session) -> None:
    answer = await session.post(request("ping", None, IDS[kind]))
    await refused(place, answer, 400, INVALID)
    assert len(answer.body) < 500


@pytest.mark.parametrize("digits", [b"1" * 1_000_000, b"-" + b"9" * 19, b"1e400", b"1E5", b"-0.0"])
async def test_an_id_that_no_number_of_ours_can_hold_is_an_invalid_request(
    digits: bytes, place: Place, session: Session
) -> None:
    answer = await session.post(b'{"jsonrpc":"2.0","id":%b,"method":"ping"}' % digits)
    await refused(place, answer, 400, INVALID)


async def test_numbers_that_nobody_reads_cost_nothing_and_arrive_as_they_were(place: Place, session: Session) -> None:
    exact = b'{"text":"n","a":1e999,"b":12345678901234567890123456789.10,"c":-0.0,"d":1.0}'
    message = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"alpha__echo","arguments":%b}}'
    assert error_of((await session.post(message % exact)).json)[0] == PARAMS
    line = place.alpha.record.read_text().splitlines()[-1]
    assert "12345678901234567890123456789.1" in line or "1.2345678901234568e+28" in line
    huge = b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"big":%b}}' % (b"7" * 1_000_000)
    async with asyncio.timeout(5):
        assert (await session.post(huge)).status == 200


# Methods and params -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        "Tools/Call", "TOOLS/CALL", "tools/call ", " tools/call", "tools//call", "tools/call\0", "tools/call\n",
        "tools\\call", "tools/Call", "ｔools/call", "tools\u2215call", "to\u200bols/call", "__proto__", "constructor",
        "", "/", "tools", "call", "tools/", "tools/call/x", "x/y", "notifications/initialized",
        "sampling/createMessage",
        "elicitation/create", "roots/list", "tasks/list", "tools/call;", "rpc.discover", "*", "x" * 100_000,
    ],
)  # fmt: skip
async def test_a_method_is_known_to_the_letter_or_not_at_all(method: str, place: Place, session: Session) -> None:
    before = len(place.alpha.heard())
    answer = await session.post(request(method, {"name": "alpha__count", "arguments": {}}, "m"))
    await refused(place, answer, 200, UNKNOWN, "m")
    assert len(answer.body) < 1000
    assert [one for one in place.alpha.heard()[before:] if one.get("method") != "ping"] == []


WRONG_PARAMS: list[tuple[str, object]] = [
    ("tools/call", None), ("tools/call", {}), ("tools/call", {"name": None}), ("tools/call", {"name": 5}),
    ("tools/call", {"name": ["alpha__echo"]}), ("tools/call", {"name": {"x": 1}}), ("tools/call",
    {"Name": "alpha__echo"}),
    ("tools/call", {"name": "alpha__echo", "_meta": []}), ("tools/call", {"name": "alpha__echo", "_meta": "x"}),
    ("tools/call", {"name": "alpha__echo", "_meta": {"progressToken": {}}}),
    ("tools/call", {"name": "alpha__echo", "_meta": {"progressToken": 1.5}}),
    ("tools/call", {"name": "alpha__echo", "_meta": {"progressToken": [1]}}),
    ("tools/call", {"name": "alpha__echo", "_meta": {"progressToken": "x" * 300}}),
    ("prompts/get", {}), ("prompts/get", {"name": 1}), ("resources/read", {}), ("resources/read", {"uri": 1}),
    ("resources/subscribe", {"uri": None}), ("resources/unsubscribe", {}), ("completion/complete", {}),
    ("completion/complete", {"ref": "x"}), ("completion/complete", {"ref": {}}),
    ("completion/complete", {"ref": {"type": "ref/tool", "name": "alpha__echo"}}),
    ("completion/complete", {"ref": {"type": "ref/prompt"}}), ("completion/complete",
    {"ref": {"type": "ref/resource", "uri": 1}}),
    ("logging/setLevel", {}), ("logging/setLevel", {"level": 5}), ("logging/setLevel", {"level": "INFO"}),
    ("logging/setLevel", {"level": "verbose"}), ("tools/list", {"cursor": 5}), ("tools/list", {"cursor": {}}),
    ("tools/list", {"cursor": ""}), ("tools/list", {"cursor": "nonsense"}), ("tools/list", {"cursor": "x" * 100_000}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "given"), WRONG_PARAMS, ids=str)
async def test_params_that_cannot_be_right_are_invalid_params(
    method: str, given: object, place: Place, session: Session
) -> None:
    message = {"jsonrpc": "2.0", "id": "p", "method": method} | ({} if given is None else {"params": given})
    answer = await session.post(message)
    await refused(place, answer, 200, PARAMS, "p")
    assert len(answer.body) < 500


@pytest.mark.parametrize(
    "given", [None, {}, {"protocolVersion": None}, {"protocolVersion": 20251125}, {"protocolVersion": ["2025-11-25"]},
              {"protocolVersion": NEWEST, "capabilities": "all"}, {"protocolVersion": NEWEST, "clientInfo": []}]
)  # fmt: skip
async def test_an_initialize_that_cannot_be_right_makes_no_session(
    given: object, place: Place, http: Http, ana: Who
) -> None:
    before = place.gateway.metric("mcpmux_sessions_opened_total")
    bare = Session(http, f"{place.url}/mcp", {"Accept": "*/*", **ana})
    answer = await bare.post(
        {"jsonrpc": "2.0", "id": 1, "method": "initialize"} | ({} if given is None else {"params": given})
    )
    await refused(place, answer, 200, PARAMS, 1)
    assert "Mcp-Session-Id" not in answer.headers
    assert place.gateway.metric("mcpmux_sessions_opened_total") == before


async def test_strange_texts_of_a_client_about_itself_are_harmless(place: Place, http: Http, ana: Who) -> None:
    for name in ("x" * 10_000, "\x1b[31mred", "a\nb", "\u202eevil", {"a": 1}, None, 5):
        params_ = {**greeting(), "clientInfo": {"name": name, "version": name}, "capabilities": {"x": {"y": [1]}}}
        bare = Session(http, f"{place.url}/mcp", {"Accept": "*/*", **ana})
        assert (await bare.post(request("initialize", params_))).status == 200


NAMES = [
    "nobody__echo", "alpha__ECHO", "alpha__echo ", "alpha__echo\0", "alpha_echo", "__echo",
    "alpha__", "echo", "ALPHA__echo", "alpha__echo__", "x" * 100_000, "beta__echo", "off__echo", "alpha__no\nsuch",
    "alpha__\u202eohce", "аlpha__echo", "alpha__éch", "alpha.echo", "alpha/echo", "search_tools", "call_tool",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
async def test_a_tool_that_is_not_there_is_named_as_it_was_sent_and_cut(
    name: str, place: Place, session: Session
) -> None:
    before = len(place.alpha.heard("tools/call"))
    answer = await session.post(calling(name, {}, "n"))
    await refused(place, answer, 200, PARAMS, "n")
    assert answer.error["message"] == f"Unknown tool: {name[:256]}"
    assert len(answer.body) < 2000
    assert len(place.alpha.heard("tools/call")) == before


# Bodies -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate", "x-gzip", "GZIP", "gzip, identity", "compress"])
async def test_a_compressed_body_is_415_and_never_unpacked(coding: str, place: Place, session: Session) -> None:
    bomb = gzip.compress(b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"' + b"x" * (64 << 20) + b'"}}')
    answer = await session.post(bomb, Content_Encoding=coding)
    await refused(place, answer, 415, -32000)
    assert place.gateway.memory() < 400 << 20


WIDE = {
    "names in params": b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{%b}}'
    % b",".join(b'"%x":1' % n for n in range(300_000)),
    "names in params, spaced": b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {%b}}'
    % b", ".join(b'"%x": 1' % n for n in range(250_000)),
    "names in a message": b'{"jsonrpc":"2.0","id":1,"method":"ping",%b}'
    % b",".join(b'"%x":1' % n for n in range(300_000)),
    "objects in arguments": b'{"jsonrpc": "2.0","id":1,"method":"ping","params":{"a": [%b]}}'
    % b",".join([b"{}"] * 1_300_000),
}


@pytest.mark.parametrize("kind", WIDE)
async def test_a_wide_body_of_four_megabytes_keeps_nobody_waiting(
    kind: str, place: Place, session: Session, http: Http, ben: Who
) -> None:
    other = await Session.opened(http, session.url, ben)
    async with asyncio.TaskGroup() as tasks:
        wide = tasks.create_task(session.post(WIDE[kind]))
        for _ in range(5):
            assert await other.call("alpha__echo", text="meanwhile") == "meanwhile"
    assert wide.result().status in (200, 400)
    assert place.gateway.logged("request_failed") == []


async def test_many_broken_requests_at_once_leave_everything_as_it_was(
    place: Place, session: Session, http: Http, ben: Who
) -> None:
    other = await Session.opened(http, session.url, ben)
    before = place.gateway.metric("mcpmux_sessions")
    bodies = [*BROKEN.values(), *TWICE.values(), b"[" * 10_000] * 5
    async with asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(session.post(body)) for body in bodies]
        for number in range(20):
            assert await other.call("alpha__echo", text=str(number)) == str(number)
    assert {answer.result().status for answer in answers} == {400}
    assert await session.call("alpha__echo", text="after") == "after"
    assert place.gateway.metric("mcpmux_sessions") == before


async def test_an_error_of_a_server_is_still_the_servers_own(session: Session) -> None:
    answer = await session.post(calling("alpha__refuse", {}, 3))
    assert answer.status == 200
    assert answer.error == {"code": -32050, "message": "This tool refuses", "data": {"why": "because"}}
    assert failed((await session.post(calling("alpha__fail", {}, 4))).json)
