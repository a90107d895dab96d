"""`faces/bridge.py` and what it stands on: one client's lines, carried to real endpoints and back."""

from __future__ import annotations

import asyncio

from aiohttp import web

from tests.faces.client import notification, request
from tests.faces.stdio_client import META, WAIT, at, desk, modern, serving
from tests.links.servers.http_server import Json, StreamableServer, begun, reply, say, streamable_server

CALL = {"name": "slow", "arguments": {}}
PROGRESS: Json = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 7, "progress": 1}}
ASK: Json = {"jsonrpc": "2.0", "id": 1, "method": "roots/list"}


def of(server: StreamableServer, rpc: str) -> list[dict[str, str]]:
    """The headers of each request with this method."""
    return [headers for (_, found, _), headers in zip(server.seen, server.headers, strict=True) if found == rpc]


async def seen(server: StreamableServer, method: str, rpc: str | None = None, count: int = 1) -> None:
    """Wait until the endpoint has seen so many requests of a kind."""
    async with asyncio.timeout(WAIT):
        while server.count(method, rpc) < count:
            server.changed.clear()
            await server.changed.wait()


async def test_a_session_is_opened_used_and_ended() -> None:
    async with streamable_server() as server:
        async with desk(server.url) as client:
            greeted = await client.greet()
            assert greeted["result"]["protocolVersion"] == "2025-11-25"  # type: ignore[index]
            answer = await client.ask("prompts/list", {}, "a")
            assert answer["result"]["content"][0]["text"] == "did prompts/list"  # type: ignore[index]
            await seen(server, "GET")
        kinds = [(method, rpc) for method, rpc, _ in server.seen if method != "GET"]
        assert kinds == [
            ("POST", "initialize"),
            ("POST", "notifications/initialized"),
            ("POST", "prompts/list"),
            ("DELETE", None),
        ]
        assert [session for _, rpc, session in server.seen if rpc != "initialize"] == ["session-1"] * 4
        assert all(headers["Authorization"] == "Bearer t0ken" for headers in server.headers)
        versions = [headers.get("MCP-Protocol-Version") for headers in server.headers]
        assert versions[0] is None
        assert set(versions[1:]) == {"2025-11-25"}


async def test_bytes_go_up_and_come_down_as_they_are() -> None:
    bodies: list[bytes] = []
    answer = b'{ "result": {"a":1.0,  "b":"\\u00e9"}, "id": "\\u0078", "jsonrpc":"2.0" }'

    async def handle(http: web.Request) -> web.Response:
        bodies.append(await http.read())
        return web.Response(body=answer.replace(b", ", b",\r\n"), content_type="application/json")

    async with serving(handle) as url, desk(url) as client:
        line = b'{"id":"\\u0078", "jsonrpc":"2.0","method":"tools/list","params":{"z":1,"a":[ ]}}'
        client.say(line + b"\r")
        assert await client.line() == answer.replace(b", ", b",  ") + b"\n"
        assert bodies == [line]


async def test_what_comes_in_the_stream_of_a_call_comes_as_it_comes() -> None:
    async with streamable_server() as server:
        go = asyncio.Event()

        async def slow(http: web.Request, message: Json) -> web.StreamResponse:
            stream = await begun(http)
            await say(stream, PROGRESS)
            await go.wait()
            await say(stream, reply(message, {"content": []}))
            return stream

        server.tools["slow"] = slow
        async with desk(server.url) as client:
            await client.greet()
            client.say(request("tools/call", CALL, 5))
            assert await client.hear() == PROGRESS
            # Beside it, another request is answered at once.
            assert (await client.ask("ping", None, 6))["id"] == 6
            go.set()
            assert (await client.hear())["id"] == 5


async def test_a_broken_stream_is_resumed_where_it_broke_off() -> None:
    async with streamable_server() as server:

        async def torn(http: web.Request, message: Json) -> web.StreamResponse:
            stream = await begun(http)
            await stream.write(b"retry: 10\n")
            await say(stream, PROGRESS, "e-1")
            server.kept["e-1"] = [reply(message, {"content": []})]
            return stream

        server.tools["slow"] = torn
        async with desk(server.url) as client:
            await client.greet()
            client.say(request("tools/call", CALL, 5))
            assert await client.hear() == PROGRESS
            assert (await client.hear())["id"] == 5
            assert server.count("POST", "tools/call") == 1


