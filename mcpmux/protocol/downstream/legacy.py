"""SessionCore: the protocol state of one legacy session (2024-11-05 to 2025-11-25), without I/O.

Theory. A session begins with `initialize` (`greeted`), which fixes the revision. From then on each request is
admitted once: its id must not be in flight already, its progress token is taken out and kept here, because upstream
it gets another one. The admission is given back with every event of the call, so that `encode` can make wire of it
in this revision; the end of a call frees its id. What belongs to no call (`Changed`, `Updated`) is encoded without
an admission.

What a server asks goes to the client as a request of ours (`ask`), whose id is a number that is never used twice in
the session. It waits for its answer until that comes (`answered`, once), until nobody needs it any more (`withdraw`),
or until its call is freed; an answer after that finds nobody.

Owns: ids in flight both ways, log level, revision. Not: streams and sockets (`faces`), replay (`replay.py`), what
methods mean.
Source: MCP basic/lifecycle, basic/utilities (progress, cancellation), server/utilities/logging, client/*.
"""

from __future__ import annotations

from typing import Final

from msgspec import Raw, Struct

from mcpmux.errors import InvalidParams, InvalidRequest, MalformedMessage, MethodUnknown, NotInitialized
from mcpmux.protocol import abilities, envelope, revisions, tasks
from mcpmux.protocol.downstream import blocks
from mcpmux.protocol.envelope import Notification, Reply, Request
from mcpmux.protocol.events import Ask, Completed, End, Event, Failure, Log, Offered, Progress, Result
from mcpmux.protocol.methods import (
    CANCELLED,
    CHANGED_BY,
    ELICITATION_COMPLETE,
    LOG_LEVELS,
    MESSAGE,
    PROGRESS,
    REQUESTS,
    RESOURCE_UPDATED,
    TASK_REQUESTS,
    TASK_STATUS,
    Method,
)

METHOD_NOT_FOUND: Final = -32601
INTERNAL_ERROR: Final = -32603
GARBAGE: Final = Failure(INTERNAL_ERROR, "The client's answer is not an object")
_OBJECT: Final = ord("{")
_LEVELS: Final = {level: rank for rank, level in enumerate(LOG_LEVELS)}


class Greeting(Struct, frozen=True):
    """What `initialize` told us: the revision agreed on, what the client can do, and who it says it is."""

    revision: str
    capabilities: dict[str, Raw]
    client: str


class Admission(Struct, frozen=True, gc=False):
    """One request that was let in: what it is, and what its answer must carry.

    `params` are as sent, but for the progress token, which is in `token` (None: no progress wanted).
    """

    id: int | str
    method: Method
    params: dict[str, Raw]
    token: int | str | None


class Answered(Struct, frozen=True, gc=False):
    """What a client answered: to which `Ask`, in the call of which of its requests."""

    request: int | str
    ask: int
    end: End


class _Asked(Struct, frozen=True, gc=False):
    """A request of ours that waits for its answer."""

    request: int | str
    ask: int


def greeted(request: Request) -> Greeting:
    """Read `initialize`.

    Raises: InvalidParams. Source: MCP basic/lifecycle, "Initialization".
    """
    params = request.params or {}
    asked = envelope.text(params.get("protocolVersion"))
    if asked is None:
        raise InvalidParams("protocolVersion must be a string")
    capabilities = _object(params.get("capabilities"), "capabilities")
    client = _object(params.get("clientInfo"), "clientInfo")
    name = envelope.text(client.get("name")) or "?"
    version = envelope.text(client.get("version")) or "?"
    return Greeting(revisions.negotiate(asked), capabilities, f"{name[:64]}/{version[:32]}")


def admission(request: Request, revision: str) -> Admission:
    """Read one request: a method that this revision has, params as they go on, the progress token apart.

    Raises: MethodUnknown, InvalidParams.
    """
    method = REQUESTS.get(request.method)
    if method is None:
        method = TASK_REQUESTS.get(request.method) if revision >= tasks.SINCE else None
    if method is None:
        raise MethodUnknown(request.method[:128])
    params = request.params
    if params is None:
        return Admission(request.id, method, {}, None)
    raw = params.get("_meta")
    if raw is None:
        return Admission(request.id, method, params, None)
    meta = _object(raw, "_meta")
    token = meta.pop("progressToken", None)
    if token is None:
        return Admission(request.id, method, params, None)
    named = envelope.identifier(token)
    if named is None:
        raise InvalidParams("progressToken must be an integer or a string")
    rest = {name: value for name, value in params.items() if name != "_meta"}
    if meta:
        rest["_meta"] = Raw(envelope.encode(meta))
    return Admission(request.id, method, rest, named)


