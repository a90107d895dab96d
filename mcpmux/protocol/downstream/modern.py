"""RequestCore: the protocol state of one modern request (2026-07-28), without I/O.

Theory. There is no session: a request says in `_meta` all that a session used to know (revision, what the client can
do, which log messages it wants), and its headers repeat a part of the body for whoever stands in between. `admit`
reads all of it, strictly, and what is left is a request like one of the legacy eras: an `Admission` whose params go on
to a server of any era without what was said to us alone. `encode` makes wire of the events that come back. The core
ends with its request; nothing is kept.

`subscriptions/listen` is a request whose answer goes on until somebody has enough of it. Everything on its stream
carries the id of the request: `acknowledged` first, `changed` and `updated`, and `closed` when we end it.

Members that we add to a server's result stand before its own. A member of its own with such a name would make two, so
whatever might hold one is taken apart first. `_meta` is such a member: every result says in it who answers.

Owns: what one request said, and the wire of its answers. Not: what methods mean, who may do what, streams.
Source: MCP 2026-07-28 basic/index ("_meta", "Results"), basic/patterns/subscriptions, server/utilities (caching,
logging).
"""

from __future__ import annotations

from typing import Final

from msgspec import DecodeError, Raw, Struct, ValidationError
from msgspec.json import Decoder

from mcpmux.errors import (
    CapabilityMissing,
    InvalidParams,
    InvalidRequest,
    MalformedMessage,
    MetaInvalid,
    MethodUnknown,
    StateRefused,
    VersionUnsupported,
)
from mcpmux.protocol import envelope, faults, headers, rounds, tasks
from mcpmux.protocol.downstream.legacy import Admission
from mcpmux.protocol.envelope import Request
from mcpmux.protocol.events import Event, Failure, InputRequired, Log, Offered, Progress, Result, TaskMade
from mcpmux.protocol.methods import (
    ACKNOWLEDGED,
    CHANGED_BY,
    DISCOVER,
    LOG_LEVELS,
    MESSAGE,
    MODERN_REQUESTS,
    PROGRESS,
    RESOURCE_UPDATED,
    TASK_NEWS,
    Answers,
)
from mcpmux.protocol.revisions import MODERN, SAYS_REVISION, SERVED

CLIENT: Final = "io.modelcontextprotocol/clientInfo"
CAPABILITIES: Final = "io.modelcontextprotocol/clientCapabilities"
LOG_LEVEL: Final = "io.modelcontextprotocol/logLevel"
SUBSCRIPTION: Final = "io.modelcontextprotocol/subscriptionId"
SERVER: Final = "io.modelcontextprotocol/serverInfo"

# How long a client may use a list, in milliseconds. What it may not use any more is refused at once all the same.
FRESH: Final = 5000
MOST_NAMED: Final = 1024  # resources and tasks of one subscription
LONGEST_REVISION: Final = 64  # characters

_COMPLETE: Final = b'"resultType":"complete"'
_INPUT_REQUIRED: Final = b'"resultType":"input_required"'
_TASK: Final = b'"resultType":"task"'
_OURS: Final = b'%b,"ttlMs":%d,"cacheScope":"private"' % (_COMPLETE, FRESH)
_READ: Final = b'%b,"ttlMs":0,"cacheScope":"private"' % _COMPLETE
_COMPLETE_NAMES: Final = ("resultType",)
_READ_NAMES: Final = ("resultType", "ttlMs", "cacheScope")
_EMPTY: Final = Raw(b"{}")
_ESCAPE: Final = b"\\u00"  # a name of ASCII can be spelled with them
_UNUSABLE: Final = Failure(faults.INTERNAL_ERROR, "The server sent an answer that could not be used.")
_RANKS: Final = {level: rank for rank, level in enumerate(LOG_LEVELS)}
_NONE: Final = len(LOG_LEVELS)  # a level that no message has


class Signature(Struct, frozen=True):
    """Who answers, in short; with `replaces` in the place of what a server says of itself."""

    identity: Raw
    replaces: bool

    @property
    def member(self) -> bytes:
        """The same as a member of a result that has no `_meta`."""
        return b',"_meta":{"%b":%b}' % (SERVER.encode(), bytes(self.identity))


class Wanted(Struct, frozen=True):
    """What a subscription is to tell of."""

    lists: tuple[str, ...]  # members of the filter, as `toolsListChanged`
    uris: tuple[str, ...]
    tasks: tuple[str, ...] = ()  # ids

    @property
    def offers(self) -> frozenset[Offered]:
        """The lists."""
        return frozenset(what for name in self.lists for what in _LISTS[name])


_LISTS: Final[dict[str, tuple[Offered, ...]]] = {
    "toolsListChanged": (Offered.TOOLS,),
    "promptsListChanged": (Offered.PROMPTS,),
    "resourcesListChanged": (Offered.RESOURCES, Offered.TEMPLATES),
}


