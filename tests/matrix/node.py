"""The TypeScript SDKs as clients: one process of node for each, installed once into the cache folder.

`ts/client.mjs` reads a line of JSON for each command and writes one for each answer, and one for whatever a connection
sees: `heard` and `asked` are what the SDK handed out, `wire` what passes below it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests import npm
from tests.matrix.clients import ACCEPTED, ROOTS, SAID, SEEN, USED, WAIT, Json, Kind, Log, Refused
from tests.schemas.wire import Wire

HERE = Path(__file__).parent / "ts"
PACKAGES = (
    "@modelcontextprotocol/sdk@1.32.2",
    "@modelcontextprotocol/client@2.4.0",
)
ANSWERS = {"accepted": ACCEPTED, "seen": SEEN, "said": SAID, "used": USED, "roots": ROOTS}
LINE = 16 << 20  # bytes


def installed() -> Path:
    """The folder with both SDKs; installed at the first call on a machine."""
    return npm.installed("typescript-" + "-".join(name.rpartition("@")[2] for name in PACKAGES), *PACKAGES)


class Node:
    """One process: commands, and who waits for their answers."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Json]] = {}
        self._seeing: dict[int, tuple[Log, Wire]] = {}

    @classmethod
    @asynccontextmanager
    async def running(cls, program: str) -> AsyncIterator[Node]:
        """A process with one generation of the SDK."""
        place = await asyncio.to_thread(installed)
        process = await asyncio.create_subprocess_exec(
            "node", HERE / "client.mjs", program, place, json.dumps(ANSWERS),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=LINE,
        )  # fmt: skip
        made = cls(process)
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(made._read())
                yield made
                reading.cancel()
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    def begin(self, do: str, **words: object) -> tuple[int, asyncio.Future[Json]]:
        """Send a command: its id and its answer to come."""
        id_ = next(self._ids)
        waiting = self._waiting[id_] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": id_, "do": do, **words}).encode() + b"\n")
        return id_, waiting

    async def done(self, do: str, **words: object) -> Json:
        """A command's result. Raises: Refused."""
        async with asyncio.timeout(WAIT):
            return await self.begin(do, **words)[1]

    @asynccontextmanager
    async def connected(self, kind: Kind, url: str, token: str, revision: str) -> AsyncIterator[NodeClient]:
        """A connection to one endpoint (its URL without the face)."""
        connection, log = next(self._ids), Log()
        self._seeing[connection] = (log, Wire(revision, "Server"))
        words = {"url": f"{url}/{kind.face}", "face": kind.face, "token": token, "revision": revision}
        greeted = await self.done("connect", connection=connection, **words)
        try:
            yield NodeClient(self, connection, log, revision, greeted["capabilities"])
        finally:
            await self.done("close", connection=connection)
            del self._seeing[connection]

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            message = json.loads(line)
            if "connection" in message:
                self._see(message)
            elif not (waiting := self._waiting.pop(message["id"])).done():
                if "result" in message:
                    waiting.set_result(message["result"])
                else:
                    error = message["error"]
                    waiting.set_exception(Refused(error.get("code"), error["message"], error.get("data")))

    def _see(self, message: Json) -> None:
        log, wire = self._seeing.get(message["connection"], (None, None))
        if log is None or wire is None:
            return
        if "wire" in message:
            log.look(wire, *message["wire"])
        elif "heard" in message:
            log.take(log.heard, message["heard"])
        else:
            log.take(log.asked, message["asked"])


class NodeClient:
    """A connection of an official TypeScript SDK."""

    def __init__(self, node: Node, connection: int, log: Log, revision: str, capabilities: Json) -> None:
        self._node = node
        self._connection = connection
        self.log = log
        self.revision = revision
        self.capabilities = capabilities

    async def ask(self, method: str, params: Mapping[str, object] | None = None, *, progress: bool = False) -> Json:
        """The SDK's result of a request. Raises: Refused."""
        id_, waiting = self._node.begin(
            "ask", connection=self._connection, method=method, params=dict(params or {}), progress=progress
        )
        try:
            async with asyncio.timeout(WAIT):
                return await waiting
        except asyncio.CancelledError:
            self._node.begin("stop", ask=id_)[1].add_done_callback(lambda _: None)
            raise

    @asynccontextmanager
    async def listening(self, wanted: Json) -> AsyncIterator[None]:
        """An open `subscriptions/listen`."""
        id_, waiting = self._node.begin("listen", connection=self._connection, wanted=wanted)
        async with asyncio.timeout(WAIT):
            honored = await waiting
        assert honored == wanted, honored
        try:
            yield
        finally:
            await self._node.done("unlisten", listen=id_)
