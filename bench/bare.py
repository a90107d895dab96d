"""The yardstick: an aiohttp handler on uvloop that does the JSON work of one call and nothing else.

It reads the request's JSON, makes the same answer that the counter server's `echo` gives, and sends it: no
authentication, no decision, no upstream, no log. What mcpmux spends per call is told as a multiple of this.
Prints its port.
"""

from __future__ import annotations

import asyncio

import orjson
import uvloop
from aiohttp import web

SESSION = "bare"


async def answer(request: web.Request) -> web.Response:
    """One JSON-RPC request: initialize, a notification or `tools/call`."""
    message = orjson.loads(await request.read())
    if "id" not in message:
        return web.Response(status=202)
    headers = {"Mcp-Session-Id": SESSION}
    if message["method"] == "initialize":
        result: dict[str, object] = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {}}
    else:
        text = message["params"]["arguments"]["text"]
        result = {"content": [{"type": "text", "text": text}]}
    body = orjson.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result})
    return web.Response(body=body, headers=headers, content_type="application/json")


async def serve() -> None:
    """Listen on a free port of loopback until killed."""
    application = web.Application()
    application.router.add_post("/mcp", answer)
    # As production has it: no access log, and a header field may hold a token of 12 kB.
    runner = web.AppRunner(application, access_log=None, max_field_size=32768)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve())