async def test_a_stream_that_ends_without_an_answer_is_an_error() -> None:
    async with streamable_server() as server:
        server.tools["slow"] = lambda http, message: begun(http)
        async with desk(server.url) as client:
            await client.greet()
            answer = await client.ask("tools/call", CALL)
            assert "may or may not have been carried out" in answer["error"]["message"]  # type: ignore[index]
            assert answer["error"]["data"] == {"reason": "answer_lost"}  # type: ignore[index]


async def test_what_the_server_asks_is_answered_by_the_client() -> None:
    async with streamable_server() as server:

        async def asking(http: web.Request, message: Json) -> web.StreamResponse:
            stream = await begun(http)
            await say(stream, ASK)
            while not server.answers:
                server.changed.clear()
                await server.changed.wait()
            await say(stream, reply(message, {"content": []}))
            return stream

        server.tools["slow"] = asking
        async with desk(server.url) as client:
            await client.greet()
            client.say(request("tools/call", CALL, 5))
            assert await client.hear() == ASK
            client.say(reply(ASK, {"roots": []}))
            # Nobody asked that: it goes nowhere.
            client.say({"jsonrpc": "2.0", "id": 99, "result": {}})
            assert (await client.hear())["id"] == 5
            await client.ask("ping", None, 6)
            assert server.answers == [reply(ASK, {"roots": []})]


