"""A server of the official SDK 1.x with tasks as revision 2025-11-25 has them, over stdio or Streamable HTTP.

    python tasks_official.py stdio | http --port 0

Runs in an environment of its own (`tests/pypi.py`): the SDK's 2.x has no such tasks any more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.applications import Starlette
from starlette.routing import Mount

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"name": {"type": "string"}}}
TOOLS = {
    "must": ("required", "Is a task or nothing, and says what it was told."),
    "confirm": ("required", "Is a task or nothing, and asks."),
    "work": ("optional", "Reports progress, and waits until the file `gate` exists."),
    "fails": ("required", "Breaks."),
}

server: Any = Server("official")
server.experimental.enable_tasks()


@server.list_tools()
async def list_tools() -> list[types.Tool]:
    """Every tool, with what it has to do with tasks."""
    return [
        types.Tool(name=name, description=text, inputSchema={"type": "object"},
                   execution=types.ToolExecution(taskSupport=support))  # type: ignore[arg-type]
        for name, (support, text) in TOOLS.items()
    ]  # fmt: skip


@server.call_tool()
async def call_tool(name: str, arguments: dict[str, Any]) -> Any:
    """Do what was called for, as a task where that is wanted."""
    context = server.request_context
    context.experimental.validate_task_mode(TOOLS[name][0])
    token = context.meta.progressToken if context.meta else None
    session = context.session

    async def work(task: Any) -> types.CallToolResult:
        if name == "confirm":
            answer = await task.elicit("Your name?", SCHEMA)
            return _said(json.dumps({"action": answer.action, "content": answer.content}))
        if name == "fails":
            raise ValueError("this tool breaks")
        if name == "work":
            if token is not None:
                await session.send_progress_notification(token, 1.0)
            while not Path(arguments["gate"]).exists():
                await asyncio.sleep(0.01)
        return _said(str(arguments.get("text", "done")))

    if context.experimental.is_task:
        return await context.experimental.run_task(work)
    return await work(None)


def _said(text: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)])


def over_http(port: int) -> None:
    """Serve many sessions, and say where."""
    manager = StreamableHTTPSessionManager(app=server)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with manager.run():
            yield

    app = Starlette(routes=[Mount("/mcp", app=manager.handle_request)], lifespan=lifespan)
    listener = socket.create_server(("127.0.0.1", port))
    print(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}/mcp/"}), flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


async def on_pipes() -> None:
    """Serve one client on stdin and stdout."""
    async with stdio_server() as (reader, writer):
        await server.run(reader, writer, server.create_initialization_options())


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("transport", choices=("stdio", "http"))
    options.add_argument("--port", type=int, default=0)
    chosen = options.parse_args()
    if chosen.transport == "http":
        over_http(chosen.port)
    else:
        asyncio.run(on_pipes())
