"""The room of parked calls without HTTP: calls of several people on a real server, parked, resumed and displaced."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import Raw

from mcpmux.access.decision import Decision, Target
from mcpmux.calls import Call, Caller, Inputs, Parking
from mcpmux.calls.relief import Relief
from mcpmux.catalog.view import View
from mcpmux.config.schema import Server, ToolRules
from mcpmux.credentials.scope import link_key
from mcpmux.identity.principal import Principal
from mcpmux.links import Pool
from mcpmux.links.link import Link
from mcpmux.protocol.downstream.legacy import Admission
from mcpmux.protocol.downstream.modern import RequestCore
from mcpmux.protocol.events import Event, InputRequired
from mcpmux.protocol.methods import REQUESTS
from mcpmux.seal import Keyring
from tests.links.harness import PATIENCE as WAIT
from tests.links.harness import counter, running, tool

ABLE: Mapping[str, Raw] = {"elicitation": Raw(b"{}"), "sampling": Raw(b"{}")}
ACCEPTED = Raw(b'{"action":"accept"}')
KEYS = (b"k" * 32,)


def somebody(name: str) -> Principal:
    """A person by name."""
    return Principal.of(("https://issuer.example", "", name), email=f"{name}@example.com", groups=())


ANA = somebody("ana")


@dataclass
class Room:
    """A server, and where its calls are left; `calls` are those in flight."""

    pool: Pool
    server: Server
    parking: Parking
    relief: Relief
    calls: set[Call] = field(default_factory=set)
    made: int = 0

    @property
    def inputs(self) -> Inputs:
        return self.parking.inputs

    def request(
        self, state: str | None = None, responses: dict[str, Raw] | None = None, who: Principal = ANA, name: str = "ask"
    ) -> Call:
        """A request that was decided on."""
        admission = Admission(1, REQUESTS["tools/call"], {"name": Raw(json.dumps(name).encode())}, None)
        said = RequestCore(admission, dict(ABLE), "t/1", 8, responses, state)
        self.made += 1
        call = Call(Caller(who, View("all"), "", ABLE), admission, f"r-{self.made}", self._ended, self.inputs, None)
        call.said, call.parking, call.server, call.native = said, self.parking, self.server, name
        call.decision = Decision(
            True, "write", "counter", "granted", Target("counter", True, "tool", name, False, ToolRules()), ()
        )
        self.calls.add(call)
        return call

    async def link(self, call: Call, wait: float = WAIT) -> Link:
        """The link for a call, waited for as the router does."""
        key = link_key(self.server, call.caller.principal.key, call.scope)
        return self.pool.ready(key) or await self.relief.link(call, key, wait)

    async def open(self, call: Call, name: str = "ask", **arguments: object) -> None:
        """Open a call of this tool."""
        link = await self.link(call)
        call.opened(link.open(tool(name, call.caller.principal.key, **arguments)), 60.0)

    async def left(self, who: Principal = ANA, name: str = "ask", **arguments: object) -> tuple[Call, str, str]:
        """A request that has ended with a question: itself, the key of the question, and the state."""
        call = self.request(who=who, name=name)
        await self.open(call, name, **(arguments or {"method": "elicitation/create"}))
        return call, *asked(await following(call))

    def sweep(self, now: float) -> None:
        """Let calls give way, as the router does."""
        self.relief.sweep(now, self.calls)

    def _ended(self, call: Call) -> None:
        self.calls.discard(call)


@asynccontextmanager
async def made(folder: Path, server: Server | None = None) -> AsyncIterator[Room]:
    """The room; in the end nothing is open in it."""
    server = server or counter()
    async with running(folder, server) as pool:
        parking = Parking(pool, Inputs(pool), Keyring(KEYS))
        room = Room(pool, server, parking, Relief(pool, parking))
        yield room
        parking.close()
        assert (len(parking), parking.inputs.open, len(room.relief), room.calls) == (0, 0, 0, set())


async def following(call: Call) -> Event:
    """The next event."""
    async with asyncio.timeout(WAIT):
        return await call.next()


def asked(event: Event) -> tuple[str, str]:
    """The key of the one question that ended a request, and its state."""
    assert isinstance(event, InputRequired), event
    found = json.loads(bytes(event.result))
    (key,) = found["inputRequests"]
    return key, found["requestState"]
