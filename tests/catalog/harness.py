"""What the tests of the catalog share: offers over a real pool of real servers and a real database."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec import Raw

from mcpmux.catalog.offers import Offer, Offers, Pace
from mcpmux.catalog.view import Catalog
from mcpmux.config.schema import Server
from mcpmux.links import Pool
from mcpmux.observe.metrics import Metrics
from mcpmux.protocol.envelope import encode
from mcpmux.protocol.events import Offered, Opening
from mcpmux.protocol.methods import REQUESTS
from mcpmux.seal import Keyring
from mcpmux.store import Database
from tests.links import harness as links

LISTER = Path(__file__).parent / "lister.py"
RING = Keyring([b"k" * 32])
BRISK = Pace(quiet=0.02, together=0.3, retry=0.02, longest=0.1)
PATIENCE = 10.0


class Room:
    """A catalog, everything under it, and what it shows now."""

    def __init__(self, pool: Pool, db: Database, pace: Pace) -> None:
        self.pool = pool
        self.offers = Offers(pool, db, RING, Metrics(REQUESTS), name_limit=56, pace=pace)
        self.catalog = Catalog(self.offers)

    async def show(self, *servers: Server) -> None:
        """Apply a new config, as the gateway does."""
        wanted = links.of(*servers)
        self.pool.apply(wanted)
        self.catalog.apply(wanted)
        await self.offers.apply(wanted)

    def names(self, server: str, what: Offered = Offered.TOOLS) -> list[str] | None:
        """The native names of one list of a server; None if it has never been had."""
        offer = self.offers.of(server)
        items = None if offer is None else offer.items.get(what)
        return None if items is None else [item.native for item in items]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for a change after which `condition` holds."""
        news = self.catalog.changes()
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await anext(news)

    async def offer(self, server: str) -> Offer:
        """What a server offers, as soon as anything is known."""
        await self.until(lambda: self.offers.of(server))
        offer = self.offers.of(server)
        assert offer is not None
        return offer

    async def call(self, server: str, tool: str, **arguments: object) -> str:
        """Call a tool on the link and give its text."""
        params = {"name": Raw(encode(tool)), "arguments": Raw(encode(arguments))}
        link = await links.link_of(self.pool, server)
        return await links.text(link.open(Opening("tools/call", params, "ana")))


@asynccontextmanager
async def room(folder: Path, db: Database, *servers: Server, pace: Pace = BRISK) -> AsyncIterator[Room]:
    """A running catalog that shows these servers; at the end its tasks are over and the servers are gone."""
    async with links.surroundings(folder / "data") as ground, asyncio.TaskGroup() as tasks:
        pool = Pool(ground)
        one = Room(pool, db, pace)
        tasks.create_task(pool.run())
        offers = tasks.create_task(one.offers.run())
        try:
            await one.show(*servers)
            yield one
        finally:
            offers.cancel()
            await pool.close(PATIENCE)


class Plan:
    """What a `lister` answers to list requests."""

    def __init__(self, path: Path, **fields: object) -> None:
        self.path = path
        self._steps: dict[str, object] = {}
        self._write()
        command = (sys.executable, str(LISTER), str(path))
        self.server = links.with_section(Server(id="lister", command=command, **fields))  # type: ignore[arg-type]

    def answer(self, method: str, **step: object) -> Plan:
        """From now on, answer this list so."""
        self._steps[method] = step
        self._write()
        return self

    def tools(self, *names: str) -> Plan:
        """From now on, list these tools."""
        return self.answer("tools/list", result={"tools": [tool(name) for name in names]})

    def seen(self, method: str) -> int:
        """How often this list was asked for."""
        seen = Path(f"{self.path}.seen")
        return seen.read_text().split().count(method) if seen.exists() else 0

    def _write(self) -> None:
        # Replaced whole: the server may be reading it.
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self._steps))
        new.replace(self.path)


def tool(name: str, **more: object) -> dict[str, object]:
    """One entry of `tools/list`."""
    return {"name": name, "inputSchema": {"type": "object"}, **more}
