"""An event stream to a client: aiohttp-sse's response, counted, with our headers and a bound on slow readers.

Source: WHATWG HTML, server-sent events; MCP basic/transports.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp_sse import EventSourceResponse

from mcpmux.faces.entry import Entry
from mcpmux.observe.metrics import Metrics

# Proxies cut what is silent for a minute; a comment every 15 s keeps the stream open and finds out who is gone.
PING: Final = 15.0

# A reader that takes nothing for this long is cut off; what it missed can be replayed.
SLOW_READER: Final = 30.0

# What a client should wait before it comes back, in milliseconds.
RETRY: Final = 1000


@asynccontextmanager
async def event_stream(entry: Entry, kind: str, metrics: Metrics) -> AsyncIterator[EventSourceResponse]:
    """A prepared event stream as the answer to `entry`; it is ended properly on the way out."""
    stream = EventSourceResponse(
        headers=entry.headers,
        sep="\n",
        allow_all_methods=True,
        send_timeout=SLOW_READER,
        ping_interval=PING,
    )
    # The library has said no-cache, which would let a shared cache keep it.
    stream.headers["Cache-Control"] = "no-store"
    metrics.stream_opened(kind)
    try:
        await stream.prepare(entry.request)
        async with stream:
            yield stream
    finally:
        metrics.stream_closed(kind)
