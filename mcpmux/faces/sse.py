"""HTTP+SSE, the transport of revision 2024-11-05: one event stream down, POSTs up.

GET opens the stream and the session; its first event, `endpoint`, carries the path that takes the messages. Answers
go down the stream. When the stream closes, the session and its calls end: there is nothing to come back to.
Source: MCP 2024-11-05 basic/transports, "HTTP with SSE".
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiohttp import web
from aiohttp_sse import EventSourceResponse

from mcpmux.calls import Router
from mcpmux.errors import CallCancelled, InvalidRequest, MuxError, SessionUnknown
from mcpmux.faces.edge import next_event, opened
from mcpmux.faces.entry import EVENTS, Entry, check_accepts, read_body
from mcpmux.faces.eventstream import event_stream
from mcpmux.faces.refusal import refused_wire
from mcpmux.faces.sessions import Session, Sessions
from mcpmux.faces.streamable import take_silent
from mcpmux.observe.metrics import Metrics
from mcpmux.protocol import envelope, revisions
from mcpmux.protocol.downstream import legacy
from mcpmux.protocol.downstream.legacy import SessionCore
from mcpmux.protocol.envelope import Message, Request
from mcpmux.protocol.events import ENDS


@dataclass(frozen=True, slots=True)
class _Open:
    """One open event stream, and the tasks that answer what is posted to it."""

    tasks: asyncio.TaskGroup
    response: EventSourceResponse
    metrics: Metrics


class LegacySse:
    """The two HTTP methods of the old transport."""

    def __init__(self, sessions: Sessions, router: Router, metrics: Metrics, body_limit: int, prefix: str) -> None:
        """`prefix` is the path of the public URL, which a proxy in front may have put before ours."""
        self._sessions = sessions
        self._router = router
        self._metrics = metrics
        self._body_limit = body_limit
        self._prefix = prefix.rstrip("/")
        self._open: dict[str, _Open] = {}

    async def stream(self, entry: Entry) -> web.StreamResponse:
        """GET: a session for as long as its stream lives."""
        check_accepts(entry.request, EVENTS)
        session = await self._sessions.open("sse", entry.principal, entry.view, SessionCore())
        listener = session.inbox.listen(entry.expires)
        path = f"{self._prefix}{entry.path.removesuffix('sse')}messages?session_id={session.id}"
        try:
            async with event_stream(entry, "sse", self._metrics) as response, asyncio.TaskGroup() as tasks:
                self._open[session.id] = _Open(tasks, response, self._metrics)
                await response.send(path, event="endpoint")
                while (wire := await listener.next()) is not None:
                    await response.send(wire.decode(), event="message")
                # Wakes the tasks, so that the group can end.
                self._sessions.end(session, "the event stream ended")
            return response
        finally:
            self._open.pop(session.id, None)
            self._sessions.end(session, "the client closed its event stream")

    async def message(self, entry: Entry) -> web.StreamResponse:
        """POST: take one message (or a batch) for a session; the answer goes down its stream."""
        session_id = entry.request.query.get("session_id", "")
        session = self._sessions.find(session_id, entry.principal, entry.view, "sse")
        body = await read_body(entry.request, self._body_limit)
        self._metrics.http_received(len(body))
        message = envelope.parse(body)
        stream = self._open.get(session.id)
        if stream is None:
            raise SessionUnknown
        entries = message if isinstance(message, list) else [message]
        if isinstance(message, list) and not revisions.has_batches(session.core.revision):
            raise InvalidRequest(f"batches do not exist in revision {session.core.revision}")
        for single in entries:
            self._take(entry, session, stream, single)
        return entry.accepted()

    def _take(self, entry: Entry, session: Session, stream: _Open, message: Message | InvalidRequest) -> None:
        match message:
            case InvalidRequest():
                self._say(stream, refused_wire(entry, message, message.request_id))
            case Request():
                stream.tasks.create_task(
                    self._answer(entry, session, stream, message), name=f"sse answer {entry.request_id}"
                )
            case _:
                take_silent(self._router, session, message)

    def _say(self, stream: _Open, wire: bytes) -> None:
        stream.tasks.create_task(_sent(stream, wire), name="sse refusal")

    async def _answer(self, entry: Entry, session: Session, stream: _Open, request: Request) -> None:
        try:
            if request.method == "initialize":
                wire = await self._initialized(entry, session, request)
                await _sent(stream, wire)
            else:
                await self._served(entry, session, stream, request)
        except MuxError as error:
            await _sent(stream, refused_wire(entry, error, request.id))

    async def _initialized(self, entry: Entry, session: Session, request: Request) -> bytes:
        session.greet(legacy.greeted(request))
        caller = session.caller_of(entry.principal)
        return envelope.result(request.id, await self._router.initialize(caller, session.core.revision))

    async def _served(self, entry: Entry, session: Session, stream: _Open, request: Request) -> None:
        call = self._sessions.admit(session, entry, request)
        try:
            await opened(self._router, call)
            ended = False
            while not ended:
                event = await next_event(call)
                ended = isinstance(event, ENDS)
                wires = session.wires(call, event)
                if ended:
                    session.release(call)
                for wire in wires:
                    await _sent(stream, wire)
        except CallCancelled:
            void = session.core.withdraw(call.admission)
            session.release(call)
            for wire in void:
                await _sent(stream, wire)


async def _sent(stream: _Open, wire: bytes) -> None:
    """Send one message, unless the client is gone: then its stream ends for the same reason."""
    stream.metrics.http_sent(len(wire))
    try:
        await stream.response.send(envelope.one_line(wire).decode(), event="message")
    except (ConnectionError, TimeoutError, RuntimeError):
        stream.response.stop_streaming()
