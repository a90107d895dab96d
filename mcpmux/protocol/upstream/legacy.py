"""LinkCore: our half of one legacy MCP connection (2024-11-05 to 2025-11-25), bytes in, values out, no I/O.

Life of a link: `greet()` gives the `initialize` request; `receive()` of its answer gives `Greeted` with the
`initialized` notification to send, or another `Send` if the server wants an older revision, or `Unwelcome`. From then
on `open()` gives the wire bytes of a call under an id of our own, and `receive()` says of every message whose it is:

* an answer or progress goes to the call whose id or token it carries, whatever stream it came on;
* a log message goes to a call only if it belongs to it for certain (`attribution.py`; with streams of its own, as
  Streamable HTTP has, by the stream that it came on), otherwise to nobody;
* changes belong to no call; what a server asks of a client is answered here; everything else is `Stray`, with a word.

A call leaves the table exactly once: by its answer, by `cancel()`, by a broken answer, or with the link by `lose()`.
Ids are never used twice, so a late or repeated answer finds nobody.

Source: MCP basic/lifecycle, basic/utilities (cancellation, ping, progress), server/utilities/logging.
"""

from __future__ import annotations

from typing import Final, Generic

from msgspec import Raw, Struct

from mcpmux.errors import InvalidRequest, MalformedMessage
from mcpmux.protocol import envelope, methods
from mcpmux.protocol.envelope import Message, Notification, Reply, Request
from mcpmux.protocol.events import Changed, Failure, Log, Opening, Progress, Result, Updated
from mcpmux.protocol.revisions import LEGACY
from mcpmux.protocol.upstream import wreckage
from mcpmux.protocol.upstream.attribution import OURSELVES, Callers
from mcpmux.protocol.upstream.plain import plain_answer
from mcpmux.protocol.upstream.received import Broken, Deliver, Greeted, Greeting, Received, Send, Stray, T, Unwelcome

FIRST_ID: Final = 1001  # small numbers turn up in what servers write by mistake
METHOD_NOT_FOUND: Final = -32601
SHOWN: Final = 500  # characters of a stray message that the log may have

# Asked for a revision that they don't speak, servers answer with one of these instead of naming another.
_REVISION_REFUSED: Final = frozenset({-32602, -32600, -32603, -32000})
_PING: Final = "ping"
_INITIALIZE: Final = "initialize"
_EMPTY: Final = b"{}"
_OBJECT: Final = ord("{")


class _Flight(Struct, Generic[T], frozen=True):
    """One call in flight."""

    owner: T
    caller: str
    wants_progress: bool


