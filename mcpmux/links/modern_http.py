"""Requests of the modern era (2026-07-28) over Streamable HTTP: a POST is all there is of each of them.

No session, no GET stream, no resumption; who closes the response has cancelled the request. `subscriptions/listen` is a
request like any other, whose response stays open.

What else a server answers to the greeting than an answer of this era, it is one of a legacy era, and the link's core is
told so by an error that means nothing. That says no status by itself: a legacy server may answer 400, 404, 405, 406 or
even 200, with words of its own or none. Only who refuses our credentials, is busy, fails behind a proxy or lives
elsewhere has said nothing of what it is.

Source: MCP 2026-07-28 basic/transports/streamable-http, "Backward Compatibility"; basic/versioning.
"""

from __future__ import annotations

from typing import Final

import aiohttp

from mcpmux.errors import LinkLost, UpstreamBroken
from mcpmux.links import http
from mcpmux.links.link import Link
from mcpmux.links.responses import Responses
from mcpmux.protocol import envelope
from mcpmux.protocol.upstream.received import Headers

# An error code without a meaning in any era.
UNKNOWN: Final = -32000

# Refusals of the greeting that say nothing about the era: too slow, too often, or a proxy's.
_SILENT: Final = frozenset({408, 425, 429, 502, 503, 504})


class ModernRequests:
    """Asks one server in the modern era."""

    __slots__ = ("_link", "_requests", "_responses")

    def __init__(self, link: Link, requests: http.Requests, responses: Responses) -> None:
        self._link = link
        self._requests = requests
        self._responses = responses

    async def ask(self, wire: bytes, request: int, headers: Headers) -> None:
        """Send a request and give the link all that comes back. Raises: FAULTS."""
        for last_try in (False, True):
            if not self._link.waits_for(request):
                return
            self._link.metrics.tally.sent += len(wire)
            async with self._requests.post(wire, headers) as answer:
                if (there := self._requests.moved(answer)) is not None and not last_try:
                    self._requests.url = there
                    continue
                await self._take(answer, request)
                return

    async def _take(self, answer: aiohttp.ClientResponse, request: int) -> None:
        """Make of a response what it means for the request."""
        if answer.status >= 300:
            body = await http.read_refusal(answer)
            if self._link.is_greeting(request) and _tells_the_era(answer.status):
                self._take_greeting(body, request)
            else:
                self._responses.refused(answer, body, request)
            return
        problem = f"HTTP status {answer.status} without an answer"
        if answer.content_type == http.EVENTS:
            await self._responses.read_events(answer, self._responses.events(), request)
            problem = "it ended the response without an answer"
        elif answer.content_type == http.JSON:
            await self._responses.read_json(answer, request)
        if self._link.is_greeting(request):
            self._take_greeting(b"", request)
        elif answer.content_type == http.EVENTS:
            self._responses.fail(request, LinkLost(self._link.key.server), problem)
        else:
            self._responses.fail(request, UpstreamBroken(self._link.key.server, problem), problem)

    def _take_greeting(self, body: bytes, request: int) -> None:
        """What was answered to the greeting; what cannot be the answer becomes an error that means nothing."""
        if body.lstrip()[:1] == b"{" and b'"error"' in body:
            self._link.receive(body, request)
        if self._link.is_greeting(request):
            self._link.receive(envelope.error(request, UNKNOWN, "no answer of the modern era"), request)


def _tells_the_era(status: int) -> bool:
    return not http.is_refusal(status) and status not in _SILENT
