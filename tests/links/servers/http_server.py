"""A small Streamable HTTP server, and an HTTP+SSE one, whose every behaviour a test can choose while they run.

They listen on a real socket in the test's own loop, so that a test can say when something happens instead of waiting
for it. `seen` holds every request as `(method, rpc method or None, session id)`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

Json = dict[str, object]
INFO: Json = {"name": "http", "version": "1"}
OFFER: Json = {"tools": {"listChanged": True}, "logging": {}}


class StreamableServer:
    """Streamable HTTP at `/mcp`."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[tuple[str, str | None, str | None]] = []
        self.headers: list[dict[str, str]] = []
        self.sessions: set[str] = set()
        self.made = 0
        self.events = False  # answer as an event stream
        self.has_get = True
        self.refuse: Callable[[str, str | None], web.Response | None] = lambda method, rpc: None
        self.streams: list[web.StreamResponse] = []
        self.changed = asyncio.Event()  # something of the above
        self.gate = asyncio.Event()
        self.kept: dict[str, list[Json]] = {}  # what a resumed stream gets, by the last event id
        self.answers: list[Json] = []  # to what the server asked
        self.greeting_events = b": here\n\n"  # what a GET stream begins with
        self.redirected = 0
        self.tools: dict[str, Callable[[web.Request, Json], Awaitable[web.StreamResponse]]] = {}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        message = json.loads(body) if body else {}
        session = request.headers.get("Mcp-Session-Id")
        rpc = message.get("method")
        self.seen.append((request.method, rpc, session))
        self.headers.append(dict(request.headers))
        self.changed.set()
        if (refusal := self.refuse(request.method, rpc)) is not None:
            return refusal
        if rpc != "initialize" and session not in self.sessions:
            return web.json_response(
                {"jsonrpc": "2.0", "id": None, "error": {"code": -32001, "message": "?"}}, status=404
            )
        if request.method == "GET":
            return await self.stream(request)
        if request.method == "DELETE":
            self.sessions.discard(session or "")
            return web.Response()
        return await self.post(request, message)

    async def post(self, request: web.Request, message: Json) -> web.StreamResponse:
        rpc = message.get("method")
        if "id" not in message or rpc is None:
            if rpc is None:
                self.answers.append(message)
                self.changed.set()
            return web.Response(status=202)
        if rpc == "initialize":
            self.made += 1
            session = f"session-{self.made}"
            self.sessions.add(session)
            result: Json = {"protocolVersion": "2025-11-25", "capabilities": OFFER, "serverInfo": INFO}
            return web.json_response(reply(message, result), headers={"Mcp-Session-Id": session})
        if rpc == "tools/call":
            name = message["params"]["name"]  # type: ignore[index]
            if name in self.tools:
                return await self.tools[name](request, message)
        return await self.answer(request, message, {"content": [{"type": "text", "text": f"did {rpc}"}]})

    async def answer(self, request: web.Request, message: Json, result: Json) -> web.StreamResponse:
        if not self.events:
            return web.json_response(reply(message, result))
        stream = await begun(request)
        await say(stream, reply(message, result))
        return stream

    async def stream(self, request: web.Request) -> web.StreamResponse:
        last = request.headers.get("Last-Event-ID")
        if last in self.kept:
            stream = await begun(request)
            for message in self.kept.pop(last):
                await say(stream, message)
            return stream
        if not self.has_get:
            return web.Response(status=405)
        stream = await begun(request)
        self.streams.append(stream)
        self.changed.set()
        await stream.write(self.greeting_events)
        await self.gate.wait()
        return stream

    async def redirect(self, request: web.Request) -> web.StreamResponse:
        self.redirected += 1
        return web.Response(status=307, headers={"Location": "/mcp"})

    def count(self, method: str, rpc: str | None = None) -> int:
        """How many such requests were seen."""
        return sum(1 for seen in self.seen if seen[0] == method and (rpc is None or seen[1] == rpc))


class SseServer:
    """HTTP+SSE at `/sse` and `/messages`."""

    def __init__(self) -> None:
        self.url = ""
        self.endpoint: str | None = "/messages?session_id=1"
        self.posts: list[Json] = []
        self.streams: list[web.StreamResponse] = []
        self.post_status = 202
        self.silent = False  # takes messages and answers none
        self.stream_status = 200
        self.end = asyncio.Event()  # the stream ends
        self.changed = asyncio.Event()

    async def sse(self, request: web.Request) -> web.StreamResponse:
        if self.stream_status != 200:
            return web.Response(status=self.stream_status)
        stream = await begun(request)
        self.streams.append(stream)
        if self.endpoint is not None:
            await stream.write(f"event: endpoint\ndata: {self.endpoint}\n\n".encode())
        await self.end.wait()
        return stream

    async def messages(self, request: web.Request) -> web.StreamResponse:
        message: Json = await request.json()
        self.posts.append(message)
        self.changed.set()
        if self.post_status != 202:
            return web.Response(status=self.post_status)
        if self.silent:
            return web.Response(status=202)
        stream = self.streams[-1]
        if message.get("method") == "initialize":
            await say(
                stream, reply(message, {"protocolVersion": "2024-11-05", "capabilities": OFFER, "serverInfo": INFO})
            )
        elif "id" in message and "method" in message:
            await say(stream, reply(message, {"content": [{"type": "text", "text": f"did {message['method']}"}]}))
        return web.Response(status=202)


def reply(message: Json, result: Json) -> Json:
    """A JSON-RPC answer."""
    return {"jsonrpc": "2.0", "id": message["id"], "result": result}


async def begun(request: web.Request) -> web.StreamResponse:
    """An event stream whose headers are sent."""
    stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await stream.prepare(request)
    return stream


async def say(stream: web.StreamResponse, message: Json, event_id: str | None = None) -> None:
    """Write one message as an event."""
    head = f"id: {event_id}\n" if event_id is not None else ""
    await stream.write(f"{head}event: message\ndata: {json.dumps(message)}\n\n".encode())


@asynccontextmanager
async def streamable_server(port: int = 0) -> AsyncIterator[StreamableServer]:
    """One that listens; its address is `url`."""
    server = StreamableServer()
    application = web.Application()
    application.router.add_route("*", "/mcp", server.handle)
    application.router.add_post("/old", server.redirect)
    async with listening(application, server.gate, port) as base:
        server.url = f"{base}/mcp"
        yield server


@asynccontextmanager
async def sse_server() -> AsyncIterator[SseServer]:
    """One that listens; its address is `url`."""
    server = SseServer()
    application = web.Application()
    application.router.add_get("/sse", server.sse)
    application.router.add_post("/messages", server.messages)
    async with listening(application, server.end, 0) as base:
        server.url = f"{base}/sse"
        yield server


@asynccontextmanager
async def listening(application: web.Application, gate: asyncio.Event, port: int) -> AsyncIterator[str]:
    """The address of an application on a real socket; open streams end with it."""
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        host, found = runner.addresses[0][:2]
        yield f"http://{host}:{found}"
    finally:
        gate.set()
        await runner.cleanup()