class LinkCore(Generic[T]):
    """One legacy link; `T` is what the shell wants to be told whose a message is. See the module for its life.

    `streamed`: answers and what belongs to them come on a stream per request, named in `receive()` by the request's
    id. Otherwise everything comes on one stream, and `receive()` gets None. `lent`: the link is one call's alone until
    the server has answered it, so whatever comes meanwhile belongs to that call.
    """

    __slots__ = ("_callers", "_checks", "_flights", "_greeting_id", "_lent", "_next", "_offer", "_streamed",
                 "_unasked", "_version", "greeting")  # fmt: skip

    def __init__(self, *, streamed: bool, version: str, lent: bool = False) -> None:
        self.greeting: Greeting | None = None
        self._streamed = streamed
        self._lent = lent
        self._version = version
        self._flights: dict[int, _Flight[T]] = {}
        self._checks: dict[int, T] = {}  # pings, which cause no messages and so disturb no attribution
        self._callers = Callers()
        self._next = FIRST_ID
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
        return len(self._flights) + len(self._checks) + bool(self._greeting_id)

    @property
    def ghosts(self) -> int:
        """How many cancelled calls are remembered, because the server may be at work on them still."""
        return self._callers.ghosts

    def greet(self) -> tuple[int, bytes]:
        """The id and wire of `initialize`, asking for the newest revision; also to greet anew after a lost session."""
        self._offer = 0
        return self._initialize()

    def serves(self, method: str) -> bool:
        """Whether the server announced what `method` needs; if not, it is not asked."""
        return method not in self._unasked

    def open(self, opening: Opening, owner: T) -> tuple[int, bytes]:
        """Begin a call: its id and its wire bytes."""
        request = self._next
        self._next = request + 1
        params = opening.params
        if opening.method == _PING:
            self._checks[request] = owner
        else:
            self._flights[request] = _Flight(owner, opening.caller, opening.wants_progress)
            if opening.wants_progress:
                params = _with_token(params, request)
        return request, envelope.request(request, opening.method, params)

    def cancel(self, request: int, reason: str, now: float) -> bytes | None:
        """Give up a call: the notification to send, or None if it is not in flight (any more)."""
        flight = self._flights.pop(request, None)
        if flight is None:
            self._checks.pop(request, None)
            return None
        self._callers.haunted(request, flight.caller, now)
        said = {"requestId": Raw(b"%d" % request), "reason": Raw(envelope.encode(reason))}
        return envelope.notification(methods.CANCELLED, said)

    def drop(self, request: int, now: float) -> T | None:
        """Take a call out whose answer cannot come any more, without telling the server; None if it is not there."""
        flight = self._flights.pop(request, None)
        if flight is None:
            return self._checks.pop(request, None)
        self._callers.ended(flight.caller, now)
        return flight.owner

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
        self._greeting_id = 0
        return waiting

    def receive(self, data: bytes, stream: int | None, now: float) -> list[Received[T]]:
        """Say whose every message in `data` is, in order. `stream`: the request whose response it came in."""
        try:
            message = plain_answer(data) or envelope.parse(data)
        except MalformedMessage as exc:
            again = wreckage.mended(data)
            return self._unreadable(data, stream, exc, now) if again is None else self.receive(again, stream, now)
        except InvalidRequest as exc:
            return self._invalid(data, stream, exc, now)
        if isinstance(message, Reply):
            return [self._replied(message, stream, now)]
        if isinstance(message, list):
            return [each for entry in message for each in self._entry(entry, stream, now)]
        return self._said(message, stream, now)

    def oversized(self, head: bytes, tail: bytes, stream: int | None, now: float) -> list[Received[T]]:
        """A message over the limit came by and was thrown away; only its ends are known."""
        return self._wrecked((head, tail), stream, ("oversized", "it is too large"), now)

    # Answers ---------------------------------------------------------------------------------------------------

    def _replied(self, reply: Reply, stream: int | None, now: float) -> Received[T]:
        request = reply.id
        if not isinstance(request, int):
            return self._unaddressed(reply, stream, now)
        flight = self._flights.pop(request, None)
        if flight is not None:
            self._callers.ended(flight.caller, now)
            return _ending(flight.owner, reply)
        if request in self._checks:
            # Whatever it answers, it is alive.
            return Deliver(self._checks.pop(request), Result(Raw(_EMPTY)))
        if self.is_greeting(request):
            return self._greeted(reply)
        if not FIRST_ID <= request < self._next:
            return Stray("unknown_id", str(request))
        return Stray("late") if self._callers.laid(request, now) else Stray("duplicate", str(request))

    def _unaddressed(self, reply: Reply, stream: int | None, now: float) -> Received[T]:
        """An answer without an id of ours: an error whose request could not be read, if only one can be meant."""
        if reply.id is None and reply.result is None:
            if self._greeting_id and not self._flights:
                return self._greeted(reply)
            request = stream if self._streamed else self._only_one()
            owner = None if request is None else self.drop(request, now)
            if owner is not None:
                return _ending(owner, reply)
        return Stray("unknown_id", reply.message[:SHOWN])

    def _only_one(self) -> int | None:
        return next(iter(self._flights)) if len(self._flights) == 1 else None

    def _greeted(self, reply: Reply) -> Received[T]:
        self._greeting_id = 0
        if reply.result is None:
            return self._refused(reply)
        try:
            found = envelope.members(reply.result)
        except (InvalidRequest, MalformedMessage):
            return Unwelcome("its answer to initialize is not an object")
        revision = envelope.text(found.get("protocolVersion"))
        if revision not in LEGACY:
            return Unwelcome(f"it speaks protocol version {revision or '(none)'!s:.40}, which is not spoken here")
        greeting = Greeting(
            revision,
            _object(found.get("capabilities")),
            found.get("serverInfo", Raw(_EMPTY)),
            envelope.text(found.get("instructions")),
        )
        self.greeting = greeting
        self._unasked = _not_announced(greeting)
        return Greeted(greeting, envelope.notification(methods.INITIALIZED, None))

    def _refused(self, reply: Reply) -> Received[T]:
        """An error instead of a greeting: ask for an older revision if that can be the reason."""
        named = [revision for revision in LEGACY if _names(reply.data, revision)]
        older = [revision for revision in named or LEGACY if LEGACY.index(revision) > self._offer]
        if reply.code in _REVISION_REFUSED and older:
            self._offer = LEGACY.index(older[0])
            request, wire = self._initialize()
            return Send(wire, request)
        return Unwelcome(f"it refused initialize: {reply.message[:SHOWN]} ({reply.code})")

    def _initialize(self) -> tuple[int, bytes]:
        self._greeting_id = self._next
        self._next += 1
        params = {
            "protocolVersion": Raw(envelope.encode(LEGACY[self._offer])),
            # Requests of servers to clients are not supported yet, so nothing is announced that would invite them.
            "capabilities": Raw(_EMPTY),
            "clientInfo": Raw(envelope.encode({"name": "mcpmux", "version": self._version})),
        }
        return self._greeting_id, envelope.request(self._greeting_id, _INITIALIZE, params)

    # Notifications and requests --------------------------------------------------------------------------------

    def _entry(self, entry: Message | InvalidRequest, stream: int | None, now: float) -> list[Received[T]]:
        if isinstance(entry, InvalidRequest):
            return self._invalid(b"", stream, entry, now)
        if isinstance(entry, Reply):
            return [self._replied(entry, stream, now)]
        return self._said(entry, stream, now)

    def _said(self, message: Request | Notification, stream: int | None, now: float) -> list[Received[T]]:
        if isinstance(message, Request):
            return _asked(message)
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
            return []  # of a request that was answered at once
        return [Stray("unknown_notification", message.method[:SHOWN])]

    def _progressed(self, params: dict[str, Raw]) -> Received[T]:
        token = envelope.identifier(params.get("progressToken"))
        flight = self._flights.get(token) if isinstance(token, int) else None
        if flight is None or not flight.wants_progress:
            return Stray("unknown_token", str(token)[:SHOWN])
        return Deliver(flight.owner, Progress({key: raw for key, raw in params.items() if key != "progressToken"}))

    def _logged(self, params: dict[str, Raw], stream: int | None, now: float) -> Received[T]:
        level = envelope.text(params.get("level"))
        flight = self._flight_of(stream, now)
        if level not in methods.LOG_LEVELS:
            return Stray("invalid", methods.MESSAGE)
        if flight is None:
            return Stray("unattributed", _shown(envelope.encode(params)))
        return Deliver(flight.owner, Log(level, _raw(params)))

    def _flight_of(self, stream: int | None, now: float) -> _Flight[T] | None:
        """The call that a message without an address belongs to for certain."""
        if self._streamed:
            return None if stream is None else self._flights.get(stream)
        if len(self._flights) != 1:
            return None
        flight = next(iter(self._flights.values()))
        certain = self._lent or flight.caller == OURSELVES or self._callers.alone(flight.caller, now)
        return flight if certain else None

    # Wreckage --------------------------------------------------------------------------------------------------

    def _unreadable(self, data: bytes, stream: int | None, fault: MalformedMessage, now: float) -> list[Received[T]]:
        if data.lstrip()[:1] not in (b"{", b"[") and stream is None:
            # An installer's chatter, a forgotten print.
            return [Stray("not_json", _shown(data))]
        ends = data[: wreckage.EDGE], data[-wreckage.EDGE :]
        return self._wrecked(ends, stream, ("malformed", str(fault)), now)

    def _invalid(self, data: bytes, stream: int | None, fault: InvalidRequest, now: float) -> list[Received[T]]:
        if b"null" in data and (reply := wreckage.with_null(data)) is not None:
            return [self._replied(reply, stream, now)]
        strays: list[Received[T]] = [Stray("invalid", _shown(data) or str(fault))]
        meant = fault.request_id
        # A program's own JSON log on stdout may have an `id` as well.
        if not isinstance(meant, int) or b'"method"' in data or not (b'"jsonrpc"' in data or not data):
            return strays
        return strays + self._spoiled(meant, str(fault), now)

    def _wrecked(
        self, ends: tuple[bytes, bytes], stream: int | None, why: tuple[str, str], now: float
    ) -> list[Received[T]]:
        """What is known of a message of which only the ends can be read; `why`: the reason word, and the problem."""
        head, tail = ends
        reason, problem = why
        meant = wreckage.answered(head, tail)
        if meant is None and (stream is not None or wreckage.is_answer(head)):
            meant = stream if stream is not None else self._only_one()
        strays: list[Received[T]] = [Stray(reason, _shown(head))]
        return strays if meant is None else strays + self._spoiled(meant, problem, now)

    def _spoiled(self, request: int, problem: str, now: float) -> list[Received[T]]:
        if self.is_greeting(request):
            self._greeting_id = 0
            return [Unwelcome(f"its answer to initialize cannot be read: {problem}")]
        owner = self.drop(request, now)
        return [] if owner is None else [Broken(owner, problem)]


