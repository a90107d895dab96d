"""HTTP clients of tests for which every message of mcpmux must be right, without a word of the test.

`watching()` is a client session whose answers are held against the schema as they are read. Nothing is known there of
the request, so a result is checked for its envelope alone; `Session` and `Modern` of `tests/faces`, and `Raw` of
`tests/journeys`, know it and check the rest. A stream that a test reads piece by piece is checked by whoever takes it
apart.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import aiohttp

from tests.schemas import MODERN
from tests.schemas.wire import Wire

NEWEST = "2025-11-25"

_GZIP = b"\x1f\x8b"


def watching(**options: Any) -> aiohttp.ClientSession:
    """A client session; `options` as aiohttp has them."""
    return aiohttp.ClientSession(response_class=Watched, **options)


class Watched(aiohttp.ClientResponse):
    """An answer of mcpmux, read whole."""

    async def read(self) -> bytes:
        """The body; fails if a message in it is wrong."""
        first = self._body is None
        body = await super().read()
        if first:
            is_modern = self.request_info.headers.get("MCP-Protocol-Version") == MODERN
            check_body(body, self.content_type, MODERN if is_modern else NEWEST)
        return body


def check_body(body: bytes, kind: str, revision: str = NEWEST, wire: Wire | None = None) -> None:
    """Fail unless every message in an answer of this content type is right; other documents are not looked at."""
    wire = wire or Wire(revision, "Server")
    for message in messages(body, kind):
        wire.sent(message)


def messages(body: bytes, kind: str) -> list[object]:
    """The messages in an answer."""
    if body.startswith(_GZIP):  # a test that wants to see it so
        body = zlib.decompress(body, wbits=31)
    if kind.startswith("text/event-stream"):
        lines = body.decode().splitlines()
        return [json.loads(line[len("data: ") :]) for line in lines if line.startswith("data: {")]
    if not body or not kind.startswith("application/json"):
        return []
    found = json.loads(body)
    entries = found if isinstance(found, list) else [found]
    return [one for one in entries if not isinstance(one, dict) or "jsonrpc" in one]
