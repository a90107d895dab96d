"""ModernCore: our half of one link of the modern era (2026-07-28), bytes in, values out, no I/O.

Each request says everything about itself, so `open()` puts into `_meta` what the client of this very call can do and
wants to hear. Whose a message is:

* an answer or progress goes to the call whose id or token it carries;
* a log message goes to a call that wants some, under the rule of a legacy link (`attribution.py`): nothing in it says
  which one it belongs to, unless it came on the stream of its response;
* `input_required` goes to a caller who understands it, and is otherwise asked as a legacy server asks (`asking.py`):
  the call stays in the table, and goes up again under another id when all is answered (`Resend`);
* changes come on a subscription (`listening.py`); everything else is `Stray`, with a word.

Requests that mcpmux's own rooms make have their meaning here as well: `ping` becomes `server/discover`, and those of
`listening.ORDERS` change what is listened to.

A call leaves the table exactly once: by its answer, by `cancel()`, by a broken answer, or with the link by `lose()`.
On a link with a stream for each request, closing it is how a request is cancelled; a pipe has a notification for that.

Source: MCP 2026-07-28 basic (`_meta`, `resultType`), basic/patterns, basic/transports, server/utilities/logging.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Final, Generic

from msgspec import Raw, Struct

from mcpmux.errors import InvalidRequest, MalformedMessage
from mcpmux.protocol import envelope, headers, methods, rounds
from mcpmux.protocol.envelope import Message, Reply, Request
from mcpmux.protocol.events import End, Failure, Log, Offered, Opening, Progress, Result, Withdrawn
from mcpmux.protocol.revisions import MODERN
from mcpmux.protocol.tasks import TO_BE_MADE
from mcpmux.protocol.upstream import asking, discovery, listening, received, wreckage
from mcpmux.protocol.upstream.asking import ROUNDS, Round
from mcpmux.protocol.upstream.attribution import OURSELVES, Callers
from mcpmux.protocol.upstream.core import Sent, cancelled, ending
from mcpmux.protocol.upstream.discovery import Sayings
from mcpmux.protocol.upstream.listening import Listening, subscription_of
from mcpmux.protocol.upstream.numbers import Numbers, source
from mcpmux.protocol.upstream.plain import plain_answer
from mcpmux.protocol.upstream.received import Broken, Deliver, Greeting, Received, Send, Stray, T
from mcpmux.protocol.upstream.wreckage import SHOWN, Wreck

_FIRST: Final = 2001  # of a core that is given no source: below are those of `initialize`
_PING: Final = "ping"
_EMPTY: Final = Result(Raw(b"{}"))
_OF_OURSELVES: Final = Opening(methods.DISCOVER, None, OURSELVES)


class _Flight(Struct, Generic[T]):
    """One call in flight; `round` is what its client is asked just now, `rounds` how often it was."""

    owner: T
    opening: Opening
    round: Round | None = None
    rounds: int = 0


class ModernCore(Generic[T]):
    """One modern link; `streamed`, `lent`, `own`, `ids` and `T` as in `LinkCore`. See the module."""

    __slots__ = ("_callers", "_checks", "_due", "_flights", "_greeting_id", "_last_ask", "_lent", "_listening",
                 "_numbers", "_own", "_sayings", "_streamed", "_unserved", "greeting", "outlasts",
                 "passed_over")  # fmt: skip

    def __init__(
        self, *, streamed: bool, version: str, lent: bool = False, own: bool = False,
        ids: Iterator[int] | None = None,
    ) -> None:  # fmt: skip
        self.greeting: Greeting | None = None
        self._lent = lent
        self._own = own
        self._streamed = streamed
        self._sayings = Sayings(version)
        self._flights: dict[int, _Flight[T]] = {}
        self._checks: dict[int, T] = {}
        self._callers = Callers()
        self.outlasts = self._callers.outlasts  # a task of a caller is at work until then
        self._listening: Listening[T] = Listening(self._listen, self._ended)
        self._due: list[Received[T]] = []
        self._numbers = Numbers(ids or source(_FIRST))
        self.passed_over = self._numbers.pass_over  # the older way to greet
        self._last_ask = 0
        self._greeting_id = 0
        self._unserved: frozenset[str] = frozenset()

    @property
    def asks(self) -> Sized:
        """A modern server asks nothing that it would have to be answered."""
        return ()

    @property
    def in_flight(self) -> int:
        """How many calls wait for their answer."""
        return len(self._flights)

    @property
    def leftovers(self) -> int:
        """How many entries all tables hold together, cancelled calls and subscriptions apart; for tests."""
        return len(self._flights) + len(self._checks) + bool(self._greeting_id) + self._listening.waiting

    @property
    def ghosts(self) -> int:
        """How many cancelled calls are remembered, because the server may be at work on them still."""
        return self._callers.ghosts

    def greet(self) -> Sent:
        """`server/discover`."""
        self._greeting_id, *_ = sent = self._request(_OF_OURSELVES, None)
        return sent

    def settled(self) -> ModernCore[T]:
        """This one."""
        return self

    def serves(self, method: str) -> bool:
        """Whether the server announced what `method` needs, in this era."""
        return method not in self._unserved

    def ages(self, what: Offered) -> bool:
        """Whether the server has this list and does not tell when it changes."""
        greeting, needs = self.greeting, methods.LISTS[what].capability or ""
        return greeting is not None and needs in greeting.capabilities and not self._listening.hears(what)

    def announces(self, capability: str) -> bool:
        """Nothing is announced once and for all; each request says what its client can do."""
        return False

    def open(self, opening: Opening, owner: T) -> Sent:
        """Begin a call."""
        if opening.method == _PING:
            sent = self._request(_OF_OURSELVES, None)
            self._checks[sent[0]] = owner
            return sent
        if opening.method in listening.ORDERS:
            return self._interested(opening, owner)
        sent = self._request(opening, opening.params)
        self._flights[sent[0]] = _Flight(owner, opening)
        return sent

    def cancel(self, request: int, reason: str, now: float) -> bytes | None:
        """Give up a call: the notification to send, or None if closing its stream, or nothing, is enough."""
        flight = self._flights.pop(request, None)
        if flight is None:
            self._checks.pop(request, None)
            self._listening.leave(request)
            return None
        if flight.round is not None or self._streamed:
            self._callers.ended(flight.opening.caller, now)
            return None
        self._callers.haunted(request, flight.opening.caller, now)
        return cancelled(request, reason)

    def drop(self, request: int, now: float) -> T | None:
        """Take a call out whose answer cannot come any more, without telling the server; None if it is not there."""
        if self._listening.is_mine(request):
            self._due += self._listening.over(request, None, now)
            return None
        flight = self._flights.pop(request, None)
        if flight is None:
            return self._checks.pop(request, None)
        self._callers.ended(flight.opening.caller, now)
        return flight.owner

    def due(self) -> list[Received[T]]:
        """What is listened to may have to change."""
        due, self._due = self._due, []
        return due

    def resume(self) -> list[Received[T]]:
        """Listen again."""
        return self._listening.resume()

    def hurry(self) -> list[Received[T]]:
        """There is no other way to greet in this era."""
        return []

    def orphaned(self) -> list[bytes]:
        """Nothing has to be said to the server of what it asked."""
        return []

    def waits_for(self, request: int) -> bool:
        """Whether the answer to `request` is still awaited."""
        flight = self._flights.get(request)
        if flight is not None:
            return flight.round is None
        return request in self._checks or self._listening.is_mine(request) or self.is_greeting(request)

    def is_greeting(self, request: int) -> bool:
        """Whether `request` is the `server/discover` that is not answered yet."""
        return bool(request) and request == self._greeting_id

    def lose(self) -> list[T]:
        """The link has ended: everybody who waited, and empty tables."""
        waiting = [flight.owner for flight in self._flights.values()] + list(self._checks.values())
        self._flights.clear()
        self._checks.clear()
        self._callers.clear()
        self._due.clear()
        self._greeting_id = 0
        return waiting + self._listening.clear()

    def answer(self, call: int, ask: int, answer: End) -> list[Received[T]]:
        """Take a client's answer; with the last one the call goes up again."""
        flight = self._flights.get(call)
        if flight is None or flight.round is None or ask not in flight.round.open:
            return []
        failure = flight.round.answer(ask, answer)
        if failure is not None:
            del self._flights[call]
            left: list[Received[T]] = [Deliver(flight.owner, Withdrawn(number)) for number in flight.round.open]
            return [*left, Deliver(flight.owner, failure)]
        return [] if flight.round.open else [self._again(call, flight, flight.round)]

    def receive(self, data: bytes, stream: int | None, now: float) -> list[Received[T]]:
        """Say whose every message in `data` is. `stream`: the request whose response it came in."""
        try:
            message = plain_answer(data) or envelope.parse(data)
        except MalformedMessage as exc:
            again = wreckage.mended(data)
            if again is not None:
                return self.receive(again, stream, now)
            return self._wrecked(wreckage.unreadable(data, stream, exc, self._only_one()), now)
        except InvalidRequest as exc:
            return self._invalid(data, stream, exc, now)
        if isinstance(message, list):
            return [Stray("invalid", "a batch")]  # this era has none
        return self._said(message, stream, now)

    def oversized(self, head: bytes, tail: bytes, stream: int | None, now: float) -> list[Received[T]]:
        """A message over the limit came by and was thrown away; only its ends are known."""
        why = ("oversized", "it is too large")
        return self._wrecked(wreckage.remains((head, tail), stream, why, self._only_one()), now)

    # Requests --------------------------------------------------------------------------------------------------

    def _request(self, opening: Opening, params: dict[str, Raw] | None) -> Sent:
        request = self._numbers.take()
        said = self._sayings.said(opening, params, request)
        wire = envelope.request(request, opening.method, said)
        if not self._streamed:
            return request, wire, None
        return request, wire, headers.standard(opening.method, said, MODERN) | dict(opening.mirrored or {})

    def _interested(self, opening: Opening, owner: T) -> Sent:
        """A change of what is listened to, which is no request of its own."""
        request = self._numbers.take()
        self._due += self._listening.ordered(request, opening, owner)
        return request, b"", None

    def _listen(self, wants: dict[str, object]) -> Send:
        params = {"notifications": Raw(envelope.encode(wants))}
        task = TO_BE_MADE if listening.TASKS in wants else ""  # only who knows tasks may ask for their news
        request, wire, said = self._request(Opening(methods.LISTEN, None, OURSELVES, task=task), params)
        return Send(wire, request, said)

    def _ended(self, request: int) -> Received[T]:
        return received.Unread(request) if self._streamed else Send(cancelled(request, "no longer needed"))

    def _again(self, call: int, flight: _Flight[T], answered: Round) -> Received[T]:
        del self._flights[call]
        flight.round = None
        request, wire, said = self._request(flight.opening, answered.params(flight.opening.params))
        self._flights[request] = flight
        return received.Resend(flight.owner, wire, request, said)

    # Answers ---------------------------------------------------------------------------------------------------

    def _replied(self, reply: Reply, stream: int | None, now: float) -> list[Received[T]]:
        request = reply.id
        if not isinstance(request, int):
            if request is None and self._greeting_id and reply.result is None:
                return self._greeted(reply)
            return [self._unaddressed(reply, stream, now)]
        problem = discovery.outgrown(reply) if reply.result is None else None
        if problem is not None and self.waits_for(request) and not self.is_greeting(request):
            owner = self.drop(request, now)
            return [*([] if owner is None else [Broken(owner, problem)]), received.Unwelcome(problem)]
        flight = self._flights.get(request)
        if flight is not None and flight.round is None:
            return self._answered(request, flight, reply, now)
        if request in self._checks:
            return [Deliver(self._checks.pop(request), _EMPTY)]  # whatever it answers, it is alive
        if self.is_greeting(request):
            return self._greeted(reply)
        if self._listening.is_mine(request):
            failure = None if reply.result is not None else Failure(reply.code, reply.message, reply.data)
            return self._listening.over(request, failure, now)
        return [self._numbers.unawaited(request, self._callers, now)]

    def _answered(self, request: int, flight: _Flight[T], reply: Reply, now: float) -> list[Received[T]]:
        """The answer to a call; it stays in the table if its client has to be asked first."""
        opening = flight.opening
        try:
            found = None if reply.result is None else rounds.asked(reply.result)
            if found is not None and not (opening.resumes and opening.method in rounds.METHODS):
                return self._asked(request, flight, found)
            problem = None if reply.result is None or found is not None else asking.unknown_type(reply.result, opening)
        except (InvalidRequest, MalformedMessage) as exc:
            problem = str(exc)
        del self._flights[request]
        self._callers.ended(opening.caller, now)
        return [ending(flight.owner, reply) if problem is None else Broken(flight.owner, problem)]

    def _asked(self, request: int, flight: _Flight[T], found: dict[str, Raw]) -> list[Received[T]]:
        """Raises: InvalidRequest, MalformedMessage."""
        flight.rounds += 1
        if flight.rounds > ROUNDS:
            raise InvalidRequest("it asks again and again")
        flight.round, asks = asking.begin(found, flight.opening, self._last_ask)
        self._last_ask += len(asks)
        return [Deliver(flight.owner, ask) for ask in asks] or [self._again(request, flight, flight.round)]

    def _unaddressed(self, reply: Reply, stream: int | None, now: float) -> Received[T]:
        """An error whose request could not be read, if only one can be meant."""
        if reply.id is None and reply.result is None:
            request = stream if self._streamed else self._only_one()
            owner = None if request is None else self.drop(request, now)
            if owner is not None:
                return ending(owner, reply)
        return Stray("unknown_id", reply.message[:SHOWN])

    def _only_one(self) -> int | None:
        return next(iter(self._flights)) if len(self._flights) == 1 else None

    def _greeted(self, reply: Reply) -> list[Received[T]]:
        self._greeting_id = 0
        greeting = discovery.read(reply)
        if not isinstance(greeting, Greeting):
            return [greeting]
        self.greeting = greeting
        self._unserved = discovery.not_served(greeting)
        return [received.Greeted(greeting, b""), *self._listening.greeted(greeting.capabilities)]

    # Notifications ---------------------------------------------------------------------------------------------

    def _said(self, message: Message, stream: int | None, now: float) -> list[Received[T]]:
        if isinstance(message, Reply):
            return self._replied(message, stream, now)
        if isinstance(message, Request):
            return [Stray("unknown_request", message.method[:SHOWN])]  # none is allowed, nor any answer
        params, method = message.params or {}, message.method
        if method == methods.PROGRESS:
            return [self._progressed(params)]
        if method == methods.MESSAGE:
            return [self._logged(params, stream, now)]
        if method == methods.ACKNOWLEDGED:
            return self._listening.acknowledged(subscription_of(params) or stream, params, now)
        if method in listening.HEARD:
            return self._listening.heard(subscription_of(params) or stream, method, params)
        if method == methods.CANCELLED:
            return self._listening.torn_down(params, now)
        return [Stray("unknown_notification", method[:SHOWN])]

    def _progressed(self, params: dict[str, Raw]) -> Received[T]:
        token = envelope.identifier(params.get("progressToken"))
        flight = self._flights.get(token) if isinstance(token, int) else None
        if flight is None or flight.round is not None or not flight.opening.wants_progress:
            return Stray("unknown_token", str(token)[:SHOWN])
        return Deliver(flight.owner, Progress({key: raw for key, raw in params.items() if key != "progressToken"}))

    def _logged(self, params: dict[str, Raw], stream: int | None, now: float) -> Received[T]:
        level = envelope.text(params.get("level"))
        if level not in methods.LOG_LEVELS:
            return Stray("invalid", methods.MESSAGE)
        flight = self._flights.get(self._call_of(stream, now) or 0)
        if flight is None or flight.opening.log_level is None:
            return Stray("unattributed", envelope.encode(params)[:SHOWN].decode("utf-8", "replace"))
        return Deliver(flight.owner, Log(level, Raw(envelope.encode(params))))

    def _call_of(self, stream: int | None, now: float) -> int | None:
        """The call that a message without an address belongs to for certain."""
        if self._streamed:
            return stream
        if self._own:
            # Whichever it is, it is the same client's: the newest that wants to hear anything.
            return next((call for call in reversed(self._flights) if self._flights[call].opening.log_level), None)
        callers = {call: flight.opening.caller for call, flight in self._flights.items()}
        return self._callers.certain(callers, now, lent=self._lent)

    # Wreckage --------------------------------------------------------------------------------------------------

    def _invalid(self, data: bytes, stream: int | None, fault: InvalidRequest, now: float) -> list[Received[T]]:
        if b"null" in data and (reply := wreckage.with_null(data)) is not None:
            return self._replied(reply, stream, now)
        return self._wrecked(wreckage.invalid(data, fault), now)

    def _wrecked(self, wreck: Wreck, now: float) -> list[Received[T]]:
        strays: list[Received[T]] = [Stray(wreck.reason, wreck.text)]
        if wreck.meant is None:
            return strays
        if self.is_greeting(wreck.meant):
            self._greeting_id = 0
            return [*strays, received.Unwelcome(f"its answer to {methods.DISCOVER} cannot be read: {wreck.problem}")]
        if wreck.meant in self._flights and not self.waits_for(wreck.meant):
            return strays
        owner = self.drop(wreck.meant, now)
        return [*strays, *self.due()] if owner is None else [*strays, Broken(owner, wreck.problem)]
