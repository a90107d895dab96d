"""Plain HTTP beside the SDK: what a test must see of the wire, or do at a moment that the SDK would not choose."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from tests.schemas.watched import check_body
from tests.schemas.wire import Wire

REVISION = "2025-11-25"
GREETING = {"protocolVersion": REVISION, "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
ACCEPT = {"Accept": "application/json, text/event-stream"}


def request(method: str, params: Mapping[str, object] | None = None, id_: int | str = 1) -> dict[str, object]:
    """A JSON-RPC request."""
    return {"jsonrpc": "2.0", "id": id_, "method": method} | ({} if params is None else {"params": params})


def notification(method: str, params: Mapping[str, object] | None = None) -> dict[str, object]:
    """A JSON-RPC notification."""
    return {"jsonrpc": "2.0", "method": method} | ({} if params is None else {"params": params})


@dataclass
class Raw:
    """One Streamable HTTP session, request by request; what comes must be as the schema has it."""

    http: aiohttp.ClientSession
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    wire: Wire = field(default_factory=lambda: Wire(REVISION, "Server"))

    @classmethod
    async def greeted(cls, http: aiohttp.ClientSession, url: str, token: str) -> Raw:
        """A session that is initialized."""
        made = cls(http, url, {**ACCEPT, "Authorization": f"Bearer {token}"})
        async with made.post(request("initialize", GREETING)) as answer:
            assert answer.status == 200, await answer.text()
            made.headers |= {"Mcp-Session-Id": answer.headers["Mcp-Session-Id"], "MCP-Protocol-Version": REVISION}
        async with made.post(notification("notifications/initialized")) as answer:
            assert answer.status == 202
        return made

    @asynccontextmanager
    async def post(self, message: object) -> AsyncIterator[aiohttp.ClientResponse]:
        """POST one message; the whole answer."""
        self.wire.heard(message)
        async with self.http.post(self.url, json=message, headers=self.headers) as answer:
            check_body(await answer.read(), answer.content_type, wire=self.wire)
            yield answer

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[aiohttp.ClientResponse]:
        """The GET stream of the session, which the test reads to its end."""
        headers = {**self.headers, "Accept": "text/event-stream"}
        async with self.http.get(self.url, headers=headers) as answer:
            yield answer
            check_body(await answer.read(), answer.content_type, wire=self.wire)

    async def call(self, tool: str, arguments: Mapping[str, object]) -> tuple[int, str]:
        """`tools/call`: status and body, whole."""
        asked = request("tools/call", {"name": tool, "arguments": arguments}, 7)
        async with self.post(asked) as answer:
            return answer.status, await answer.text()

    async def delete(self) -> int:
        """End the session; the status."""
        async with self.http.delete(self.url, headers=self.headers) as answer:
            return answer.status
