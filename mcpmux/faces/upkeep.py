"""Upkeep of one legacy session over HTTP, so that a client on pipes never learns that sessions come and go.

Owns two tasks: the GET stream, open for as long as the endpoint has one, and the making of a new session when the old
one is unknown. The new one is greeted with the client's own words and told again what the old one knew; the client is
told what it may have missed.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from mcpmux.errors import (
    AnswerLost,
    BridgeFailed,
    EndpointRefused,
    EndpointUnreachable,
    InvalidRequest,
    MalformedMessage,
    SessionNotRenewed,
)
from mcpmux.faces.endpoint import DOWN_LIMIT, LAST_EVENT, Endpoint, messages, reply_in
from mcpmux.links import http
from mcpmux.links.event_stream import EventStream
from mcpmux.observe.log import logger
from mcpmux.protocol import bridge, headers
from mcpmux.protocol.bridge import BridgeCore, Line, Session

RENEW_LIMIT: Final = 30.0  # seconds for a new session
FIRST_PAUSE: Final = 0.2  # seconds between two connections of the GET stream, where the endpoint does not say
LONGEST_PAUSE: Final = 30.0
STEADY_AFTER: Final = 30.0  # a stream that lasted this long is opened anew without a long pause

log = logger("faces")


class Output(Protocol):
    """Where the client reads."""

    def write(self, wire: bytes) -> None:
        """Write one line soon."""

    async def drain(self) -> None:
        """Return when the client has read enough to go on."""


class Upkeep:
    """See the module; its tasks live in `tasks`."""

    __slots__ = ("_core", "_endpoint", "_listener", "_out", "_renewal", "_tasks")

    def __init__(self, core: BridgeCore, endpoint: Endpoint, out: Output, tasks: asyncio.TaskGroup) -> None:
        self._core = core
        self._endpoint = endpoint
        self._out = out
        self._tasks = tasks
        self._listener: asyncio.Task[None] | None = None
        self._renewal: asyncio.Task[BridgeFailed | None] | None = None

    def listen(self) -> None:
        """Open the GET stream of the session, in the place of a former one's."""
        if self._listener is not None and self._listener is not asyncio.current_task():
            self._listener.cancel()
        self._listener = self._tasks.create_task(self._listen(self._core.session), name="events of the endpoint")

    async def renew(self, lost: Session | None) -> bool:
        """True as soon as there is another session than `lost`, whoever makes it. Raises: SessionNotRenewed."""
        if self._core.session is not lost:
            return True
        if self._renewal is None:
            self._renewal = self._tasks.create_task(self._make_session(), name="new session")
        renewal = self._renewal
        await asyncio.wait({renewal})
        if renewal.cancelled():
            raise SessionNotRenewed("mcpmux stdio is ending")
        if (failure := renewal.result()) is not None:
            raise SessionNotRenewed(str(failure))
        return True

    def close(self) -> None:
        """End both tasks."""
        for task in (self._listener, self._renewal):
            if task is not None:
                task.cancel()

    # A new session -------------------------------------------------------------------------------------------------

    async def _make_session(self) -> BridgeFailed | None:
        """Make one; what you get is why there is none."""
        log.debug("session_lost")
        try:
            async with asyncio.timeout(RENEW_LIMIT):
                await self._greet()
        except BridgeFailed as failure:
            return failure
        except TimeoutError:
            return AnswerLost()
        except Exception:
            log.exception("renewal_failed")
            return BridgeFailed("Internal error")
        finally:
            self._renewal = None
        return None

    async def _greet(self) -> None:
        greeting, former = self._core.greeting, self._core.session
        if greeting is None or former is None:
            raise BridgeFailed("the client has not said `initialize`")
        session = await self._asked_session(greeting)
        if session.revision != former.revision:
            raise BridgeFailed(f"it now speaks {session.revision[:32]}, no longer {former.revision}: start anew")
        headers = bridge.session_headers(session)
        restoring = self._core.restoring()
        for wire in restoring:
            async with self._endpoint.post(wire, headers, again=True) as answer:
                if answer.status >= 300:
                    log.warning("session_not_restored", status=answer.status)
                else:
                    await http.read_refusal(answer)
        for wire in self._core.renewed(session):
            self._out.write(wire)
        if restoring:
            self.listen()

    async def _asked_session(self, greeting: Line) -> Session:
        """What a new `initialize` comes to. Raises: BridgeFailed."""
        async with self._endpoint.post(greeting.wire, {}, again=True) as answer:
            reply = await reply_in(answer)
            if reply.result is None:
                raise BridgeFailed("it refused the client's `initialize`")
            return bridge.opened(reply.result, headers.session_id(answer.headers.get(headers.SESSION)))

    # The GET stream ------------------------------------------------------------------------------------------------

    async def _listen(self, session: Session | None) -> None:
        try:
            await self._follow(session)
        except Exception:
            log.exception("listening_failed")

    async def _follow(self, session: Session | None) -> None:
        """Keep the stream open for as long as the session and the endpoint have one."""
        loop = asyncio.get_running_loop()
        events = EventStream(DOWN_LIMIT)
        pause, opened = FIRST_PAUSE, False
        while self._core.session is session:
            begun = loop.time()
            status = await self._listen_once(events, session)
            opened = opened or status == 200
            if status == 404 and opened and await self._renewed(session):
                return
            if status is not None and 300 <= status < 500 and status not in (401, 404, 408, 429):
                return
            if status == 404 and not opened:
                return
            steady = status == 200 and loop.time() - begun >= STEADY_AFTER
            pause = FIRST_PAUSE if steady else min(pause * 2, LONGEST_PAUSE)
            await asyncio.sleep(events.pause(pause) if status == 200 else pause)

    async def _renewed(self, session: Session | None) -> bool:
        try:
            return await self.renew(session)
        except SessionNotRenewed as failure:
            log.warning("session_not_renewed", reason=str(failure))
            return False

    async def _listen_once(self, events: EventStream, session: Session | None) -> int | None:
        """One connection of the stream to its end; its status, None if there was none."""
        events.reconnect()
        headers = bridge.session_headers(session)
        if events.last_id is not None:
            headers[LAST_EVENT] = events.last_id
        status: int | None = None
        try:
            async with self._endpoint.get(headers) as answer:
                status = answer.status
                if status == 200 and answer.content_type != http.EVENTS:
                    return 406  # no stream, whatever it is
                if status == 200:
                    async for data in messages(answer, events):
                        self._receive(data)
                        await self._out.drain()
        except EndpointRefused as error:
            return error.status
        except (EndpointUnreachable, AnswerLost, *http.FAULTS):
            pass
        return status

    def _receive(self, data: bytes) -> None:
        try:
            wire = self._core.receive(data, None)
        except (MalformedMessage, InvalidRequest) as error:
            log.warning("message_unreadable", reason=str(error))
            return
        if wire is not None:
            self._out.write(wire)
