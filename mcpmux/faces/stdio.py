"""The stdio face: one client's lines on pipes of ours, which is what desktop clients start and speak to.

Owns the two descriptors and nothing of what is in the lines: those go to the `Bridge`. Nothing else may ever be
written to the client's pipe, and no line of it is held longer than `limit` bytes.

The end, whoever wants it (the client closed its side, a signal, a client that no longer reads): what is in flight has
a moment, then the session is ended and the pipe is closed.
"""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import suppress
from typing import Final

from mcpmux.faces.bridge import Bridge
from mcpmux.faces.endpoint import Endpoint
from mcpmux.links.lines import LineSplitter, Oversized

CHUNK: Final = 64 * 1024
FLUSH: Final = 0.3  # seconds for the last lines to be taken by the client


async def bridged(endpoint: Endpoint, pipes: tuple[int, int], limit: int, stop: asyncio.Event) -> None:
    """Carry the client's lines to `endpoint` and back until it closes its side, or `stop` is set.

    `pipes` are the descriptors to read from and to write to; the second one is closed.
    """
    source, drain = pipes
    out = ClientOutput(stop)
    await out.open(drain)
    try:
        async with asyncio.TaskGroup() as tasks:
            bridge = Bridge(endpoint, out, tasks)
            silent = tasks.create_task(bridge.run(), name="client messages")
            lines = ClientLines(source, bridge, limit, stop)
            lines.open()
            try:
                await stop.wait()
            finally:
                lines.close()
                await bridge.close()
                silent.cancel()
    finally:
        await out.close()


class ClientLines:
    """The client's side of the conversation, line by line."""

    __slots__ = ("_bridge", "_loop", "_source", "_splitter", "_stop")

    def __init__(self, source: int, bridge: Bridge, limit: int, stop: asyncio.Event) -> None:
        self._source = source
        self._bridge = bridge
        self._splitter = LineSplitter(limit)
        self._stop = stop
        self._loop = asyncio.get_running_loop()

    def open(self) -> None:
        """Read from now on: a pipe, a socket or a terminal as lines come, a file to its end."""
        if stat.S_ISREG(os.fstat(self._source).st_mode):
            while not self._stop.is_set():
                self._read()
            return
        self._loop.add_reader(self._source, self._read)

    def close(self) -> None:
        """Read no more."""
        with suppress(OSError, ValueError, RuntimeError):
            self._loop.remove_reader(self._source)

    def _read(self) -> None:
        try:
            chunk = os.read(self._source, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        for line in self._splitter.feed(chunk) if chunk else self._splitter.close():
            if isinstance(line, Oversized):
                self._bridge.take_oversized(line)
            elif stripped := line.strip():
                self._bridge.take(stripped)
        if not chunk:
            self.close()
            self._stop.set()


class ClientOutput(asyncio.BaseProtocol):
    """Where the client reads; the end of its side ends us."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self._file: int | None = None
        self._pipe: asyncio.WriteTransport | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._closed = asyncio.Event()

    async def open(self, drain: int) -> None:
        """Take over a descriptor."""
        kind = os.fstat(drain).st_mode
        if not stat.S_ISFIFO(kind) and not stat.S_ISSOCK(kind):
            self._file = drain
            return
        loop = asyncio.get_running_loop()
        self._pipe, _ = await loop.connect_write_pipe(lambda: self, os.fdopen(drain, "wb", buffering=0))

    def write(self, wire: bytes) -> None:
        """Write one line soon."""
        if self._pipe is not None and not self._pipe.is_closing():
            self._pipe.write(wire + b"\n")
        elif self._file is not None:
            with suppress(OSError):
                os.write(self._file, wire + b"\n")

    async def drain(self) -> None:
        """Return when the client has read enough to go on."""
        await self._flowing.wait()

    async def close(self) -> None:
        """Let the client read what is written, for a moment."""
        if self._file is not None:
            os.close(self._file)
        if self._pipe is None:
            return
        self._pipe.close()
        try:
            async with asyncio.timeout(FLUSH):
                await self._closed.wait()
        except TimeoutError:
            self._pipe.abort()

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        self._flowing.clear()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._flowing.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client closed its side."""
        self._flowing.set()
        self._closed.set()
        self._stop.set()
