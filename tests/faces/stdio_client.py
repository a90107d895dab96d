"""A desktop client for tests: our end of the pipes that `mcpmux stdio` reads and writes, line by line.

`desk(url)` runs the bridge in the test's own loop, over real pipes (or a socket pair, which is what Node.js makes)
to a real endpoint. Everything that waits gives up after 5 s.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from mcpmux.config.bearer import Bearer
from mcpmux.errors import NotRunning
from mcpmux.faces.endpoint import Endpoint, Where
from mcpmux.faces.stdio import bridged
from mcpmux.outbound import Outbound
from mcpmux.seal import Secret
from tests.faces.client import Json, greeting, notification, request
from tests.links.servers.http_server import listening

WAIT = 5.0
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "desk", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


class Desk:
    """The client's end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stop: asyncio.Event) -> None:
        self._reader = reader
        self._writer = writer
        self.stop = stop

    def say(self, *messages: Mapping[str, object] | bytes) -> None:
        """Write messages, one line each."""
        for message in messages:
            data = message if isinstance(message, bytes) else json.dumps(message).encode()
            self._writer.write(data + b"\n")

    async def line(self) -> bytes:
        """The next line as it is; empty when the bridge has closed its side."""
        async with asyncio.timeout(WAIT):
            return await self._reader.readline()

    async def hear(self) -> Json:
        """The next message."""
        line = await self.line()
        assert line.endswith(b"\n"), f"the bridge ended with {line!r}"
        found = json.loads(line)
        assert isinstance(found, dict) and found["jsonrpc"] == "2.0", found
        return found

    async def ask(self, method: str, params: Mapping[str, object] | None = None, id_: object = 1) -> Json:
        """A request; its answer, which must be the next message."""
        self.say(request(method, params, id_))
        answer = await self.hear()
        assert answer.get("id") == id_, answer
        return answer

    async def greet(self, revision: str = "2025-11-25") -> Json:
        """The handshake."""
        answer = await self.ask("initialize", greeting(revision), 0)
        self.say(notification("notifications/initialized"))
        return answer

    def leave(self) -> None:
        """Close our side of its input."""
        self._writer.close()


def modern(method: str, params: Mapping[str, object] | None = None, id_: object = 1) -> Json:
    """A modern request."""
    return request(method, {"_meta": META, **(params or {})}, id_)


def at(*urls: str | None) -> Where:
    """These addresses, one each time it is asked, the last one for ever; None: nothing runs."""
    left = list(urls)

    async def where() -> str:
        url = left.pop(0) if len(left) > 1 else left[0]
        if url is None:
            raise NotRunning("no")
        return url

    return where


@asynccontextmanager
async def desk(
    where: Where | str, token: str | Path = "t0ken", patience: float = 0.2, limit: int = 4096, pair: bool = False
) -> AsyncIterator[Desk]:
    """A client with a bridge that runs; both have ended on the way out, with all their tasks."""
    bearer = Bearer(Secret(token)) if isinstance(token, str) else Bearer.of({}, token)
    stop = asyncio.Event()
    theirs, ours = _pair() if pair else _pipes()
    reader, writer = await _connected(*ours)
    async with Outbound({}) as outbound:
        endpoint = Endpoint(outbound, at(where) if isinstance(where, str) else where, bearer, patience)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(bridged(endpoint, theirs, limit, stop))
            try:
                yield Desk(reader, writer, stop)
            finally:
                writer.close()
                async with asyncio.timeout(WAIT):
                    await asyncio.wait({running})
    os.close(theirs[0])


@asynccontextmanager
async def serving(handle: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """The address of an endpoint that is one function."""
    application = web.Application()
    application.router.add_route("*", "/mcp", handle)
    async with listening(application, asyncio.Event(), 0) as base:
        yield f"{base}/mcp"


def _pipes() -> tuple[tuple[int, int], tuple[int, int]]:
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    return (their_in, their_out), (our_in, our_out)


def _pair() -> tuple[tuple[int, int], tuple[int, int]]:
    (their_in, our_out), (our_in, their_out) = socket.socketpair(), socket.socketpair()
    return (their_in.detach(), their_out.detach()), (our_in.detach(), our_out.detach())


async def _connected(source: int, drain: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=2**24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(source, "rb", buffering=0))
    protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
    transport, _ = await loop.connect_write_pipe(lambda: protocol, os.fdopen(drain, "wb", buffering=0))
    return reader, asyncio.StreamWriter(transport, protocol, None, loop)
