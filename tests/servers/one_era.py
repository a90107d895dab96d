"""A server of the official SDK that speaks one era alone, as older and stricter ones do; by itself it speaks both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import mcp_types as types
from mcp.server import Server
from mcp.server.lowlevel.server import NotificationOptions
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from starlette.responses import JSONResponse

REVISION = "2026-07-28"
VERSION = "io.modelcontextprotocol/protocolVersion"
Asgi = Callable[[Any, Any, Any], Awaitable[None]]
REFUSED = {"code": -32022, "message": f"Only {REVISION} is spoken here", "data": {"supported": [REVISION]}}


def over_http(app: Asgi, era: str) -> Asgi:
    """An application that hears only requests of one era."""

    async def heard(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        headers = dict(scope["headers"])
        is_modern = headers.get(b"mcp-protocol-version") == REVISION.encode()
        if era == "legacy" and is_modern:
            # A server that has never heard of this header looks for a session.
            scope = {**scope, "headers": [(k, v) for k, v in scope["headers"] if k != b"mcp-protocol-version"]}
        elif era == "modern" and scope["method"] != "POST":
            return await JSONResponse({}, 405)(scope, receive, send)
        elif era == "modern" and headers.get(b"mcp-protocol-version", b"2025") < b"2026":
            return await JSONResponse({"jsonrpc": "2.0", "id": None, "error": REFUSED}, 400)(scope, receive, send)
        return await app(scope, receive, send)

    return heard


async def on_pipes(server: Server, era: str) -> None:
    """Serve one client on stdin and stdout, of one era alone."""
    async with stdio_server() as (reader, writer), anyio.create_task_group() as tasks:
        passed, heard = anyio.create_memory_object_stream[SessionMessage | Exception](0)

        async def sift() -> None:
            async with passed:
                async for item in reader:
                    message = item.message if isinstance(item, SessionMessage) else None
                    if isinstance(message, types.JSONRPCRequest) and not _speaks(message, era):
                        error = types.ErrorData(**REFUSED) if era == "modern" else types.ErrorData(
                            code=-32601, message="Method not found")  # fmt: skip
                        refusal = types.JSONRPCError(jsonrpc="2.0", id=message.id, error=error)
                        await writer.send(SessionMessage(refusal))
                        continue
                    await passed.send(item)

        tasks.start_soon(sift)
        await server.run(heard, writer, server.create_initialization_options(NotificationOptions()))


def _speaks(request: types.JSONRPCRequest, era: str) -> bool:
    meta = (request.params or {}).get("_meta") or {}
    return era == "dual" or (VERSION in meta) == (era == "modern")