class SessionCore:
    """The protocol state of one session; see the module's theory."""

    __slots__ = ("_asked", "_in_flight", "_last", "_level", "greeting")

    def __init__(self, greeting: Greeting | None = None) -> None:
        """Without a greeting the session waits for its `initialize` (HTTP+SSE, where the stream comes first)."""
        self.greeting = greeting
        self._level = 0
        self._in_flight: set[int | str] = set()
        self._asked: dict[int, _Asked] = {}
        self._last = 0

    @property
    def revision(self) -> str:
        """The revision agreed on; before that the oldest, which says the least."""
        return self.greeting.revision if self.greeting is not None else revisions.LEGACY[-1]

    def greet(self, greeting: Greeting) -> None:
        """Take the `initialize` that this session waited for.

        Raises: InvalidRequest (it had one already).
        """
        if self.greeting is not None:
            raise InvalidRequest("this session is initialized already")
        self.greeting = greeting

    @property
    def in_flight(self) -> int:
        """How many requests have no answer yet."""
        return len(self._in_flight)

    @property
    def asked(self) -> int:
        """How many requests of ours wait for the client's answer."""
        return len(self._asked)

    def admit(self, request: Request) -> Admission:
        """Let a request in and remember its id.

        Raises: NotInitialized, InvalidRequest (the id is in flight already, or a second `initialize`), MethodUnknown,
        InvalidParams.
        """
        if self.greeting is None and request.method != "ping":
            raise NotInitialized
        if request.method == "initialize":
            raise InvalidRequest("this session is initialized already", request.id)
        if request.id in self._in_flight:
            raise InvalidRequest("a request with this id is still in flight", request.id)
        admitted = admission(request, self.revision)
        if request.method == "logging/setLevel":
            self._set_level(admitted.params)
        self._in_flight.add(request.id)
        return admitted

    def free(self, admitted: Admission) -> None:
        """The call has ended or was cancelled: its id is not in flight any more."""
        self._in_flight.discard(admitted.id)
        if self._asked:
            self._forget(admitted)

    def cancels(self, notification: Notification) -> int | str | None:
        """The id in flight that this notification cancels, or None."""
        if notification.method != CANCELLED or notification.params is None:
            return None
        wanted = envelope.identifier(notification.params.get("requestId"))
        return wanted if wanted in self._in_flight else None

    def encode(self, admitted: Admission, event: Event) -> bytes | None:
        """The wire bytes of one event of a call; None where this client gets nothing."""
        if isinstance(event, Result):
            if self.revision < blocks.COMPLETE:
                return envelope.result(admitted.id, blocks.as_known(admitted.method.name, event.result, self.revision))
            return envelope.result(admitted.id, event.result)
        match event:
            case Failure(code, message, data):
                return envelope.error(admitted.id, code, message, data)
            case Progress(params) if admitted.token is not None:
                token = Raw(envelope.encode(admitted.token))
                return envelope.notification(PROGRESS, {"progressToken": token, **params})
            case Log(level, raw) if _LEVELS.get(level, 0) >= self._level:
                return b'{"jsonrpc":"2.0","method":"%b","params":%b}' % (MESSAGE.encode(), bytes(raw))
            case Completed(params=params):
                return self.completed(params)
        return None

    # What servers ask ------------------------------------------------------------------------------------------

    def ask(self, admitted: Admission, ask: Ask) -> bytes | Failure:
        """The wire of what a server asks in this call; or what it gets, because this client cannot answer it."""
        capabilities = self.greeting.capabilities if self.greeting is not None else {}
        problem = abilities.inability(ask.method, ask.params, capabilities, self.revision)
        if problem is not None:
            return Failure(METHOD_NOT_FOUND, problem)
        self._last += 1
        self._asked[self._last] = _Asked(admitted.id, ask.id)
        return envelope.request(self._last, ask.method, ask.params)

    def answered(self, reply: Reply) -> Answered | str:
        """Whose answer this is, once; otherwise a word for the log. What is no object becomes an error."""
        number = reply.id
        asked = self._asked.pop(number, None) if isinstance(number, int) else None
        if asked is None:
            return "late" if isinstance(number, int) and 0 < number <= self._last else "unknown_id"
        if reply.result is None:
            return Answered(asked.request, asked.ask, Failure(reply.code, reply.message, reply.data))
        fits = memoryview(reply.result)[0] == _OBJECT
        return Answered(asked.request, asked.ask, Result(reply.result) if fits else GARBAGE)

    def withdraw(self, admitted: Admission, ask: int | None = None) -> list[bytes]:
        """Nobody needs the answer to this any more, or to anything that was asked in the call: tell the client."""
        return [
            envelope.notification(CANCELLED, {"requestId": Raw(b"%d" % number)})
            for number in self._forget(admitted, ask)
        ]

    def completed(self, params: dict[str, Raw]) -> bytes | None:
        """The wire that says an elicitation is complete; None if this revision does not know it."""
        return envelope.notification(ELICITATION_COMPLETE, params) if self.revision >= "2025-11-25" else None

    def _forget(self, admitted: Admission, ask: int | None = None) -> list[int]:
        found = [
            number for number, asked in self._asked.items() if asked.request == admitted.id and ask in (None, asked.ask)
        ]
        for number in found:
            del self._asked[number]
        return found

    def _set_level(self, params: dict[str, Raw]) -> None:
        level = envelope.text(params.get("level"))
        if level not in _LEVELS:
            raise InvalidParams(f"level must be one of {', '.join(LOG_LEVELS)}")
        self._level = _LEVELS[level]


def changed(what: Offered) -> bytes:
    """The wire bytes of the notification that says a list changed."""
    return envelope.notification(CHANGED_BY[what], None)


def updated(uri: str) -> bytes:
    """The wire bytes of the notification that says a subscribed resource changed."""
    return envelope.notification(RESOURCE_UPDATED, {"uri": Raw(envelope.encode(uri))})


def progressed(params: dict[str, Raw]) -> bytes:
    """The wire bytes of progress of a call that was answered with a task."""
    return envelope.notification(PROGRESS, params)


def task_told(params: dict[str, Raw]) -> bytes:
    """The wire bytes of the notification that says how a task stands."""
    return envelope.notification(TASK_STATUS, params)


def _object(raw: Raw | None, name: str) -> dict[str, Raw]:
    if raw is None:
        return {}
    try:
        return envelope.members(raw)
    except (InvalidRequest, MalformedMessage) as exc:
        raise InvalidParams(f"{name} must be an object with each name once") from exc
