"""Gateway: one running mcpmux. Builds the rooms bottom up, runs their loops, applies Snapshots, drains top down.

Owns the root task group, the signals and the order of the beginning and of the end. It decides nothing about calls.

The beginning. The guardian comes first, before any thread or child. Then what is below comes before what is above, and
the HTTP port last: when it accepts, the offers kept from the last run are in memory, so that the first list is whole
although no server has started yet. `ready` is logged then; the servers start meanwhile.

The end, in two phases. Drain: `/readyz` says 503, no new sessions or calls, calls in flight finish within
`limits.drain`. Then from the top: the face (every stream ends), what offers are not kept yet, the links (every process
group is dead), the loops, the store, the guardian. A second SIGTERM or SIGINT skips what is left of the first phase.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Final, TextIO

import msgspec

from mcpmux import seal
from mcpmux.access.grants import Grants
from mcpmux.calls import Inputs, Interest, Lists, Parking, Router, Tasks
from mcpmux.calls.local import Local
from mcpmux.calls.outcome import Recorder
from mcpmux.catalog.offers import Offer, Offers
from mcpmux.catalog.view import Catalog
from mcpmux.config.live import Live
from mcpmux.config.schema import Overrides, Snapshot
from mcpmux.errors import ConfigInvalid, MuxError, StoreUnavailable
from mcpmux.faces.address import Address
from mcpmux.faces.application import Application
from mcpmux.faces.control import Json, listening
from mcpmux.faces.health import Health
from mcpmux.faces.oauth import WELL_KNOWN, ResourceMetadata
from mcpmux.faces.sessions import Sessions
from mcpmux.guardian import Guardian
from mcpmux.identity import Verifier, development_issuer
from mcpmux.links.eras import Eras
from mcpmux.links.pool import Pool
from mcpmux.links.status import ServerStatus
from mcpmux.links.surroundings import Surroundings
from mcpmux.observe.fence import fenced
from mcpmux.observe.log import logger
from mcpmux.observe.metrics import Metrics
from mcpmux.outbound import Outbound
from mcpmux.protocol.events import Offered
from mcpmux.protocol.methods import EVERY_REQUEST
from mcpmux.store import Database, opened

LOCK_WAIT: Final = 10.0  # seconds that a former mcpmux may take to leave the data directory
ANSWERS_END: Final = 5.0  # seconds for answers on their way when the face closes
KEPT_END: Final = 2.0  # seconds to keep what servers offer and is not kept yet
LINKS_END: Final = 10.0  # seconds for servers to end: stdin closed, SIGTERM, SIGKILL
STORE_ANSWERS: Final = 2.0  # seconds for PostgreSQL to show that it is there, when `status` asks
COLLECT_EVERY: Final = (25_000, 20, 100)  # objects, young collections, middle ones
_LOOK: Final = 0.05  # seconds between two looks at the calls in flight while draining

log = logger("gateway")


@dataclass(frozen=True, slots=True)
class _Rooms:
    """What was built, from the bottom up."""

    metrics: Metrics
    db: Database
    verifier: Verifier
    grants: Grants
    pool: Pool
    offers: Offers
    catalog: Catalog
    interest: Interest
    router: Router
    sessions: Sessions
    application: Application
    health: Health
    metadata: ResourceMetadata


class Stop:
    """Whether we are to end, and how urgently."""

    __slots__ = ("_building", "_terminal", "hurried", "wanted")

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal if terminal.isatty() else None
        self.wanted = asyncio.Event()
        self.hurried = asyncio.Event()
        self._building: asyncio.Task[object] | None = asyncio.current_task()

    def built(self) -> None:
        """From now on a signal is not the end of what the running task awaits."""
        self._building = None

    def hang_up(self, live: Live) -> None:
        """SIGHUP: read the config now; or the terminal that we began on is gone, and nobody would see us run on."""
        if self._terminal is not None and not self._terminal.isatty():
            self.ask()
        else:
            live.reload()

    def ask(self) -> None:
        """SIGTERM or SIGINT."""
        if self.wanted.is_set():
            self.hurried.set()
        self.wanted.set()
        if self._building is not None:
            self._building.cancel()


class Gateway:
    """One running mcpmux, as the command line sees it."""

    def __init__(self, rooms: _Rooms, snapshot: Snapshot, live: Live, stop: Stop) -> None:
        self._rooms = rooms
        self._live = live
        self._stop = stop
        self._started_with = snapshot
        self._problems: tuple[str, ...] = ()
        self._restart_needed = False
        self._begun = time.monotonic()
        self.snapshot = snapshot
        self.url = ""

    @property
    def base(self) -> str:
        """The address that clients use, without a final slash: `public_url`, or where we really listen."""
        return self._rooms.application.base

    async def until_stopped(self) -> None:
        """Return when SIGTERM or SIGINT has come."""
        await self._stop.wanted.wait()

    def servers(self) -> list[dict[str, Json]]:
        """Every server of the config with its state, as `status` tells it."""
        offers = self._rooms.offers
        return [_told(standing, offers.of(standing.id)) for standing in self._rooms.pool.status()]

    async def status(self) -> Json:
        """The answer to `mcpmux status`."""
        rooms = self._rooms
        return {
            "version": version("mcpmux"),
            "pid": os.getpid(),
            "url": self.url,
            "phase": rooms.health.phase,
            "uptime": round(time.monotonic() - self._begun, 1),
            "config": {
                "ok": not self._problems,
                "path": str(self.snapshot.path),
                "errors": list(self._problems),
                "restart_needed": self._restart_needed,
            },
            "store": await _answers(rooms.db),
            "sessions": len(rooms.sessions),
            "calls": rooms.router.in_flight,
            "servers": list(self.servers()),
        }

    # The beginning -------------------------------------------------------------------------------------------------

    def start_loops(self, tasks: asyncio.TaskGroup, guardian: Guardian) -> list[asyncio.Task[None]]:
        """Start every loop of the rooms; each lives until the end, behind a fence."""
        rooms = self._rooms
        loops: Mapping[str, Callable[[], Awaitable[None]]] = {
            "guardian": guardian.run,
            "verifier": rooms.verifier.run,
            "grants": rooms.grants.run,
            "pool": rooms.pool.run,
            "offers": rooms.offers.run,
            "router": rooms.router.run,
            "interest": rooms.interest.run,
            "sessions": rooms.sessions.run,
            "config": self._follow_config,
        }
        return [tasks.create_task(fenced(name, loop, rooms.metrics), name=name) for name, loop in loops.items()]

    async def accept(self, address: Address) -> None:
        """Show what the config says, then listen.

        Raises: StartRefused when the address cannot be had.
        """
        await self._show(self.snapshot)
        self._rooms.metrics.config_applied()
        with address.had():
            self.url = await self._rooms.application.start(address.sockets)
        self._rooms.metadata.base = self._rooms.application.base
        _calm_collector()
        self._rooms.health.phase = "ready"
        log.info("ready", url=self.url, version=version("mcpmux"), pid=os.getpid(), config=str(self.snapshot.path))

    # The config, while we run --------------------------------------------------------------------------------------

    async def _follow_config(self) -> None:
        async for outcome in self._live.snapshots():
            if isinstance(outcome, ConfigInvalid):
                self._problems = outcome.problems
                self._rooms.metrics.config_refused()
                log.error("config_refused", problems=outcome.problems, path=str(self.snapshot.path))
                continue
            try:
                await self._apply(outcome)
            except Exception:
                # It counts as read, so behind the fence it would never be applied.
                self._live.reload()
                raise

    async def _apply(self, snapshot: Snapshot) -> None:
        """Make a new Snapshot the one that counts; links that nothing changed for are untouched."""
        before, now = self.snapshot.servers, snapshot.servers
        await self._show(snapshot)
        self.snapshot, self._problems = snapshot, ()
        self._rooms.metrics.config_applied()
        log.info(
            "config_applied",
            added=sorted(now.keys() - before.keys()),
            changed=sorted(id_ for id_ in now.keys() & before.keys() if now[id_] != before[id_]),
            removed=sorted(before.keys() - now.keys()),
        )
        needed = snapshot.restart_digest != self._started_with.restart_digest
        if needed and not self._restart_needed:
            log.warning(
                "restart_needed", reason="`gateway:` has changed, and what runs was started with the former one"
            )
        self._restart_needed = needed

    async def _show(self, snapshot: Snapshot) -> None:
        self._rooms.pool.apply(snapshot.servers)
        # Before anything is awaited: a slow database must not delay hiding a disabled server.
        self._rooms.catalog.apply(snapshot.servers)
        await self._rooms.offers.apply(snapshot.servers)

    # The end -------------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Let calls finish within `limits.drain`, then end the face and the links; every process group is dead then."""
        rooms = self._rooms
        if rooms.health.phase == "ready":
            rooms.health.phase = "draining"
            rooms.application.drain()
            log.info("drain_begun", calls=rooms.router.in_flight, sessions=len(rooms.sessions))
            await self._calls_done(self._started_with.gateway.limits.drain)
        if self._stop.hurried.is_set():
            await rooms.application.close(0.0)
            return  # ending the loops ends the links, too
        await rooms.application.close(ANSWERS_END)
        await rooms.offers.close(KEPT_END)
        await rooms.pool.close(LINKS_END)

    async def _calls_done(self, limit: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                while self._rooms.router.in_flight and not self._stop.hurried.is_set():
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK):
                            await self._stop.hurried.wait()
        if self._rooms.router.in_flight:
            log.warning("calls_cut", calls=self._rooms.router.in_flight)
            self._rooms.router.cut()