class RequestCore(Struct, frozen=True, gc=False):
    """One request that was let in; `level` is the rank of the least log message that its client wants.

    `responses` and `state` are what a request says that is made again: what was asked for, and our own sealed text.
    `signature` goes into the `_meta` of its result.
    """

    admission: Admission
    capabilities: dict[str, Raw]
    client: str
    level: int
    responses: dict[str, Raw] | None = None
    state: str | None = None
    signature: Signature | None = None

    @property
    def log_level(self) -> str | None:
        """The least level of log messages that the client wants, None if it wants none."""
        return LOG_LEVELS[self.level] if self.level < _NONE else None

    def encode(self, event: Event) -> bytes | None:
        """The wire bytes of one event; None where this client gets nothing."""
        if isinstance(event, InputRequired):
            return self._signed(_INPUT_REQUIRED, (), event.result)
        if isinstance(event, TaskMade):
            return self._signed(_TASK, (), event.result)
        if isinstance(event, Result):
            return self._completed(event.result)
        match event:
            case Failure():
                return self._failed(event)
            case Progress(params) if self.admission.token is not None:
                token = Raw(envelope.encode(self.admission.token))
                return envelope.notification(PROGRESS, {"progressToken": token, **params})
            case Log(level, raw) if _RANKS.get(level, -1) >= self.level:
                return b'{"jsonrpc":"2.0","method":"%b","params":%b}' % (MESSAGE.encode(), bytes(raw))
        return None

    # A subscription ------------------------------------------------------------------------------------------------

    def wanted(self) -> Wanted:
        """What `subscriptions/listen` is to tell of.

        Raises: InvalidParams.
        """
        raw = self.admission.params.get("notifications")
        members = None if raw is None else _object(raw)
        if raw is None or members is None:
            raise InvalidParams("notifications must be an object with each name once")
        if "taskIds" in members and not tasks.is_extended(self.capabilities):
            raise CapabilityMissing(tasks.CAPABILITY)
        try:
            found = _FILTER.decode(raw)
        except (ValidationError, DecodeError, UnicodeDecodeError) as exc:
            raise InvalidParams("notifications must hold booleans, and lists of strings") from exc
        uris = tuple(dict.fromkeys(found.resourceSubscriptions or ()))
        ids = tuple(dict.fromkeys(found.taskIds or ()))
        if len(uris) + len(ids) > MOST_NAMED:
            raise InvalidParams(f"at most {MOST_NAMED} resources and tasks can be subscribed at once")
        return Wanted(tuple(name for name in _LISTS if getattr(found, name)), uris, ids)

    def acknowledged(self, told: Wanted) -> bytes:
        """The wire of the first message: what will be told of."""
        honored: dict[str, object] = dict.fromkeys(told.lists, True)
        if told.uris:
            honored["resourceSubscriptions"] = told.uris
        if told.tasks:
            honored["taskIds"] = told.tasks
        return self._tells(ACKNOWLEDGED, {"notifications": Raw(envelope.encode(honored))})

    def changed(self, what: Offered) -> bytes:
        """The wire that says a list changed."""
        return self._tells(CHANGED_BY[what], {})

    def updated(self, uri: str) -> bytes:
        """The wire that says a resource changed."""
        return self._tells(RESOURCE_UPDATED, {"uri": Raw(envelope.encode(uri))})

    def task_told(self, task: Raw) -> bytes:
        """The wire that says how a task stands."""
        found = _object(task) or {}
        meta = _object(found.pop("_meta", Raw(b"{}"))) or {}
        meta[SUBSCRIPTION] = Raw(envelope.encode(self.admission.id))
        return envelope.notification(TASK_NEWS, {"_meta": Raw(envelope.encode(meta)), **found})

    def closed(self) -> bytes:
        """The wire that ends the subscription from our side."""
        meta = envelope.members(self._subscription())
        if self.signature is not None:
            meta[SERVER] = self.signature.identity
        return envelope.result(self.admission.id, b'{%b,"_meta":%b}' % (_COMPLETE, envelope.encode(meta)))

    def _tells(self, method: str, params: dict[str, Raw]) -> bytes:
        return envelope.notification(method, {"_meta": Raw(self._subscription()), **params})

    def _subscription(self) -> bytes:
        return envelope.encode({SUBSCRIPTION: self.admission.id})

    # Answers -------------------------------------------------------------------------------------------------------

    def _completed(self, raw: Raw) -> bytes:
        """A result with what every result of this era has."""
        method = self.admission.method
        if method.answers is not Answers.SERVER and method.answers is not Answers.TASK:
            # Ours: no such member is in it, and who we are at most in the answer to `server/discover`, at length.
            signed = self.signature is not None and method.name != DISCOVER
            return envelope.result_with(self.admission.id, _OURS + self._signature() if signed else _OURS, raw)
        if method.name == "resources/read":
            return self._signed(_READ, _READ_NAMES, raw)
        return self._signed(_COMPLETE, _COMPLETE_NAMES, raw)

    def _signed(self, more: bytes, names: tuple[str, ...], raw: Raw) -> bytes:
        """A result with `more` in the place of its members of these names, and who answers in its `_meta`."""
        body = bytes(raw)
        spelled = _ESCAPE in body
        named = spelled or any(name.encode() in body for name in names)
        if not named and (self.signature is None or b'"_meta"' not in body):
            return envelope.result_with(self.admission.id, more + self._signature(), raw)
        found = _object(raw)
        if found is None:
            return self._failed(_UNUSABLE) if named else envelope.result_with(self.admission.id, more, raw)
        kept = {name: value for name, value in found.items() if name not in names}
        meta, signature = _object(kept.get("_meta", _EMPTY)), self.signature
        if meta is not None and signature is not None and (signature.replaces or SERVER not in meta):
            kept["_meta"] = Raw(envelope.encode({**meta, SERVER: signature.identity}))
        return envelope.result_with(self.admission.id, more, Raw(envelope.encode(kept)))

    def _signature(self) -> bytes:
        return b"" if self.signature is None else self.signature.member

    def _failed(self, failed: Failure) -> bytes:
        said = faults.modern(failed)
        return envelope.error(self.admission.id, said.code, said.message, said.data)


