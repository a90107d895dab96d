"""Mirror: the tools of an endpoint whose arguments go in headers too (`x-mcp-header`).

A client on pipes knows no headers, so its calls lack them until the endpoint says so (-32020). Then the tool is looked
up in the endpoint's list, on behalf of that very client, and remembered.
Source: MCP 2026-07-28 basic/transports/streamable-http, "Client Behavior".
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

from mcpmux.errors import AnnotationInvalid, InvalidParams, InvalidRequest, MalformedMessage
from mcpmux.faces.endpoint import Endpoint, reply_in
from mcpmux.protocol import envelope, headers
from mcpmux.protocol.bridge import Line
from mcpmux.protocol.envelope import Reply, Request
from mcpmux.protocol.faults import HEADER_MISMATCH

MAX_PAGES: Final = 100
MAX_TOOLS: Final = 1024
LIST: Final = "tools/list"

_ID: Final = "mcpmux-stdio"
_TOOLS: Final = msgspec.json.Decoder(list[Raw])


class Mirror:
    """See the module."""

    __slots__ = ("_endpoint", "_tools")

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._tools: dict[str, bytes] = {}

    def headers(self, line: Line) -> dict[str, str]:
        """The headers that repeat arguments of this line, as far as its tool is known."""
        tool = self._tools.get(_called(line) or "")
        if tool is None or not isinstance(line.message, Request):
            return {}
        try:
            return headers.mirrored_headers(tool, (line.message.params or {}).get("arguments"))
        except (AnnotationInvalid, InvalidParams):
            return {}

    async def learn(self, line: Line) -> bool:
        """Look up the tool that this line calls; False if that tells nothing new. Raises: BridgeFailed."""
        name = _called(line)
        if name is None or not isinstance(line.message, Request):
            return False
        params = {"_meta": (line.message.params or {})["_meta"]}
        for _ in range(MAX_PAGES):
            page = await self._page(params, line.revision or "")
            tool = next((entry for entry in _entries(page.get("tools")) if _named(entry) == name), None)
            if tool is not None:
                known = self._tools.get(name) == tool
                if len(self._tools) < MAX_TOOLS:
                    self._tools[name] = tool
                return not known
            if envelope.text(cursor := page.get("nextCursor")) is None or cursor is None:
                break
            params["cursor"] = cursor
        return False

    async def _page(self, params: dict[str, Raw], revision: str) -> dict[str, Raw]:
        wire = envelope.request(_ID, LIST, params)
        async with self._endpoint.post(wire, headers.standard(LIST, params, revision), again=True) as answer:
            reply = await reply_in(answer)
        return _members(reply.result)


def mismatched(line: Line, status: int, body: bytes) -> bool:
    """Whether a call was refused because of its headers."""
    if status != 400 or _called(line) is None:
        return False
    try:
        reply = envelope.parse(body)
    except (MalformedMessage, InvalidRequest):
        return False
    return isinstance(reply, Reply) and reply.code == HEADER_MISMATCH


def _called(line: Line) -> str | None:
    """The tool that a modern line calls."""
    message = line.message
    if line.revision is None or not isinstance(message, Request) or message.method != "tools/call":
        return None
    return envelope.text((message.params or {}).get("name"))


def _entries(raw: Raw | None) -> list[bytes]:
    try:
        return [] if raw is None else [bytes(entry) for entry in _TOOLS.decode(raw)]
    except (msgspec.DecodeError, RecursionError):
        return []


def _named(tool: bytes) -> str | None:
    return envelope.text(_members(Raw(tool)).get("name"))


def _members(raw: Raw | None) -> dict[str, Raw]:
    try:
        return {} if raw is None else envelope.members(raw)
    except (MalformedMessage, InvalidRequest):
        return {}
