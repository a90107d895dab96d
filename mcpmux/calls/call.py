"""Call: one request on its way. Ask `next()` for its events until one of them ends it.

A call is an entry in the router's table, not a task. It is made by a face, opened by the router, iterated by the
face, and ends exactly once: with the server's answer, with a failure of ours, or cancelled. Ending it writes its
one record. What the server asks in between (`Ask`) is answered by `reply()`; `inputs.py` says how long it may wait.
A request of the modern era ends with what its client is asked; the server's call is left with `parked.py`, from where
the request that is made again takes it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, TypeVar

from msgspec import Raw, Struct, field

from mcpmux.access.decision import Decision
from mcpmux.calls.errand import Errand
from mcpmux.calls.inputs import EXHAUSTED, PATIENCE, UNANSWERED, Inputs, answered
from mcpmux.catalog import rewrite
from mcpmux.catalog.view import View
from mcpmux.config.schema import Server
from mcpmux.errors import CallCancelled, CallTimedOut, MuxError
from mcpmux.identity.principal import Principal
from mcpmux.links.exchange import Exchange
from mcpmux.observe.tally import Tally
from mcpmux.protocol import abilities, faults, rounds
from mcpmux.protocol.abilities import Capabilities
from mcpmux.protocol.downstream.legacy import Admission
from mcpmux.protocol.downstream.modern import RequestCore
from mcpmux.protocol.events import Ask, End, Event, Failure, InputRequired, Progress, Quiet, Result, Withdrawn
from mcpmux.protocol.headers import Values
from mcpmux.protocol.page import Page
from mcpmux.protocol.revisions import MODERN

if TYPE_CHECKING:
    from mcpmux.calls.parked import Parked, Parking

T = TypeVar("T")

# Progress proves life, so it moves the deadline, but not past this many seconds after the start.
# Source: MCP basic/lifecycle, "Timeouts".
LONGEST = 3600.0

MOST_REQUIRED = 16  # elicitations of one error

PARKED = "parked"  # the outcome of a request that may be made again


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and through which endpoint.

    `session` is the id of the downstream session and `revision` the one agreed on in it, both empty where the request
    belongs to none (the modern era); `capabilities` is what the client says it can do, and may be asked.
    """

    principal: Principal
    view: View
    session: str
    capabilities: Capabilities = dataclasses.field(default_factory=dict)
    revision: str = ""