@asynccontextmanager
async def running(
    snapshot: Snapshot, environ: Mapping[str, str], overrides: Overrides, stop: Stop
) -> AsyncIterator[Gateway]:
    """A mcpmux that accepts requests, drained and ended when the block is left.

    Raises: StartRefused, DataDirBusy, StoreUnavailable, MigrationFailed, ConfigInvalid;
    CancelledError when a signal comes before it accepts (`stop.wanted` is set then).
    """
    begun = time.monotonic()
    async with AsyncExitStack() as stack:
        stack.enter_context(_ungrouped())
        guardian = Guardian.start()
        stack.callback(guardian.close)
        live = Live(snapshot.path, environ, overrides=overrides, first=snapshot)
        stack.enter_context(_signals(stop, live))
        address = Address(snapshot.gateway.listen)
        stack.callback(address.leave)
        rooms = await _build(stack, snapshot, environ, guardian, address)
        gateway = Gateway(rooms, snapshot, live, stop)
        async with asyncio.TaskGroup() as tasks:
            loops = gateway.start_loops(tasks, guardian)
            try:
                await stack.enter_async_context(listening(snapshot.gateway.data_dir, {"status": gateway.status}))
                await gateway.accept(address)
                stop.built()
                yield gateway
            finally:
                stop.built()
                await gateway.drain()
                for loop in loops:
                    loop.cancel()
    log.info("stopped", uptime=round(time.monotonic() - begun, 1))


