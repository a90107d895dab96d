"""The modern server over Streamable HTTP: one POST per request, its headers held against its body, nothing kept.

GET and DELETE are 405. Whoever closes a response has cancelled its request. A test in the same process can look into
`ModernServer.seen` and put `refuse` in front of everything.

Source: MCP 2026-07-28 basic/transports/streamable-http.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from tests.servers.modern_server import ModernServer, Request

Json = dict[str, "object"]
REVISION = "2026-07-28"
VERSION = "io.modelcontextprotocol/protocolVersion"
TASKS = dict.fromkeys(("tasks/get", "tasks/update", "tasks/cancel"), "taskId")
NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri", **TASKS}
# Errors that are the request's own fault (the specification names each), and the unknown method.
STATUS = {-32700: 400, -32020: 400, -32021: 400, -32022: 400, -32601: 404}


class HttpFace:
    """The one endpoint."""

    def __init__(self, server: ModernServer, made: Callable[..., Request]) -> None:
        self._server = server
        self._made = made
        self.refuse: Callable[[Json], web.Response | None] = lambda message: None
        self.events = False  # answer everything as an event stream

    async def post(self, request: web.Request) -> web.StreamResponse:
        message = json.loads(await request.read())
        self._server.receive(message, dict(request.headers))
        if (refusal := self.refuse(message)) is not None:
            return refusal
        accept = request.headers.get("Accept", "")
        if "application/json" not in accept or "text/event-stream" not in accept:
            self._server.problem(f"Accept is {accept!r}")
        if "method" not in message:
            return web.Response(status=400)
        if "id" not in message:
            if _is_modern(message):
                self._server.problem(f"there is no notification {message['method']} over HTTP")
            return web.Response(status=202)
        wrong = next(self._mismatches(message, request), None) if _is_modern(message) else None
        if wrong is not None:
            self._server.problem(wrong)
            error = {"code": -32020, "message": f"Header mismatch: {wrong}"}
            return _json({"jsonrpc": "2.0", "id": message["id"], "error": error}, 400)
        return await self._answer(request, message)

    async def _answer(self, request: web.Request, message: Json) -> web.StreamResponse:
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})

        async def send(one: Json) -> None:
            if not stream.prepared:
                await stream.prepare(request)
            await stream.write(b"event: message\ndata: " + json.dumps(one).encode() + b"\n\n")

        asked = self._made(message["id"], message["method"], message.get("params") or {}, send)
        current = asyncio.current_task()
        assert current is not None
        try:
            answer = await self._server.answer(asked)
        except asyncio.CancelledError:
            if current.cancelling():
                raise
            return stream  # the server wants to end it without a word
        if stream.prepared or self.events:
            await send(answer)
            return stream
        error = answer.get("error")
        code = error["code"] if isinstance(error, dict) else None
        malformed = code == -32602 and VERSION not in asked.meta
        status = 400 if malformed else STATUS.get(code, 200)
        headers = {"Mcp-Session-Id": "session-1"} if asked.method == "initialize" and code is None else {}
        return _json(answer, status, headers)

    def _mismatches(self, message: Json, request: web.Request) -> Iterator[str]:
        """What a header says otherwise than the body."""
        params, method = message.get("params"), str(message["method"])
        params = params if isinstance(params, dict) else {}
        wanted: dict[str, object] = {"MCP-Protocol-Version": params["_meta"][VERSION], "Mcp-Method": method}
        if method in NAMED:
            wanted["Mcp-Name"] = params.get(NAMED[method])
        if method == "tools/call":
            for tool in self._server.tools():
                if tool["name"] == params.get("name"):
                    wanted |= dict(_mirrored(tool["inputSchema"], params.get("arguments")))
        for name, value in wanted.items():
            found = request.headers.getall(name, [])
            shown = {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)
            if value is None and found and name.startswith("Mcp-Param-"):
                yield f"{name} is there, its argument is not"
            elif value is not None and [_decoded(one) for one in found] != [shown]:
                yield f"{name} is {found}, its value {shown!r}"

    async def other(self, request: web.Request) -> web.StreamResponse:
        self._server.problem(f"{request.method} of the endpoint") if self._server.options.era == "modern" else None
        return web.Response(status=405, headers={"Allow": "POST"})


def _json(message: Json, status: int, headers: Mapping[str, str] | None = None) -> web.Response:
    said = {"Content-Type": "application/json", **(headers or {})}
    return web.Response(body=json.dumps(message).encode(), status=status, headers=said)


def _is_modern(message: Mapping[str, object]) -> bool:
    params = message.get("params")
    meta = params.get("_meta") if isinstance(params, dict) else None
    return isinstance(meta, dict) and isinstance(meta.get(VERSION), str)


def _mirrored(schema: object, arguments: object) -> Iterator[tuple[str, object]]:
    """The headers that a schema asks for, with the arguments that they repeat; None for what is not there."""
    properties = schema.get("properties", {}) if isinstance(schema, dict) else {}
    for name, below in properties.items():
        value = arguments.get(name) if isinstance(arguments, dict) else None
        if "x-mcp-header" in below:
            yield f"Mcp-Param-{below['x-mcp-header']}", value
        yield from _mirrored(below, value)


def _decoded(value: str) -> str:
    if value.startswith("=?base64?") and value.endswith("?="):
        return base64.b64decode(value[9:-2], validate=True).decode()
    return value


@asynccontextmanager
async def listening(face: HttpFace, port: int = 0) -> AsyncIterator[str]:
    """The URL of a face on a real socket; open streams end with it."""
    application = web.Application(client_max_size=64 << 20)
    application.router.add_post("/mcp", face.post)
    application.router.add_route("*", "/mcp", face.other)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/mcp"
    finally:
        await runner.cleanup()
