"""Supervisor: one link's one life after another: start, watch, end, pause, start again.

A shared server has one, others have several (`fleet.py`). One task, `run()`, owns the link and whatever carries it;
leaving the transport's context ends the process or session. What decides is pure (`states.py`, `backoff.py`); this file
carries it out. Each attempt is fenced: whatever goes wrong with one link is logged and counted, and is at most another
failed attempt of that link.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol, assert_never

from mcpmux.config.schema import Server
from mcpmux.credentials.scope import LinkKey
from mcpmux.errors import LinkFailed, ServerEnded, ServerUnavailable
from mcpmux.links import health, process, sse, states, stdio, streamable
from mcpmux.links.backoff import Backoff, Retry
from mcpmux.links.eras import LEGACY, Era, Eras, era_of
from mcpmux.links.exchange import Exchange
from mcpmux.links.link import Link
from mcpmux.links.seats import Seats
from mcpmux.links.starts import Starts
from mcpmux.links.states import Happened, State
from mcpmux.links.surroundings import Surroundings
from mcpmux.links.transport import Transport
from mcpmux.observe.log import logger
from mcpmux.protocol.abilities import OF_NOBODY, Capabilities
from mcpmux.protocol.events import News
from mcpmux.protocol.upstream import Core, LinkCore, ModernCore, ProbeCore, numbers

START_LIMIT: Final = 60.0  # seconds
INSTALL_LIMIT: Final = 180.0  # the same for npx and uvx, which may have to fetch the server first
PROBE_LIMIT: Final = 2.0  # seconds for a server of which nothing is known to answer `server/discover` alone
SILENT_LIMIT: Final = 10.0  # seconds for it to answer that or `initialize`; then it is started again without the first

log = logger("links")


class Owner(Protocol):
    """Who made a supervisor, and is told what becomes of its link."""

    def moved(self, supervisor: Supervisor) -> None:
        """It is in another state, or in the same one once more."""

    def noticed(self, supervisor: Supervisor, what: News | None) -> None:
        """Its server said that something has changed; None: the session was made anew on the same link."""


@dataclass(frozen=True, slots=True)
class Fittings:
    """What every supervisor of one pool is given."""

    ground: Surroundings
    starts: Starts
    eras: Eras
    ids: defaultdict[str, Iterator[int]] = field(default_factory=lambda: defaultdict(numbers.source))  # by server


class Supervisor:
    """The owner of the link behind one `LinkKey`, for one version of its server's config."""

    __slots__ = (
        "_backoff", "_drain_until", "_eras", "_ground", "_guess", "_ids", "_link", "_next_try", "_owner", "_retiring",
        "_starts", "_task", "_turn", "attempts", "client", "key", "reason", "seats", "server", "since", "state",
        "stumbled", "wanted",
    )  # fmt: skip

    def __init__(self, key: LinkKey, server: Server, seats: Seats, fittings: Fittings, owner: Owner) -> None:
        self.key = key
        self.server = server
        self.seats = seats
        self.state = states.initial(enabled=server.enabled, unconfigured=server.unconfigured)
        self.reason = server.why_unconfigured if self.state is State.UNCONFIGURED else None
        self.since = time.time()
        self.client: Capabilities | None = None  # what the one client can do whose own the link is
        self.attempts = 0  # links begun
        self.stumbled = False  # an attempt has ended
        self.wanted = False  # a call waits for it
        self._ground = fittings.ground
        self._starts = fittings.starts
        self._eras = fittings.eras
        self._ids = fittings.ids[server.id]
        self._guess: Era | None = None  # what the last attempt suggests
        self._owner = owner
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._backoff = Backoff()
        self._retiring = False
        self._drain_until = 0.0
        self._next_try = 0.0
        self._turn = asyncio.Event()

    @property
    def runs(self) -> bool:
        """Whether there is anything to supervise."""
        return self.state not in (State.DISABLED, State.UNCONFIGURED)

    @property
    def link(self) -> Link | None:
        """The link if it lives, whether or not calls may be opened on it."""
        link = self._link
        return link if link is not None and link.lost is None else None

    @property
    def ready(self) -> Link | None:
        """The link if calls may be opened on it."""
        return self.link if self.state is State.READY else None

    @property
    def hopeful(self) -> bool:
        """Whether waiting a moment may help."""
        return self.state in (State.STARTING, State.READY, State.DEGRADED)

    @property
    def retry_after(self) -> float | None:
        """Seconds until the next try, if one is planned."""
        left = self._next_try - asyncio.get_running_loop().time()
        return left if left > 0 else None

    @property
    def restarts(self) -> int:
        """How many links were started in the place of a former one."""
        return max(0, self.attempts - 1)

    async def turned(self, until: float) -> None:
        """Return at the next change of state. `until`: loop time.

        Raises: ServerUnavailable when waiting is of no use, or was not in time.
        """
        if not self.hopeful:
            raise ServerUnavailable(self.server.id, self.retry_after)
        self.wanted = True
        try:
            async with asyncio.timeout_at(until):
                await self._turn.wait()
        except TimeoutError:
            raise ServerUnavailable(self.server.id, self.retry_after) from None

    def begin(self, tasks: asyncio.TaskGroup, ended: Callable[[], None]) -> None:
        """Start the one task; `ended` is called when nothing of this link runs any more."""
        self._task = tasks.create_task(self.run(), name=f"server {self.server.id}")
        self._task.add_done_callback(lambda _: ended())

    def turn(self) -> None:
        """Let everybody look again who waits for this link."""
        turned, self._turn = self._turn, asyncio.Event()
        turned.set()

    def retire(self, drain: float) -> None:
        """End for good, after calls in flight have had `drain` seconds. Never waits; 0 also ends a drain."""
        if not self.runs:
            return
        link = self.link
        if not self._retiring:
            self._retiring = True
            self._move(Happened.RETIRED, self.reason)
            if link is not None and link.in_flight and drain > 0:
                self._drain_until = link.loop.time() + drain
                link.draining = True
                link.stirred.set()
                return
            # Only once: a second cancellation would interrupt the polite end of the process.
            if self._task is not None:
                self._task.cancel()
        if link is not None and drain <= 0:
            link.end("it was switched off", ServerEnded(self.server.id))

    async def run(self) -> None:
        """One link after another, until retired."""
        while not self._retiring:
            retry = await self._attempt()
            if not self._retiring:
                await self._pause(retry)

    # One attempt -----------------------------------------------------------------------------------------------

    async def _attempt(self) -> Retry:
        """The whole life of one link, and what follows it."""
        self.attempts += 1
        metrics = self._ground.metrics.server(self.server.id)
        if self.attempts > 1:
            metrics.link_restarted()
        known = self._guess or await self._eras.of(self.server)
        core = self._core(known)
        life = _Life(Link(self.key, core, self.seats, metrics, lambda what: self._owner.noticed(self, what)), known)
        try:
            await self._live(life)
        except LinkFailed as exc:
            life.link.end(str(exc), refused=exc.refused)
        except Exception:
            log.exception("supervisor_failed", server=self.server.id)
            self._ground.metrics.fence_failed("supervisor")
            life.link.end("internal error")
        finally:
            life.link.end("it was ended by mcpmux")
            self._link = None
        if life.ready_at is None and life.transport is not None and not self._retiring:
            await self._suspect_era(life)
        elif life.link.unwelcome:
            await self._eras.forget(self.server)
        return self._conclude(life)

    def _core(self, era: Era | None) -> Core[Exchange]:
        streamed, version = self.server.transport == "http", self._ground.version
        lent, own = self.seats.lent, self.client is not None
        legacy: Core[Exchange] = LinkCore(
            streamed=streamed,
            version=version,
            lent=lent,
            own=own,
            capabilities=OF_NOBODY if self.client is None else self.client,
            ids=self._ids,
        )
        if era == LEGACY:
            return legacy
        modern = ModernCore[Exchange](streamed=streamed, version=version, lent=lent, own=own, ids=self._ids)
        return ProbeCore(modern, legacy)

    async def _suspect_era(self, life: _Life) -> None:
        """The server was not greeted. If that may be because of the era, the next attempt tries another one."""
        self._guess = None
        if life.link.unwelcome or life.known not in (None, LEGACY):
            await self._eras.forget(self.server)
        elif life.known is None and self.server.transport == "stdio":
            self._guess = LEGACY  # it died of the question, or is still silent because of it

    async def _live(self, life: _Life) -> None:
        """Start, greet, watch, drain; on return nothing of the link is left."""
        link = life.link
        place = await self._starts.take(lambda: self.wanted)
        life.begun = link.loop.time()
        try:
            async with _opened(link, self.server, self._ground) as transport:
                life.transport = transport
                await self._greet(life, transport)
                place.release()
                if link.lost is None:
                    self._link, life.ready_at = link, link.loop.time()
                    self._became_ready(link, life)
                    await self._learn_era(life)
                    await health.watch(link, self._suspected, self._cleared)
                    await self._after_watch(link)
        finally:
            place.release()

    async def _greet(self, life: _Life, transport: Transport) -> None:
        """Afterwards the link is ready, or lost with a reason."""
        limit = INSTALL_LIMIT if process.installs(self.server) else START_LIMIT
        patience = {None: PROBE_LIMIT, LEGACY: None}.get(life.known, SILENT_LIMIT)
        if life.known is None and self.server.transport == "stdio" and not process.installs(self.server):
            limit = min(limit, PROBE_LIMIT + SILENT_LIMIT)
        try:
            async with asyncio.timeout(limit):
                await life.link.greet(transport, patience)
        except TimeoutError:
            life.slow = limit >= START_LIMIT
            asked = "initialize" if life.known == LEGACY else "server/discover or initialize"
            life.link.end(f"did not answer {asked} within {limit:g} s")
        except LinkFailed as exc:
            life.link.end(str(exc), refused=exc.refused)

    async def _learn_era(self, life: _Life) -> None:
        guessed, self._guess = self._guess is not None, None
        greeting, taken = life.link.greeting, (life.ready_at or 0.0) - life.begun
        if guessed and taken > PROBE_LIMIT + SILENT_LIMIT:
            return  # it was silent because it starts slowly, which says nothing of its era
        if greeting is not None:
            await self._eras.found(self.server, era_of(greeting.protocol_version))

    async def _after_watch(self, link: Link) -> None:
        if link.lost is not None:
            # At once: ending the process may take a while, and calls should wait for the next link already.
            self._move(Happened.RETIRED if self._retiring else Happened.LOST, link.lost)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._drain_until):
                while link.in_flight and link.lost is None:
                    link.stirred.clear()
                    await link.stirred.wait()
        link.end("it was switched off", ServerEnded(self.server.id))

    def _became_ready(self, link: Link, life: _Life) -> None:
        self.wanted = False
        self._next_try = 0.0
        greeting = link.greeting
        log.info(
            "link_ready",
            server=self.server.id,
            pid=link.pid,
            revision=greeting.protocol_version if greeting is not None else None,
            duration_ms=round((link.loop.time() - life.begun) * 1000, 1),
        )
        self._move(Happened.GREETED, None)

    def _suspected(self) -> None:
        if self.state is State.READY:
            log.warning("link_degraded", server=self.server.id)
            self._move(Happened.SILENCED, "it has stopped answering")

    def _cleared(self) -> None:
        if self.state is State.DEGRADED:
            log.info("link_recovered", server=self.server.id)
            self._move(Happened.ANSWERED, None)

    def _conclude(self, life: _Life) -> Retry:
        """Say what became of the link, and decide when to try again."""
        now = life.link.loop.time()
        problem = life.link.lost or ""
        if life.transport is not None:
            problem = life.transport.describe(problem)
        if life.link.replaced and not self._retiring:
            log.info("link_replaced", server=self.server.id, reason=problem)
            return Retry(0.0, failed=False)
        retry = self._backoff.after(
            now - life.ready_at if life.ready_at is not None else 0.0,
            refused=life.link.refused,
            slow_start=life.slow,
            chance=random.random(),  # noqa: S311 (jitter)
        )
        if self._retiring:
            log.info("link_ended", server=self.server.id)
            return retry
        self.stumbled = True
        self._next_try = now + retry.pause
        event = "server_failed" if retry.failed else "link_lost"
        log.warning(event, server=self.server.id, reason=problem, retry_in=round(retry.pause, 2))
        self._move(Happened.GAVE_UP if retry.failed else Happened.LOST, problem)
        return retry

    async def _pause(self, retry: Retry) -> None:
        await asyncio.sleep(retry.pause)
        if self.state is State.FAILED:
            self._move(Happened.RETRIED, self.reason)

    def _move(self, happened: Happened, reason: str | None) -> None:
        """The one place where the state changes."""
        before, self.state = self.state, states.next(self.state, happened)
        self.reason = reason
        if self.state is not before:
            self.since = time.time()
        self.turn()
        self._owner.moved(self)


@dataclass(slots=True)
class _Life:
    """One attempt: its link, and how far it came."""

    link: Link
    known: Era | None  # how the server is greeted; None: in either way
    transport: Transport | None = None
    ready_at: float | None = None
    slow: bool = False  # the start took all the time that it was given
    begun: float = 0.0


def _opened(link: Link, server: Server, ground: Surroundings) -> AbstractAsyncContextManager[Transport]:
    match server.transport:
        case "stdio":
            return stdio.opened(link, server, ground)
        case "http":
            return streamable.opened(link, server, ground)
        case "sse":
            return sse.opened(link, server, ground)
        case _:
            assert_never(server.transport)
