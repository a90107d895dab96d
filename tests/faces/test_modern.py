"""`faces/modern.py`: the modern era over a real process, beside the legacy ones."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from tests.calls.upstream import params, until
from tests.faces.client import SESSION, Session, bearer, read, request
from tests.faces.conftest import Place, Who
from tests.faces.modern import META, PREFIX, REVISION, Modern, asking
from tests.gateway_process import running
from tests.journeys.clients import appears
from tests.schemas.watched import watching
from tests.servers import counter

Http = aiohttp.ClientSession
CANCELLED = "notifications/cancelled"


def calling(tool: str, id_: object = 1, **arguments: object) -> dict[str, object]:
    return asking("tools/call", {"name": tool, "arguments": arguments}, id_)


# Discovery and lists -----------------------------------------------------------------------------------------------


async def test_discovery_says_what_is_served_here_and_for_whom(modern: Modern) -> None:
    answer = await modern.post(asking("server/discover", id_="probe"))
    result = answer.json["result"]
    assert isinstance(result, dict)
    assert result["supportedVersions"] == [REVISION, "2025-11-25", "2025-06-18", "2025-03-26"]
    assert result["capabilities"]["resources"] == {"subscribe": True, "listChanged": True}
    assert result["_meta"][PREFIX + "serverInfo"]["name"] == "mcpmux"
    assert "- alpha" in result["instructions"]
    assert "beta" not in result["instructions"]
    assert result["cacheScope"] == "private"
    assert SESSION not in answer.headers


async def test_the_endpoint_of_one_server_passes_on_who_it_is(place: Place, http: Http, ana: Who) -> None:
    result = await Modern(http, f"{place.url}/servers/alpha/mcp", ana).ask("server/discover")
    assert result["_meta"] == {PREFIX + "serverInfo": {"name": "alpha", "version": "1.0.0"}}
    assert result["instructions"] == "alpha counts."


async def test_every_result_says_who_answers(place: Place, http: Http, ana: Who, modern: Modern) -> None:
    call = {"name": "alpha__echo", "arguments": {"text": "x"}}
    for result in (await modern.ask("tools/list"), await modern.ask("tools/call", call)):
        assert result["_meta"][PREFIX + "serverInfo"]["name"] == "mcpmux"
    own = Modern(http, f"{place.url}/servers/alpha/mcp", ana)
    for result in (await own.ask("tools/list"), await own.ask("tools/call", {**call, "name": "echo"})):
        assert result["_meta"] == {PREFIX + "serverInfo": {"name": "alpha", "version": "1.0.0"}}


async def test_a_server_s_own_extensions_are_passed_on_at_its_endpoint(place: Place, http: Http, ana: Who) -> None:
    url = f"{place.url}/servers/alpha/mcp"
    for result in (await Modern(http, url, ana).ask("server/discover"), (await Session.opened(http, url, ana)).greeted):
        assert result["capabilities"]["extensions"] == {"com.example/panels": {"deep": [1]}}


async def test_an_endpoint_that_is_not_granted_is_not_there(place: Place, http: Http, ana: Who) -> None:
    for server in ("beta", "off", "nothing"):
        answer = await Modern(http, f"{place.url}/servers/{server}/mcp", ana).post(asking("server/discover"))
        assert (answer.status, answer.code) == (403, -32000)


@pytest.mark.parametrize("method", ["tools/list", "prompts/list", "resources/list", "resources/templates/list"])
async def test_each_person_sees_their_own_lists(method: str, modern: Modern, both: Modern) -> None:
    mine, theirs = await modern.ask(method), await both.ask(method)
    assert "alpha" in json.dumps(mine)
    assert "beta" not in json.dumps(mine)
    assert "beta" in json.dumps(theirs)


async def test_both_eras_share_one_encoded_list(place: Place, modern: Modern, ana: Who) -> None:
    session = await Session.opened(modern.http, modern.url, ana)
    old = await session.ask("tools/list")
    before = place.gateway.metric("mcpmux_lists_encoded_total", method="tools/list")
    new = await modern.ask("tools/list")
    assert new["tools"] == old["result"]["tools"]  # type: ignore[index]
    assert place.gateway.metric("mcpmux_lists_encoded_total", method="tools/list") == before


# Calls -------------------------------------------------------------------------------------------------------------


async def test_a_call_that_has_nothing_to_stream_is_answered_as_json_and_needs_no_session(
    place: Place, modern: Modern
) -> None:
    before = place.gateway.metric("mcpmux_sessions_opened_total")
    answer = await modern.post(calling("alpha__echo", "c-1", text="hi"), Mcp_Session_Id="made-up")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.json["id"] == "c-1"
    assert SESSION not in answer.headers
    assert place.gateway.metric("mcpmux_sessions_opened_total") == before


async def test_progress_comes_as_an_event_stream_without_ids(modern: Modern) -> None:
    message = asking("tools/call", {"name": "alpha__progress", "arguments": {"steps": 3}}, progressToken="t")
    async with modern.streaming(message) as stream:
        *told, last = await stream.rest()
    assert [one["params"]["progress"] for one in told] == [1, 2, 3]  # type: ignore[index]
    assert {one["params"]["progressToken"] for one in told} == {"t"}  # type: ignore[index]
    assert last["result"]["resultType"] == "complete"  # type: ignore[index]


async def test_log_messages_come_only_to_a_request_that_asks_for_them(http: Http, tmp_path: Path) -> None:
    # A server of her own: what one logs on a link that others have used belongs to nobody for certain.
    with running(tmp_path, {"solo": counter()}) as gateway:
        await gateway.ready("solo")
        modern = Modern(http, f"{gateway.url}/mcp", bearer(gateway, "ana@example.com", "MCP-Admin"))
        arguments = {"level": "info", "text": "x", "times": 2}
        for wanted, heard in (({}, 0), ({"log": "debug"}, 2), ({"log": "error"}, 0)):
            answer = await modern.post(asking("tools/call", {"name": "solo__log", "arguments": arguments}, **wanted))
            logs = [one for one in answer.messages if one.get("method") == "notifications/message"]
            assert len(logs) == heard


async def test_a_client_that_would_rather_have_a_stream_gets_one(modern: Modern) -> None:
    answer = await modern.post(calling("alpha__echo", text="hi"), Accept="text/event-stream, application/json")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert len(answer.messages) == 1


async def test_reads_prompts_and_completions(modern: Modern) -> None:
    read_ = await modern.ask("resources/read", {"uri": "alpha+counter://note/7"})
    assert read_["contents"][0]["uri"] == "alpha+counter://note/7"  # type: ignore[index]
    assert (read_["ttlMs"], read_["cacheScope"]) == (0, "private")
    prompt = await modern.ask("prompts/get", {"name": "alpha__greet", "arguments": {"who": "Eva"}})
    assert "Eva" in json.dumps(prompt)
    reference = {"ref": {"type": "ref/prompt", "name": "alpha__greet"}, "argument": {"name": "who", "value": "an"}}
    assert (await modern.ask("completion/complete", reference))["completion"]["values"] == ["ana", "anton"]  # type: ignore[index]


async def test_a_server_hears_the_trace_and_nothing_that_was_said_to_us(place: Place, modern: Modern) -> None:
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01", "baggage": "a=b"}
    await modern.post(asking("tools/call", {"name": "alpha__echo", "arguments": {"text": "traced"}}, **trace))
    heard = [one for one in place.alpha.tools("echo") if params(one)["arguments"] == {"text": "traced"}]
    assert params(heard[0])["_meta"] == trace


@pytest.mark.parametrize("streams", [False, True])
async def test_closing_the_response_cancels_the_call_at_once(
    streams: bool, place: Place, modern: Modern, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    tool, arguments = ("progress", {"steps": 1, "gate": str(gate)}) if streams else ("slow", {"gate": str(gate)})
    message = asking("tools/call", {"name": f"alpha__{tool}", "arguments": arguments}, progressToken=1)

    def cancelled() -> int:
        return len(place.gateway.logged("call_finished", tool=tool, outcome="cancelled"))

    before = cancelled()

    async def ask() -> None:
        async with modern.posting(message) as answer:
            await answer.content.readline()
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as tasks:
        asking_ = tasks.create_task(ask())
        await appears(Path(f"{gate}.entered"))
        asking_.cancel()
    await appears(Path(f"{gate}.cancelled"))
    await until(lambda: cancelled() == before + 1, "the line of the call")


async def test_what_a_server_asks_is_refused_and_the_call_goes_on(modern: Modern) -> None:
    answer = await modern.post(calling("alpha__ask", method="elicitation/create"))
    assert answer.headers["Content-Type"] == "application/json"
    # Which of the two depends on whether somebody else has used the server in the last 30 s.
    assert any(code in str(answer.json["result"]) for code in ("-32601", "-32600"))


# Refusals ----------------------------------------------------------------------------------------------------------


async def test_refused_looks_exactly_like_absent(modern: Modern) -> None:
    answers = [await modern.post(calling(name)) for name in ("beta__echo", "off__echo", "alpha__nothing", "nothing")]
    shown = [(answer.status, answer.code, str(answer.error["message"]).split(":")[0]) for answer in answers]
    assert shown == [(200, -32602, "Unknown tool")] * 4


@pytest.mark.parametrize("uri", ["beta+counter://value", "alpha+counter://nothing", "nothing://x"])
async def test_a_resource_that_is_not_there_is_a_wrong_param_and_named(uri: str, modern: Modern) -> None:
    answer = await modern.post(asking("resources/read", {"uri": uri}))
    assert (answer.status, answer.code) == (200, -32602)
    assert "uri" in answer.error["data"]  # type: ignore[operator]


@pytest.mark.parametrize("method", ["no/such", "initialize", "ping", "logging/setLevel", "resources/subscribe"])
async def test_a_method_that_is_not_there_is_404(method: str, modern: Modern) -> None:
    answer = await modern.post(asking(method, id_="m-1"))
    assert (answer.status, answer.code, answer.json["id"]) == (404, -32601, "m-1")


async def test_another_revision_is_told_what_is_served(modern: Modern) -> None:
    asked = asking("server/discover", id_=7, **{PREFIX + "protocolVersion": "2099-01-01"})
    answer = await modern.post(asked, MCP_Protocol_Version="2099-01-01")
    served = (await modern.ask("server/discover"))["supportedVersions"]
    assert (answer.status, answer.code, answer.json["id"]) == (400, -32022, 7)
    assert answer.error["data"] == {"supported": served, "requested": "2099-01-01"}


@pytest.mark.parametrize("member", ["protocolVersion", "clientCapabilities"])
async def test_a_request_that_does_not_say_what_it_must_is_malformed(member: str, modern: Modern) -> None:
    meta = {name: value for name, value in META.items() if name != PREFIX + member}
    answer = await modern.post(request("tools/list", {"_meta": meta}, "x"))
    assert (answer.status, answer.code, answer.json["id"]) == (400, -32602, "x")


@pytest.mark.parametrize(
    "said",
    [
        {"MCP_Protocol_Version": None},
        {"MCP_Protocol_Version": "2025-11-25"},
        {"Mcp_Method": None},
        {"Mcp_Method": "tools/list"},
        {"Mcp_Name": None},
        {"Mcp_Name": "alpha__echo"},
        {"Mcp_Name": "=?base64?YWxwaGFfX2NvdW50?"},
    ],
)
async def test_headers_that_say_something_else_stop_the_call(
    said: dict[str, str | None], place: Place, modern: Modern
) -> None:
    before = len(place.alpha.tools("count"))
    answer = await modern.post(calling("alpha__count"), **said)
    assert (answer.status, answer.code) == (400, -32020)
    assert len(place.alpha.tools("count")) == before


@pytest.mark.parametrize(
    ("region", "header", "passes"),
    [
        ("eu", "eu", True),
        ("Zürich", "=?base64?WsO8cmljaA==?=", True),
        (None, None, True),
        ("eu", None, False),
        ("eu", "us", False),
        (None, "eu", False),
        ("eu", "=?base64?ZXU?=", False),
    ],
)
async def test_an_argument_that_goes_in_a_header_must_be_the_same_in_both(
    region: str | None, header: str | None, passes: bool, place: Place, modern: Modern
) -> None:
    before = len(place.alpha.tools("route"))
    message = calling("alpha__route", **({} if region is None else {"region": region}))
    answer = await modern.post(message, Mcp_Param_Region=header)
    assert (answer.status, "error" in answer.json) == ((200, False) if passes else (400, True))
    assert passes or answer.code == -32020
    assert len(place.alpha.tools("route")) == before + passes


async def test_the_header_of_a_tool_that_is_refused_says_nothing_about_it(both: Modern, modern: Modern) -> None:
    """Or the answer would tell that the tool is there."""
    answer = await modern.post(calling("beta__route", region="eu"), Mcp_Param_Region="us")
    assert (answer.status, answer.code) == (200, -32602)
    assert (await both.post(calling("beta__route", region="eu"), Mcp_Param_Region="us")).code == -32020


async def test_a_state_that_is_not_ours_is_refused(modern: Modern) -> None:
    message = asking("tools/call", {"name": "alpha__echo", "arguments": {"text": "x"}, "requestState": "forged"})
    answer = await modern.post(message)
    assert (answer.status, answer.code) == (200, -32602)


# Forms -------------------------------------------------------------------------------------------------------------


async def test_notifications_are_taken_and_answers_and_batches_are_not(modern: Modern) -> None:
    taken = await modern.post({"jsonrpc": "2.0", "method": CANCELLED, "params": {"requestId": 1}}, Mcp_Method=None)
    assert (taken.status, taken.body) == (202, b"")
    for body in (b'{"jsonrpc":"2.0","id":1,"result":{}}', b'[{"jsonrpc":"2.0","method":"x"}]', b"{", b"7"):
        headers = {**modern.who, "MCP-Protocol-Version": REVISION, "Content-Type": "application/json"}
        async with modern.http.post(modern.url, data=body, headers=headers) as found:
            answer = await read(found)
        assert answer.status == 400
        assert "id" not in answer.json


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_get_and_delete_are_no_methods_of_this_era(method: str, modern: Modern) -> None:
    headers = {**modern.who, "MCP-Protocol-Version": REVISION, "Accept": "text/event-stream", SESSION: "x"}
    async with modern.http.request(method, modern.url, headers=headers) as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")


async def test_both_eras_are_served_side_by_side_on_one_connection(place: Place, ana: Who) -> None:
    async with watching(connector=aiohttp.TCPConnector(limit=1)) as one:
        session = await Session.opened(one, f"{place.url}/mcp", ana)
        modern = Modern(one, f"{place.url}/mcp", ana)
        for number in range(3):
            assert await modern.call("alpha__echo", text=f"new {number}") == f"new {number}"
            assert await session.call("alpha__echo", text=f"old {number}") == f"old {number}"
        with_session = await modern.post(calling("alpha__echo", text="x"), Mcp_Session_Id=session.id)
        assert with_session.json["result"]["resultType"] == "complete"  # type: ignore[index]


async def test_a_client_that_falls_back_and_forgets_its_header_is_greeted(modern: Modern) -> None:
    greeting = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    headers = {**modern.who, "MCP-Protocol-Version": REVISION, "Accept": "application/json, text/event-stream"}
    async with modern.http.post(modern.url, json=request("initialize", greeting), headers=headers) as answer:
        assert answer.status == 200
        assert SESSION in answer.headers


async def test_a_token_is_asked_for_before_anything_else(place: Place, http: Http) -> None:
    answer = await Modern(http, f"{place.url}/mcp", {}).post(asking("no/such"))
    assert answer.status == 401
    assert "WWW-Authenticate" in answer.headers


async def test_a_call_leaves_one_line_in_the_log(place: Place, modern: Modern) -> None:
    answer = await modern.post(calling("alpha__echo", text="x"), X_OpenWebUI_Chat_Id="chat-1")
    request_id = answer.headers["X-Request-Id"]
    await place.gateway.soon(
        lambda: place.gateway.logged("call_finished", request_id=request_id, tool="echo", outcome="ok", chat="chat-1")
    )


async def test_nobody_without_grants_gets_anything(place: Place, http: Http, dan: Who) -> None:
    nobody = Modern(http, f"{place.url}/mcp", dan)
    assert (await nobody.ask("tools/list"))["tools"] == []
    assert "No servers" in str((await nobody.ask("server/discover"))["instructions"])