async def _build(
    stack: AsyncExitStack, snapshot: Snapshot, environ: Mapping[str, str], guardian: Guardian, address: Address
) -> _Rooms:
    """Every room, from the bottom up; what must be closed is closed by `stack`."""
    section = snapshot.gateway
    metrics = Metrics(EVERY_REQUEST, version("mcpmux"))
    store = opened(
        section.database.url, section.data_dir, guardian, wait=LOCK_WAIT, exclusive=True, locked=address.take
    )
    db = await stack.enter_async_context(store)
    keyring = seal.keyring(section.data_dir, section.keys)
    outbound = await stack.enter_async_context(Outbound(environ))
    local_issuer = None if section.identity.issuers else development_issuer(section.data_dir)
    verifier = Verifier(section.identity.issuers, outbound, metrics, development=local_issuer)
    grants = Grants(db, metrics)
    ground = Surroundings(section.data_dir, environ, guardian, outbound, metrics, section.limits, version("mcpmux"))
    pool = Pool(ground, Eras(db, keyring))
    offers = Offers(pool, db, keyring, metrics, name_limit=section.names.max_length)
    catalog, interest, inputs = Catalog(offers), Interest(pool), Inputs(pool)
    lists = Lists(catalog, offers, keyring, metrics)
    tasks = Tasks(keyring, grants, catalog, offers, pool, inputs, metrics)
    parts = (lists, Local(catalog, offers, tasks, version("mcpmux")), interest, Parking(pool, inputs, keyring), tasks)
    router = Router(grants, catalog, offers, pool, parts, Recorder(metrics, logger("calls")), metrics)
    sessions = Sessions(section.limits, router, (grants, catalog, lists), (interest, inputs, tasks), metrics)
    application = Application(section, verifier, router, sessions, metrics)
    health = Health(metrics, None if section.metrics.public else application.admit)
    metadata = ResourceMetadata(section.public_url or "", [issuer.issuer for issuer in section.identity.issuers])
    application.mount(
        {"/healthz": health.healthz, "/readyz": health.readyz, "/metrics": health.metrics, WELL_KNOWN: metadata.answer},
        {f"{WELL_KNOWN}/": metadata.answer},
    )
    return _Rooms(
        metrics, db, verifier, grants, pool, offers, catalog, interest, router, sessions, application, health, metadata
    )


@contextmanager
def _ungrouped() -> Iterator[None]:
    """One failure comes out as itself, not as a group of one."""
    try:
        yield
    except BaseExceptionGroup as group:
        failure: BaseException = group
        while isinstance(failure, BaseExceptionGroup) and len(failure.exceptions) == 1:
            failure = failure.exceptions[0]
        if isinstance(failure, MuxError):
            raise failure from failure.__cause__
        raise


@contextmanager
def _signals(stop: Stop, live: Live) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    actions: Mapping[signal.Signals, Callable[[], None]] = {
        signal.SIGTERM: stop.ask,
        signal.SIGINT: stop.ask,
        signal.SIGHUP: partial(stop.hang_up, live),
    }
    for number, action in actions.items():
        loop.add_signal_handler(number, action)
    try:
        yield
    finally:
        for number in actions:
            loop.remove_signal_handler(number)


def _calm_collector() -> None:
    """Let the garbage collector look less often, and never again at what was there before the first request.

    Nearly all that a call makes is freed by reference counts; looking for cycles every 700 objects, through everything
    that lives, takes a tenth of all CPU time under load (`bench/call.py`).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_EVERY)


ANSWERS = "SELECT 1"


async def _answers(db: Database) -> bool:
    try:
        async with asyncio.timeout(STORE_ANSWERS):
            return await db.fetchval(ANSWERS) == 1
    except (StoreUnavailable, TimeoutError):
        return False


def _told(standing: ServerStatus, offer: Offer | None) -> dict[str, Json]:
    """One server as `status --json` has it."""
    told: dict[str, Json] = msgspec.to_builtins(standing)
    told["tools"] = None if offer is None else len(offer.items.get(Offered.TOOLS, ()))
    return told
