"""The Streamable HTTP transport: every message a POST of its own, whose answer comes as JSON or as an event stream.

A request's POST is a task in the link's TaskGroup. A request that comes with headers is one of the modern era, and its
POST is all there is of it (`modern_http.py`). The rest of this file is about legacy sessions (2025-03-26 to
2025-11-25): a stream that breaks before the answer is resumed (`Last-Event-ID`) where the server made that possible.
Beside the calls one GET stream waits for what belongs to none; a server that has none is not asked again.

A server that has forgotten our session says so before it does anything. So the session is made anew, once, by a task
of its own, and whoever was refused for the old one sends again; everybody else notices only that things changed.

Source: MCP 2025-11-25 basic/transports, "Streamable HTTP"; 2026-07-28 basic/transports/streamable-http.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import aiohttp

from mcpmux.config.schema import Server
from mcpmux.credentials import static
from mcpmux.errors import LinkFailed, LinkLost, UpstreamBroken
from mcpmux.links import http
from mcpmux.links.event_stream import EventStream
from mcpmux.links.link import Link
from mcpmux.links.modern_http import ModernRequests
from mcpmux.links.responses import Responses
from mcpmux.links.surroundings import Surroundings
from mcpmux.observe.log import logger
from mcpmux.observe.redaction import redact
from mcpmux.protocol.headers import SESSION, VERSION, session_id, session_lost
from mcpmux.protocol.revisions import MODERN
from mcpmux.protocol.upstream.received import Headers

LAST_EVENT: Final = "Last-Event-ID"

MAX_MESSAGES: Final = 256  # notifications and answers under way at once; what comes beyond is dropped
RENEW_LIMIT: Final = 30.0  # seconds for a new session
RESUMES: Final = 5  # tries in a row to resume a call's stream without hearing anything
DELETE_LIMIT: Final = 2.0

FIRST_PAUSE: Final = 1.0  # seconds between two connections of a stream, where the server does not say
LONGEST_PAUSE: Final = 60.0
STEADY_AFTER: Final = 30.0  # a stream that lasted this long is opened anew without a long pause

log = logger("links")


@asynccontextmanager
async def opened(link: Link, server: Server, ground: Surroundings) -> AsyncIterator[StreamableTransport]:
    """A session for `link`, made when the link is greeted; leaving ends it."""
    async with asyncio.TaskGroup() as tasks:
        transport = StreamableTransport(link, server, ground, tasks)
        try:
            yield transport
        finally:
            await transport.close()


class StreamableTransport:
    """One session after another with one server; see the module."""

    __slots__ = ("_calls", "_link", "_listener", "_messages", "_modern", "_renewal", "_renewed", "_requests",
                 "_responses", "_revision", "_secrets", "_session", "_tasks")  # fmt: skip

    def __init__(self, link: Link, server: Server, ground: Surroundings, tasks: asyncio.TaskGroup) -> None:
        self._link = link
        self._requests = http.Requests(server, ground.outbound)
        self._secrets = static.secrets(server)
        self._responses = Responses(link, self._requests, ground.limits.upstream_message)
        self._modern = ModernRequests(link, self._requests, self._responses)
        self._tasks = tasks
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._messages: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Task[None] | None = None
        self._session: str | None = None
        self._revision: str | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._renewed: asyncio.Event | None = None  # while a session is made anew

    @property
    def pid(self) -> int | None:
        """No process of ours."""
        return None

    @property
    def congested(self) -> bool:
        """Each call has a connection of its own; the bulkhead bounds them."""
        return False

    def send(self, wire: bytes, request: int | None, headers: Headers | None = None) -> None:
        """Post one message soon."""
        if request is None:
            if len(self._messages) >= MAX_MESSAGES:
                self._link.metrics.message_stray("unsent")
                return
            message = self._tasks.create_task(self._post_message(wire), name=f"post to {self._link.key.server}")
            self._messages.add(message)
            message.add_done_callback(self._messages.discard)
            return
        posting = self._post_call(wire, request, headers)
        task = self._tasks.create_task(posting, name=f"call to {self._link.key.server}")
        self._calls[request] = task
        task.add_done_callback(lambda _: self._calls.pop(request, None))

    async def confirm(self, wire: bytes, revision: str) -> None:
        """Nothing may overtake `initialized`: it is waited for. Then the GET stream is opened. Raises: LinkFailed.

        A server of the modern era has nothing to be told.
        """
        if revision == MODERN:
            return
        self._revision = revision
        try:
            async with self._requests.post(wire, self._about_session()) as answer:
                if answer.status >= 300:
                    raise LinkFailed(f"it refused notifications/initialized: {http.problem_of_status(answer)}")
        except http.FAULTS as exc:
            raise LinkFailed(http.problem_of_fault(exc)) from exc
        if self._listener is None:
            self._listener = self._tasks.create_task(self._listen(), name=f"events of {self._link.key.server}")

    def forget(self, request: int) -> None:
        """Nobody reads the response any more: close it."""
        task = self._calls.pop(request, None)
        if task is not None:
            task.cancel()

    def describe(self, problem: str) -> str:
        """`problem`, without our credentials should the server repeat them."""
        return redact(problem, self._secrets)

    async def close(self) -> None:
        """End the session on the server, and everything that is under way. Bounded."""
        self._link.end("it was ended by mcpmux")
        for task in (*self._calls.values(), *self._messages, self._listener, self._renewal):
            if task is not None:
                task.cancel()
        if self._session is None:
            return
        with contextlib.suppress(*http.FAULTS):
            async with asyncio.timeout(DELETE_LIMIT), self._requests.delete(self._about_session()):
                pass

    # Calls -----------------------------------------------------------------------------------------------------

    async def _post_call(self, wire: bytes, request: int, headers: Headers | None) -> None:
        """Send a request and give the link what comes back, until its answer has come or cannot come any more."""
        try:
            if headers is None:
                await self._ask(wire, request)
            else:
                await self._modern.ask(wire, request, headers)
        except http.FAULTS as exc:
            self._responses.fault(request, exc)
        except Exception:
            log.exception("post_failed", server=self._link.key.server)
            self._responses.fail(request, LinkLost(self._link.key.server), "internal error")

    async def _ask(self, wire: bytes, request: int) -> None:
        greeting = self._link.is_greeting(request)
        for last_try in (False, True):
            if not greeting and self._renewed is not None:
                await self._renewed.wait()
            if not self._link.waits_for(request):
                return
            session = self._session
            self._link.metrics.tally.sent += len(wire)
            async with self._requests.post(wire, self._about_session()) as answer:
                body = b"" if answer.status < 300 else await http.read_refusal(answer)
                if (there := self._requests.moved(answer)) is not None and not last_try:
                    self._requests.url = there
                    continue
                if session is None or last_try or not session_lost(answer.status, body):
                    await self._take(answer, body, request)
                    return
            await self._renew(session)

    async def _take(self, answer: aiohttp.ClientResponse, refusal: bytes, request: int) -> None:
        """Make of a response what it means for the request."""
        if answer.status >= 300:
            self._responses.refused(answer, refusal, request)
            return
        if self._link.is_greeting(request):
            self._session = session_id(answer.headers.get(SESSION))
        if answer.content_type == http.EVENTS:
            await self._read_answer(answer, request)
        elif answer.content_type == http.JSON:
            await self._responses.read_json(answer, request)
        problem = f"HTTP status {answer.status} without an answer"
        self._responses.fail(request, UpstreamBroken(self._link.key.server, problem), problem)

    # Streams ---------------------------------------------------------------------------------------------------

    async def _read_answer(self, answer: aiohttp.ClientResponse, request: int) -> None:
        """Read the stream of a call, over as many connections as it takes."""
        events = self._responses.events()
        try:
            await self._responses.read_events(answer, events, request)
        except http.FAULTS:
            self._link.doubt()
        silent = 0
        while self._link.waits_for(request) and events.last_id is not None and silent < RESUMES:
            await asyncio.sleep(events.pause(FIRST_PAUSE * 2**silent))
            heard = self._link.heard
            if not await self._resume(events, request):
                break
            silent = 0 if self._link.heard > heard else silent + 1
        self._responses.fail(request, LinkLost(self._link.key.server), "it ended the response without an answer")

    async def _resume(self, events: EventStream, request: int) -> bool:
        """Connect once more to a call's stream; False if the server does not resume it."""
        events.reconnect()
        headers = {**self._about_session(), LAST_EVENT: events.last_id or ""}
        try:
            async with self._requests.get(headers) as answer:
                if answer.status != 200 or answer.content_type != http.EVENTS:
                    return answer.status >= 500
                await self._responses.read_events(answer, events, request)
        except http.FAULTS:
            self._link.doubt()
        return True

    async def _listen(self) -> None:
        """Keep the GET stream open for as long as the server has one."""
        try:
            await self._follow()
        except Exception:
            log.exception("listening_failed", server=self._link.key.server)

    async def _follow(self) -> None:
        events, session = self._responses.events(), self._session
        pause = FIRST_PAUSE
        opened_once = False
        while True:
            if self._session != session:
                events, session = self._responses.events(), self._session
            begun = self._link.loop.time()
            status = await self._listen_once(events)
            if status == 404 and session is not None and opened_once:
                await self._renew(session)
                continue
            if status is not None and 300 <= status < 500 and status not in (408, 429):
                log.debug("stream_absent", server=self._link.key.server, status=status)
                return
            opened_once = opened_once or status == 200
            steady = status == 200 and self._link.loop.time() - begun >= STEADY_AFTER
            pause = FIRST_PAUSE if steady else min(pause * 2, LONGEST_PAUSE)
            await asyncio.sleep(events.pause(pause))

    async def _listen_once(self, events: EventStream) -> int | None:
        """One connection of the GET stream to its end; its status, None if there was none."""
        events.reconnect()
        headers = self._about_session()
        if events.last_id is not None:
            headers[LAST_EVENT] = events.last_id
        status: int | None = None
        try:
            async with self._requests.get(headers) as answer:
                status = answer.status
                if status == 200 and answer.content_type != http.EVENTS:
                    return 406  # no stream, whatever it is
                if status == 200:
                    await self._responses.read_events(answer, events, None)
        except http.FAULTS:
            self._link.doubt()
        return status

    # Session ---------------------------------------------------------------------------------------------------

    async def _post_message(self, wire: bytes) -> None:
        """Send what wants no answer. Nobody waits for it: if it cannot be sent, the link's health will tell."""
        if self._renewed is not None:
            await self._renewed.wait()
        self._link.metrics.tally.sent += len(wire)
        try:
            async with self._requests.post(wire, self._about_session()) as answer:
                if answer.status >= 300:
                    log.debug("message_refused", server=self._link.key.server, status=answer.status)
        except http.FAULTS:
            self._link.doubt()
        except Exception:
            log.exception("post_failed", server=self._link.key.server)

    async def _renew(self, lost: str) -> None:
        """Return when there is another session than `lost`, whoever makes it."""
        if self._session == lost and self._renewed is None:
            log.info("session_lost", server=self._link.key.server)
            self._session = None
            self._renewed = asyncio.Event()
            name = f"new session with {self._link.key.server}"
            self._renewal = self._tasks.create_task(self._make_session(self._renewed), name=name)
        if self._renewed is not None:
            await self._renewed.wait()

    async def _make_session(self, done: asyncio.Event) -> None:
        self._revision = None
        try:
            async with asyncio.timeout(RENEW_LIMIT):
                await self._link.greet(self)
            self._link.renewed()
        except (LinkFailed, TimeoutError) as exc:
            self._link.end(f"it lost our session and made no new one: {exc or 'no answer'}")
        except Exception:
            log.exception("renewal_failed", server=self._link.key.server)
            self._link.end("internal error")
        finally:
            self._renewed = None
            done.set()

    def _about_session(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        if self._session is not None:
            headers[SESSION] = self._session
        if self._revision is not None:
            headers[VERSION] = self._revision
        return headers
