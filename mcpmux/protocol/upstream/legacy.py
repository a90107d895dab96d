"""LinkCore: our half of one legacy MCP connection (2024-11-05 to 2025-11-25), bytes in, values out, no I/O.

Life of a link: `greet()` gives the `initialize` request; `receive()` of its answer gives `Greeted` with the
`initialized` notification to send, or another `Send` if the server wants an older revision, or `Unwelcome`. From then
on `open()` gives the wire bytes of a call under an id of our own, and `receive()` says of every message whose it is:

* an answer or progress goes to the call whose id or token it carries, whatever stream it came on;
* a log message goes to a call only if it belongs to it for certain (`attribution.py`; with streams of its own, as
  Streamable HTTP has, by the stream that it came on), otherwise to nobody;
* what a server asks of a client goes to a call under the same condition, if it was announced in the greeting; to
  nobody means a clear error to the server;
* changes belong to no call; everything else is `Stray`, with a word.

A call leaves the table exactly once: by its answer, by `cancel()`, by a broken answer, or with the link by `lose()`;
`orphaned()` then answers what was asked in it. Ids are never used twice, so a late or repeated answer finds nobody.

Source: MCP basic/lifecycle, basic/utilities (cancellation, ping, progress), server/utilities/logging.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic

from msgspec import Raw, Struct

from mcpmux.errors import InvalidRequest, MalformedMessage
from mcpmux.protocol import abilities, envelope, events, methods, tasks
from mcpmux.protocol.abilities import Capabilities
from mcpmux.protocol.envelope import Message, Notification, Reply, Request
from mcpmux.protocol.events import Changed, Completed, End, Log, Offered, Opening, Progress, Result, Updated, Withdrawn
from mcpmux.protocol.revisions import LEGACY
from mcpmux.protocol.tasks import TO_BE_MADE
from mcpmux.protocol.upstream import asks, wreckage
from mcpmux.protocol.upstream import greeting as handshake
from mcpmux.protocol.upstream.asks import Asks
from mcpmux.protocol.upstream.attribution import OURSELVES, Callers
from mcpmux.protocol.upstream.core import Sent, cancelled, ending
from mcpmux.protocol.upstream.lasting import Lasting
from mcpmux.protocol.upstream.numbers import Numbers, source
from mcpmux.protocol.upstream.plain import plain_answer
from mcpmux.protocol.upstream.received import Broken, Deliver, Greeted, Greeting, Received, Send, Stray, T, Unwelcome
from mcpmux.protocol.upstream.wreckage import SHOWN, Wreck, shown

_PING: Final = "ping"
_INITIALIZE: Final = "initialize"
_EMPTY: Final = b"{}"


class _Flight(Struct, Generic[T], frozen=True):
    """One call in flight."""

    owner: T
    caller: str
    wants_progress: bool
    task: str
    awaits: bool


class LinkCore(Generic[T]):
    """One legacy link; `T` is what the shell wants to be told whose a message is. See the module for its life.

    `streamed`: answers and what belongs to them come on a stream per request, named in `receive()` by the request's
    id. Otherwise everything comes on one stream, and `receive()` gets None. `lent`: the link is one call's alone until
    the server has answered it, so whatever comes meanwhile belongs to that call. `own`: the link is one client's alone.
    `capabilities` are announced as far as the revision knows them, `ids` is where its requests have theirs
    from. `asks` is what the server waits for.
    """

    __slots__ = ("_callers", "_capabilities", "_checks", "_flights", "_greeting_id", "_lasting", "_lent", "_numbers",
                 "_offer", "_own", "_streamed", "_unasked", "_version", "asks", "greeting", "passed_over")  # fmt: skip

    def __init__(
        self, *, streamed: bool, version: str, lent: bool = False, own: bool = False,
        capabilities: Capabilities = abilities.OF_NOBODY, ids: Iterator[int] | None = None,
    ) -> None:  # fmt: skip
        self.greeting: Greeting | None = None
        self.asks = Asks()
        self._capabilities = capabilities
        self._lent = lent
        self._own = own
        self._streamed = streamed
        self._version = version
        self._flights: dict[int, _Flight[T]] = {}
        self._checks: dict[int, T] = {}  # pings, which cause no messages and so disturb no attribution
        self._callers = Callers()
        self._lasting: Lasting[T] = Lasting()
        self._numbers = Numbers(ids or source())
        self.passed_over = self._numbers.pass_over  # the newer way to greet
        self._offer = 0
        self._greeting_id = 0
        self._unasked: frozenset[str] = frozenset()

    @property
    def in_flight(self) -> int:
        """How many calls wait for their answer."""
        return len(self._flights)

    @property
    def leftovers(self) -> int:
        """How many entries all tables hold together, cancelled calls apart; for tests and `status`."""
        return len(self._flights) + len(self._checks) + bool(self._greeting_id) + len(self.asks) + len(self._lasting)

    @property
    def ghosts(self) -> int:
        """How many cancelled calls are remembered, because the server may be at work on them still."""
        return self._callers.ghosts

    def greet(self) -> Sent:
        """`initialize`, asking for the newest revision; also to greet anew after a lost session."""
        self._offer = 0
        return self._initialize()

    def serves(self, method: str) -> bool:
        """Whether the server announced what `method` needs; if not, it is not asked."""
        return method not in self._unasked

    def ages(self, what: Offered) -> bool:
        """Lists of this era are good until their server says otherwise."""
        return False

    def open(self, opening: Opening, owner: T) -> Sent:
        """Begin a call."""
        request = self._numbers.take()
        params = opening.params
        if opening.method == _PING:
            self._checks[request] = owner
        else:
            self._flights[request] = _Flight(
                owner, opening.caller, opening.wants_progress, opening.task, opening.awaits
            )
            if opening.wants_progress:
                params = envelope.with_meta(params, "progressToken", Raw(b"%d" % request))
        return request, envelope.request(request, opening.method, params), None

    def cancel(self, request: int, reason: str, now: float) -> bytes | None:
        """Give up a call: the notification to send, or None if it is not in flight (any more)."""
        flight = self._flights.pop(request, None)
        if flight is None:
            self._checks.pop(request, None)
            return None
        self._callers.haunted(request, flight.caller, now)
        return cancelled(request, reason)

    def drop(self, request: int, now: float) -> T | None:
        """Take a call out whose answer cannot come any more, without telling the server; None if it is not there."""
        flight = self._flights.pop(request, None)
        if flight is None:
            return self._checks.pop(request, None)
        self._callers.ended(flight.caller, now)
        return flight.owner

    def answer(self, call: int, ask: int, answer: End) -> list[Received[T]]:
        """What to send of a client's answer to what the server asked in this call."""
        wire = self.asks.answer(call, ask, answer)
        return [] if wire is None else [Send(wire)]

    def due(self) -> list[Received[T]]:
        """Nothing is ever left to be done."""
        return []

    resume = hurry = due

    def settled(self) -> LinkCore[T]:
        """This one."""
        return self

    def outlasts(self, task: str, caller: str, until: float) -> None:
        """A task of this caller is at work until then (0: no more): what has no address may be about it."""
        self._callers.outlasts(task, caller, until)
        if not caller:
            self._lasting.over(task)

    def orphaned(self) -> list[bytes]:
        """Errors to be sent for what was asked in calls that have left the table."""
        return self.asks.orphaned(self._flights)

    def announces(self, capability: str) -> bool:
        """Whether the greeting told the server of this capability of a client."""
        greeting = self.greeting
        return greeting is not None and capability in abilities.announced(self._capabilities, greeting.protocol_version)

    def waits_for(self, request: int) -> bool:
        """Whether the answer to `request` is still awaited."""
        return request in self._flights or request in self._checks or self.is_greeting(request)

    def is_greeting(self, request: int) -> bool:
        """Whether `request` is the `initialize` that is not answered yet."""
        return bool(request) and request == self._greeting_id

    def lose(self) -> list[T]:
        """The link has ended: everybody who waited, and empty tables."""
        waiting = [flight.owner for flight in self._flights.values()] + list(self._checks.values())
        self._flights.clear()
        self._checks.clear()
        self._callers.clear()
        self._lasting.clear()
        self.asks.clear()
        self._greeting_id = 0
        return waiting

    def receive(self, data: bytes, stream: int | None, now: float) -> list[Received[T]]:
        """Say whose every message in `data` is, in order. `stream`: the request whose response it came in."""
        try:
            message = plain_answer(data) or envelope.parse(data)
        except MalformedMessage as exc:
            again = wreckage.mended(data)
            if again is not None:
                return self.receive(again, stream, now)
            return self._wrecked(wreckage.unreadable(data, stream, exc, self._only_one()), now)
        except InvalidRequest as exc:
            return self._invalid(data, stream, exc, now)
        if isinstance(message, Reply):
            return [self._replied(message, stream, now)]
        if isinstance(message, list):
            return [each for entry in message for each in self._entry(entry, stream, now)]
        return self._said(message, stream, now)

    def oversized(self, head: bytes, tail: bytes, stream: int | None, now: float) -> list[Received[T]]:
        """A message over the limit came by and was thrown away; only its ends are known."""
        why = ("oversized", "it is too large")
        return self._wrecked(wreckage.remains((head, tail), stream, why, self._only_one()), now)

    # Answers ---------------------------------------------------------------------------------------------------

    def _replied(self, reply: Reply, stream: int | None, now: float) -> Received[T]:
        request = reply.id
        if not isinstance(request, int):
            return self._unaddressed(reply, stream, now)
        flight = self._flights.pop(request, None)
        if flight is not None:
            self._callers.ended(flight.caller, now)
            if flight.task and self.asks:
                self.asks.void(request)  # to answer for a task that is over would be one answer too many
            if flight.task == TO_BE_MADE and flight.wants_progress:
                self._lasting.begin(request, reply.result, flight.owner if flight.awaits else None)
            return ending(flight.owner, reply)
        if request in self._checks:
            # Whatever it answers, it is alive.
            return Deliver(self._checks.pop(request), Result(Raw(_EMPTY)))
        if self.is_greeting(request):
            return self._greeted(reply)
        return self._numbers.unawaited(request, self._callers, now)

    def _unaddressed(self, reply: Reply, stream: int | None, now: float) -> Received[T]:
        """An answer without an id of ours: an error whose request could not be read, if only one can be meant."""
        if reply.id is None and reply.result is None:
            if self._greeting_id and not self._flights:
                return self._greeted(reply)
            request = stream if self._streamed else self._only_one()
            owner = None if request is None else self.drop(request, now)
            if owner is not None:
                return ending(owner, reply)
        return Stray("unknown_id", reply.message[:SHOWN])

    def _only_one(self) -> int | None:
        return next(iter(self._flights)) if len(self._flights) == 1 else None

    def _greeted(self, reply: Reply) -> Received[T]:
        self._greeting_id = 0
        if reply.result is None:
            return self._refused(reply)
        greeting = handshake.read(reply.result)
        if isinstance(greeting, Unwelcome):
            return greeting
        self.greeting = greeting
        self._unasked = handshake.not_announced(greeting)
        return Greeted(greeting, envelope.notification(methods.INITIALIZED, None))

    def _refused(self, reply: Reply) -> Received[T]:
        """An error instead of a greeting: ask for an older revision if that can be the reason."""
        older = handshake.older(reply, LEGACY[self._offer])
        if older is not None:
            self._offer = LEGACY.index(older)
            request, wire, _ = self._initialize()
            return Send(wire, request)
        return Unwelcome(f"it refused initialize: {reply.message[:SHOWN]} ({reply.code})")

    def _initialize(self) -> Sent:
        self._greeting_id = self._numbers.take()
        params = handshake.initialize(LEGACY[self._offer], self._version, self._capabilities)
        return self._greeting_id, envelope.request(self._greeting_id, _INITIALIZE, params), None

    # Notifications and requests --------------------------------------------------------------------------------

    def _entry(self, entry: Message | InvalidRequest, stream: int | None, now: float) -> list[Received[T]]:
        if isinstance(entry, InvalidRequest):
            return self._invalid(b"", stream, entry, now)
        if isinstance(entry, Reply):
            return [self._replied(entry, stream, now)]
        return self._said(entry, stream, now)

    def _said(self, message: Request | Notification, stream: int | None, now: float) -> list[Received[T]]:
        if isinstance(message, Request):
            return self._asked(message, stream, now)
        params = message.params or {}
        if message.method == methods.PROGRESS:
            return [self._progressed(params)]
        if message.method == methods.MESSAGE:
            return [self._logged(params, stream, now)]
        if message.method in methods.LIST_CHANGED:
            return [Changed(what) for what in methods.LIST_CHANGED[message.method]]
        if message.method == methods.RESOURCE_UPDATED:
            uri = envelope.text(params.get("uri"))
            return [Stray("invalid", message.method) if uri is None else Updated(uri, _raw(params))]
        if message.method == methods.CANCELLED:
            return self._withdrawn(params)
        if message.method == methods.TASK_STATUS:
            task = envelope.text(params.get("taskId"))
            return [Stray("invalid", message.method) if task is None else events.TaskTold(task, params)]
        if message.method == methods.ELICITATION_COMPLETE:
            return [self._completed(params)]
        return [Stray("unknown_notification", message.method[:SHOWN])]

    def _asked(self, asked: Request, stream: int | None, now: float) -> list[Received[T]]:
        """What a server asks of a client: its call's business, or answered here, never dropped."""
        if asked.method == _PING:
            return [Send(envelope.result(asked.id, _EMPTY))]
        problem = asks.problem(asked, self._capabilities, self.greeting)
        if problem is not None:
            return asks.turned_down(asked, problem)
        if self.asks.repeated(asked):
            return [Stray("ask_repeated", asked.method)]  # an answer would look like one to the first
        task = tasks.related(asked.params)
        call = self._call_of(stream, now) if task is None else self._call_about(task, stream)
        if call is None or self._flights[call].caller == OURSELVES:
            idle = all(flight.caller == OURSELVES for flight in self._flights.values())
            return asks.turned_down(asked, asks.unheard(task, idle))
        if self.asks.crowded(call):
            return asks.turned_down(asked, asks.EXCESS)
        return [Deliver(self._flights[call].owner, self.asks.add(asked, call))]

    def _withdrawn(self, params: dict[str, Raw]) -> list[Received[T]]:
        call, ask = self.asks.withdraw(params.get("requestId")) or (0, 0)
        flight = self._flights.get(call)
        return [] if flight is None else [Deliver(flight.owner, Withdrawn(ask))]

    def _completed(self, params: dict[str, Raw]) -> Received[T]:
        elicitation = envelope.text(params.get("elicitationId"))
        if elicitation is None:
            return Stray("invalid", methods.ELICITATION_COMPLETE)
        event = Completed(elicitation, params)
        flight = self._flights.get(self.asks.eliciting(elicitation) or 0)
        return event if flight is None else Deliver(flight.owner, event)

    def _progressed(self, params: dict[str, Raw]) -> Received[T]:
        token = envelope.identifier(params.get("progressToken"))
        flight = self._flights.get(token) if isinstance(token, int) else None
        rest = {key: raw for key, raw in params.items() if key != "progressToken"}
        if flight is not None and flight.wants_progress:
            return Deliver(flight.owner, Progress(rest))
        return self._lasting.progressed(token, rest) or Stray("unknown_token", str(token)[:SHOWN])

    def _logged(self, params: dict[str, Raw], stream: int | None, now: float) -> Received[T]:
        level = envelope.text(params.get("level"))
        # What comes beside the calls' own streams may be about anything that a remote server does.
        aside = self._streamed and stream is None and not (self._lent or self._own)
        call = None if aside else self._call_of(stream, now)
        if level not in methods.LOG_LEVELS:
            return Stray("invalid", methods.MESSAGE)
        if call is None:
            return Stray("unattributed", shown(envelope.encode(params)))
        return Deliver(self._flights[call].owner, Log(level, _raw(params)))

    def _call_of(self, stream: int | None, now: float) -> int | None:
        """The call that a message without an address belongs to for certain."""
        if self._streamed and stream is not None:
            return stream if stream in self._flights else None
        if self._own:
            # Whichever it is, it is the same client's: the newest is the most likely to be waited for.
            return next((call for call in reversed(self._flights) if self._flights[call].caller != OURSELVES), None)
        callers = {call: flight.caller for call, flight in self._flights.items()}
        return self._callers.certain(callers, now, lent=self._lent)

    def _call_about(self, task: str, stream: int | None) -> int | None:
        """The call in which its client can be asked for a task: the newest about it, or that of the stream."""
        about = next((call for call in reversed(self._flights) if self._flights[call].task == task != TO_BE_MADE), None)
        return stream if about is None and stream in self._flights else about

    # Wreckage --------------------------------------------------------------------------------------------------

    def _invalid(self, data: bytes, stream: int | None, fault: InvalidRequest, now: float) -> list[Received[T]]:
        if b"null" in data and (reply := wreckage.with_null(data)) is not None:
            return [self._replied(reply, stream, now)]
        return self._wrecked(wreckage.invalid(data, fault), now)

    def _wrecked(self, wreck: Wreck, now: float) -> list[Received[T]]:
        strays: list[Received[T]] = [Stray(wreck.reason, wreck.text)]
        return strays if wreck.meant is None else strays + self._spoiled(wreck.meant, wreck.problem, now)

    def _spoiled(self, request: int, problem: str, now: float) -> list[Received[T]]:
        if self.is_greeting(request):
            self._greeting_id = 0
            return [Unwelcome(f"its answer to initialize cannot be read: {problem}")]
        owner = self.drop(request, now)
        return [] if owner is None else [Broken(owner, problem)]


def _raw(params: dict[str, Raw]) -> Raw:
    return Raw(envelope.encode(params))
