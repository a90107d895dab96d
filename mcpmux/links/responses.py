"""Responses: what one server's HTTP responses mean for the requests of its link, whatever the era."""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp

from mcpmux.errors import UpstreamError, UpstreamRefused
from mcpmux.links import http
from mcpmux.links.event_stream import EventStream
from mcpmux.links.lines import Oversized
from mcpmux.links.link import Link

TAIL_LIMIT: Final = 1.0  # seconds for a stream to end after its answer, so that the connection can be used again


class Responses:
    """The way of a response into its link; `limit` bounds the bytes of one message."""

    __slots__ = ("_limit", "_link", "_requests")

    def __init__(self, link: Link, requests: http.Requests, limit: int) -> None:
        self._link = link
        self._requests = requests
        self._limit = limit

    def events(self) -> EventStream:
        """A stream of which nothing was read yet."""
        return EventStream(self._limit)

    async def read_json(self, answer: aiohttp.ClientResponse, request: int) -> None:
        """Give the link the one message of a response. Raises: FAULTS."""
        try:
            body = await http.read_body(answer, self._limit)
        except http.TooLarge as exc:
            self._link.receive_oversized(exc.head, b"", exc.size, request)
            return
        self._link.metrics.tally.received += len(body)
        if body:
            self._link.receive(body, request)

    async def read_events(self, answer: aiohttp.ClientResponse, events: EventStream, request: int | None) -> None:
        """Read one connection to its end, or, on a call's stream, a little longer than its answer. Raises: FAULTS."""
        answered = False
        try:
            async with asyncio.timeout(None) as patience:
                async for chunk in answer.content.iter_any():
                    self._take_chunk(chunk, events, request)
                    if request is not None and not answered and not self._link.waits_for(request):
                        answered = True
                        patience.reschedule(self._link.loop.time() + TAIL_LIMIT)
        except TimeoutError:
            if not answered:
                raise

    def _take_chunk(self, chunk: bytes, events: EventStream, request: int | None) -> None:
        self._link.metrics.tally.received += len(chunk)
        for event in events.feed(chunk):
            if isinstance(event, Oversized):
                self._link.receive_oversized(*event, stream=request)
            elif event.name == "message":
                self._link.receive(event.data, request)

    def refused(self, answer: aiohttp.ClientResponse, body: bytes, request: int) -> None:
        """The request got a status that is no success."""
        problem = http.problem_of_status(answer)
        if answer.status == 401:
            # One credential for everybody: nobody else will fare better.
            self._link.end(problem, UpstreamRefused(self._link.key.server, 401), refused=True)
            return
        if answer.status < 500 and body.lstrip()[:1] == b"{" and b'"error"' in body:
            self._link.receive(body, request)
        self.fail(request, self._requests.error(answer), problem)
        if answer.status in (403, 404):
            self._link.doubt()

    def fault(self, request: int, exc: BaseException) -> None:
        """The request, or its response, was lost on the way."""
        self.fail(request, self._requests.fault(exc), http.problem_of_fault(exc))
        self._link.doubt()

    def fail(self, request: int, error: UpstreamError, problem: str) -> None:
        """There is no answer, unless there has been one already."""
        if self._link.waits_for(request):
            self._link.fail(request, error, problem)