def _ending(owner: T, reply: Reply) -> Received[T]:
    if reply.result is None:
        return Deliver(owner, Failure(reply.code, reply.message, reply.data))
    if memoryview(reply.result)[0] != _OBJECT:
        return Broken(owner, "its result is not an object")
    return Deliver(owner, Result(reply.result))


def _asked(request: Request) -> list[Received[T]]:
    """What a server asks of a client: answered here, never dropped."""
    if request.method == _PING:
        return [Send(envelope.result(request.id, _EMPTY))]
    known = request.method in methods.SERVER_REQUESTS
    text = f"Method not found: {request.method[:SHOWN]}"
    if known:
        text += " (mcpmux does not support requests from servers to clients yet)"
    return [
        Send(envelope.error(request.id, METHOD_NOT_FOUND, text)),
        Stray("request_refused" if known else "unknown_request", request.method[:SHOWN]),
    ]


def _with_token(params: dict[str, Raw] | None, token: int) -> dict[str, Raw]:
    meta = _object((params or {}).get("_meta"))
    meta["progressToken"] = Raw(b"%d" % token)
    return {**(params or {}), "_meta": _raw(meta)}


def _not_announced(greeting: Greeting) -> frozenset[str]:
    """The methods that need what the server did not announce."""
    announced = {name for name, value in greeting.capabilities.items() if bytes(value) not in (b"null", b"false")}
    absent = {
        method.name for method in methods.REQUESTS.values() if method.capability and method.capability not in announced
    }
    if greeting.protocol_version == LEGACY[-1]:
        absent.discard("completion/complete")  # 2024-11-05 had completion, but no capability for it
    if "logging" not in announced:
        absent.add("logging/setLevel")
    resources = _object(greeting.capabilities.get("resources"))
    if bytes(resources.get("subscribe", b"")) != b"true":
        absent |= {"resources/subscribe", "resources/unsubscribe"}
    return frozenset(absent)


def _object(raw: Raw | None) -> dict[str, Raw]:
    try:
        return {} if raw is None else envelope.members(raw)
    except (InvalidRequest, MalformedMessage):
        return {}


def _names(data: Raw | None, revision: str) -> bool:
    return data is not None and b'"%b"' % revision.encode() in bytes(data)


def _raw(params: dict[str, Raw]) -> Raw:
    return Raw(envelope.encode(params))


def _shown(data: bytes) -> str:
    return data[:SHOWN].decode("utf-8", "replace")