async def test_a_lost_session_is_made_anew_without_the_client() -> None:
    async with streamable_server() as server:
        async with desk(server.url) as client:
            await client.greet()
            await client.ask("logging/setLevel", {"level": "error"}, 1)
            for uri in ("a:1", "a:2"):
                await client.ask("resources/subscribe", {"uri": uri}, uri)
            await client.ask("resources/unsubscribe", {"uri": "a:1"}, 4)
            await seen(server, "GET")
            server.sessions.clear()
            del server.seen[:], server.headers[:]
            client.say(request("tools/call", {"name": "x"}, 5), request("tools/list", {}, 6))
            heard = [await client.hear() for _ in range(3)]
            assert {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"} in heard
            assert {message["id"] for message in heard if "id" in message} == {5, 6}
            assert server.made == 2
            assert [rpc for _, rpc, session in server.seen if session == "session-2"][:3] == [
                "notifications/initialized",
                "logging/setLevel",
                "resources/subscribe",
            ]
            await seen(server, "GET")
        assert server.seen[-1] == ("DELETE", None, "session-2")


async def test_a_question_of_the_lost_session_is_taken_back_and_never_confused_with_a_new_one() -> None:
    async with streamable_server() as server:

        async def asking(http: web.Request, message: Json) -> web.StreamResponse:
            stream = await begun(http)
            await say(stream, ASK)
            await server.gate.wait()
            return stream

        server.tools["slow"] = asking
        async with desk(server.url) as client:
            await client.greet()
            client.say(request("tools/call", CALL, 5))
            assert await client.hear() == ASK
            server.sessions.clear()
            client.say(request("ping", None, 6))
            heard = [await client.hear() for _ in range(3)]
            void = {"requestId": 1, "reason": "The connection to the server was made anew"}
            assert {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": void} in heard
            client.say(request("tools/call", CALL, 7))
            again = await client.hear()
            assert again == {**ASK, "id": "mcpmux-1"}
            # The late answer to the first question goes nowhere, the one to the second arrives under its own id.
            client.say(reply(ASK, {"roots": [1]}), reply(again, {"roots": [2]}))
            async with asyncio.timeout(WAIT):
                while not server.answers:
                    server.changed.clear()
                    await server.changed.wait()
            assert server.answers == [reply(ASK, {"roots": [2]})]


async def test_modern_requests_have_their_headers_and_no_session() -> None:
    async with streamable_server() as server:
        server.sessions.add("")
        async with desk(server.url) as client:
            await client.greet()
            client.say(modern("tools/call", {"name": "größer", "arguments": {}}, 3))
            # The server knows no request without a session; what matters is what it was sent.
            await client.hear()
            (sent,) = of(server, "tools/call")
            assert sent["MCP-Protocol-Version"] == "2026-07-28"
            assert sent["Mcp-Method"] == "tools/call"
            assert sent["Mcp-Name"] == "=?base64?Z3LDtsOfZXI=?="
            assert "Mcp-Session-Id" not in sent


async def test_cancelling_a_modern_request_closes_its_response_and_says_nothing_more() -> None:
    closed = asyncio.Event()
    bodies: list[Json] = []

    async def handle(http: web.Request) -> web.StreamResponse:
        bodies.append(await http.json())
        stream = await begun(http)
        if bodies[-1]["method"] != "tools/call":
            await say(stream, reply(bodies[-1], {}))
            return stream
        await say(stream, PROGRESS)
        try:
            await asyncio.Event().wait()
        finally:
            closed.set()
        return stream

    async with serving(handle) as url, desk(url) as client:
        client.say(modern("tools/call", CALL, 3))
        assert await client.hear() == PROGRESS
        client.say(notification("notifications/cancelled", {"requestId": 3, "_meta": META}))
        async with asyncio.timeout(WAIT):
            await closed.wait()
        client.say(modern("tools/list", None, 3))
        assert (await client.hear())["result"] == {}
        assert [body["method"] for body in bodies] == ["tools/call", "tools/list"]


async def test_cancelling_a_legacy_request_is_told_to_the_server_which_need_not_answer() -> None:
    async with streamable_server() as server:
        cancelled = asyncio.Event()

        async def slow(http: web.Request, message: Json) -> web.StreamResponse:
            stream = await begun(http)
            await say(stream, PROGRESS)
            await cancelled.wait()
            return stream

        server.tools["slow"] = slow
        async with desk(server.url) as client:
            await client.greet()
            client.say(request("tools/call", CALL, 5))
            assert await client.hear() == PROGRESS
            client.say(notification("notifications/cancelled", {"requestId": 5}))
            await seen(server, "POST", "notifications/cancelled")
            cancelled.set()
            assert (await client.ask("ping", None, 6))["id"] == 6


async def test_each_refusal_says_what_helps() -> None:
    async with streamable_server() as server:
        async with desk(server.url) as client:
            await client.greet()
            for status, words in (
                (401, "renew it"),
                (403, "does not let you"),
                (429, "try again in 3 s"),
                (503, "shutting down"),
                (500, "failed (HTTP status 500)"),
                (307, "redirects"),
                (418, "HTTP status 418"),
            ):
                server.refuse = lambda method, rpc, status=status: (  # type: ignore[misc]
                    web.Response(status=status, text="<secret>", headers={"Retry-After": "3", "Location": "/old"})
                    if rpc == "tools/call"
                    else None
                )
                answer = await client.ask("tools/call", CALL)
                error = answer["error"]
                assert isinstance(error, dict)
                assert words in error["message"] and "secret" not in error["message"], (status, error)
                assert error["code"] == -32603
        assert server.redirected == 0


async def test_a_json_rpc_error_in_a_refusal_is_passed_on() -> None:
    async with streamable_server() as server:
        error = {"code": -32022, "message": "Unsupported protocol version", "data": {"supported": ["2025-11-25"]}}
        for id_ in (1, None):
            body = {"jsonrpc": "2.0", "id": id_, "error": error}
            server.refuse = lambda method, rpc, body=body: web.json_response(body, status=400)  # type: ignore[misc]
            async with desk(server.url) as client:
                client.say(modern("server/discover"))
                assert await client.hear() == {"jsonrpc": "2.0", "id": 1, "error": error}


async def test_without_a_connection_a_request_waits_a_moment_and_is_then_an_error() -> None:
    async with desk(at("http://127.0.0.1:1/mcp", None)) as client:
        answer = await client.ask("initialize", {}, 1)
        assert answer["error"]["message"] == "mcpmux cannot be reached: it is not running"  # type: ignore[index]
    async with (
        streamable_server() as server,
        desk(at(None, "http://127.0.0.1:1/mcp", server.url), patience=4) as client,
    ):
        assert "result" in await client.greet()


async def test_what_is_no_message_of_mcp_never_reaches_the_client() -> None:
    async with streamable_server() as server:

        async def noise(http: web.Request, message: Json) -> web.StreamResponse:
            stream = await begun(http)
            await stream.write(b"data: hello\n\ndata: [1]\n\nevent: other\ndata: {}\n\n")
            await say(stream, {"jsonrpc": "2.0", "id": 77, "result": {}})
            await say(stream, reply(message, {"content": []}))
            return stream

        server.tools["slow"] = noise
        server.tools["page"] = lambda http, message: _page()
        async with desk(server.url) as client:
            await client.greet()
            assert "result" in await client.ask("tools/call", CALL)
            answer = await client.ask("tools/call", {"name": "page"})
            assert "no usable answer" in answer["error"]["message"]  # type: ignore[index]


async def test_a_request_is_repeated_only_where_that_does_no_harm() -> None:
    calls: list[str] = []

    async def handle(http: web.Request) -> web.StreamResponse:
        message = await http.json()
        calls.append(message["method"])
        if calls.count(message["method"]) == 1:
            assert http.transport is not None
            http.transport.close()
            return web.Response()
        return web.json_response(reply(message, {}))

    async with serving(handle) as url, desk(url) as client:
        assert "result" in await client.ask("tools/list")
        assert "error" in await client.ask("tools/call", CALL)
        assert calls == ["tools/list", "tools/list", "tools/call"]


async def test_an_id_in_flight_is_refused_and_a_batch_that_has_one_twice_ends_nothing() -> None:
    async with streamable_server() as server:
        go = asyncio.Event()

        async def slow(http: web.Request, message: Json) -> web.StreamResponse:
            await go.wait()
            return web.json_response(reply(message, {"content": []}))

        server.tools["slow"] = slow
        async with desk(server.url) as client:
            await client.greet()
            client.say(request("tools/call", CALL, 5))
            await seen(server, "POST", "tools/call")
            refused = await client.ask("ping", None, 5)
            assert refused["error"]["code"] == -32600  # type: ignore[index]
            go.set()
            assert (await client.hear())["result"] == {"content": []}
    body = b'[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":1,"method":"ping"}]'

    async def handle(http: web.Request) -> web.Response:
        return web.json_response(reply({"id": 1}, {}))

    async with serving(handle) as url, desk(url) as client:
        client.say(body)
        assert (await client.hear())["id"] == 1
        assert (await client.ask("ping"))["result"] == {}


async def test_a_lost_subscription_is_told_and_a_cancelled_one_is_not() -> None:
    ends, closed = asyncio.Event(), asyncio.Event()

    async def handle(http: web.Request) -> web.StreamResponse:
        message = await http.json()
        stream = await begun(http)
        await say(stream, notification("notifications/subscriptions/acknowledged", {"notifications": {}}))
        try:
            await ends.wait()
        finally:
            if message["id"] == "listen-1":
                closed.set()
        return stream

    async with serving(handle) as url, desk(url) as client:
        for id_ in ("listen-1", "listen-2"):
            client.say(modern("subscriptions/listen", {"notifications": {"toolsListChanged": True}}, id_))
            assert (await client.hear())["method"] == "notifications/subscriptions/acknowledged"
        client.say(notification("notifications/cancelled", {"requestId": "listen-1"}))
        async with asyncio.timeout(WAIT):
            await closed.wait()
        ends.set()
        lost = await client.hear()
        assert (lost["id"], lost["error"]["data"]) == ("listen-2", {"reason": "answer_lost"})  # type: ignore[index]


async def _page() -> web.StreamResponse:
    return web.Response(text="<html>", content_type="text/html")