class Call(Struct, eq=False):
    """One request on its way; see the module. Times are `time.monotonic()` seconds.

    `finished` is told of the end. `asked` is the server that a refused name leads to, for the log alone; `numbers` are
    those of `server`, although it may be removed meanwhile; `outcome` is empty until the call has ended; `asks` are
    what the server waits for; `errand` what it has to do with a task; `timeout` how long its server may be silent;
    `repeat` opens it again, once (`repeated`), if a server of the modern era refuses its headers.

    Of a modern request: `said` is what it says of itself, `mirror` gives its headers, which must say what its arguments
    say, `parking` is where it is left while its client is asked; `former` the call that it goes on with, `left` what is
    left of it until its client has the questions, `state` what its server gave along with them.
    """

    caller: Caller
    admission: Admission
    request_id: str
    finished: Callable[[Call], None]
    inputs: Inputs
    chat: str | None
    said: RequestCore | None = None
    mirror: Values | None = None
    parking: Parking | None = None
    former: Parked | None = None
    left: Parked | None = None
    state: str | None = None
    started: float = field(default_factory=time.monotonic)
    deadline: float = inf
    nudged: bool = False
    server: Server | None = None
    native: str = ""
    asked: str = ""
    numbers: Tally | None = None
    decision: Decision | None = None
    outcome: str = ""
    asks: dict[int, Ask] | None = None
    errand: Errand | None = None
    timeout: float = 0.0
    repeat: Callable[[Call, Failure], Awaitable[None]] | None = None
    repeated: bool = False
    exchange: Exchange | None = None
    _end: End | None = None
    _waiting: asyncio.Task[object] | None = None

    @property
    def ended(self) -> bool:
        """Whether the outcome is known."""
        return bool(self.outcome)

    @property
    def scope(self) -> str:
        """Whose links of their own this call may use: its session's, or those of the modern request that began it."""
        return self.former.scope if self.former is not None else self.caller.session or self.request_id

    @property
    def begun(self) -> float:
        """When its server got it."""
        return self.former.begun if self.former is not None else self.started

    async def patiently(self, awaited: Awaitable[T]) -> T:
        """Wait for what must be there before the call can be opened; cut short if the call ends meanwhile.

        Raises: CallCancelled.
        """
        self._waiting = task = asyncio.current_task()
        try:
            return await awaited
        except asyncio.CancelledError:
            # As in asyncio.timeout(): ours if nobody else has cancelled the task.
            if self.outcome and task is not None and task.uncancel() == 0:
                raise CallCancelled from None
            raise
        finally:
            self._waiting = None

    def opened(self, exchange: Exchange, timeout: float) -> None:
        """The server has the call; it must show life within `timeout` seconds."""
        self.exchange, self.timeout = exchange, timeout
        self.deadline = time.monotonic() + timeout

    def answer(self, raw: Raw, page: Page | None = None) -> None:
        """End with a result of our own; `page` is the part of it that other answers have too."""
        if self.ended:
            return
        self._end = Result(raw, page)
        self._finish("ok")

    def refused(self, failure: Failure) -> None:
        """End with an error of the server's."""
        if not self.ended:
            self._end = failure
            self._finish("rpc_error")

    def fail(self, error: BaseException) -> None:
        """End with an error of ours; the server, if it has the call, is told to stop."""
        if self.ended:
            return
        self._end = faults.ended(error, self.admission.method.name, self.request_id)
        if self.exchange is not None:
            self.exchange.cancel(str(error) if isinstance(error, MuxError) else "internal error")
        self._finish(error.reason if isinstance(error, MuxError) else "internal")

    def cancel(self, reason: str) -> None:
        """The client wants no answer any more: tell the server, wake whoever waits."""
        if self.ended:
            return
        if self.exchange is not None:
            # Before the end, with which its link may go.
            self.exchange.cancel(reason)
        self._finish("cancelled")

    def forsake(self, reason: str) -> None:
        """The client is gone and has not got the end of its request: nobody comes back to what was left of it."""
        self.cancel(reason)
        if self.left is not None and self.parking is not None:
            self.parking.drop(self.left, reason)

    def reply(self, ask: int, answer: End) -> None:
        """Answer what the server asked; does nothing if nobody waits for it any more."""
        if self.exchange is not None and self._closed(ask, answer):
            self.exchange.answer(ask, answer if self.errand is None else self.errand.answer(answer))

    def refuse(self, ask: int, failure: Failure) -> None:
        """Answer what the server asked without its client, which cannot be asked that."""
        if self.exchange is not None and self._closed(ask, "refused"):
            self.exchange.answer(ask, failure)

    def leave(self, needed: InputRequired, left: Parked) -> None:
        """End the request with what its client is asked; the server's call goes on without it."""
        self._end, self.left, self.asks, self.exchange = needed, left, None, None
        self._finish(PARKED)

    def resume(self, former: Parked, answers: Mapping[int, Raw]) -> None:
        """Go on with a call that was left: answer what its server asked, also for a client that says now it cannot."""
        self.former, self.exchange, self.asks = former, former.exchange, dict(former.asks)
        self._prolong()
        for ask, raw in answers.items():
            self.reply(ask, Result(raw))
        for open_still in tuple(self.asks.values()):
            problem = None if self.said is None else self._inability(open_still, self.said)
            if problem is not None:
                self.refuse(open_still.id, Failure(faults.METHOD_NOT_FOUND, problem))

    def gather(self) -> None:
        """Take what the server has asked and taken back, and nobody has read."""
        exchange = self.exchange
        if exchange is None or self.ended:
            return
        for event in exchange.asks():
            match event:
                case Ask():
                    self._asked(event, exchange)
                case Withdrawn(ask):
                    self._closed(ask, "withdrawn")

    def sweep(self, now: float, quiet: float) -> None:
        """Time out what is overdue; wake, once, the iterator of a call that has been silent for `quiet` seconds."""
        if now >= self.deadline and self.server is not None:
            if self.asks and now < self.begun + LONGEST:
                self._give_up_asks()
                return
            if self.exchange is not None and self.exchange.at_work and now < self.begun + LONGEST:
                self.deadline = self.begun + LONGEST  # it has made a task of it, which says nothing before its end
                return
            self.fail(CallTimedOut(self.server.id, self.timeout or self.server.timeout))
        elif not self.nudged and self.exchange is not None and now - self.started >= quiet:
            self.nudged = True
            self.exchange.nudge()

    async def next(self) -> Event:
        """The next event, in the downstream's names; after a `Result` or `Failure` there is none.

        Raises: CallCancelled.
        """
        while self._end is None and self.exchange is not None:
            try:
                event = await self.exchange.next()
                if type(event) is Failure and self.repeat is not None and self._refuses_headers(event, self.exchange):
                    await self.patiently(self.repeat(self, event))
                    continue
            except CallCancelled:
                break
            except MuxError as error:
                self.fail(error)
                break
            if self.outcome:
                break
            if self.errand is not None:
                event = self.errand.shown(event, self.exchange)
            if type(event) is not Ask:
                return self._received(event)
            if self._asked(event, self.exchange):
                if self.parking is None:
                    return event
                await self.parking.park(self)
        return self._given()

    def _given(self) -> Event:
        if self._end is None:
            raise CallCancelled
        return self._end

    def _received(self, event: Event) -> Event:
        if isinstance(event, Result):
            raw = event.result
            if self.parking is not None and (end := self._passed(event, self.parking)) is not None:
                return end
            self._finish("tool_error" if b'"isError"' in bytes(raw) and rewrite.is_error(raw) else "ok")
            if self.server is not None and self.caller.view.kind != "server":
                raw = rewrite.result(self.admission.method.name, raw, self.server.id)
                if raw is not event.result:
                    event = Result(raw)
            self._end = event
            return event
        match event:
            case Failure(code, _, data):
                if self.parking is not None and (end := self._passed(event, self.parking)) is not None:
                    return end
                if code == abilities.URL_REQUIRED:
                    self._elicited(abilities.required(data))
                self._finish("rpc_error")
                self._end = event
            case Progress():
                self._prolong()
            case Withdrawn(ask):
                self._closed(ask, "withdrawn")
            case Quiet():
                pass
        return event

    def _refuses_headers(self, failure: Failure, exchange: Exchange) -> bool:
        """Whether a server of the modern era found other headers with the call than its body wants."""
        greeting = exchange.link.greeting
        return (
            failure.code == faults.HEADER_MISMATCH
            and greeting is not None
            and greeting.protocol_version == MODERN
            and not self.outcome
        )

    # What the server asks ------------------------------------------------------------------------------------------

    def _passed(self, event: Result | Failure, parking: Parking) -> End | None:
        """How a call ends whose server asks for something by its answer, if this is such a one."""
        try:
            needed = parking.passed(self, event.result) if isinstance(event, Result) else parking.required(self, event)
        except MuxError as error:
            self.fail(error)
            return self._end
        if needed is not None:
            self._end = needed
            self._finish("input_required")
        return needed

    def _asked(self, ask: Ask, exchange: Exchange) -> bool:
        """Whether the client may be asked that; otherwise the server has its answer."""
        if exchange.ended:
            return False
        problem = None if self.said is None else self._inability(ask, self.said)
        if problem is not None or not self.inputs.take(self.caller.principal.key):
            self._count(ask, "refused")
            exchange.answer(ask.id, EXHAUSTED if problem is None else Failure(faults.METHOD_NOT_FOUND, problem))
            return False
        if self.asks is None:
            self.asks = {}
        self.asks[ask.id] = ask
        self._prolong()
        elicitation = abilities.elicitation(ask.method, ask.params)
        if elicitation is not None:
            self._elicited([elicitation])
        return True

    def _inability(self, ask: Ask, said: RequestCore) -> str | None:
        """Why the client of a modern request cannot be asked that."""
        if self.admission.method.name not in rounds.METHODS:
            return f"Clients are not asked anything in {self.admission.method.name}"
        return abilities.inability(ask.method, ask.params, said.capabilities, MODERN)

    def _closed(self, ask: int, how: End | str) -> bool:
        """Take an ask off the list, and count how it ended; False if it is not on it."""
        found = self.asks.pop(ask, None) if self.asks else None
        if found is None:
            return False
        self._count(found, how if isinstance(how, str) else answered(found, how))
        self.inputs.give_back(self.caller.principal.key)
        self._prolong()
        return True

    def _count(self, ask: Ask, outcome: str) -> None:
        if self.exchange is not None:
            self.exchange.link.metrics.asked(ask.method, outcome)

    def _give_up_asks(self) -> None:
        for ask in tuple(self.asks or ()):
            self._closed(ask, "expired")
            if self.exchange is not None:
                self.exchange.decline(ask, UNANSWERED)

    def _elicited(self, elicitations: list[str]) -> None:
        # What a person did at a URL is told to sessions; a modern client has none to be told in.
        if self.exchange is not None and self.caller.session:
            for elicitation in elicitations[:MOST_REQUIRED]:
                self.inputs.elicited(self.exchange.link.key, elicitation, self.caller.session)

    def _prolong(self) -> None:
        """The server lives: it has its timeout from now on, or its client has the time to answer."""
        if self.server is not None:
            wait = PATIENCE if self.asks else self.timeout or self.server.timeout
            self.deadline = min(time.monotonic() + wait, self.begun + LONGEST)

    def _finish(self, outcome: str) -> None:
        if not self.outcome:
            self.outcome = outcome
            if self.asks:
                for ask in tuple(self.asks):
                    self._closed(ask, "void")
            if self.errand is not None and self.exchange is not None:
                self.errand.over(outcome, self.exchange)
            self.finished(self)
            if self._waiting is not None:
                self._waiting.cancel()
