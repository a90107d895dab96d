"""What the tests of links share: a running pool over real servers, and waiting for what happens, bounded."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psutil
from msgspec import Raw

from mcpmux.config.schema import Limits, Server
from mcpmux.credentials import LinkKey
from mcpmux.guardian import Guardian
from mcpmux.links import Exchange, Link, Pool, Surroundings
from mcpmux.observe.metrics import Metrics
from mcpmux.outbound import Outbound
from mcpmux.protocol.events import Event, Failure, Opening, Result
from mcpmux.protocol.methods import REQUESTS
from tests.schemas.heard import check_heard
from tests.servers.testimony import FOLDER

SERVERS = Path(__file__).parent.parent / "servers"
PATIENCE = 5.0


def stdio(name: str, script: str, *arguments: str, **fields: object) -> Server:
    """A server of `tests/servers`; fields of the config over it."""
    command = (sys.executable, str(SERVERS / script), *arguments)
    return with_section(Server(id=name, command=command, **fields))  # type: ignore[arg-type]


def counter(name: str = "counter", *arguments: str, **fields: object) -> Server:
    """The well-behaved one."""
    return stdio(name, "counter.py", *arguments, **fields)


def faulty(mode: str, *arguments: str, **fields: object) -> Server:
    """One that misbehaves; its id is its mode."""
    return stdio(mode, "faulty.py", mode, *arguments, **fields)


def with_section(server: Server) -> Server:
    """As the config room does: the section is what the link is made of."""
    parts = (server.transport, server.command, server.url, str(server.cwd), dict(server.env), dict(server.headers),
             server.isolation, server.links)  # fmt: skip
    return msgspec.structs.replace(server, section=repr(parts).encode())


def pids(pool: Pool) -> list[int]:
    """The processes of all links of the first server."""
    return [link.pid for link in pool.status()[0].links if link.pid is not None]


def of(*servers: Server) -> dict[str, Server]:
    """The `servers` of a snapshot."""
    return {server.id: server for server in servers}


@asynccontextmanager
async def surroundings(data_dir: Path, limits: Limits | None = None) -> AsyncIterator[Surroundings]:
    """Everything that links share, real."""
    guardian = Guardian.start()
    try:
        async with Outbound(os.environ) as outbound:
            metrics, environ = Metrics(REQUESTS), {**os.environ, "TMPDIR": str(data_dir)}
            (data_dir / FOLDER).mkdir(parents=True, exist_ok=True)
            yield Surroundings(data_dir, environ, guardian, outbound, metrics, limits or Limits())
    finally:
        guardian.close()
    check_heard(data_dir)


@asynccontextmanager
async def running(data_dir: Path, *servers: Server, limits: Limits | None = None) -> AsyncIterator[Pool]:
    """A pool that supervises these servers; at the end nothing that it started is alive."""
    async with surroundings(data_dir, limits) as ground:
        pool = Pool(ground)
        before = set(psutil.Process().children(recursive=True))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pool.run())
            pool.apply(of(*servers))
            try:
                yield pool
            finally:
                await pool.close(PATIENCE * 2)
        # What another mcpmux of these tests has started meanwhile is its own.
        left = [
            child
            for child in psutil.Process().children(recursive=True)
            if child not in before and child.status() != psutil.STATUS_ZOMBIE and before.isdisjoint(child.parents())
        ]
        assert not left, left


async def link_of(pool: Pool, name: str, wait: float = PATIENCE * 2) -> Link:
    """The ready link of one server."""
    return await pool.link(LinkKey(name), wait)


def tool(name: str, /, caller: str = "ana", progress: bool = False, **arguments: object) -> Opening:
    """A call of a tool."""
    params = {"name": Raw(msgspec.json.encode(name)), "arguments": Raw(msgspec.json.encode(arguments))}
    return Opening("tools/call", params, caller, wants_progress=progress)


async def ending(exchange: Exchange) -> Result | Failure:
    """The end of a call, whatever came before it."""
    async with asyncio.timeout(PATIENCE):
        while True:
            event = await exchange.next()
            if isinstance(event, Result | Failure):
                return event


async def events(exchange: Exchange) -> list[Event]:
    """All events of a call."""
    found: list[Event] = []
    async with asyncio.timeout(PATIENCE):
        while not found or not isinstance(found[-1], Result | Failure):
            found.append(await exchange.next())
    return found


async def text(exchange: Exchange) -> str:
    """The text that a tool answered."""
    end = await ending(exchange)
    assert isinstance(end, Result), end
    return str(msgspec.json.decode(end.result)["content"][0]["text"])


async def call(link: Link, name: str, /, **arguments: object) -> str:
    """Call a tool and give its text."""
    return await text(link.open(tool(name, **arguments)))


async def until(condition: Callable[[], object], limit: float = PATIENCE) -> None:
    """Wait for something that has no event of its own (a file, another process)."""
    async with asyncio.timeout(limit):
        while not condition():
            await asyncio.sleep(0.005)
