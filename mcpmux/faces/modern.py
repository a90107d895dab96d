"""Streamable HTTP of the modern era (2026-07-28): one POST, one request, nothing before it and nothing after.

A call lives as long as its POST: whoever closes the response has cancelled it, and its server is told at once. What a
server asks ends the POST; the call goes on with another one (`calls/parked.py`). The
answer is JSON when the first event of the call ends it, an event stream otherwise. There are no sessions, no event ids
and nothing to come back to, so GET and DELETE are no methods here.
Source: MCP 2026-07-28 basic/transports/streamable-http, basic/patterns (cancellation, subscriptions).
"""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web
from aiohttp_sse import EventSourceResponse

from mcpmux.calls import Call, Caller, Router
from mcpmux.errors import Draining, InvalidRequest, MuxError
from mcpmux.faces import squeeze
from mcpmux.faces.edge import first_event, next_event, opened
from mcpmux.faces.entry import CHAT_ID, Entry
from mcpmux.faces.eventstream import event_stream
from mcpmux.faces.listens import Listens
from mcpmux.faces.refusal import failure_wire, plainly, refusal, refused
from mcpmux.observe.metrics import Metrics
from mcpmux.protocol import envelope, faults
from mcpmux.protocol.downstream import modern
from mcpmux.protocol.downstream.modern import RequestCore
from mcpmux.protocol.envelope import Message, Notification, Request
from mcpmux.protocol.events import ENDS, Event, Failure, Quiet, Result
from mcpmux.protocol.methods import LISTEN

GONE = "the client closed the response"


class Modern:
    """The modern half of an MCP endpoint."""

    def __init__(self, router: Router, listens: Listens, metrics: Metrics) -> None:
        self._router = router
        self._listens = listens
        self._metrics = metrics

    async def post(
        self, entry: Entry, message: Message | list[Message | InvalidRequest], prefers_events: bool
    ) -> web.StreamResponse:
        """Take one request; a notification is taken and means nothing, there is none that a client could send here."""
        if isinstance(message, Notification):
            return entry.accepted()
        if not isinstance(message, Request):
            raise InvalidRequest("a POST of this revision holds one request")
        headers = entry.request.headers

        def values(name: str) -> Sequence[str]:
            return headers.getall(name, ())

        try:
            if self._listens.draining:
                raise Draining
            core = modern.admit(message, values, self._router.signature(entry.view))
            if core.admission.method.name == LISTEN:
                return await self._listen(entry, core)
        except MuxError as error:
            return self._refusal(entry, error, message.id)
        caller = Caller(entry.principal, entry.view, "", core.capabilities)
        call = self._router.modern(caller, core, values, entry.request_id, headers.get(CHAT_ID))
        return await self._answer(entry, core, call, prefers_events)

    def refuse_method(self, entry: Entry) -> web.Response:
        """The answer to GET and DELETE."""
        headers = {**entry.headers, "Allow": "POST"}
        return plainly(entry.request, 405, entry.request_id, headers, self._metrics)

    # Calls ---------------------------------------------------------------------------------------------------------

    async def _answer(self, entry: Entry, core: RequestCore, call: Call, prefers_events: bool) -> web.StreamResponse:
        """Answer one request, in the form that its first event asks for."""
        try:
            if prefers_events:
                await opened(self._router, call)
                return await self._stream(entry, core, call, b"")
            event, wire = await _shown(core, call, await first_event(self._router, call))
            if not isinstance(event, ENDS):
                return await self._stream(entry, core, call, wire)
            if isinstance(event, Result) and event.page is not None:
                return await squeeze.answer(entry, wire, event.page, self._metrics)
            self._metrics.http_sent(len(wire))
            status = faults.modern_status(event) if isinstance(event, Failure) else 200
            response = entry.answer(wire, status)
            if call.left is not None:
                # Not left to the server: a client that goes before it has this cannot come back.
                await response.prepare(entry.request)
                await response.write_eof()
            return response
        except BaseException:
            call.forsake(GONE)
            raise

    async def _stream(self, entry: Entry, core: RequestCore, call: Call, wire: bytes) -> web.StreamResponse:
        """Send `wire`, if there is anything yet, and the events of the call until one ends it."""
        async with event_stream(entry, "reply", self._metrics) as response:
            ended = False
            while not ended:
                if wire:
                    await self._send(response, wire)
                event, wire = await _shown(core, call, await next_event(call))
                ended = isinstance(event, ENDS)
            await self._send(response, wire)
            call.left = None  # the client may come back, however this connection ends
        return response

    async def _send(self, response: EventSourceResponse, wire: bytes) -> None:
        self._metrics.http_sent(len(wire))
        await response.send(envelope.one_line(wire).decode())

    def _refusal(self, entry: Entry, error: MuxError, request_id: int | str) -> web.StreamResponse:
        """The error of a request that never became a call."""
        failed = faults.modern(refused(entry, error))
        status = faults.fault(error).status
        if status == 200:
            status = faults.modern_status(failed)
        return refusal(entry, failure_wire(request_id, failed), status, self._metrics)

    # Subscriptions -------------------------------------------------------------------------------------------------

    async def _listen(self, entry: Entry, core: RequestCore) -> web.StreamResponse:
        """Answer with what changes, until the client has enough of it or we end it."""
        wanted = core.wanted()
        listen = await self._listens.open(entry, core, wanted.offers)
        try:
            honored = await self._listens.subscribe(listen, wanted)
            async with event_stream(entry, "listen", self._metrics) as response:
                await self._send(response, core.acknowledged(honored))
                while (wire := await listen.next()) is not None:
                    await self._send(response, wire)
                await self._send(response, core.closed())
            return response
        finally:
            self._listens.end(listen)


async def _shown(core: RequestCore, call: Call, event: Event) -> tuple[Event, bytes]:
    """The first event from this one on that the client gets something of, with its wire; or silence, without."""
    while True:
        if (wire := core.encode(event)) is not None:
            return event, wire
        if isinstance(event, Quiet):
            return event, b""
        event = await next_event(call)
