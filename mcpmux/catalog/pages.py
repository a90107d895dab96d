"""Asking one link for one list: all its pages, within bounds of count, size and time.

Knows MCP's paging and nothing of what the entries mean. The outcome is a value: a list that could not be had is
`None` with the problem, never an empty list, so that nobody can mistake an error for a server that offers nothing.
"Method not found" is no error but an answer: many servers announce prompts or resources and lack one of their lists.

Source: MCP server/utilities/pagination (cursors are opaque; a missing one ends the list), 2026-07-28
server/utilities/caching.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from math import inf
from typing import Final

import msgspec
from msgspec import Raw

from mcpmux.errors import InvalidRequest, MalformedMessage, MuxError
from mcpmux.links.link import Link
from mcpmux.links.pool import Pool
from mcpmux.protocol.envelope import encode, members, text
from mcpmux.protocol.events import ENDS, Failure, Offered, Opening, Result
from mcpmux.protocol.methods import ITEMS, LISTS
from mcpmux.protocol.revisions import MODERN
from mcpmux.protocol.upstream import Greeting
from mcpmux.protocol.upstream.attribution import OURSELVES

SHOWN: Final = 200  # characters of a server's words that the log may have
MOST_DIGITS: Final = 15  # of a ttlMs; that is longer than anything lives

_ENTRIES: Final = msgspec.json.Decoder(list[Raw])
_METHOD_NOT_FOUND: Final = -32601


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much one list may be, all pages together; times in seconds."""

    pages: int = 1_000
    entries: int = 50_000
    size: int = 32 * 1024 * 1024  # bytes
    page_time: float = 30.0
    whole_time: float = 300.0


@dataclass(frozen=True, slots=True)
class Pages:
    """The entries of one list, in order; None if it could not be had. `problem`: why not, or why some are missing.

    `ttl`: for how many seconds the server means the list to be good, the least of its pages; 0 where it does not say.
    """

    entries: tuple[bytes, ...] | None
    problem: str | None = None
    ttl: float = 0.0


async def read_pages(pool: Pool, link: Link, what: Offered, bounds: Bounds) -> Pages:
    """Ask `link` for its whole list of one kind, waiting for a free seat of its server before each page."""
    reading = Reading(what, bounds)
    try:
        async with asyncio.timeout(bounds.whole_time):
            while (done := reading.outcome) is None:
                if await pool.link(link.key, bounds.page_time) is not link:
                    return Pages(None, "the link was replaced by another")
                reading.take(await _page(link, what, reading.cursor, bounds.page_time))
    except TimeoutError:
        return Pages(None, "it took too long")
    except MuxError as exc:
        return Pages(None, str(exc))
    return done


def is_modern(greeting: Greeting | None) -> bool:
    """Whether a server speaks the modern era, in which lists say how long they are good for."""
    return greeting is not None and greeting.protocol_version == MODERN


async def _page(link: Link, what: Offered, cursor: str | None, seconds: float) -> Result | Failure:
    params = None if cursor is None else {"cursor": Raw(encode(cursor))}
    exchange = link.open(Opening(LISTS[what].name, params, OURSELVES))
    try:
        async with asyncio.timeout(seconds):
            while True:
                event = await exchange.next()
                if isinstance(event, ENDS):
                    return event
    finally:
        exchange.cancel("the list is not waited for any longer")


class Reading:
    """What has been read of one list: pure, one page after the other."""

    __slots__ = ("_bounds", "_entries", "_read", "_seen", "_size", "_ttl", "_what", "cursor", "outcome")

    def __init__(self, what: Offered, bounds: Bounds) -> None:
        self.cursor: str | None = None
        self.outcome: Pages | None = None
        self._what = what
        self._bounds = bounds
        self._entries: list[bytes] = []
        self._read = 0
        self._size = 0
        self._ttl = inf
        self._seen: set[str] = set()

    def take(self, page: Result | Failure) -> None:
        """Add one page; sets `cursor` for the next one, or `outcome` when this was the last."""
        if isinstance(page, Failure):
            # On a later page it is a broken list, and what was read so far would pass for all of it.
            absent = page.code == _METHOD_NOT_FOUND and not self._read
            self.outcome = Pages((), ttl=inf) if absent else Pages(None, f"error {page.code}: {page.message[:SHOWN]}")
            return
        try:
            found = members(page.result)
            entries = _entries(found, ITEMS[self._what])
        except (InvalidRequest, MalformedMessage, msgspec.DecodeError) as exc:
            self.outcome = Pages(None, f"its answer is no list: {exc}")
            return
        self._read += 1
        # Copied one by one: a `Raw` would keep the whole message in memory.
        self._entries.extend(bytes(entry) for entry in entries)
        self._size += len(memoryview(page.result))
        self._ttl = min(self._ttl, _ttl(found.get("ttlMs")))
        self._go_on(found.get("nextCursor"))

    def _go_on(self, raw: Raw | None) -> None:
        cursor = text(raw)
        problem = None
        if raw is not None and cursor is None and bytes(raw) != b"null":
            problem = "a cursor that is no text"
        elif cursor and (problem := self._bound()) is None and cursor in self._seen:
            problem = "its cursors run in a circle"
        if problem is None and cursor:
            self._seen.add(cursor)
            self.cursor = cursor
        else:
            entries = tuple(self._entries[: self._bounds.entries])
            if problem is None and len(entries) < len(self._entries):
                problem = self._bound()
            self.outcome = Pages(entries, problem, self._ttl)

    def _bound(self) -> str | None:
        """The bound that has been reached, None if more may come."""
        bounds = self._bounds
        if len(self._entries) >= bounds.entries:
            return f"more than {bounds.entries} entries"
        if self._size >= bounds.size:
            return f"more than {bounds.size} bytes"
        return f"more than {bounds.pages} pages" if self._read >= bounds.pages else None


def _ttl(raw: Raw | None) -> float:
    """Seconds; 0 for what is no number of milliseconds."""
    digits = b"" if raw is None else bytes(raw)
    return int(digits[:MOST_DIGITS]) / 1000 if digits.isdigit() else 0.0


def _entries(found: dict[str, Raw], member: str) -> list[Raw]:
    """The entries of one page.

    Raises: InvalidRequest (no such member), msgspec.DecodeError (no array).
    """
    raw = found.get(member)
    if raw is None:
        raise InvalidRequest(f'"{member}" is missing')
    # Servers written in Go send null for an empty list.
    return [] if bytes(raw) == b"null" else _ENTRIES.decode(raw)
