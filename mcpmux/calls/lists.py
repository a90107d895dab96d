"""Lists over many servers: what one endpoint offers to one set of grants, encoded once and paged by sealed cursors.

The same `decide()` that guards calls filters here. A listing is kept until the catalog changes, one for each pair
of view and grants, however many people share them: at 15,000 people, lists are the load (design, section 9).
Source: MCP server/utilities/pagination.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from msgspec import Raw

from mcpmux.access.decision import GrantSet, Kind, Target, decide, whole
from mcpmux.calls.tasks import TASKED
from mcpmux.catalog.offers import Item, Offers
from mcpmux.catalog.view import Catalog, View
from mcpmux.config.schema import Server
from mcpmux.errors import CursorInvalid, SealBroken, ServerUnavailable
from mcpmux.observe.metrics import Metrics
from mcpmux.protocol import tasks
from mcpmux.protocol.envelope import encode
from mcpmux.protocol.events import Offered, Result
from mcpmux.protocol.methods import ITEMS, LISTS
from mcpmux.protocol.page import Page
from mcpmux.seal import Keyring

PAGE_ITEMS: Final = 2000
PAGE_BYTES: Final = 4 * 1024 * 1024
KEPT_LISTINGS: Final = 2048
CURSOR_LIFE: Final = 3600.0

# How long a list waits for servers that have never been seen: below the 10 s after which Open WebUI gives up, and, with
# something to show, within the 2 s in which a first chat should have its list.
STARTING_WAIT: Final = 5.0
SHOWN_WAIT: Final = 1.5

KINDS: Final[Mapping[Offered, Kind]] = {
    Offered.TOOLS: "tool",
    Offered.RESOURCES: "resource",
    Offered.TEMPLATES: "resource",
    Offered.PROMPTS: "prompt",
}


@dataclass(frozen=True, slots=True)
class Listing:
    """What one view offers to one set of grants.

    `servers` are those that these grants reach; `pages` the encoded pages without their braces; `starts` the name that
    each begins with; `pending` the servers that have never said what they offer; `digest` changes when, and only when,
    a client would see a difference.
    """

    serial: int
    servers: tuple[str, ...]
    pages: tuple[Page, ...]
    starts: tuple[str, ...]
    pending: tuple[str, ...]
    digest: bytes


class Lists:
    """Makes and keeps listings."""

    def __init__(self, catalog: Catalog, offers: Offers, keyring: Keyring, metrics: Metrics) -> None:
        self._catalog = catalog
        self._offers = offers
        self._keyring = keyring
        self._metrics = metrics
        self._awaited: dict[str, float] = {}  # since when lists wait for a server, monotonic
        self._kept: OrderedDict[tuple[View, str, Offered], Listing] = OrderedDict()

    def listing(self, view: View, grants: GrantSet, what: Offered) -> Listing:
        """What this view offers to these grants, as it stands now."""
        key = (view, grants.fingerprint, what)
        kept = self._kept.get(key)
        if kept is not None and kept.serial == self._catalog.serial:
            return kept
        made = self._made(view, grants, what)
        self._kept[key] = made
        self._kept.move_to_end(key)
        if len(self._kept) > KEPT_LISTINGS:
            self._kept.popitem(last=False)
        return made

    def changed(self, view: View, grants: GrantSet, seen: dict[Offered, bytes]) -> list[Offered]:
        """Which of the lists in `seen` are not what they were; `seen` then has what they are."""
        digests = {what: self.listing(view, grants, what).digest for what in seen}
        found = [what for what, digest in digests.items() if digest != seen[what]]
        seen.update(digests)
        return found

    async def page(self, view: View, grants: GrantSet, what: Offered, cursor: str | None, bound: str) -> Result:
        """One page as the result of a list request; waits a bounded moment for servers never seen before.

        Raises: CursorInvalid, ServerUnavailable (nothing to show yet, because everything is still starting).
        """
        listing = self.listing(view, grants, what)
        self._offers.looked_at(listing.servers, what)
        if listing.pending:
            wait = self._patience(listing.pending) if listing.starts else STARTING_WAIT
            await self._offers.settled(listing.pending, wait)
            listing = self.listing(view, grants, what)
            if listing.pending and not listing.starts:
                raise ServerUnavailable(listing.pending[0], STARTING_WAIT)
        number = 0 if cursor is None else self._number(listing, what, cursor, bound)
        return self._page(listing, what, number, bound)

    def _patience(self, pending: tuple[str, ...]) -> float:
        """How long a list that has something to show waits for what is missing: for each server once.

        A server that never comes up must not delay every list until it is given up.
        """
        now = time.monotonic()
        self._awaited = {server: since for server, since in self._awaited.items() if self._offers.of(server) is None}
        return max(0.0, max(self._awaited.setdefault(server, now) for server in pending) + SHOWN_WAIT - now)

    def _made(self, view: View, grants: GrantSet, what: Offered) -> Listing:
        self._metrics.list_encoded(LISTS[what].name)
        servers = {server.id: server for server in self._catalog.servers(view)}
        shown = [
            item
            for item in self._catalog.entries(view, what)
            if decide(grants, target(servers[item.server], what, item)).allowed
        ]
        reached = tuple(server.id for server in servers.values() if decide(grants, whole(server)).allowed)
        pending = tuple(id for id in reached if self._offers.of(id) is None and not self._offers.failed(id))
        pages, starts = _paged([(item.public, self._entry(item, view, servers[item.server])) for item in shown])
        head = b'"%b":[' % ITEMS[what].encode()
        digest = hashlib.sha256()
        for page in pages:
            digest.update(page)
        made = tuple(Page(head + page + b"]") for page in pages)
        return Listing(self._catalog.serial, reached, made, starts, pending, digest.digest())

    def _entry(self, item: Item, view: View, server: Server) -> bytes:
        """One entry as this endpoint shows it. No tool is a task or nothing here: see ARCHITECTURE.md, "Decisions"."""
        entry = item.shown if view.aggregate else item.raw
        if not item.task:
            return entry
        offer = self._offers.of(server.id)
        has_tasks = server.isolation in TASKED and offer is not None and offer.tasked
        return tasks.listed(entry, tasks.OPTIONAL if has_tasks else "")

    def _page(self, listing: Listing, what: Offered, number: int, bound: str) -> Result:
        page = listing.pages[number]
        if number + 1 >= len(listing.pages):
            return Result(Raw(b"{%b}" % page.plain), page)
        following = f"{number + 1} {listing.starts[number + 1]}".encode()
        cursor = self._keyring.seal(_purpose(what), following, bound=bound.encode(), expires=time.time() + CURSOR_LIFE)
        return Result(Raw(b'{%b,"nextCursor":%b}' % (page.plain, encode(cursor))), page)

    def _number(self, listing: Listing, what: Offered, cursor: str, bound: str) -> int:
        try:
            start = self._keyring.open(_purpose(what), cursor, bound=bound.encode(), now=time.time()).decode()
        except SealBroken as exc:
            raise CursorInvalid from exc
        number, _, name = start.partition(" ")
        # By name first: the list may have changed since the cursor was made, and the page may have moved.
        return listing.starts.index(name) if name in listing.starts else min(int(number), len(listing.pages) - 1)


def target(server: Server, what: Offered, item: Item) -> Target:
    """What `decide()` is asked about one entry of a list."""
    return Target(server.id, server.enabled, KINDS[what], item.native, item.read_only, server.tools)


def _purpose(what: Offered) -> str:
    return f"cursor:{what}"


def _paged(items: list[tuple[str, bytes]]) -> tuple[list[bytes], tuple[str, ...]]:
    pages: list[bytes] = []
    starts: list[str] = []
    chunk: list[bytes] = []
    size = 0
    for name, body in items:
        if chunk and (len(chunk) >= PAGE_ITEMS or size + len(body) > PAGE_BYTES):
            pages.append(b",".join(chunk))
            chunk, size = [], 0
        if not chunk:
            starts.append(name)
        chunk.append(body)
        size += len(body)
    if chunk or not pages:
        pages.append(b",".join(chunk))
    return pages, tuple(starts)
