"""Legacy sessions by id: bound to their principal, bounded in number, ended when idle.

A session owns its calls, the reply streams on which their answers go, its inbox and its replay memory. A reply
stream that was lost is kept for `RESUME` seconds, so that the client can come back for it; then its calls are
cancelled. A session whose id another principal presents, or that belongs to another endpoint, does not exist.
Source: MCP 2025-11-25 basic/transports ("Session Management", "Resumability"); design section 3.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

from mcpmux.access.grants import Grants
from mcpmux.calls import Call, Caller, Inputs, Interest, Lists, Router, Tasks, Told
from mcpmux.catalog.view import Catalog, View
from mcpmux.config.schema import Limits
from mcpmux.errors import Draining, EndpointForbidden, MuxError, SessionsExhausted, SessionUnknown
from mcpmux.faces.entry import CHAT_ID, Entry
from mcpmux.faces.inbox import Inbox
from mcpmux.faces.listens import Listens
from mcpmux.identity.principal import Principal
from mcpmux.observe.fence import fenced
from mcpmux.observe.log import logger
from mcpmux.observe.metrics import Metrics
from mcpmux.protocol.abilities import Capabilities
from mcpmux.protocol.downstream import legacy
from mcpmux.protocol.downstream.legacy import Greeting, SessionCore
from mcpmux.protocol.downstream.replay import GET_STREAM, Replay
from mcpmux.protocol.envelope import Reply, Request
from mcpmux.protocol.events import ENDS, Ask, Event, Failure, Offered, Withdrawn

RESUME: Final = 30.0
SWEEP: Final = 1.0

log = logger("faces")

# Changes come in crowds (a start of seventy servers): sessions are told when a crowd has passed, well within the 2 s in
# which they must know.
SETTLE: Final = 0.2


class ReplyStream:
    """The answers to one POST, in the order of its requests.

    `reader` is the task that sends them as an event stream, if one does; `detached` since when nobody waits for them
    (monotonic seconds).
    """

    __slots__ = ("detached", "number", "pending", "reader")

    def __init__(self, number: int, calls: Iterable[Call]) -> None:
        self.number = number
        self.pending = deque(calls)
        self.reader: asyncio.Task[object] | None = None
        self.detached: float | None = None

    @property
    def resumable(self) -> bool:
        """Whether it became an event stream, so that a client can hold an event id of it."""
        return self.reader is not None or self.detached is not None

    async def attach(self) -> None:
        """Make the running task the one that reads this stream; a former one ends first."""
        former, self.reader, self.detached = self.reader, asyncio.current_task(), None
        if former is not None and former is not self.reader and not former.done():
            former.cancel()
            await asyncio.wait({former})

    def detach(self) -> None:
        """The running task does not read this stream any more; if another has taken over, that goes on."""
        if self.reader is None or self.reader is asyncio.current_task():
            self.reader, self.detached = None, time.monotonic()


class Session:
    """One downstream session."""

    __slots__ = (
        "_streams_made",
        "caller",
        "calls",
        "core",
        "ended",
        "id",
        "inbox",
        "replay",
        "seen",
        "streams",
        "transport",
        "used",
    )

    def __init__(self, session_id: str, transport: str, caller: Caller, core: SessionCore) -> None:
        self.id = session_id
        self.transport = transport
        self.caller = caller
        self.core = core
        self.inbox = Inbox()
        self.replay = Replay()
        self.streams: dict[int, ReplyStream] = {}
        self.calls: dict[int | str, Call] = {}
        self.seen: dict[Offered, bytes] = {}
        self.used = time.monotonic()
        self.ended = False
        self._streams_made = GET_STREAM

    def caller_of(self, principal: Principal) -> Caller:
        """The caller of one request: each is decided by the token that it carries."""
        if self.caller.principal is not principal:
            self.caller = self._known(principal)
        return self.caller

    def greet(self, greeting: Greeting) -> None:
        """The client has said what it is, after the session was opened. Raises: InvalidRequest."""
        self.core.greet(greeting)
        self.caller = self._known(self.caller.principal)

    def _known(self, principal: Principal) -> Caller:
        return Caller(principal, self.caller.view, self.id, _capabilities(self.core), self.core.revision)

    def release(self, call: Call) -> None:
        """The call has ended, and its end is known to whoever answers it: its id may be used again."""
        self.calls.pop(call.admission.id, None)
        self.core.free(call.admission)

    def finish(self, stream: ReplyStream) -> None:
        """The call at the head of the stream has ended."""
        self.release(stream.pending.popleft())
        if not stream.pending:
            self.streams.pop(stream.number, None)

    def wires(self, call: Call, event: Event) -> list[bytes]:
        """What the client gets for one event of the call, in order; what it cannot be asked is replied to at once."""
        match event:
            case Ask():
                wire = self.core.ask(call.admission, event)
                if isinstance(wire, Failure):
                    call.refuse(event.id, wire)
                    log.debug("ask_refused", method=event.method, cause=wire.message, request_id=call.request_id)
                    return []
                return [wire]
            case Withdrawn(ask):
                return self.core.withdraw(call.admission, ask)
        told = self.core.encode(call.admission, event)
        void = self.core.withdraw(call.admission) if isinstance(event, ENDS) else []
        return void if told is None else [*void, told]

    def answered(self, reply: Reply) -> None:
        """The client has answered a request of ours; what answers nothing that waits is logged, and harms nobody."""
        found = self.core.answered(reply)
        if isinstance(found, str):
            log.info("answer_strayed", reason=found, principal=self.caller.principal.label)
        elif (call := self.calls.get(found.request)) is not None:
            call.reply(found.ask, found.end)

    def stream(self, *calls: Call) -> ReplyStream:
        """A new reply stream, for the answers to these calls."""
        self._streams_made += 1
        stream = ReplyStream(self._streams_made, calls)
        self.streams[stream.number] = stream
        return stream

    def lose(self, *calls: Call) -> None:
        """Nobody waits for these answers any more; a while later the calls are cancelled."""
        self.stream(*calls).detached = time.monotonic()

    def leave(self, stream: ReplyStream) -> None:
        """The running task reads this stream no longer; if nothing is on it, it is gone."""
        if stream.pending:
            stream.detach()
        else:
            self.streams.pop(stream.number, None)

    def abandon(self, stream: ReplyStream, reason: str) -> None:
        """Nobody will come back for this stream: cancel what is still on it."""
        while stream.pending:
            stream.pending[0].cancel(reason)
            self.finish(stream)
        self.streams.pop(stream.number, None)

    def sweep(self, now: float) -> None:
        """Let go of what nobody came back for in time, and of streams whose token has expired."""
        for stream in [found for found in self.streams.values() if found.detached is not None]:
            if now - (stream.detached or now) > RESUME:
                self.abandon(stream, "the client did not come back for the answer")
        if len(self.replay):
            self.replay.expire(now)
        for listener in self.inbox.listeners:
            if listener.expires <= time.time():
                listener.close()

    @property
    def busy(self) -> bool:
        """Whether a call is in flight or an event stream open."""
        return bool(self.calls or self.inbox.listeners)


class Sessions:
    """The table of sessions and the loops that serve them."""

    def __init__(
        self, limits: Limits, router: Router, reads: tuple[Grants, Catalog, Lists],
        waits: tuple[Interest, Inputs, Tasks], metrics: Metrics,
    ) -> None:  # fmt: skip
        self._limits = limits
        self._router = router
        self._grants, self._catalog, self._lists = reads
        self._interest, self._inputs, self._tasks = waits
        self._metrics = metrics
        self.listens = Listens(limits.sessions_per_user, router, self._lists, self._interest, self._tasks)
        self._sessions: dict[str, Session] = {}
        self._held: Counter[str] = Counter()
        self._draining = False

    def __len__(self) -> int:
        return len(self._sessions)

    async def open(self, transport: str, principal: Principal, view: View, core: SessionCore) -> Session:
        """A new session with an id of 128 random bits and more.

        Raises: Draining, SessionsExhausted, EndpointForbidden, StoreUnavailable.
        """
        if self._draining:
            raise Draining
        grants = await self._router.enter(principal, view)
        if self._held[principal.key] >= self._limits.sessions_per_user:
            raise SessionsExhausted
        session_id = secrets.token_urlsafe(24)
        caller = Caller(principal, view, session_id, _capabilities(core), core.revision)
        session = Session(session_id, transport, caller, core)
        for what in Offered:
            session.seen[what] = self._lists.listing(view, grants, what).digest
        self._sessions[session_id] = session
        self._held[principal.key] += 1
        self._metrics.session_opened(transport)
        return session

    def find(self, session_id: str, principal: Principal, view: View, transport: str) -> Session:
        """The principal's session of that id on that endpoint, over that transport.

        Raises: SessionUnknown (never existed, ended, another's: one answer).
        """
        session = self._sessions.get(session_id)
        if session is None or session.caller.principal.key != principal.key or session.caller.view != view:
            raise SessionUnknown
        if session.transport != transport:
            raise SessionUnknown
        session.used = time.monotonic()
        return session

    def admit(self, session: Session, entry: Entry, request: Request) -> Call:
        """Let one request in: its call, in the session and still to be opened.

        Raises: Draining, NotInitialized, InvalidRequest, MethodUnknown, InvalidParams.
        """
        if self._draining:
            raise Draining
        admission = session.core.admit(request)
        chat = entry.request.headers.get(CHAT_ID)
        call = self._router.call(session.caller_of(entry.principal), admission, entry.request_id, chat)
        session.calls[admission.id] = call
        return call

    def end(self, session: Session, reason: str) -> None:
        """End a session: its calls are cancelled, its streams end, its id is forgotten."""
        if session.ended:
            return
        session.ended = True
        del self._sessions[session.id]
        key = session.caller.principal.key
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
        # A task that waits for an answer wakes with CallCancelled and finishes its stream itself.
        for call in list(session.calls.values()):
            call.cancel(reason)
        for stream in list(session.streams.values()):
            if stream.detached is not None:
                session.abandon(stream, reason)
        session.inbox.close()
        self._interest.drop(session.id)
        self._router.leave(session.id)
        self._metrics.session_closed(session.transport)

    def drain(self) -> None:
        """Take no new sessions from now on."""
        self._draining = self.listens.draining = True
        self._router.drain()

    def close(self) -> None:
        """End every session, and every subscription of the modern era."""
        self.listens.close()
        for session in list(self._sessions.values()):
            self.end(session, "the gateway is shutting down")

    async def run(self) -> None:
        """Serve all sessions until cancelled."""
        loops = {
            "session sweep": self._sweep,
            "session lists": self._catalog_changes,
            "session grants": self._grant_changes,
            "session updates": self._updates,
            "session inputs": self._completions,
            "session tasks": self._task_news,
        }
        async with asyncio.TaskGroup() as tasks:
            for name, loop in loops.items():
                tasks.create_task(fenced(name, loop, self._metrics), name=name)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            self.listens.sweep()
            now = time.monotonic()
            for session in list(self._sessions.values()):
                session.sweep(now)
                if session.busy:
                    session.used = now
                elif now - session.used > self._limits.session_idle:
                    self.end(session, "the session was idle")

    async def _catalog_changes(self) -> None:
        async for _ in self._catalog.changes():
            await asyncio.sleep(SETTLE)
            await self._announce()

    async def _grant_changes(self) -> None:
        async for _ in self._grants.changes():
            await self._announce()

    async def _announce(self) -> None:
        """Tell each session whose lists are not what they were."""
        for session in list(self._sessions.values()):
            if session.ended:
                continue
            try:
                await self._compare(session)
            except EndpointForbidden:
                self.end(session, "access to this endpoint has ended")
            except MuxError as error:
                log.warning("lists_unknown", reason=error.reason, principal=session.caller.principal.label)
        await self.listens.announce()

    async def _compare(self, session: Session) -> None:
        view = session.caller.view
        grants = await self._router.enter(session.caller.principal, view)
        for what in self._lists.changed(view, grants, session.seen):
            session.inbox.put(legacy.changed(what))

    async def _updates(self) -> None:
        async for session_id, server, uri in self._interest.updates():
            session = self._sessions.get(session_id)
            if session is None:
                await self.listens.update(session_id, server, uri)
                continue
            try:
                shown = await self._router.shown_uri(session.caller, server, uri)
            except MuxError as error:
                log.warning("update_untold", reason=error.reason, principal=session.caller.principal.label)
                continue
            if shown is not None:
                session.inbox.put(legacy.updated(shown))

    async def _completions(self) -> None:
        async for session_id, params in self._inputs.completions():
            session = self._sessions.get(session_id)
            wire = session.core.completed(params) if session is not None else None
            if session is not None and wire is not None:
                session.inbox.put(wire)

    async def _task_news(self) -> None:
        async with asyncio.TaskGroup() as looks:
            async for told in self._tasks.told():
                if told.look:
                    looks.create_task(self.listens.look(told), name="session tasks: look")
                else:
                    await self._tell_task(told)

    async def _tell_task(self, told: Told) -> None:
        session = self._sessions.get(told.session)
        try:
            if session is None:
                await self.listens.tell_task(told)
            elif told.params is not None and await self._tasks.allows(session.caller, told):
                tell = legacy.progressed if told.progress else legacy.task_told
                session.inbox.put(tell(told.params))
        except MuxError as error:
            log.warning("task_untold", reason=error.reason, server=told.server)


def _capabilities(core: SessionCore) -> Capabilities:
    """What the client says it can do; nothing before it has said so."""
    return core.greeting.capabilities if core.greeting is not None else {}
