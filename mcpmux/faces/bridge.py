"""Bridge: the messages of one client on pipes, carried to an MCP endpoint over HTTP and back.

Every request is a POST and a task of its own; what comes in its response is written down as it comes, and a legacy
response that breaks off is resumed (`Last-Event-ID`). What wants no answer goes up one after the other, in order.
A legacy session has a GET stream besides, opened when the client has said `initialized`.

A session that the endpoint does not know any more is made anew, once, by a task of its own; whoever was refused for
the old one sends again. Nothing that may have been carried out is sent twice, unless that does no harm.

What a request's failure means for the client is one JSON-RPC error; everything else is a line on stderr.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final

import aiohttp
from msgspec import Raw

from mcpmux.errors import (
    AnswerBroken,
    AnswerLost,
    BridgeFailed,
    EndpointRefused,
    EndpointUnreachable,
    InvalidRequest,
    MalformedMessage,
)
from mcpmux.faces.endpoint import DOWN_LIMIT, LAST_EVENT, Endpoint, messages, refusal
from mcpmux.faces.mirror import Mirror, mismatched
from mcpmux.faces.upkeep import Output, Upkeep
from mcpmux.links import http
from mcpmux.links.event_stream import EventStream
from mcpmux.links.lines import Oversized
from mcpmux.observe.log import logger
from mcpmux.outbound import retry_after
from mcpmux.protocol import bridge, envelope, headers
from mcpmux.protocol.bridge import BridgeCore, Line, Pending, Session
from mcpmux.protocol.envelope import Reply
from mcpmux.protocol.faults import INTERNAL_ERROR, INVALID_REQUEST
from mcpmux.protocol.methods import INITIALIZED, LISTEN

MAX_REQUESTS: Final = 256  # in flight at once
MAX_SILENT: Final = 256  # notifications and answers that wait for their turn
SILENT_LIMIT: Final = 30.0  # seconds for a POST that wants no answer
GRACE: Final = 1.0  # seconds for what is in flight when the client leaves; the SDKs kill after two
ARRIVAL: Final = 0.5  # seconds after which a request has reached the endpoint, so that it can be cancelled there
TAIL: Final = 1.0  # seconds for a response to end after its last answer, so that the connection can be used again
RESUMES: Final = 5  # tries in a row to resume a response without hearing anything

FIRST_PAUSE: Final = 0.2  # seconds until a response is resumed, where the endpoint does not say
log = logger("faces")


class Errand:
    """One line with requests on its way."""

    __slots__ = ("arrived", "begun", "cancelled", "pending", "session", "task")

    task: asyncio.Task[None]
    session: Session | None  # that it was sent in

    def __init__(self, line: Line, begun: float) -> None:
        self.pending = Pending(line)
        self.session = None
        self.begun = begun
        self.arrived = asyncio.Event()  # its response has begun
        self.cancelled = False

    @property
    def waits(self) -> bool:
        """Whether an answer is missing that the client still wants."""
        return bool(self.pending.awaited) and not self.cancelled


class Bridge:
    """See the module; its tasks live in `tasks`."""

    __slots__ = (
        "_confirmed",
        "_core",
        "_endpoint",
        "_errands",
        "_loop",
        "_mirror",
        "_out",
        "_silent",
        "_tasks",
        "_upkeep",
    )

    def __init__(self, endpoint: Endpoint, out: Output, tasks: asyncio.TaskGroup) -> None:
        self._endpoint = endpoint
        self._out = out
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._core = BridgeCore()
        self._errands: dict[int | str, Errand] = {}  # by the id of each request in flight
        self._silent: asyncio.Queue[Line] = asyncio.Queue(MAX_SILENT)
        self._confirmed = asyncio.Event()  # no `initialized` is on its way
        self._confirmed.set()
        self._mirror = Mirror(endpoint)
        self._upkeep = Upkeep(self._core, endpoint, out, tasks)

    def take(self, wire: bytes) -> None:
        """Carry one line of the client."""
        try:
            line = bridge.read(wire)
        except MalformedMessage as error:
            log.warning("line_unreadable", reason=str(error))
            return
        except InvalidRequest as error:
            self._refuse(error.request_id, INVALID_REQUEST, str(error))
            return
        if line.ids:
            self._begin(line)
        elif (errand := self._cancelled(line)) is not None and _is_modern(errand):
            # The endpoint learns of it by the end of its stream.
            errand.task.cancel()
        else:
            self._send_silent(line)

    def take_oversized(self, line: Oversized) -> None:
        """Answer a line that is over the limit, if it is a request."""
        log.warning("line_too_long", size=line.size)
        if (id_ := bridge.asked_in(line.head, line.tail)) is not None:
            self._refuse(id_, INVALID_REQUEST, f"Invalid request: its {line.size} bytes are too many (limits.body)")

    async def run(self) -> None:
        """Send what wants no answer, in order, for ever."""
        while True:
            line = await self._silent.get()
            try:
                async with asyncio.timeout(SILENT_LIMIT):
                    await self._deliver(line)
            except (BridgeFailed, TimeoutError) as error:
                log.warning("message_unsent", method=line.method, reason=str(error) or "it took too long")
            except Exception:
                log.exception("message_failed", method=line.method)
            finally:
                if line.method == INITIALIZED:
                    self._confirmed.set()
                self._silent.task_done()

    async def close(self) -> None:
        """Let what is in flight end, for a moment; then end everything, the session last."""
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await self._silent.join()
                ending = {one.task for one in self._errands.values() if one.pending.line.method != LISTEN}
                if ending:
                    await asyncio.wait(ending)
        for errand in self._errands.values():
            errand.task.cancel()
        self._upkeep.close()
        if self._core.session is not None and self._core.session.id is not None:
            await self._endpoint.delete(bridge.session_headers(self._core.session))

    # Up ------------------------------------------------------------------------------------------------------------

    def _begin(self, line: Line) -> None:
        if any(id_ in self._errands for id_ in line.ids):
            self._refuse(line.ids[0], INVALID_REQUEST, "Invalid request: a request with this id is still in flight")
            return
        if len(self._errands) >= MAX_REQUESTS:
            for id_ in line.ids:
                self._refuse(id_, INTERNAL_ERROR, "Too many requests are in flight: wait for one of them")
            return
        errand = Errand(line, self._loop.time())
        self._errands.update(dict.fromkeys(line.ids, errand))
        errand.task = self._tasks.create_task(self._run(errand), name="client request")

    def _cancelled(self, line: Line) -> Errand | None:
        """The request in flight that this line takes back; from now on nobody misses its answer."""
        errand = self._errands.get(bridge.cancelled(line) or "")
        if errand is not None and len(errand.pending.line.ids) == 1:
            errand.cancelled = True
        return errand

    def _send_silent(self, line: Line) -> None:
        if self._silent.full():
            log.warning("message_unsent", method=line.method, reason="too many wait already")
            return
        if line.method == INITIALIZED:
            self._confirmed.clear()
        self._silent.put_nowait(line)

    async def _run(self, errand: Errand) -> None:
        """Carry one line with requests, until each is answered."""
        failure = None
        try:
            if errand.pending.line.method != "initialize":
                await self._confirmed.wait()
            await self._carry(errand)
            if errand.waits:
                raise AnswerBroken("it ended without one")
        except BridgeFailed as error:
            failure = error
        except Exception:
            log.exception("request_failed", method=errand.pending.line.method)
            failure = BridgeFailed("Internal error")
        finally:
            for id_ in errand.pending.line.ids:
                self._errands.pop(id_, None)
        if failure is not None and errand.waits:
            for id_ in errand.pending.awaited:
                self._refuse(id_, INTERNAL_ERROR, str(failure), failure.reason)
        await self._out.drain()

    async def _carry(self, errand: Errand) -> None:
        """POST it, once more if it was refused for what can be mended. Raises: BridgeFailed."""
        line = errand.pending.line
        for last_try in (False, True):
            errand.session = self._core.session_of(line)
            said = {**self._core.headers(line), **self._mirror.headers(line)}
            async with self._endpoint.post(line.wire, said, again=line.repeatable) as answer:
                errand.arrived.set()
                body = b"" if answer.status < 300 else await http.read_refusal(answer)
                mend = None if last_try else self._mended_by(errand, answer.status, body)
                if mend is None:
                    await self._take(answer, body, errand)
                    return
            if not await mend():
                self._refused(answer, body, errand)
                return

    def _mended_by(self, errand: Errand, status: int, body: bytes) -> Callable[[], Awaitable[bool]] | None:
        """What to do about a refusal, so that the same request may be sent again."""
        if _session_lost(errand.session, status, body):
            return partial(self._upkeep.renew, errand.session)
        line = errand.pending.line
        return partial(self._mirror.learn, line) if mismatched(line, status, body) else None

    async def _deliver(self, line: Line) -> None:
        """Send a message that wants no answer. Raises: BridgeFailed."""
        errand = self._errands.get(bridge.cancelled(line) or "")
        if errand is not None and not errand.arrived.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(errand.begun + ARRIVAL):
                    await errand.arrived.wait()
        if (wire := self._core.sends(line)) is None:
            log.debug("answer_dropped", reason="nobody waits for it")
            return
        session = self._core.session_of(line)
        async with self._endpoint.post(wire, self._core.headers(line)) as answer:
            body = b"" if answer.status < 300 else await http.read_refusal(answer)
        if _session_lost(session, answer.status, body):
            # It was about the old session, or the new one has been told already.
            await self._upkeep.renew(session)
        elif answer.status >= 300:
            raise refusal(answer.status, _later(answer))
        elif line.method == INITIALIZED:
            self._upkeep.listen()

    # Down ----------------------------------------------------------------------------------------------------------

    async def _take(self, answer: aiohttp.ClientResponse, refusal: bytes, errand: Errand) -> None:
        """Give the client what a response holds. Raises: BridgeFailed."""
        if answer.status >= 300:
            self._refused(answer, refusal, errand)
            return
        errand.pending.session_id = headers.session_id(answer.headers.get(headers.SESSION))
        if answer.content_type == http.EVENTS:
            await self._read_response(answer, errand)
        elif answer.content_type == http.JSON:
            try:
                body = await http.read_body(answer, DOWN_LIMIT)
            except http.TooLarge as error:
                raise AnswerBroken("it is too large") from error
            except http.FAULTS as error:
                raise AnswerLost from error
            if body:
                self._receive(body, errand)

    def _refused(self, answer: aiohttp.ClientResponse, body: bytes, errand: Errand) -> None:
        """Pass on the JSON-RPC error of a refusal, if it is about this request. Raises: EndpointRefused."""
        if answer.status != 401 and answer.content_type == http.JSON:
            with suppress(MalformedMessage, InvalidRequest):
                found = envelope.parse(body)
                if isinstance(found, Reply) and found.id is None and answer.status in (400, 403, 404):
                    for id_ in errand.pending.awaited:
                        self._out.write(envelope.error(id_, found.code, found.message, found.data))
                    errand.pending.awaited.clear()
                else:
                    self._receive(body, errand)
        if errand.pending.awaited:
            raise refusal(answer.status, _later(answer))

    def _receive(self, data: bytes, errand: Errand | None) -> None:
        """One message of the endpoint."""
        try:
            wire = self._core.receive(data, errand.pending if errand is not None else None)
        except (MalformedMessage, InvalidRequest) as error:
            log.warning("answer_unreadable", reason=str(error))
            return
        if wire is not None:
            self._out.write(wire)

    def _refuse(self, id_: int | str | None, code: int, text: str, reason: str | None = None) -> None:
        """An error of our own."""
        if id_ is None:
            log.warning("line_refused", reason=text)
            return
        data = None if reason is None else Raw(envelope.encode({"reason": reason}))
        self._out.write(envelope.error(id_, code, text, data))

    async def _read_response(self, answer: aiohttp.ClientResponse, errand: Errand) -> None:
        """Read the stream of a request, over as many connections as it takes. Raises: AnswerLost."""
        events = EventStream(DOWN_LIMIT)
        with suppress(*http.FAULTS):
            await self._read(answer, events, errand)
        silent = 0
        while errand.waits:
            if events.last_id is None or silent == RESUMES or errand.pending.line.revision is not None:
                raise AnswerLost
            await asyncio.sleep(events.retry if events.retry is not None else FIRST_PAUSE * 2**silent)
            before = events.last_id
            await self._resume(events, errand)
            silent = silent + 1 if events.last_id == before else 0

    async def _resume(self, events: EventStream, errand: Errand) -> None:
        """Connect once more to the stream of a request. Raises: AnswerLost if it is not to be had any more."""
        events.reconnect()
        headers = {**bridge.session_headers(errand.session), LAST_EVENT: events.last_id or ""}
        try:
            async with self._endpoint.get(headers) as answer:
                if answer.status == 200 and answer.content_type == http.EVENTS:
                    await self._read(answer, events, errand)
                elif answer.status < 500:
                    raise AnswerLost
        except EndpointRefused as error:
            raise AnswerLost from error
        except (EndpointUnreachable, *http.FAULTS):
            log.debug("stream_lost", method=errand.pending.line.method)

    async def _read(self, answer: aiohttp.ClientResponse, events: EventStream, errand: Errand) -> None:
        """Read one connection to its end, or a little longer than its last answer."""
        try:
            async with asyncio.timeout(None) as patience:
                async for data in messages(answer, events):
                    self._receive(data, errand)
                    await self._out.drain()
                    if not errand.pending.awaited and patience.when() is None:
                        patience.reschedule(self._loop.time() + TAIL)
        except TimeoutError:
            if errand.pending.awaited:
                raise


def _session_lost(session: Session | None, status: int, body: bytes) -> bool:
    return session is not None and session.id is not None and headers.session_lost(status, body)


def _is_modern(errand: Errand) -> bool:
    return errand.pending.line.revision is not None


def _later(answer: aiohttp.ClientResponse) -> float | None:
    return retry_after(answer.headers.get("Retry-After"))
