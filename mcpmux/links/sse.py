"""The HTTP+SSE transport of 2024-11-05: one event stream down, a POST for each message up.

The stream is the session: its first event says where to post, on the same origin and nowhere else, and when it ends
the link has ended. Answers come on the stream, so a POST's own answer says only whether the message was taken.

Source: MCP 2024-11-05 basic/transports, "HTTP with SSE".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import aiohttp
from yarl import URL

from mcpmux.config.schema import Server
from mcpmux.credentials import static
from mcpmux.errors import LinkFailed, LinkLost
from mcpmux.links import http
from mcpmux.links.event_stream import EventStream, ServerEvent
from mcpmux.links.lines import Oversized
from mcpmux.links.link import Link
from mcpmux.links.surroundings import Surroundings
from mcpmux.observe.log import logger
from mcpmux.observe.redaction import redact
from mcpmux.protocol.upstream.received import Headers

MAX_POSTS: Final = 512  # under way at once; beyond, new calls are refused

log = logger("links")


@asynccontextmanager
async def opened(link: Link, server: Server, ground: Surroundings) -> AsyncIterator[SseTransport]:
    """A session for `link`; leaving ends it."""
    async with asyncio.TaskGroup() as tasks:
        transport = SseTransport(link, server, ground, tasks)
        stream = tasks.create_task(transport.listen(), name=f"events of {server.id}")
        try:
            yield transport
        finally:
            link.end("it was ended by mcpmux")
            stream.cancel()
            transport.close()


class SseTransport:
    """One HTTP+SSE session; see the module."""

    __slots__ = ("_endpoint", "_known", "_limit", "_link", "_posts", "_requests", "_secrets", "_tasks")

    def __init__(self, link: Link, server: Server, ground: Surroundings, tasks: asyncio.TaskGroup) -> None:
        self._link = link
        self._requests = http.Requests(server, ground.outbound)
        self._secrets = static.secrets(server)
        self._limit = ground.limits.upstream_message
        self._tasks = tasks
        self._posts: set[asyncio.Task[None]] = set()
        self._endpoint = self._requests.url
        self._known = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """No process of ours."""
        return None

    @property
    def congested(self) -> bool:
        """Whether the server does not take what is posted."""
        return len(self._posts) >= MAX_POSTS

    def send(self, wire: bytes, request: int | None, _headers: Headers | None = None) -> None:
        """Post one message soon."""
        if request is None and len(self._posts) >= 2 * MAX_POSTS:
            self._link.metrics.message_stray("unsent")
            return
        task = self._tasks.create_task(self._post(wire, request), name=f"post to {self._link.key.server}")
        self._posts.add(task)
        task.add_done_callback(self._posts.discard)

    async def confirm(self, wire: bytes, _revision: str) -> None:
        """Posts may overtake each other: this one is waited for. Raises: LinkFailed."""
        try:
            async with self._requests.post(wire, {}, self._endpoint) as answer:
                if answer.status >= 300:
                    raise LinkFailed(f"it refused notifications/initialized: {http.problem_of_status(answer)}")
        except http.FAULTS as exc:
            raise LinkFailed(http.problem_of_fault(exc)) from exc

    def forget(self, _request: int) -> None:
        """Answers come on the one stream: nothing is held per request."""

    def describe(self, problem: str) -> str:
        """`problem`, without our credentials should the server repeat them."""
        return redact(problem, self._secrets)

    def close(self) -> None:
        """Stop posting."""
        for task in self._posts:
            task.cancel()

    async def listen(self) -> None:
        """Read the stream to its end, which is the link's."""
        try:
            async with self._requests.get({}) as answer:
                if answer.status != 200 or answer.content_type != http.EVENTS:
                    kind = f" as {answer.content_type}" if answer.status == 200 else ""
                    self._link.end(
                        f"no event stream: {http.problem_of_status(answer)}{kind}",
                        refused=http.is_refusal(answer.status),
                    )
                    return
                await self._read(answer)
            self._link.end("its event stream ended")
        except http.FAULTS as exc:
            self._link.end(http.problem_of_fault(exc))
        except Exception:
            log.exception("link_broken", server=self._link.key.server)
            self._link.end("internal error")

    async def _read(self, answer: aiohttp.ClientResponse) -> None:
        events = EventStream(self._limit)
        async for chunk in answer.content.iter_any():
            self._link.metrics.tally.received += len(chunk)
            for event in events.feed(chunk):
                self._take(event)
            if self._link.lost is not None:
                return

    def _take(self, event: ServerEvent | Oversized) -> None:
        if isinstance(event, Oversized):
            self._link.receive_oversized(*event)
        elif event.name == "message":
            self._link.receive(event.data)
        elif event.name == "endpoint" and not self._known.is_set():
            self._take_endpoint(event.data)

    def _take_endpoint(self, data: bytes) -> None:
        try:
            endpoint = self._requests.url.join(URL(data.decode().strip()))
            home = endpoint.origin() == self._requests.url.origin()
        except ValueError:
            self._link.end("its endpoint event holds no address")
            return
        if not home:
            # Our credentials go to the configured origin only.
            self._link.end("its endpoint event leads to another origin", refused=True)
            return
        self._endpoint = endpoint
        self._known.set()

    async def _post(self, wire: bytes, request: int | None) -> None:
        await self._known.wait()
        self._link.metrics.tally.sent += len(wire)
        try:
            async with self._requests.post(wire, {}, self._endpoint) as answer:
                if answer.status < 300:
                    return
                if answer.status in (401, 404, 410):
                    # The session is gone, or we are not wanted: the stream will not say so.
                    self._link.end(http.problem_of_status(answer), refused=http.is_refusal(answer.status))
                elif request is not None:
                    self._link.fail(request, self._requests.error(answer), http.problem_of_status(answer))
        except http.FAULTS as exc:
            if request is not None:
                self._link.fail(request, self._requests.fault(exc), http.problem_of_fault(exc))
            self._link.doubt()
        except Exception:
            log.exception("post_failed", server=self._link.key.server)
            if request is not None:
                self._link.fail(request, LinkLost(self._link.key.server), "internal error")
