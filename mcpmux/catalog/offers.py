"""Offers: what each server offers, from its live link or, until that is there, from the last run.

Owns when a server is asked for its lists, which answer counts, and that it is kept. Rules of the file:

- A live list replaces the kept one at once. A list that cannot be had changes nothing: what was known of it stays, it
  is asked for again with growing pauses, and the log says so. It is never an empty list.
- Each server is asked by a task of its own, one list at a time (so that a listing takes one seat of its bulkhead),
  and not again within `quiet` seconds however often it says that something changed. What has come after `together`
  seconds is shown, without waiting for a list that hangs.
- What differs only in the order of its entries is no change, so a server that shuffles its lists, or restarts, costs
  nobody a `list_changed`.
- Nothing here waits for the database but the task that keeps; without it, lists come from live links alone.

A seat (`_Seat`) is one server with one config section. A changed section gets a new seat, which starts with what the
old one offered; whatever is still under way for the old one is dropped when it arrives.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from msgspec import Raw

from mcpmux.catalog.changes import Broadcast, Mailbox
from mcpmux.catalog.items import Item as Item
from mcpmux.catalog.items import Offer as Offer
from mcpmux.catalog.items import Reading, read_items
from mcpmux.catalog.kept import fetch_kept, keep, kept_bytes, prune, read_kept
from mcpmux.catalog.pages import Bounds, read_pages
from mcpmux.config.schema import Server
from mcpmux.credentials.scope import LinkKey
from mcpmux.errors import StoreUnavailable, UpstreamError
from mcpmux.links.changes import LinkChange, LinkReady, OfferChanged, StateChanged
from mcpmux.links.link import Link
from mcpmux.links.pool import Pool
from mcpmux.links.states import State
from mcpmux.observe.fence import fenced
from mcpmux.observe.log import logger
from mcpmux.observe.metrics import Metrics
from mcpmux.protocol.events import Offered
from mcpmux.seal import Keyring
from mcpmux.store.database import Database

log = logger("catalog")

SHOWN: Final = 5  # names in one log line
_KEEP: Final = "keep"
_Due = Offered | str  # a list to ask for, or `_KEEP`


@dataclass(frozen=True, slots=True)
class Pace:
    """How often servers are asked; seconds."""

    quiet: float = 1.0
    together: float = 2.0
    retry: float = 1.0  # after the first failure, doubled with each further one
    longest: float = 300.0


class _Seat:
    """One server with one config section, and what is known and wanted of it."""

    __slots__ = (
        "awaits_link", "busy", "digest", "due", "failures", "fresh", "given_up", "hurry", "key", "live", "offer",
        "said", "server", "unavailable",
    )  # fmt: skip

    def __init__(self, server: Server, digest: bytes, before: _Seat | None) -> None:
        self.server = server
        self.digest = digest
        self.key = LinkKey(server.id)
        self.offer: Offer | None = before.offer if before else None
        self.awaits_link = before is not None  # the link that is there is still the one of the section before
        self.given_up = False  # it failed, and has not been ready since
        self.live = False  # the offer is this section's own, from a live link
        self.unavailable = False  # it was asked, and nothing came
        self.fresh: dict[Offered, tuple[Item, ...]] = {}  # read, and not in the offer yet
        self.due: dict[_Due, float] = {}  # what is to be done, and when (loop time)
        self.failures: dict[_Due, int] = {}
        self.said: dict[tuple[Offered, str], tuple[str, ...]] = {}  # what the log was told of last
        self.hurry = asyncio.Event()
        self.busy = False

    @property
    def settled(self) -> bool:
        """Whether waiting longer for its first offer is of no use."""
        return self.offer is not None or self.unavailable or self.given_up

    def want(self, what: Iterable[_Due], now: float) -> None:
        for each in what:
            self.due[each] = now
        self.hurry.set()


class Offers:
    """What every enabled, configured server offers."""

    def __init__(
        self, pool: Pool, db: Database, keyring: Keyring, metrics: Metrics, *, name_limit: int, pace: Pace | None = None
    ) -> None:  # fmt: skip
        self._pool = pool
        self._db = db
        self._keyring = keyring
        self._metrics = metrics
        self._name_limit = name_limit
        self._pace = pace or Pace()
        self._bounds = Bounds()
        self._seats: dict[str, _Seat] = {}
        self._serial = 0
        self._changed: Broadcast[str] = Broadcast()
        self._due: Mailbox[str] = Mailbox()

    @property
    def serial(self) -> int:
        """Grows with every change of what is shown: an offer, or a server that fails or is back."""
        return self._serial

    def of(self, server: str) -> Offer | None:
        """What `server` offers as far as anybody knows, its last word or what was kept of it."""
        seat = self._seats.get(server)
        return None if seat is None else seat.offer

    def failed(self, server: str) -> bool:
        """Whether `server` is given up for now, so that its offer is not to be shown.

        It stays so while it is tried again: a broken server must not come and go with every try.
        """
        seat = self._seats.get(server)
        return seat is not None and seat.given_up

    async def settled(self, servers: Iterable[str], wait: float) -> None:
        """Return when each of them has an offer or can have none for now, after `wait` seconds at the latest."""
        wanted = set(servers)
        if all(map(self._is_settled, wanted)):
            return
        news: Mailbox[str] = Mailbox()
        self._changed.follow(news)
        try:
            async with asyncio.timeout(wait):
                while not all(map(self._is_settled, wanted)):
                    await news.take_all()
        except TimeoutError:
            return

    def changes(self) -> AsyncIterator[str]:
        """Ids of servers whose offer changed, that failed, came back or went, from now on; for one consumer."""
        news: Mailbox[str] = Mailbox()
        self._changed.follow(news)
        return _each(news)

    def follow(self, news: Mailbox[str]) -> None:
        """Tell `news` what `changes()` would give."""
        self._changed.follow(news)

    async def apply(self, servers: Mapping[str, Server]) -> None:
        """Take new and changed servers in, with what was kept of them, and let go of those not usable any more."""
        usable = {server.id: server for server in servers.values() if server.enabled and not server.unconfigured}
        for gone in self._seats.keys() - usable.keys():
            del self._seats[gone]
            self._tell(gone)
        fresh = [seat for server in usable.values() if (seat := self._seated(server)) is not None]
        for seat in fresh:
            self._look(seat)
        await self._read_kept(fresh)

    async def run(self) -> None:
        """Listen to the links, and ask them for their lists, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(), name="offers: listen")
            while True:
                seat = self._seats.get(await self._due.take())
                if seat is not None and not seat.busy:
                    seat.busy = True
                    tasks.create_task(self._tend(seat), name=f"offers: {seat.server.id}")

    def _is_settled(self, server: str) -> bool:
        seat = self._seats.get(server)
        return seat is None or seat.settled

    def _seated(self, server: Server) -> _Seat | None:
        """The new seat of a new or changed server, None if the one it has stays."""
        digest = self._keyring.digest("offer", server.section)
        old = self._seats.get(server.id)
        if old is not None and old.digest == digest:
            old.server = server
            return None
        seat = self._seats[server.id] = _Seat(server, digest, old)
        return seat

    def _tell(self, server: str) -> None:
        self._serial += 1
        self._changed.tell(server)

    # What was kept -------------------------------------------------------------------------------------------------

    async def _read_kept(self, seats: Iterable[_Seat]) -> None:
        wanted = {seat.server.id: seat for seat in seats}
        try:
            found = await fetch_kept(self._db, {server: seat.digest for server, seat in wanted.items()})
            await prune(self._db, [seat.digest for seat in self._seats.values()])
        except StoreUnavailable as exc:
            log.warning("kept_offers_unread", problem=str(exc))
            return
        for server, data in found.items():
            self._use_kept(wanted[server], data)

    def _use_kept(self, seat: _Seat, data: bytes) -> None:
        server = seat.server.id
        if seat.live or self._seats.get(server) is not seat:
            return
        kept = read_kept(data)
        if kept is None:
            log.warning("kept_offer_ignored", server=server, problem="it cannot be read")
            return
        items = {what: self._read(seat, what, entries).items for what, entries in kept.lists.items()}
        made = Offer(server, items, kept.capabilities, kept.instructions, kept.server_info, self._serial + 1)
        self._put(seat, made)

    async def _keep(self, seat: _Seat) -> None:
        if seat.offer is None or self._seats.get(seat.server.id) is not seat:
            return
        try:
            await keep(self._db, seat.server.id, seat.digest, kept_bytes(seat.offer))
        except StoreUnavailable as exc:
            pause = round(self._failed(seat, _KEEP), 1)
            log.warning("offer_not_kept", server=seat.server.id, problem=str(exc), retry_seconds=pause)
        else:
            seat.failures.pop(_KEEP, None)

    # What the links say --------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        # It begins with the links that are ready already.
        async for change in self._pool.changes():
            self._note(change)

    def _note(self, change: LinkChange) -> None:
        seat = self._seats.get(change.server)
        if seat is None:
            return
        match change:
            case LinkReady():
                seat.failures.clear()
                seat.awaits_link = False
                self._want(seat, Offered)
            case OfferChanged() if not seat.awaits_link:
                self._want(seat, (change.what,))
            case StateChanged():
                self._note_state(seat, change.state)
            case _:
                pass

    def _look(self, seat: _Seat) -> None:
        """Catch up with what was said of a server before it had its seat."""
        state = self._pool.state(seat.server.id)
        if state is not None:
            self._note_state(seat, state)
        if state is State.READY and not seat.awaits_link:
            self._want(seat, Offered)

    def _note_state(self, seat: _Seat, state: str) -> None:
        given_up = seat.given_up
        if state == State.FAILED:
            given_up = True
        elif state in (State.READY, State.DEGRADED):
            given_up = False
        if given_up != seat.given_up:
            seat.given_up = given_up
            self._tell(seat.server.id)

    def _want(self, seat: _Seat, what: Iterable[_Due]) -> None:
        seat.want(what, _now())
        self._due.put(seat.server.id)

    # Asking --------------------------------------------------------------------------------------------------------

    async def _tend(self, seat: _Seat) -> None:
        """Do what is due for one server until nothing is; a failure of it is nobody else's."""
        try:
            await fenced("offer", partial(self._do_what_is_due, seat), self._metrics)
        finally:
            seat.busy = False

    async def _do_what_is_due(self, seat: _Seat) -> None:
        while seat.due and self._seats.get(seat.server.id) is seat:
            seat.hurry.clear()
            pause = min(seat.due.values()) - _now()
            if pause > 0:
                await _until(seat.hurry, pause)
                continue
            await self._ask_in_time(seat, [what for what in Offered if seat.due.get(what, _NEVER) <= _now()])
            if seat.due.get(_KEEP, _NEVER) <= _now():
                del seat.due[_KEEP]
                await self._keep(seat)
            await asyncio.sleep(self._pace.quiet)

    async def _ask_in_time(self, seat: _Seat, lists: list[Offered]) -> None:
        for what in lists:
            del seat.due[what]
        if not lists or self._pool.state(seat.server.id) not in (State.READY, State.DEGRADED):
            return  # A link that is not there is announced when it is there again.
        try:
            link = await self._pool.link(seat.key, self._bounds.page_time)
        except UpstreamError as exc:
            for what in lists:
                self._list_failed(seat, what, str(exc))
            return
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(self._ask(seat, link, lists), name=f"offers: ask {seat.server.id}")
            await asyncio.wait({asking}, timeout=self._pace.together)
            self._show(seat, link)
        self._show(seat, link)
        if not seat.settled:
            seat.unavailable = True
            self._tell(seat.server.id)

    async def _ask(self, seat: _Seat, link: Link, lists: list[Offered]) -> None:
        for what in lists:
            pages = await read_pages(self._pool, link, what, self._bounds)
            if pages.entries is None:
                self._list_failed(seat, what, pages.problem)
                continue
            if pages.problem is not None:
                log.warning("list_cut_short", server=seat.server.id, list=what.value, problem=pages.problem)
            seat.failures.pop(what, None)
            seat.fresh[what] = self._read(seat, what, pages.entries).items

    def _list_failed(self, seat: _Seat, what: Offered, problem: str | None) -> None:
        pause = round(self._failed(seat, what), 1)
        log.warning("list_failed", server=seat.server.id, list=what.value, problem=problem, retry_seconds=pause)

    def _read(self, seat: _Seat, what: Offered, entries: Iterable[bytes]) -> Reading:
        reading = read_items(what, seat.server.id, entries, self._name_limit)
        for event, names in (
            ("entries_unfit", reading.unfit),
            ("entries_twice", reading.twice),
            ("names_displaced", reading.displaced),
        ):
            if names and names != seat.said.get((what, event)):
                shown = [name[:200] for name in names[:SHOWN]]
                log.warning(event, server=seat.server.id, list=what.value, count=len(names), names=shown)
            seat.said[what, event] = names
        return reading

    def _show(self, seat: _Seat, link: Link) -> None:
        """Make what was read part of the offer."""
        if not seat.fresh or link.greeting is None or self._seats.get(seat.server.id) is not seat:
            return
        known = {**(seat.offer.items if seat.offer else {}), **seat.fresh}
        seat.fresh = {}
        seat.live = True
        said = link.greeting
        capabilities = {name: Raw(bytes(value)) for name, value in said.capabilities.items()}
        info = Raw(bytes(said.server_info))
        made = Offer(seat.server.id, known, capabilities, said.instructions, info, self._serial + 1)
        if self._put(seat, made):
            self._want(seat, (_KEEP,))

    def _put(self, seat: _Seat, offer: Offer) -> bool:
        """Show `offer` from now on; False if there is nothing new in it."""
        if seat.offer is not None and offer.same_as(seat.offer):
            return False
        seat.offer = offer
        counts = {what.value: len(items) for what, items in offer.items.items()}
        log.info("offer_changed", server=seat.server.id, live=seat.live, **counts)
        self._tell(seat.server.id)
        return True

    def _failed(self, seat: _Seat, what: _Due) -> float:
        """Plan to try again; the pause in seconds."""
        failures = seat.failures[what] = seat.failures.get(what, 0) + 1
        longest = min(self._pace.retry * 2.0 ** min(failures - 1, 30), self._pace.longest)
        pause = longest * random.uniform(0.5, 1.0)  # noqa: S311 (jitter)
        seat.due.setdefault(what, _now() + pause)
        return pause


_NEVER: Final = float("inf")


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _each(news: Mailbox[str]) -> AsyncIterator[str]:
    while True:
        yield await news.take()


async def _until(event: asyncio.Event, seconds: float) -> None:
    """Return when `event` is set, after `seconds` at the latest."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
