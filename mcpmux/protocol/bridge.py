"""BridgeCore: what `mcpmux stdio` knows of a client on pipes and of the endpoint that it carries messages to.

Theory. Pipes are one channel; over HTTP each request is an exchange of its own, and in the legacy eras there is a
session besides. Messages go both ways as the bytes they came in. What is read of them says only where they belong:
which POST a line becomes and with which headers (`read`, `headers`), which answers a POST may give (`receive`).

A session can be lost without the client (the endpoint was started again). So what a session is made of is remembered:
`initialize`, `initialized`, the log level, the subscriptions (`restoring`). In the new one, what the old one asked of
the client is void (`renewed`), and the endpoint counts its own requests from the beginning: one that comes with the id
of a void one goes to the client under another, or the client's late answer would meet the wrong question.

Owns: the session, what restores it, the server's open requests. Not: HTTP, streams, pipes, tasks (`faces`).
Source: MCP 2025-11-25 basic/transports; 2026-07-28 basic/transports/streamable-http and stdio, basic/patterns
(cancellation).
"""

from __future__ import annotations

import re
from typing import Final

from msgspec import Raw, Struct

from mcpmux.errors import InvalidRequest, MalformedMessage
from mcpmux.protocol import envelope, headers
from mcpmux.protocol.envelope import Message, Notification, Reply, Request
from mcpmux.protocol.methods import CANCELLED, INITIALIZED, LIST_CHANGED

MAX_ASKS: Final = 1024  # requests of the server that wait for the client; the oldest gives way
MAX_SUBSCRIPTIONS: Final = 4096

# To carry out twice does no harm. Not `tools/call`, and not what a later release may bring.
REPEATABLE: Final = frozenset({
    "initialize", "ping", "server/discover", "logging/setLevel", "completion/complete",
    "tools/list", "prompts/list", "prompts/get", "resources/list", "resources/templates/list", "resources/read",
    "resources/subscribe", "resources/unsubscribe",
})  # fmt: skip

_ID: Final = rb'"id"\s*:\s*([0-9]{1,18}|"[^"\\]{1,256}")\s*'
_VERSION: Final = rb'"jsonrpc"\s*:\s*"2\.0"\s*'
_FIRST_ID: Final = re.compile(rb"\s*\{\s*(?:%b,\s*)?%b[,}]" % (_VERSION, _ID))
_LAST_ID: Final = re.compile(rb",\s*%b(?:,\s*%b)?\}\s*\Z" % (_ID, _VERSION))
_REVISION: Final = "io.modelcontextprotocol/protocolVersion"
_VOID: Final = Raw(b'"The connection to the server was made anew"')


class Line(Struct, frozen=True):
    """One line of the client; `revision` is that of a modern message."""

    wire: bytes
    message: Message | list[Message | InvalidRequest]
    revision: str | None = None

    @property
    def method(self) -> str | None:
        """Of a single request or notification."""
        return self.message.method if isinstance(self.message, Request | Notification) else None

    @property
    def ids(self) -> tuple[int | str, ...]:
        """Of the requests in it."""
        messages = self.message if isinstance(self.message, list) else [self.message]
        return tuple(message.id for message in messages if isinstance(message, Request))

    @property
    def repeatable(self) -> bool:
        """Whether it does no harm to carry it out twice."""
        return self.method in REPEATABLE


class Pending:
    """One line on its way: which ids in it still wait, and the session that its answer opened, if it is a greeting."""

    __slots__ = ("awaited", "line", "session_id")

    def __init__(self, line: Line) -> None:
        self.line = line
        self.awaited = set(line.ids)
        self.session_id: str | None = None


class Session(Struct, frozen=True, eq=False):
    """What one `initialize` came to; `changes` are the notifications by which lists of it may be told to change."""

    id: str | None
    revision: str
    changes: tuple[str, ...]


class _Asked(Struct):
    """A request of the server that the client knows as `shown`."""

    session: Session | None
    id: int | str


