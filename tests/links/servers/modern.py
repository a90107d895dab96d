"""The server of the modern era on a real socket in the test's own loop, so that a test can look into it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.servers.modern_http import HttpFace, listening
from tests.servers.modern_server import ModernServer, Request, parser


@dataclass
class Remote:
    """One that listens."""

    url: str
    server: ModernServer
    face: HttpFace


@asynccontextmanager
async def modern_remote(*options: str, port: int = 0) -> AsyncIterator[Remote]:
    """It, with its options; at the end it must have had nothing to complain of."""
    server = ModernServer(parser().parse_args(["http", *options]))
    face = HttpFace(server, Request)
    async with listening(face, port) as url:
        yield Remote(url, server, face)
    assert server.problems == []
