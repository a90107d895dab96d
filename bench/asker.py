"""A server over Streamable HTTP (2025-11-25) whose tool `ask` asks its client for a form; `echo` answers at once.

It does that for thousands of calls at a time, each on a stream of its own, and costs little. Prints its port.
"""

from __future__ import annotations

import asyncio
from itertools import count

import orjson
import uvloop
from aiohttp import web

Json = dict[str, object]
INFO: Json = {"name": "asker", "version": "1"}
GREETING: Json = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": INFO}
SCHEMA: Json = {"type": "object", "properties": {}}
TOOLS: Json = {"tools": [{"name": name, "inputSchema": SCHEMA} for name in ("ask", "echo")]}
FORM: Json = {
    "mode": "form", "message": "May it be done?",
    "requestedSchema": {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]},
}  # fmt: skip


class Asker:
    """What it waits for: answers by the number of the question, which a cancelled call has no more."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._open: dict[int, asyncio.Future[Json]] = {}
        self._calls: dict[object, int] = {}

    async def post(self, request: web.Request) -> web.StreamResponse:
        """One message."""
        message = orjson.loads(await request.read())
        match message.get("method"):
            case None:
                if (answer := self._open.get(message["id"])) is not None and not answer.done():
                    answer.set_result(message)
            case "initialize":
                return _answered(message, GREETING)
            case "tools/list":
                return _answered(message, TOOLS)
            case "ping":
                return _answered(message, {})
            case "tools/call" if message["params"]["name"] == "ask":
                return await self._ask(request, message)
            case "tools/call":
                return _answered(message, _said("echo"))
            case "notifications/cancelled":
                question = self._calls.get(message["params"]["requestId"])
                if question is not None:
                    self._open[question].cancel()
            case _ if "id" in message:
                error: Json = {"code": -32601, "message": "Method not found"}
                return web.json_response({"jsonrpc": "2.0", "id": message["id"], "error": error})
        return web.Response(status=202)

    async def _ask(self, request: web.Request, message: Json) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        number = self._calls[message["id"]] = next(self._numbers)
        answer = self._open[number] = asyncio.get_running_loop().create_future()
        try:
            await response.write(_event({"id": number, "method": "elicitation/create", "params": FORM}))
            told = await answer
            result = _said(orjson.dumps(told.get("result", told.get("error"))).decode(), isError="error" in told)
            await response.write(_event({"id": message["id"], "result": result}))
        except (asyncio.CancelledError, ConnectionError):
            pass  # the call was cancelled; its stream ends without an answer
        finally:
            del self._open[number], self._calls[message["id"]]
        return response


def _said(text: str, **more: object) -> Json:
    return {"content": [{"type": "text", "text": text}], **more}


def _answered(message: Json, result: Json) -> web.Response:
    return web.Response(
        body=orjson.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), content_type="application/json"
    )


def _event(message: Json) -> bytes:
    return b"data: " + orjson.dumps({"jsonrpc": "2.0", **message}) + b"\n\n"


async def serve() -> None:
    """Listen on a free port of loopback until killed."""
    application = web.Application()
    application.router.add_post("/mcp", Asker().post)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve())