def admit(request: Request, values: headers.Values, signature: Signature | None = None) -> RequestCore:
    """Let one request in; `values` gives its headers, `signature` says who answers.

    Raises: MetaInvalid, HeaderMismatch, VersionUnsupported, MethodUnknown, InvalidParams (what was asked for cannot be
    read), StateRefused (a `requestState` where none can be ours).
    """
    params = request.params or {}
    meta = _object(params.get("_meta", Raw(b"")))
    if meta is None:
        raise MetaInvalid(f"_meta must be an object with {SAYS_REVISION} and {CAPABILITIES}")
    revision = envelope.text(meta.pop(SAYS_REVISION, None))
    capabilities = _object(meta.pop(CAPABILITIES, Raw(b"")))
    if revision is None or len(revision) > LONGEST_REVISION:
        raise MetaInvalid(f"_meta must say the protocol version as {SAYS_REVISION}")
    if capabilities is None:
        raise MetaInvalid(f"_meta must say what the client can do, as the object {CAPABILITIES}")
    headers.check(revision, request.method, params, values)
    if revision != MODERN:
        raise VersionUnsupported(revision, SERVED)
    method = MODERN_REQUESTS.get(request.method)
    if method is None:
        raise MethodUnknown(request.method[:128])
    client, level, token = _client(meta.pop(CLIENT, None)), _level(meta.pop(LOG_LEVEL, None)), _token(meta)
    responses, state = None, rounds.state(params)
    rest = {name: value for name, value in params.items() if name != "_meta"}
    if method.name in rounds.METHODS:
        responses = rounds.responses(params)
        rest = {name: value for name, value in rest.items() if name not in (rounds.RESPONSES, rounds.STATE)}
    elif state is not None:
        raise StateRefused
    if meta:
        rest["_meta"] = Raw(envelope.encode(meta))
    admission = Admission(request.id, method, rest, token)
    return RequestCore(admission, capabilities, client, level, responses, state, signature)


class _Filter(Struct):
    """The filter of a subscription; the names are the wire's."""

    toolsListChanged: bool | None = None
    promptsListChanged: bool | None = None
    resourcesListChanged: bool | None = None
    resourceSubscriptions: list[str] | None = None
    taskIds: list[str] | None = None


_FILTER: Final = Decoder(_Filter)


def _object(raw: Raw) -> dict[str, Raw] | None:
    try:
        return envelope.members(raw)
    except (InvalidRequest, MalformedMessage):
        return None


def _client(raw: Raw | None) -> str:
    """Who the client says it is; it may say nothing."""
    said = {} if raw is None else _object(raw)
    if said is None:
        raise MetaInvalid(f"{CLIENT} must be an object with each name once")
    name, version = (envelope.text(said.get(member)) or "?" for member in ("name", "version"))
    return f"{name[:64]}/{version[:32]}"


def _level(raw: Raw | None) -> int:
    if raw is None:
        return _NONE
    rank = _RANKS.get(envelope.text(raw) or "")
    if rank is None:
        raise MetaInvalid(f"{LOG_LEVEL} must be one of {', '.join(LOG_LEVELS)}")
    return rank


def _token(meta: dict[str, Raw]) -> int | str | None:
    raw = meta.pop("progressToken", None)
    token = envelope.identifier(raw)
    if raw is not None and token is None:
        raise MetaInvalid("progressToken must be an integer or a string")
    return token
