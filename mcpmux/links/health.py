"""Is the server still there? Asked only when there is reason to.

Health costs nothing while calls are answered. An idle link that has been silent for a while is pinged. A call that was
given up without any sign of life during it makes the link suspect, and after three of them we ask. While a suspect is
asked, calls wait for the verdict instead of joining the others who wait for nothing: that is the circuit breaker.
A busy server is not asked: many cannot answer a ping while they work, and killing them would end the work.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from mcpmux.errors import MuxError
from mcpmux.links.link import Link

IDLE: Final = 60.0  # seconds of silence on an idle link before it is pinged
PING_LIMIT: Final = 10.0
PROBES: Final = 3  # pings in a row without an answer end a link
PROBE_PAUSE: Final = 2.0
OTHERWISE: Final = "tools/list"
SUSPECT: Final = 3  # calls given up without a sign of life


async def watch(link: Link, suspected: Callable[[], None], cleared: Callable[[], None]) -> None:
    """Return when the link is lost or draining. `suspected` and `cleared` are called at the verdicts in between."""
    while link.lost is None and not link.draining:
        await _stirred(link, IDLE)
        idle = not link.in_flight and link.loop.time() - link.heard >= IDLE
        asked_for = idle or link.doubted or link.unanswered >= SUSPECT
        if asked_for and link.lost is None and not link.draining:
            link.doubted = False
            await _examine(link, suspected, cleared)


async def _examine(link: Link, suspected: Callable[[], None], cleared: Callable[[], None]) -> None:
    """Ping until it answers, or end the link."""
    if link.unanswered >= SUSPECT:
        suspected()
    for probe in range(PROBES):
        # A server that never answered a ping may be one that does not know it and says nothing.
        method = "ping" if link.pongs or not probe or not link.serves(OTHERWISE) else OTHERWISE
        try:
            async with asyncio.timeout(PING_LIMIT):
                await link.probe(method)
        except (MuxError, TimeoutError):
            if link.lost is not None:
                return
            if probe or link.pongs:
                suspected()
            if probe + 1 < PROBES:
                await _stirred(link, PROBE_PAUSE)
        else:
            link.unanswered = 0
            link.pongs = link.pongs or method == "ping"
            cleared()
            return
    link.end("it does not answer pings")


async def _stirred(link: Link, limit: float) -> None:
    """Wait until something happens to the link, at most `limit` seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit):
            await link.stirred.wait()
    link.stirred.clear()
