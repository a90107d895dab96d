"""The run of the matrix: every client at every server, every feature of each pair, and what was found in each cell.

One mcpmux for all. A link that everybody shares says for certain whose call a server's question belongs to only while
one call is at work there, so each server has one client at a time, and the servers are gone through side by side.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from tests.gateway_process import Gateway
from tests.matrix.clients import KINDS, LEGACY, Client, Kind, PythonClient
from tests.matrix.features import FEATURES, Feature, Meeting, text
from tests.matrix.node import Node
from tests.matrix.servers import OWN, UPSTREAMS, Upstream

Connecting = Callable[[Kind, str, str, str], AbstractAsyncContextManager[Client]]


@dataclass(frozen=True)
class Cell:
    """One feature of one pair: whether both sides have it, and what went wrong."""

    kind: Kind
    revision: str
    upstream: Upstream
    feature: str
    exists: bool
    problem: str = ""

    def __str__(self) -> str:
        side = "" if self.exists else " (which is not in both revisions)"
        client = f"{self.kind.name} {self.revision}"
        return f"{client} at {self.upstream.name} {self.upstream.revision}, {self.feature}{side}: {self.problem}"


async def run(gateway: Gateway, token: str, folder: Path) -> list[Cell]:
    """What every cell has."""
    cells: list[Cell] = []
    async with AsyncExitStack() as stack:
        connecting: dict[str, Connecting] = {"python": PythonClient.connected}  # type: ignore[dict-item]
        for program in ("sdk", "client"):
            node = await stack.enter_async_context(Node.running(program))
            connecting[program] = node.connected  # type: ignore[assignment]

        async def visit(listed: Upstream) -> None:
            upstream = await _agreed(listed, gateway, token)
            for kind in KINDS:
                for revision in kind.revisions:
                    place = _Place(gateway.url, token, folder, upstream, kind, revision)
                    cells.extend(await place.cells(connecting[kind.program]))

        async with asyncio.TaskGroup() as tasks:
            for upstream in UPSTREAMS:
                tasks.create_task(visit(upstream))
    return cells


async def _agreed(upstream: Upstream, gateway: Gateway, token: str) -> Upstream:
    """The server with the revision that mcpmux speaks with it, as the server itself says."""
    if upstream.revision:
        return upstream
    async with PythonClient.connected(KINDS[0], f"{gateway.url}/servers/{upstream.id}", token, LEGACY[-1]) as client:
        said = await client.ask("tools/call", {"name": "revision", "arguments": {}})
    return replace(upstream, revision=text(said))


@dataclass(frozen=True)
class _Place:
    """One client, not yet connected, and one server."""

    gateway: str
    token: str
    folder: Path
    upstream: Upstream
    kind: Kind
    revision: str

    async def cells(self, connected: Connecting) -> list[Cell]:
        """One cell for each feature; if there is no connection they all have that problem."""
        found: list[Cell] = []

        def at(server: str) -> AbstractAsyncContextManager[Client]:
            return connected(self.kind, f"{self.gateway}/servers/{server}", self.token, self.revision)

        try:
            async with at(self.upstream.id) as client:
                meeting = Meeting(
                    client, self.kind, self.upstream.revision, self.gateway, self.upstream.id, self.token, self.folder,
                    lambda: at(self.upstream.id + OWN),
                )  # fmt: skip
                for feature in FEATURES:
                    found.append(await self._cell(feature, meeting))
        except Exception as error:
            done = {cell.feature for cell in found}
            missing = [feature.name for feature in FEATURES if feature.name not in done]
            found += [self._made(name, True, _told(error)) for name in missing or ["leaving"]]
        return found

    async def _cell(self, feature: Feature, meeting: Meeting) -> Cell:
        exists = feature.exists(meeting)
        check = feature.works if exists else feature.absent
        assert check is not None, f"{feature.name}: nothing shows that it is not there"
        try:
            await check(meeting)
        except Exception as error:
            return self._made(feature.name, exists, _told(error))
        return self._made(feature.name, exists)

    def _made(self, feature: str, exists: bool, problem: str = "") -> Cell:
        return Cell(self.kind, self.revision, self.upstream, feature, exists, problem)


def _told(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:600]} ({Path(frame.filename).name}:{frame.lineno} {frame.line})"
