"""Streamable HTTP for the legacy revisions 2025-03-26 to 2025-11-25: POST, GET and DELETE of one endpoint.

Which era a POST belongs to is decided here, for each alone; `modern.py` has the other one.

A POST is answered as JSON when the first event of its call ends it, and becomes an event stream otherwise: when
there is something to stream, or when the call has been silent for a moment, so that the client holds an event id
with which it can come back. A lost stream is no cancellation; who comes back within 30 s goes on where it stopped.
Source: MCP basic/transports of the three revisions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from aiohttp import web
from aiohttp_sse import EventSourceResponse
from msgspec import Raw

from mcpmux.calls import Call, Router
from mcpmux.errors import CallCancelled, InvalidRequest, MuxError
from mcpmux.faces import squeeze
from mcpmux.faces.edge import first_event, next_event, opened
from mcpmux.faces.entry import (
    EVENTS,
    JSON,
    SESSION_ID,
    VERSION,
    Entry,
    check_accepts,
    read_body,
)
from mcpmux.faces.eventstream import RETRY, event_stream
from mcpmux.faces.modern import Modern
from mcpmux.faces.refusal import refusal, refused_wire
from mcpmux.faces.sessions import ReplyStream, Session, Sessions
from mcpmux.observe.log import logger
from mcpmux.observe.metrics import Metrics
from mcpmux.protocol import envelope, faults, revisions
from mcpmux.protocol.downstream import legacy, replay
from mcpmux.protocol.downstream.legacy import SessionCore
from mcpmux.protocol.envelope import Message, Notification, Reply, Request
from mcpmux.protocol.events import ENDS, Event, Result
from mcpmux.protocol.methods import INITIALIZED, ROOTS_CHANGED
from mcpmux.protocol.revisions import MODERN


class Streamable:
    """The three HTTP methods of an MCP endpoint."""

    def __init__(self, sessions: Sessions, router: Router, metrics: Metrics, body_limit: int) -> None:
        self._sessions = sessions
        self._router = router
        self._metrics = metrics
        self._modern = Modern(router, sessions.listens, metrics)
        self._body_limit = body_limit
        self._log = logger("faces")

    async def post(self, entry: Entry) -> web.StreamResponse:
        """Take one message, or a batch in revision 2025-03-26; what is of the modern era goes on to its own half."""
        prefers_events = check_accepts(entry.request, JSON, EVENTS)
        body = await read_body(entry.request, self._body_limit)
        self._metrics.http_received(len(body))
        message = envelope.parse(body)
        headers = entry.request.headers
        in_session, version = SESSION_ID in headers, headers.get(VERSION)
        if (version == MODERN or not in_session) and revisions.is_modern(message, version, in_session=in_session):
            return await self._modern.post(entry, message, prefers_events)
        if isinstance(message, Request) and message.method == "initialize":
            return await self._initialize(entry, message)
        session = self._session(entry)
        match message:
            case Request() if prefers_events:
                return await self._answer_streaming(entry, session, message)
            case Request():
                return await self._answer(entry, session, message)
            case list():
                return await self._batch(entry, session, message)
            case _:
                take_silent(self._router, session, message)
                return entry.accepted()

    async def get(self, entry: Entry) -> web.StreamResponse:
        """The stream of what belongs to no call, or the rest of a reply stream that was lost."""
        if entry.request.headers.get(VERSION) == MODERN:
            return self._modern.refuse_method(entry)
        check_accepts(entry.request, EVENTS)
        session = self._session(entry)
        last = entry.request.headers.get("Last-Event-ID")
        if not last:
            return await self._listen(entry, session, [])
        place = replay.place(last)
        if place is None:
            raise InvalidRequest("Last-Event-ID is none of ours")
        number, after = place
        if number == replay.GET_STREAM:
            return await self._listen(entry, session, session.replay.after(number, after))
        return await self._resume(entry, session, number, after)

    async def delete(self, entry: Entry) -> web.StreamResponse:
        """End the session."""
        if entry.request.headers.get(VERSION) == MODERN:
            return self._modern.refuse_method(entry)
        self._sessions.end(self._session(entry), "the client ended the session")
        return web.Response(status=204, headers=entry.headers)

    # Sessions ------------------------------------------------------------------------------------------------------

    async def _initialize(self, entry: Entry, request: Request) -> web.StreamResponse:
        try:
            greeting = legacy.greeted(request)
            session = await self._sessions.open("streamable", entry.principal, entry.view, SessionCore(greeting))
            result = await self._greet(session)
        except MuxError as error:
            return self._refusal(entry, error, request.id)
        self._log.debug(
            "session_opened", client=greeting.client, revision=greeting.revision, request_id=entry.request_id
        )
        return entry.answer(envelope.result(request.id, result), extra={SESSION_ID: session.id})

    async def _greet(self, session: Session) -> Raw:
        try:
            return await self._router.initialize(session.caller, session.core.revision)
        except BaseException:
            # Also when the client leaves meanwhile: it never learns the id, so that nobody would end the session.
            self._sessions.end(session, "it was not greeted")
            raise

    def _session(self, entry: Entry) -> Session:
        headers = entry.request.headers
        session_id = headers.get(SESSION_ID)
        if session_id is None:
            raise InvalidRequest(f"the {SESSION_ID} header is missing: send initialize first")
        session = self._sessions.find(session_id, entry.principal, entry.view, "streamable")
        revisions.check_header(headers.get(VERSION), session.core.revision)
        return session

    # Answers -------------------------------------------------------------------------------------------------------

    async def _answer(self, entry: Entry, session: Session, request: Request) -> web.StreamResponse:
        """Answer one request: as JSON if its first event ends it, as an event stream otherwise."""
        try:
            call = self._sessions.admit(session, entry, request)
        except MuxError as error:
            return self._refusal(entry, error, request.id)
        try:
            event = await first_event(self._router, call)
        except CallCancelled:
            # A request gets JSON or an event stream, never 202; this stream has nothing to say.
            session.release(call)
            return await self._stream(entry, session, session.stream())
        except BaseException:
            session.lose(call)
            raise
        if not isinstance(event, ENDS):
            return await self._stream(entry, session, session.stream(call), first=event)
        session.release(call)
        wire = session.core.encode(call.admission, event) or b""
        if isinstance(event, Result) and event.page is not None:
            return await squeeze.answer(entry, wire, event.page, self._metrics)
        self._metrics.http_sent(len(wire))
        return entry.answer(wire)

    async def _answer_streaming(self, entry: Entry, session: Session, request: Request) -> web.StreamResponse:
        """Answer one request as an event stream."""
        try:
            call = self._sessions.admit(session, entry, request)
        except MuxError as error:
            return self._refusal(entry, error, request.id)
        try:
            await opened(self._router, call)
        except BaseException:
            session.lose(call)
            raise
        return await self._stream(entry, session, session.stream(call))

    async def _batch(
        self, entry: Entry, session: Session, entries: list[Message | InvalidRequest]
    ) -> web.StreamResponse:
        """Take a batch: each entry is decided on singly, the answers come as one event stream."""
        if not revisions.has_batches(session.core.revision):
            raise InvalidRequest(f"batches do not exist in revision {session.core.revision}")
        calls: list[Call] = []
        refused: list[bytes] = []
        try:
            for message in entries:
                match message:
                    case Request():
                        try:
                            calls.append(self._sessions.admit(session, entry, message))
                        except MuxError as error:
                            refused.append(refused_wire(entry, error, message.id))
                        else:
                            await opened(self._router, calls[-1])
                    case InvalidRequest():
                        refused.append(refused_wire(entry, message, message.request_id))
                    case _:
                        take_silent(self._router, session, message)
        except BaseException:
            session.lose(*calls)
            raise
        if not calls and not refused:
            return entry.accepted()
        return await self._stream(entry, session, session.stream(*calls), refused)

    def _refusal(self, entry: Entry, error: MuxError, request_id: int | str) -> web.StreamResponse:
        """The error of one request that never became a call."""
        return refusal(entry, refused_wire(entry, error, request_id), faults.fault(error).status, self._metrics)

    async def _stream(
        self, entry: Entry, session: Session, stream: ReplyStream, ready: Sequence[bytes] = (),
        first: Event | None = None,
    ) -> web.StreamResponse:  # fmt: skip
        """Send what is ready, the `first` event of the first call, and whatever else comes for the stream's calls."""
        try:
            await stream.attach()
            async with event_stream(entry, "reply", self._metrics) as response:
                if revisions.has_priming(session.core.revision) and (stream.pending or ready):
                    await response.send("", id=session.replay.prime(stream.number), retry=RETRY)
                await self._send(session, stream.number, response, ready)
                await self._pump(session, stream, response, first)
            return response
        finally:
            session.leave(stream)

    async def _pump(
        self, session: Session, stream: ReplyStream, response: EventSourceResponse, first: Event | None
    ) -> None:
        """Send the events of the stream's calls, in order, until each has ended."""
        while stream.pending:
            call = stream.pending[0]
            try:
                event = first if first is not None else await next_event(call)
            except CallCancelled:
                wires = session.core.withdraw(call.admission)
                session.finish(stream)
                await self._send(session, stream.number, response, wires)
                continue
            first = None
            wires = session.wires(call, event)
            if isinstance(event, ENDS):
                # Before it is sent: if the client is lost just now, the replay has it.
                session.finish(stream)
            await self._send(session, stream.number, response, wires)

    async def _send(self, session: Session, stream: int, response: EventSourceResponse, wires: Sequence[bytes]) -> None:
        # All remembered before any is sent: what is lost on the way can be had again.
        now = time.monotonic()
        lines = [envelope.one_line(wire) for wire in wires]
        for event_id, line in [(session.replay.add(stream, line, now), line) for line in lines]:
            self._metrics.http_sent(len(line))
            await response.send(line.decode(), id=event_id)

    async def _resume(self, entry: Entry, session: Session, number: int, after: int) -> web.StreamResponse:
        stream = session.streams.get(number)
        if stream is not None and not stream.resumable:
            raise InvalidRequest("Last-Event-ID is none of ours")
        if stream is not None:
            await stream.attach()
        try:
            async with event_stream(entry, "reply", self._metrics) as response:
                for event_id, wire in session.replay.after(number, after):
                    await response.send(wire.decode(), id=event_id)
                if stream is not None:
                    await self._pump(session, stream, response, None)
            return response
        finally:
            if stream is not None:
                session.leave(stream)

    async def _listen(self, entry: Entry, session: Session, missed: list[tuple[str, bytes]]) -> web.StreamResponse:
        listener = session.inbox.listen(entry.expires)
        try:
            async with event_stream(entry, "get", self._metrics) as response:
                if revisions.has_priming(session.core.revision):
                    await response.send("", id=session.replay.prime(replay.GET_STREAM), retry=RETRY)
                for event_id, wire in missed:
                    await response.send(wire.decode(), id=event_id)
                while (message := await listener.next()) is not None:
                    await self._send(session, replay.GET_STREAM, response, [message])
            return response
        finally:
            session.inbox.leave(listener)


def take_silent(router: Router, session: Session, message: Notification | Reply) -> None:
    """Take a message that has no answer."""
    if isinstance(message, Reply):
        session.answered(message)
        return
    if message.method == ROOTS_CHANGED:
        router.roots_changed(session.caller)
        return
    if message.method == INITIALIZED:
        return
    cancelled = session.core.cancels(message)
    if cancelled is not None and cancelled in session.calls:
        session.calls[cancelled].cancel(_reason(message))


def _reason(message: Notification) -> str:
    return (envelope.text((message.params or {}).get("reason")) or "the client cancelled the call")[:256]
