"""Offers: what each server offers, from its live link or, until that is there, from the last run.

Owns when a server is asked for its lists, which answer counts, and that it is kept. Rules of the file:

- A live list replaces the kept one at once. A list that cannot be had changes nothing: what was known of it stays, it
  is asked for again with growing pauses, and the log says so. It is never an empty list.
- Each server is asked by a task of its own, one list at a time (so that a listing takes one seat of its bulkhead),
  and not again within `quiet` seconds however often it says that something changed. What has come after `together`
  seconds is shown, without waiting for a list that hangs.
- What differs only in the order of its entries is no change, so a server that shuffles its lists, or restarts, costs
  nobody a `list_changed`.
- A list of the modern era of whose changes nobody tells us is asked for again when somebody looks at it and its
  `ttlMs` is over, never by a clock. Whoever looks gets what is there.
- Nothing here waits for the database but the task that keeps; without it, lists come from live links alone.

Each server has a `Seat` for its config section. When the section changes, whatever is still under way for the former
seat is dropped when it arrives.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Mapping
from functools import partial
from typing import Final

from msgspec import Raw

from mcpmux.catalog.changes import Broadcast, Mailbox
from mcpmux.catalog.items import Item as Item
from mcpmux.catalog.items import Offer as Offer
from mcpmux.catalog.items import Reading, read_items, without_headers_amiss
from mcpmux.catalog.kept import fetch_kept, keep, kept_bytes, prune, read_kept, section_digest
from mcpmux.catalog.pages import Bounds, is_modern, read_pages
from mcpmux.catalog.seat import KEEP, Due, Pace, Seat
from mcpmux.config.schema import Server
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
MOST_KEPT: Final = 64 * 1024 * 1024  # bytes; a larger offer is not kept


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
        self._seats: dict[str, Seat] = {}
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

    def looked_at(self, servers: Iterable[str], what: Offered) -> None:
        """Somebody wants a list of these: where it is too old, it is asked for, for whoever comes next."""
        now = _now()
        for server in servers:
            seat = self._seats.get(server)
            if seat is not None and seat.aged(what, now):
                self._want(seat, (what,))

    async def renewed(self, server: str, what: Offered, wait: float) -> None:
        """Return when a list has been asked for once more, well or not; after `wait` seconds at the latest."""
        seat = self._seats.get(server)
        if seat is None:
            return
        asked = seat.look_for(what)
        self._want(seat, (what,))
        await _until(asked, wait)

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

    async def close(self, wait: float) -> None:
        """Keep what is not kept yet; after `wait` seconds the rest is given up.

        Without it, a list that changed within the last second, or while PostgreSQL was away, would be the former one
        at the next start.
        """
        unkept = [seat for seat in self._seats.values() if seat.live and not seat.kept]
        try:
            async with asyncio.timeout(wait), asyncio.TaskGroup() as tasks:
                for seat in unkept:
                    tasks.create_task(self._keep(seat), name=f"offers: keep {seat.server.id}")
        except TimeoutError:
            log.warning("offers_not_kept", servers=[seat.server.id for seat in unkept if not seat.kept])

    def _is_settled(self, server: str) -> bool:
        seat = self._seats.get(server)
        return seat is None or seat.settled

    def _seated(self, server: Server) -> Seat | None:
        """The new seat of a new or changed server, None if the one it has stays."""
        digest = section_digest(self._keyring, server)
        old = self._seats.get(server.id)
        if old is not None and old.digest == digest:
            old.server = server
            return None
        seat = self._seats[server.id] = Seat(server, digest, old)
        return seat

    def _tell(self, server: str) -> None:
        self._serial += 1
        self._changed.tell(server)

    # What was kept -------------------------------------------------------------------------------------------------

    async def _read_kept(self, seats: Iterable[Seat]) -> None:
        wanted = {seat.server.id: seat for seat in seats}
        if not wanted:
            return
        try:
            found = await fetch_kept(self._db, {server: seat.digest for server, seat in wanted.items()})
            for server, data in found.items():
                self._use_kept(wanted[server], data)
            await prune(self._db, [seat.digest for seat in self._seats.values()])
        except StoreUnavailable as exc:
            log.warning("kept_offers_unread", problem=str(exc))

    def _use_kept(self, seat: Seat, data: bytes) -> None:
        server = seat.server.id
        if seat.live or self._seats.get(server) is not seat:
            return
        kept = read_kept(data)
        if kept is None:
            log.warning("kept_offer_ignored", server=server, problem="it cannot be read")
            return
        items = {what: self._read(seat, what, entries).items for what, entries in kept.lists.items()}
        seat.kept = True
        self._put(seat, Offer(server, items, kept.capabilities, kept.instructions, kept.server_info, self._serial + 1))

    async def _keep(self, seat: Seat) -> None:
        if seat.offer is None or self._seats.get(seat.server.id) is not seat:
            return
        offer, data = seat.offer, kept_bytes(seat.offer)
        if len(data) > MOST_KEPT:
            log.warning("offer_not_kept", server=seat.server.id, problem=f"more than {MOST_KEPT} bytes")
            return
        try:
            await keep(self._db, seat.server.id, seat.digest, data)
        except StoreUnavailable as exc:
            log.warning("offer_not_kept", server=seat.server.id, problem=str(exc), **self._again(seat, KEEP))
            return
        seat.succeeded(KEEP)
        seat.kept = offer is seat.offer

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
            case LinkReady() if change.key == seat.key:
                seat.greeted()
                self._want(seat, Offered)
            case OfferChanged() if not seat.awaits_link:
                self._want(seat, (change.what,))
            case StateChanged():
                self._note_state(seat, change.state)
            case _:
                pass

    def _look(self, seat: Seat) -> None:
        """Catch up with what was said of a server before it had its seat."""
        state = self._pool.state(seat.server.id)
        if state is not None:
            self._note_state(seat, state)
        if state is State.READY and not seat.awaits_link:
            self._want(seat, Offered)

    def _note_state(self, seat: Seat, state: str) -> None:
        if seat.note_state(state):
            self._tell(seat.server.id)

    def _want(self, seat: Seat, what: Iterable[Due]) -> None:
        seat.want(what, _now())
        self._due.put(seat.server.id)

    # Asking --------------------------------------------------------------------------------------------------------

    async def _tend(self, seat: Seat) -> None:
        """Do what is due for one server until nothing is; a failure of it is nobody else's."""
        try:
            await fenced("offer", partial(self._do_what_is_due, seat), self._metrics)
        finally:
            seat.busy = False

    async def _do_what_is_due(self, seat: Seat) -> None:
        while (due_at := seat.next_due) is not None and self._seats.get(seat.server.id) is seat:
            if due_at > _now():
                await _until(seat.hurry, due_at - _now())
                seat.hurry.clear()
                continue
            due = seat.take_due(_now())
            looked_for = seat.take_looked_for(due)
            await self._ask_in_time(seat, [what for what in due if isinstance(what, Offered)])
            for asked in looked_for:
                asked.set()
            # At once, not in the next turn: whoever ends mcpmux in the second between them starts with an old list.
            if seat.take(KEEP, _now()) or KEEP in due:
                await self._keep(seat)
            await asyncio.sleep(self._pace.quiet)

    async def _ask_in_time(self, seat: Seat, lists: list[Offered]) -> None:
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

    async def _ask(self, seat: Seat, link: Link, lists: list[Offered]) -> None:
        for what in lists:
            pages = await read_pages(self._pool, link, what, self._bounds)
            if pages.entries is None:
                self._list_failed(seat, what, pages.problem)
                continue
            if pages.problem is not None:
                log.warning("list_cut_short", server=seat.server.id, list=what.value, problem=pages.problem)
            seat.succeeded(what)
            if link.ages(what):
                seat.ages(what, _now() + max(pages.ttl, self._pace.fresh))
            seat.fresh[what] = self._read(seat, what, pages.entries, link).items

    def _list_failed(self, seat: Seat, what: Offered, problem: str | None) -> None:
        log.warning("list_failed", server=seat.server.id, list=what.value, problem=problem, **self._again(seat, what))

    def _again(self, seat: Seat, what: Due) -> dict[str, float]:
        """Plan to do it again; the pause, for the log."""
        pause = seat.failed(what, self._pace, _now(), random.random())  # noqa: S311 (jitter)
        return {"retry_seconds": round(pause, 1)}

    def _read(self, seat: Seat, what: Offered, entries: Iterable[bytes], link: Link | None = None) -> Reading:
        """The entries of a list, from a link or from what was kept of it, and what is amiss with them for the log."""
        reading = read_items(what, seat.server.id, entries, self._name_limit)
        # What was kept may be older than this rule, and does not say of which era its server is.
        is_strict = seat.server.transport == "http" and (link is None or is_modern(link.greeting))
        if what is Offered.TOOLS and is_strict:
            reading = without_headers_amiss(reading)
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

    def _show(self, seat: Seat, link: Link) -> None:
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
        self._put(seat, made)
        if not seat.kept:
            self._want(seat, (KEEP,))

    def _put(self, seat: Seat, offer: Offer) -> None:
        """Show `offer` from now on, if there is anything new in it."""
        if seat.offer is not None and offer.same_as(seat.offer):
            return
        seat.offer = offer
        seat.kept = seat.kept and not seat.live
        counts = {what.value: len(items) for what, items in offer.items.items()}
        log.info("offer_changed", server=seat.server.id, live=seat.live, **counts)
        self._tell(seat.server.id)


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
