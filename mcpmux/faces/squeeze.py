"""Squeezed answers: a long list goes compressed to clients that take gzip, compressed once for all of them.

Only lists are: they hold nothing of the request and no secret, so their length tells nobody anything (the reason why
answers of servers stay as they are, where a caller's text stands beside what others may not know), and only of them is
the long part shared by many. The first client that takes gzip waits for the thread that compresses; whoever asks
meanwhile gets the plain answer at once.
Source: RFC 9110 sections 8.4, 12.5.3.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Final

from aiohttp import hdrs, web

from mcpmux.faces.entry import Entry
from mcpmux.observe.metrics import Metrics
from mcpmux.protocol.page import LARGEST_STORED, Packed, Page

LEAST: Final = 4096  # bytes; a shorter list costs a packet or three anyway
_GZIP: Final = "gzip"


async def answer(entry: Entry, wire: bytes, page: Page, metrics: Metrics) -> web.StreamResponse:
    """A JSON answer that has `page` in it."""
    body = None
    if len(page.plain) >= LEAST and _takes_gzip(tuple(entry.request.headers.getall(hdrs.ACCEPT_ENCODING, ()))):
        body = await _squeezed(wire, page)
    metrics.http_sent(len(wire if body is None else body))
    return entry.answer(wire) if body is None else entry.answer(body, extra={hdrs.CONTENT_ENCODING: _GZIP})


async def _squeezed(wire: bytes, page: Page) -> bytes | None:
    """`wire` as gzip; None if it goes as it is."""
    begin = wire.find(page.plain)
    end = begin + len(page.plain)
    if begin < 0 or max(begin, len(wire) - end) > LARGEST_STORED:
        return None
    packed = page.packed or await _packed(page)
    return None if packed is None else packed.gzip(wire[:begin], wire[end:])


async def _packed(page: Page) -> Packed | None:
    """The page, compressed in a thread; None while somebody else waits for that."""
    if page.taken:
        return None
    page.taken = True
    try:
        page.packed = await asyncio.to_thread(Packed, page.plain)
    finally:
        page.taken = False
    return page.packed


@lru_cache(maxsize=64)
def _takes_gzip(accepted: tuple[str, ...]) -> bool:
    """Whether `Accept-Encoding` names gzip, or everything, and not with weight zero."""
    weights: dict[str, bool] = {}
    for element in ",".join(accepted).lower().split(","):
        coding, _, weight = element.partition(";")
        weights[coding.strip()] = weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return weights.get(_GZIP, weights.get("x-gzip", weights.get("*", False)))