def read(wire: bytes) -> Line:
    """One line of the client.

    Raises: MalformedMessage, InvalidRequest.
    """
    message = envelope.parse(wire)
    if isinstance(message, Reply | list):
        return Line(wire, message)
    revision = _revision(message.params)
    if revision is not None and not (headers.is_visible(revision) and headers.is_visible(message.method)):
        asked = message.id if isinstance(message, Request) else None
        raise InvalidRequest("the method or the protocol version cannot stand in a header", asked)
    return Line(wire, message, revision)


def asked_in(head: bytes, tail: bytes) -> int | str | None:
    """The id of a request that is too long to read, looked for where serialisers put it."""
    found = _FIRST_ID.match(head) or _LAST_ID.search(tail)
    return None if found is None else envelope.identifier(Raw(found[1]))


def cancelled(line: Line) -> int | str | None:
    """The id of the request that this line takes back."""
    message = line.message
    if not isinstance(message, Notification) or message.method != CANCELLED:
        return None
    return envelope.identifier((message.params or {}).get("requestId"))


class BridgeCore:
    """See the module's theory."""

    __slots__ = ("_asked", "_initialize", "_initialized", "_level", "_renamed", "_subscriptions", "session")

    def __init__(self) -> None:
        self.session: Session | None = None
        self._initialize: bytes | None = None
        self._initialized: bytes | None = None
        self._level: bytes | None = None
        self._subscriptions: dict[str, bytes] = {}
        self._asked: dict[int | str, _Asked] = {}  # by the id that the client knows
        self._renamed = 0

    def session_of(self, line: Line) -> Session | None:
        """The session that a line belongs to."""
        return None if line.revision is not None or line.method == "initialize" else self.session

    def headers(self, line: Line) -> dict[str, str]:
        """The headers that this line needs over HTTP."""
        message = line.message
        if line.revision is None or not isinstance(message, Request | Notification):
            return session_headers(self.session_of(line))
        return headers.standard(message.method, message.params, line.revision)

    # Up ------------------------------------------------------------------------------------------------------------

    def sends(self, line: Line) -> bytes | None:
        """The bytes of a line that wants no answer, as they go up; None if it has nowhere to go."""
        message = line.message
        if isinstance(message, Notification) and message.method == INITIALIZED:
            self._initialized = line.wire
        if not isinstance(message, Reply):
            return line.wire
        asked = self._asked.pop(message.id, None) if message.id is not None else None
        if asked is None or asked.session is not self.session:
            return None
        if asked.id == message.id:
            return line.wire
        if message.result is not None:
            return envelope.result(asked.id, message.result)
        return envelope.error(asked.id, message.code, message.message, message.data)

    # Down ----------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, pending: Pending | None) -> bytes | None:
        """One message of the endpoint, as the client gets it; None where the client gets nothing.

        `pending` is the line whose answer it came in; without one it came on the stream that belongs to none.

        Raises: MalformedMessage, InvalidRequest.
        """
        message = envelope.parse(data)
        if isinstance(message, list):
            found = [one for one in message if isinstance(one, Reply) and self._answers(one, pending)]
            return envelope.one_line(data) if found else None
        match message:
            case Reply():
                return envelope.one_line(data) if self._answers(message, pending) else None
            case Request() if pending is not None and pending.line.revision is not None:
                return None  # a modern server asks by its answer alone
            case Request():
                return self._ask(message, data)
            case Notification() if message.method == CANCELLED and (pending is None or pending.line.revision is None):
                return self._taken_back(message, data)
        return envelope.one_line(data)

    def _answers(self, reply: Reply, pending: Pending | None) -> bool:
        """Whether somebody waits for this reply; no answer is passed on twice."""
        if pending is None or reply.id not in pending.awaited:
            return False
        pending.awaited.discard(reply.id)
        if reply.result is not None:
            self._remember(pending, reply.result)
        return True

    def _remember(self, pending: Pending, result: Raw) -> None:
        """Keep what a new session would have to be told again."""
        line = pending.line
        if not isinstance(line.message, Request) or line.revision is not None:
            return
        uri = envelope.text((line.message.params or {}).get("uri"))
        match line.method:
            case "initialize":
                self.session = opened(result, pending.session_id)
                self._initialize, self._initialized, self._level = line.wire, None, None
                self._subscriptions.clear()
            case "logging/setLevel":
                self._level = line.wire
            case "resources/subscribe" if uri is not None and len(self._subscriptions) < MAX_SUBSCRIPTIONS:
                self._subscriptions[uri] = line.wire
            case "resources/unsubscribe" if uri is not None:
                self._subscriptions.pop(uri, None)

    def _ask(self, request: Request, data: bytes) -> bytes:
        shown = request.id
        while (former := self._asked.get(shown)) is not None and former.session is not self.session:
            self._renamed += 1
            shown = f"mcpmux-{self._renamed}"
        if len(self._asked) >= MAX_ASKS:
            del self._asked[next(iter(self._asked))]
        self._asked[shown] = _Asked(self.session, request.id)
        return envelope.one_line(
            data if shown == request.id else envelope.request(shown, request.method, request.params)
        )

    def _taken_back(self, message: Notification, data: bytes) -> bytes | None:
        """The server's `cancelled` for a request of its own, by the id that the client knows."""
        wanted = envelope.identifier((message.params or {}).get("requestId"))
        for shown, asked in self._asked.items():
            if asked.session is self.session and asked.id == wanted:
                del self._asked[shown]
                named = {**(message.params or {}), "requestId": Raw(envelope.encode(shown))}
                return envelope.one_line(data if shown == wanted else envelope.notification(CANCELLED, named))
        return None

    # A new session ---------------------------------------------------------------------------------------------------

    @property
    def greeting(self) -> Line | None:
        """The client's own `initialize`; None before it was answered."""
        return None if self._initialize is None else read(self._initialize)

    def renewed(self, session: Session) -> list[bytes]:
        """Go on in another session; what you get is what the client must be told of it."""
        told: list[bytes] = []
        for shown, asked in self._asked.items():
            if asked.session is self.session:
                void = {"requestId": Raw(envelope.encode(shown)), "reason": _VOID}
                told.append(envelope.notification(CANCELLED, void))
        self.session = session
        return told + [envelope.notification(change, None) for change in session.changes]

    def restoring(self) -> list[bytes]:
        """What the new session is told again, in this order. `initialized` is the first, if the client said it."""
        said = [self._initialized, self._level, *self._subscriptions.values()]
        return [wire for wire in said if wire is not None]


def opened(result: Raw, session_id: str | None) -> Session:
    """The session that an answer to `initialize` opens."""
    found = _object(result)
    revision = envelope.text(found.get("protocolVersion")) or ""
    capabilities = _object(found.get("capabilities"))
    changes = [
        change
        for change in LIST_CHANGED
        if bytes(_object(capabilities.get(change.split("/")[1])).get("listChanged", Raw(b""))) == b"true"
    ]
    return Session(session_id, revision, tuple(changes))


def session_headers(session: Session | None) -> dict[str, str]:
    """The headers of everything that belongs to a session."""
    found: dict[str, str] = {}
    if session is not None and session.id is not None:
        found[headers.SESSION] = session.id
    if session is not None and headers.is_visible(session.revision):
        found[headers.VERSION] = session.revision
    return found


def _revision(params: dict[str, Raw] | None) -> str | None:
    """The revision that a modern message names in its `_meta`."""
    return envelope.text(_object((params or {}).get("_meta")).get(_REVISION))


def _object(raw: Raw | None) -> dict[str, Raw]:
    try:
        return {} if raw is None else envelope.members(raw)
    except (InvalidRequest, MalformedMessage):
        return {}
