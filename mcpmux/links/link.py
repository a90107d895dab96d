"""Link: one live MCP connection to a server, one transport around one core.

Calls go in by `open()`, which never waits. What the transport reads comes in by `receive()`, in the event loop's own
callback: from the bytes to the reader's wake-up there is no task in between. The supervisor owns the link, greets it,
watches `stirred` and ends it; a link never restarts itself.

A link has ended when `lost` says why: every call in flight has failed at that moment, and nothing can be opened.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Final

from mcpmux.credentials.scope import EVERYBODY, LinkKey
from mcpmux.errors import (
    LinkFailed,
    LinkLost,
    ServerBusy,
    ServerUnavailable,
    UpstreamBroken,
    UpstreamError,
    UpstreamRefused,
)
from mcpmux.links.awaited import awaited
from mcpmux.links.exchange import Exchange
from mcpmux.links.hold import Hold
from mcpmux.links.seats import Seats
from mcpmux.links.throttle import Throttle
from mcpmux.links.transport import Transport
from mcpmux.observe.log import logger
from mcpmux.observe.metrics import ServerMetrics
from mcpmux.protocol import envelope, events, faults
from mcpmux.protocol.events import Changed, Completed, End, Failure, News, Opening, TaskProgressed, TaskTold, Updated
from mcpmux.protocol.methods import ROOTS_CHANGED
from mcpmux.protocol.upstream import Core, Greeting, received
from mcpmux.protocol.upstream.attribution import OURSELVES
from mcpmux.protocol.upstream.received import Broken, Deliver, Greeted, Headers, Received, Send, Stray, Unwelcome

NO_ANSWER_AFTER: Final = 5.0  # seconds; a call given up before that says nothing about the server

ADVICE: Final = "several callers share this server: give it isolation: pooled or session"

# The one stray that is nobody's fault: the answer to a call that was cancelled meanwhile.
_USUAL: Final = "late"
_UNATTRIBUTED: Final = "ask_unattributed"
_OVERDUE: Final = "it had not answered a cancelled call, and may still be at work on it"

log = logger("links")


class Link:
    """One connection; see the module."""

    __slots__ = (
        "_changed", "_core", "_greeted", "_hold", "_paused", "_seats", "_throttle", "_timer", "_transport", "doubted",
        "draining", "greeting", "heard", "key", "life", "loop", "lost", "metrics", "pongs", "refused", "replaced",
        "stirred", "unanswered", "unwelcome",
    )  # fmt: skip

    def __init__(
        self, key: LinkKey, core: Core[Exchange], seats: Seats, metrics: ServerMetrics,
        changed: Callable[[News | None], None],
    ) -> None:  # fmt: skip
        self.key = key
        self.life = secrets.token_hex(8)  # no other link has it, also none of another run
        self.loop = asyncio.get_running_loop()
        self.metrics = metrics
        self.greeting: Greeting | None = None
        self.lost: str | None = None
        self.refused = False  # it ended because the server does not want us
        self.unwelcome = False  # it ended because of what was answered to the greeting
        self.replaced = False  # it ended because we want another in its place; the server did nothing wrong
        self.heard = self.loop.time()  # when it last said anything
        self.unanswered = 0  # calls given up since then
        self.pongs = False  # it has answered a ping
        self.doubted = False  # the transport had trouble that may mean the end
        self.draining = False  # no new calls; its owner waits for the last one
        self.stirred = asyncio.Event()  # lost, unanswered, or drained: its owner should look
        self._core = core
        self._seats = seats
        self._hold: Hold | None = None
        self._paused: set[Exchange] = set()  # calls that wait for no answer just now
        self._changed = changed
        self._transport: Transport | None = None
        self._greeted: asyncio.Future[Greeted] | None = None
        self._timer: asyncio.TimerHandle | None = None  # when the core wants to be asked again
        self._throttle = Throttle(self.loop, self._say_held_back)

    @property
    def in_flight(self) -> int:
        """How many calls wait for their answer."""
        return self._core.in_flight + len(self._paused)

    @property
    def pid(self) -> int | None:
        """The child process, if there is one."""
        return self._transport.pid if self._transport is not None else None

    @property
    def one_of_several(self) -> bool:
        """Whether it is one of several processes of its server, of which none need know what another one has said."""
        return self.pid is not None and (self._seats.lent or self.key.scope != EVERYBODY)

    def open(self, opening: Opening) -> Exchange:
        """Begin a call. What the server did not announce is answered here, by a `Failure`.

        Raises: ServerUnavailable (the link has ended), ServerBusy (no seat, or too much waits to be sent).
        """
        transport = self._transport
        if transport is None or self.lost is not None:
            raise ServerUnavailable(self.key.server)
        exchange = awaited(self, opening) if opening.awaits else Exchange(self, self.loop.time())
        if not self._core.serves(opening.method):
            exchange.refuse(Failure(faults.METHOD_NOT_FOUND, f"Method not found: {opening.method}"))
            return exchange
        if transport.congested:
            raise ServerBusy(self.key.server)
        self._seats.take()
        try:
            exchange.id, wire, headers = self._core.open(opening, exchange)
        except BaseException:
            self._seats.give_back()
            raise
        if wire:
            transport.send(wire, exchange.id, headers)
        else:
            self._act_all(self._core.due())
        return exchange

    def serves(self, method: str) -> bool:
        """Whether the server announced what `method` needs."""
        return self._core.serves(method)

    def ages(self, what: events.Offered) -> bool:
        """Whether a list of the server grows old without a word."""
        return self._core.ages(what)

    def outlasts(self, task: str, caller: str, seconds: float) -> None:
        """A task that was made on this link for `caller` may be at work for so long; 0 when it has ended."""
        self._core.outlasts(task, caller, self.loop.time() + seconds)

    def roots_changed(self) -> None:
        """The roots of this link's client have changed; a server that was told of none is not told of this."""
        if self._core.announces("roots"):
            self._send(envelope.notification(ROOTS_CHANGED, None), None)

    # For its owner ---------------------------------------------------------------------------------------------

    async def greet(self, transport: Transport, patience: float | None = None) -> None:
        """Make the connection ready for calls; also again, after the server has lost our session.

        `patience`: seconds of silence after which the core may try something else besides.
        Raises: LinkFailed.
        """
        self._transport = transport
        if self.lost is not None:
            # The server can be gone before it was greeted.
            raise LinkFailed(self.lost, refused=self.refused)
        self._greeted = self.loop.create_future()
        hurry = None if patience is None else self.loop.call_later(patience, self._hurry)
        try:
            request, wire, headers = self._core.greet()
            transport.send(wire, request, headers)
            welcome = await self._greeted
        finally:
            self._greeted = None
            if hurry is not None:
                hurry.cancel()
        await transport.confirm(welcome.wire, welcome.greeting.protocol_version)
        self.greeting = welcome.greeting

    async def probe(self, method: str) -> None:
        """Return when the server has answered `method`, whatever it says. Raises: UpstreamError."""
        transport = self._transport
        if transport is None or self.lost is not None:
            raise ServerUnavailable(self.key.server)
        exchange = Exchange(self, self.loop.time())
        exchange.seated = False
        exchange.id, wire, headers = self._core.open(Opening(method, None, OURSELVES), exchange)
        transport.send(wire, exchange.id, headers)
        try:
            await exchange.next()
        finally:
            exchange.cancel("no longer waiting")

    def end(self, problem: str, error: UpstreamError | None = None, *, refused: bool = False) -> None:
        """The connection is gone, or is not wanted any more: calls in flight fail with `error` (`LinkLost`)."""
        if self.lost is not None:
            return
        self.lost = problem
        self.refused = refused
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_exception(LinkFailed(problem, refused=refused))
        for exchange in (*self._core.lose(), *self._paused):
            exchange.put_error(error or LinkLost(self.key.server))
        self._settle()
        self._throttle.close()
        if self._timer is not None:
            self._timer.cancel()
        self.stirred.set()

    # For its transport -----------------------------------------------------------------------------------------

    def receive(self, data: bytes, stream: int | None = None) -> None:
        """One message came, on the response to request `stream` where there are such streams."""
        now = self.heard = self.loop.time()
        self.unanswered = 0
        for found in self._core.receive(data, stream, now):
            if type(found) is Deliver:
                found.owner.put(found.event)
            else:
                self._act(found)

    def receive_oversized(self, head: bytes, tail: bytes, size: int, stream: int | None = None) -> None:
        """A message over the limit came by; only its ends were kept."""
        log.warning("message_oversized", server=self.key.server, bytes=size)
        self._act_all(self._core.oversized(head, tail, stream, self.loop.time()))

    def fail(self, request: int, error: UpstreamError, problem: str) -> None:
        """The answer to `request` cannot come: its call gets `error`, or if it was our greeting the link ends."""
        if self._core.is_greeting(request):
            refused = isinstance(error, UpstreamRefused)
            self.end(problem, refused=refused)
            return
        exchange = self._core.drop(request, self.loop.time())
        if exchange is not None:
            if self._seats.lent and isinstance(error, LinkLost):
                # The request was lost on its way or at work: what the server still says of it must meet nobody.
                self._replace(problem)
            exchange.put_error(error)
        else:
            self._act_all(self._core.due())

    def waits_for(self, request: int) -> bool:
        """Whether anybody still waits for the answer to `request`."""
        return self._core.waits_for(request)

    def is_greeting(self, request: int | None) -> bool:
        """Whether `request` is our greeting."""
        return request is not None and self._core.is_greeting(request)

    def doubt(self) -> None:
        """Something failed that may mean the end: ask the server soon."""
        self.doubted = True
        self.stirred.set()

    def renewed(self) -> None:
        """The same link has a new session: what was known of the old one has to be asked again."""
        log.info("link_renewed", server=self.key.server)
        self._changed(None)

    # For its exchanges -----------------------------------------------------------------------------------------

    def closed(self, exchange: Exchange) -> None:
        """The exchange has its end, and is out of the core's table."""
        if exchange.seated:
            self._seats.give_back()
        if self._core.asks:
            self._answer_orphans()
        if self.draining and not self.in_flight:
            self.stirred.set()

    def abandon(self, exchange: Exchange, reason: str) -> None:
        """The exchange was given up by our side: tell the server. A lent link waits for what the server makes of it."""
        now = self.loop.time()
        wire = self._core.cancel(exchange.id, reason, now)
        if self._transport is None or self.lost is not None:
            self.closed(exchange)
            return
        if self._seats.lent and exchange.seated and wire is not None:
            self._hold = Hold(exchange, lambda: self._replace(_OVERDUE))
        else:
            self.closed(exchange)
            self._transport.forget(exchange.id)
        if wire is not None:
            self._transport.send(wire, None)
        if self._core.asks:
            self._answer_orphans()
        if self.heard < exchange.opened <= now - NO_ANSWER_AFTER:
            self.unanswered += 1
            self.stirred.set()

    def go_on(self, exchange: Exchange, opening: Opening | None) -> None:
        """Go on with a call by another request, or (None) by nothing for now; it keeps its seat."""
        if opening is None:
            self._paused.add(exchange)
            return
        self._paused.discard(exchange)
        exchange.id, wire, headers = self._core.open(opening, exchange)
        self._send(wire, exchange.id, headers)

    def part(self, exchange: Exchange) -> None:
        """Give up the request that a call waits for, if it waits for one, and not the call."""
        wire = self._core.cancel(exchange.id, "no longer needed", self.loop.time())
        if self._transport is not None:
            self._transport.forget(exchange.id)
        if wire is not None:
            self._send(wire, None)

    def leave(self, exchange: Exchange, problem: str | None) -> None:
        """A call that went on is over; `problem`: why nobody may be lent the link on which its server goes on."""
        self._paused.discard(exchange)
        if problem is not None and self._seats.lent and self.lost is None:
            self._replace(problem)
        self.closed(exchange)

    def answer(self, exchange: Exchange, ask: int, answer: End) -> None:
        """Answer what the server asked in this call, if it still waits for that."""
        self._act_all(self._core.answer(exchange.id, ask, answer))

    def overflowed(self, exchange: Exchange) -> None:
        """The exchange's reader is slow, and an event was dropped."""
        self.metrics.message_stray("overflow")
        if exchange.dropped == 1:
            log.warning("events_dropped", server=self.key.server, request=exchange.id)

    def _act_all(self, found: list[Received[Exchange]]) -> None:
        for one in found:
            self._act(one)

    def _act(self, found: Received[Exchange]) -> None:
        match found:
            case Deliver(owner, event):
                owner.put(event)
            case Broken(owner, problem):
                owner.put_error(UpstreamBroken(self.key.server, problem))
            case Send(wire, request, headers):
                self._send(wire, request, headers)
            case received.Resend(owner, wire, request, headers):
                owner.id = request
                self._send(wire, request, headers)
            case received.Unread(request):
                if self._transport is not None:
                    self._transport.forget(request)
            case received.Later(seconds):
                self._timer = self.loop.call_later(seconds, self._resume)
            case Stray():
                self._strayed(found)
            case Greeted():
                self._core = self._core.settled()
                if self._greeted is not None and not self._greeted.done():
                    self._greeted.set_result(found)
            case Unwelcome(problem):
                self.unwelcome = True
                self.end(problem)
            case received.Outdated():
                self.end("it is of another era than it was greeted in")
            case Changed() | Updated() | Completed() | TaskTold() | TaskProgressed() | events.TaskUnheard():
                self._changed(found)

    def _resume(self) -> None:
        self._act_all(self._core.resume())

    def _hurry(self) -> None:
        self._act_all(self._core.hurry())

    def _answer_orphans(self) -> None:
        for wire in self._core.orphaned():
            self._send(wire, None)

    def _send(self, wire: bytes, request: int | None, headers: Headers | None = None) -> None:
        if self._transport is not None and self.lost is None:
            self._transport.send(wire, request, headers)

    def _strayed(self, stray: Stray) -> None:
        self.metrics.message_stray(stray.reason)
        if stray.reason == _USUAL:
            if not self._core.ghosts:
                self._settle()
            log.debug("message_strayed", server=self.key.server, reason=stray.reason, text=stray.text)
        elif not self._throttle.passes():
            return
        elif stray.reason == _UNATTRIBUTED:
            log.warning("ask_unattributed", server=self.key.server, method=stray.text, advice=ADVICE)
        else:
            log.info("message_strayed", server=self.key.server, reason=stray.reason, text=stray.text)

    def _settle(self) -> None:
        """The server is done with the call that held this link, or gone."""
        hold, self._hold = self._hold, None
        if hold is None:
            return
        exchange = hold.end()
        if self._transport is not None:
            self._transport.forget(exchange.id)
        self.closed(exchange)

    def _replace(self, problem: str) -> None:
        self.replaced = True
        self.end(problem)

    def _say_held_back(self, count: int) -> None:
        log.warning("messages_unlogged", server=self.key.server, count=count)
