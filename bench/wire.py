"""A bare HTTP/1.1 client for load: one keep-alive connection, one request at a time, nothing but what MCP needs.

Cheap on purpose: on two cores whatever the generator spends is missing from what it measures.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

REVISION = "2025-11-25"
MODERN = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


@dataclass(slots=True)
class Response:
    """One answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def message(self) -> dict[str, object]:
        """The JSON-RPC message, whether it came as JSON or as the last event of a stream."""
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            lines = [line[5:] for line in self.body.splitlines() if line.startswith(b"data:") and len(line) > 6]
            return dict(json.loads(lines[-1]))
        return dict(json.loads(self.body))


class Connection(asyncio.Protocol):
    """One connection. `send` answers when the whole response is there; `open_stream` when its head is."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._waiting: asyncio.Future[Response] | None = None
        self._head: tuple[int, dict[str, str], int] | None = None
        self._stream = False
        self._transport: asyncio.WriteTransport | None = None

    @classmethod
    async def to(cls, url: str) -> Connection:
        """A connection to the host and port of this URL."""
        parts = urlsplit(url)
        _, made = await asyncio.get_running_loop().create_connection(cls, parts.hostname, parts.port)
        return made

    def send(self, request: bytes) -> asyncio.Future[Response]:
        """Write one request."""
        assert self._transport is not None
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._waiting

    async def open_stream(self, request: bytes) -> Response:
        """Write a request whose response does not end; its head. What follows is thrown away."""
        self._stream = True
        return await self.send(request)

    def close(self) -> None:
        """Close, at once."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.WriteTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(exc or ConnectionResetError("closed in the middle of a response"))

    def data_received(self, data: bytes) -> None:
        if self._waiting is None:
            return
        self._data += data
        if self._head is None:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return
            self._head = self._read_head(bytes(self._data[:end]), end + 4)
        status, headers, start = self._head
        if self._stream:
            body: bytes | None = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = _unchunked(self._data, start)
        else:
            size = int(headers.get("content-length", "0"))
            body = bytes(self._data[start : start + size]) if len(self._data) >= start + size else None
        if body is not None:
            waiting, self._waiting, self._head = self._waiting, None, None
            self._data.clear()
            if not waiting.done():
                waiting.set_result(Response(status, headers, body))

    @staticmethod
    def _read_head(head: bytes, start: int) -> tuple[int, dict[str, str], int]:
        first, *rest = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in rest)
        return int(first.split(" ", 2)[1]), {name.lower(): value.strip() for name, _, value in pairs}, start


def _unchunked(data: bytearray, start: int) -> bytes | None:
    """The body of a chunked response, or None while it is not whole."""
    if not data.endswith(b"0\r\n\r\n"):
        return None
    body = bytearray()
    while True:
        line = data.find(b"\r\n", start)
        size = int(data[start:line], 16)
        if size == 0:
            return bytes(body)
        body += data[line + 2 : line + 2 + size]
        start = line + 2 + size + 2


def request(method: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """The bytes of one request."""
    parts = urlsplit(url)
    lines = [f"{method} {parts.path} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Session:
    """One MCP session: the requests of a client, as bytes."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.headers = {
            "Authorization": f"Bearer {token}",
            "Accept": "application/json, text/event-stream",
            "Content-Type": "application/json",
        }

    def post(self, method: str, params: Mapping[str, object], id_: int | None = 1) -> bytes:
        """A request, or a notification without id."""
        message: dict[str, object] = {"jsonrpc": "2.0", "method": method, "params": params}
        if id_ is not None:
            message["id"] = id_
        return request("POST", self.url, self.headers, json.dumps(message, separators=(",", ":")).encode())

    def ask(
        self, method: str, params: Mapping[str, object], name: str = "", able: Mapping[str, object] | None = None
    ) -> bytes:
        """A request of the modern era, which needs no session; `name` is what `Mcp-Name` says, `able` what it can."""
        meta = META if able is None else META | {"io.modelcontextprotocol/clientCapabilities": able}
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
        more = {"MCP-Protocol-Version": MODERN, "Mcp-Method": method} | ({"Mcp-Name": name} if name else {})
        body = json.dumps(message, separators=(",", ":")).encode()
        return request("POST", self.url, self.headers | more, body)

    def get(self) -> bytes:
        """The request for the session's event stream."""
        return request("GET", self.url, self.headers | {"Accept": "text/event-stream"})

    def delete(self) -> bytes:
        """The end of the session."""
        return request("DELETE", self.url, self.headers)

    async def initialize(self, connection: Connection) -> None:
        """Greet; from here on the requests carry the session's id."""
        asked = {
            "protocolVersion": REVISION,
            "capabilities": {},
            "clientInfo": {"name": "bench", "version": "1"},
        }
        answer = await connection.send(self.post("initialize", asked))
        assert answer.status == 200, f"{answer.status} {answer.body[:300]!r}"
        if "mcp-session-id" in answer.headers:
            self.headers["Mcp-Session-Id"] = answer.headers["mcp-session-id"]
        self.headers["MCP-Protocol-Version"] = REVISION
        accepted = await connection.send(self.post("notifications/initialized", {}, id_=None))
        assert accepted.status == 202, f"{accepted.status} {accepted.body[:300]!r}"
