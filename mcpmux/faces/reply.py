"""A small JSON answer on a kept-alive connection, written in one piece.

The way of nearly every call. aiohttp's own response, made for everything, spends as much on its headers as all of our
decisions together (`bench/call.py`); this one has a fixed head. Whatever is out of the ordinary (another status, a big
body, HTTP/1.0, a connection that closes, CORS) takes aiohttp's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from functools import lru_cache
from typing import Final

from aiohttp import HttpVersion11, web

LARGEST: Final = 16 * 1024
WAITING: Final = 64 * 1024  # bytes that a client may leave unread before we wait for it

# Who takes an answer more slowly than this is cut off: what it leaves unread is our memory.
PATIENCE: Final = 30.0  # seconds, for any answer
LEAST_RATE: Final = 64 * 1024  # bytes per second, on top of it

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: no-store\r\nX-Request-Id: %b\r\n"
    b"Server: mcpmux\r\nDate: %b\r\nContent-Length: %d\r\n\r\n%b"
)


def fits(request: web.BaseRequest, body: bytes) -> bool:
    """Whether the answer is as ordinary as it must be."""
    return len(body) <= LARGEST and request.keep_alive and request.version == HttpVersion11


class WireReply(web.StreamResponse):
    """The answer; see the module."""

    def __init__(self, request_id: str, body: bytes) -> None:
        # Without the parent's: it would make the headers that this class is there to do without.
        self._wire = _HEAD % (request_id.encode(), _date(int(time.time())), len(body), body)
        self._keep_alive = True
        self._eof_sent = False

    @property
    def prepared(self) -> bool:
        """Whether it was sent."""
        return self._eof_sent

    async def prepare(self, request: web.BaseRequest) -> None:
        """Send it whole; wait for a client that does not read.

        Raises: ConnectionError (the client is gone, or is cut off).
        """
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        if not self._eof_sent:
            self._eof_sent = True
            transport.write(self._wire)
            if transport.get_write_buffer_size() > WAITING:
                async with taken_in_time(transport, 0):
                    await request.writer.drain()


@asynccontextmanager
async def taken_in_time(transport: asyncio.Transport | None, size: int) -> AsyncIterator[None]:
    """Cut a client off that does not take an answer of `size` bytes.

    Raises: ConnectionResetError.
    """
    try:
        async with asyncio.timeout(PATIENCE + size / LEAST_RATE):
            yield
    except TimeoutError:
        # Closing it would wait for the client to take the rest.
        if transport is not None:
            transport.abort()
        raise ConnectionResetError("the client does not read") from None


@lru_cache(maxsize=2)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
