"""Listening: the one `subscriptions/listen` of a modern link, for what changes in its server's lists, resources, tasks.

Who wants to hear of a resource comes here with what once was `resources/subscribe`, who wants to hear of a task with a
word of our own, and is answered when the server has acknowledged. A subscription cannot be changed, so another set of
them is another subscription: it is begun, and when the server has acknowledged it the former one is ended. What comes
counts only from the one that is acknowledged. At most one is begun at a time; what is wanted meanwhile goes into the
next.

A subscription that the server ends is begun again, after ever longer pauses. What was missed in between nobody knows:
so all lists count as changed then, and whoever heard of a task is told to ask again. A list that the server announces
changes of, and does not agree to tell, grows old like one that it announces nothing of (`hears()`); it counts as
changed when that turns out.

Source: MCP 2026-07-28 basic/patterns/subscriptions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Generic

import msgspec
from msgspec import Raw

from mcpmux.protocol import envelope, methods, tasks
from mcpmux.protocol.events import Changed, Failure, Offered, Opening, Result, TaskTold, TaskUnheard, Updated
from mcpmux.protocol.upstream.greeting import members
from mcpmux.protocol.upstream.received import Deliver, Later, Received, Send, Stray, T

SUBSCRIPTION: Final = "io.modelcontextprotocol/subscriptionId"
RESOURCES: Final = "resourceSubscriptions"
TASKS: Final = "taskIds"

FIRST_PAUSE: Final = 1.0  # seconds
LONGEST_PAUSE: Final = 60.0
STEADY_AFTER: Final = 30.0  # a subscription that lasted this long is begun again without a long pause

INVALID_PARAMS: Final = -32602
METHOD_NOT_FOUND: Final = -32601
UNHEARD: Final = Failure(INVALID_PARAMS, "The server does not tell of changes of this")

# By the request of our own rooms: the member of the filter that it is about, and of its params; and whether it begins.
ORDERS: Final[Mapping[str, tuple[str, str, bool]]] = {
    "resources/subscribe": (RESOURCES, "uri", True),
    "resources/unsubscribe": (RESOURCES, "uri", False),
    methods.TASK_SUBSCRIBE.name: (TASKS, "taskId", True),
    methods.TASK_UNSUBSCRIBE: (TASKS, "taskId", False),
}
HEARD: Final = frozenset({*methods.LIST_CHANGED, methods.RESOURCE_UPDATED, methods.TASK_NEWS})

_EMPTY: Final = Result(Raw(b"{}"))
_TEXTS: Final = msgspec.json.Decoder(list[str])
# By capability: the member of the filter, and which lists it is about.
_LISTS: Final[Mapping[str, tuple[str, tuple[Offered, ...]]]] = {
    "tools": ("toolsListChanged", (Offered.TOOLS,)),
    "prompts": ("promptsListChanged", (Offered.PROMPTS,)),
    "resources": ("resourcesListChanged", (Offered.RESOURCES, Offered.TEMPLATES)),
}


_Thing = tuple[str, str]  # the member of the filter, the URI or the task in it


class Listening(Generic[T]):
    """See the module. `begin` makes the request of a filter, `end` what ends a subscription; both send nothing."""

    __slots__ = ("_asked", "_begin", "_deaf", "_end", "_failures", "_gap", "_lists", "_off", "_open", "_resting",
                 "_sent", "_since", "_waiting", "_wanted")  # fmt: skip

    def __init__(self, begin: Callable[[dict[str, object]], Send], end: Callable[[int], Received[T]]) -> None:
        self._begin = begin
        self._end = end
        self._lists: tuple[str, ...] = ()  # by capability: whose changes the server announces
        self._deaf: frozenset[str] = frozenset()  # those of them that it does not tell after all
        self._wanted: dict[_Thing, None] = {}  # in order
        self._asked: frozenset[_Thing] = frozenset()  # those of the newest subscription
        self._open = 0  # the subscription that the server has acknowledged
        self._sent = 0  # the one that it has not
        self._waiting: dict[int, tuple[_Thing, T]] = {}  # by call: what it is about, and whose call it is
        self._since = 0.0  # when the open one was acknowledged
        self._failures = 0
        self._gap = False  # something may have been missed
        self._resting = False
        self._off = False  # the server does not know subscriptions

    @property
    def waiting(self) -> int:
        """How many calls wait for an acknowledgement."""
        return len(self._waiting)

    def hears(self, what: Offered) -> bool:
        """Whether the server tells when this list changes, as far as it has not shown the contrary."""
        return any(what in _LISTS[name][1] for name in self._lists if name not in self._deaf)

    def is_mine(self, request: int) -> bool:
        """Whether `request` is a subscription that lasts."""
        return bool(request) and request in (self._open, self._sent)

    def greeted(self, capabilities: Mapping[str, Raw]) -> list[Received[T]]:
        """The server said what it has: listen to what changes of its own accord."""
        self._lists = tuple(name for name in _LISTS if _is_true(members(capabilities.get(name)).get("listChanged")))
        self._deaf = frozenset()
        self._open = self._sent = 0
        return self._follow()

    def ordered(self, call: int, opening: Opening, owner: T) -> list[Received[T]]:
        """Somebody wants to hear of something, or nobody any more."""
        kind, member, begins = ORDERS[opening.method]
        thing = (kind, envelope.text((opening.params or {}).get(member)) or "")
        return self._subscribe(call, thing, owner) if begins else self._unsubscribe(thing, owner)

    def leave(self, call: int) -> T | None:
        """Who waited in this call does so no more."""
        return self._waiting.pop(call, (None, None))[1]

    def resume(self) -> list[Received[T]]:
        """The pause is over."""
        self._resting = False
        return self._follow()

    def clear(self) -> list[T]:
        """The link has ended: who still waited."""
        left = [owner for _, owner in self._waiting.values()]
        self._waiting.clear()
        self._wanted.clear()
        self._open = self._sent = 0
        return left

    # What the server says --------------------------------------------------------------------------------------

    def acknowledged(self, request: int | str | None, params: Mapping[str, Raw], now: float) -> list[Received[T]]:
        """A subscription begins; the server says what it will tell."""
        if not self._sent or request != self._sent:
            return [Stray("unknown_subscription", methods.ACKNOWLEDGED)]
        former, self._open, self._sent, self._since = self._open, self._sent, 0, now
        said = members(params.get("notifications"))
        agreed = frozenset((kind, name) for kind in (RESOURCES, TASKS) for name in _texts(said.get(kind)))
        refused = self._asked - agreed
        for thing in refused:
            self._wanted.pop(thing, None)
        found = [*self._answered(self._asked - refused, _EMPTY), *self._answered(refused, UNHEARD)]
        self._asked -= refused
        if former:
            found.append(self._end(former))
        deaf = frozenset(name for name in self._lists if not _is_true(said.get(_LISTS[name][0])))
        return [*found, *self._deafened(deaf), *self._follow()]

    def heard(self, request: int | str | None, method: str, params: Mapping[str, Raw]) -> list[Received[T]]:
        """Something changed; `request` is the subscription that it belongs to, None if that is not said."""
        if request is not None and (request != self._open or not self._open):
            return [Stray("unknown_subscription", method)]
        if method in methods.LIST_CHANGED:
            return [Changed(what) for what in methods.LIST_CHANGED[method]]
        if method == methods.TASK_NEWS:
            return [self._task_told(params)]
        uri = envelope.text(params.get("uri"))
        if uri is None:
            return [Stray("invalid", method)]
        return [Updated(uri, Raw(envelope.encode(_without_subscription(params))))]

    def _task_told(self, params: Mapping[str, Raw]) -> Received[T]:
        standing = tasks.standing(params)
        if standing is None:
            return Stray("invalid", methods.TASK_NEWS)
        if standing.ended:
            self._wanted.pop((TASKS, standing.id), None)  # it can say nothing more: the next subscription is without it
        return TaskTold(standing.id, _without_subscription(params))

    def over(self, request: int, failure: Failure | None, now: float) -> list[Received[T]]:
        """The server has ended a subscription, refused it, or lost its stream."""
        if request == self._open:
            self._open, self._gap = 0, True
            return [*self._unheard(), *self._rest(now)]
        if request != self._sent:
            return []
        self._sent = 0
        self._off = failure is not None and failure.code == METHOD_NOT_FOUND
        refused = frozenset(thing for thing, _ in self._waiting.values()) & self._asked
        for thing in refused:
            self._wanted.pop(thing, None)
        found = self._answered(refused, failure or UNHEARD)
        # Without what was asked for last the server may agree as before.
        self._asked = frozenset(self._wanted) if self._open else frozenset()
        if refused:
            return found + self._follow()
        deaf = self._deaf if self._open else frozenset(self._lists)
        return [*found, *self._deafened(deaf), *self._rest(now)]

    def torn_down(self, params: Mapping[str, Raw], now: float) -> list[Received[T]]:
        """The server cancels something, which can only be a subscription."""
        request = envelope.identifier(params.get("requestId"))
        if not isinstance(request, int) or not self.is_mine(request):
            return [Stray("unknown_notification", methods.CANCELLED)]
        return self.over(request, None, now)

    def _deafened(self, deaf: frozenset[str]) -> list[Received[T]]:
        """From now on the server tells of all lists but these; of what it may have kept back nobody knows."""
        turned, self._deaf = deaf ^ self._deaf, deaf
        missed = self._lists if self._gap and self._open else [name for name in self._lists if name in turned]
        self._gap = self._gap and not self._open
        return [Changed(what) for name in missed for what in _LISTS[name][1]]

    # What follows ----------------------------------------------------------------------------------------------

    def _subscribe(self, call: int, thing: _Thing, owner: T) -> list[Received[T]]:
        if self._off:
            return [Deliver(owner, UNHEARD)]
        if thing in self._wanted and self._open and not self._sent and thing in self._asked:
            return [Deliver(owner, _EMPTY)]
        self._wanted[thing] = None
        self._waiting[call] = (thing, owner)
        self._resting = False
        return self._follow()

    def _unsubscribe(self, thing: _Thing, owner: T) -> list[Received[T]]:
        self._wanted.pop(thing, None)
        return [Deliver(owner, _EMPTY), *self._answered(frozenset({thing}), _EMPTY), *self._follow()]

    def _follow(self) -> list[Received[T]]:
        """Make what is subscribed what is wanted."""
        if self._sent or self._resting or self._off:
            return []
        wanted = frozenset(self._wanted)
        if not wanted and not self._lists:
            former, self._open = self._open, 0
            return [self._end(former)] if former else []
        if self._open and wanted == self._asked:
            return []
        wants: dict[str, object] = {_LISTS[name][0]: True for name in self._lists}
        for kind, name in self._wanted:
            named = wants.setdefault(kind, [])
            assert isinstance(named, list)
            named.append(name)
        begun = self._begin(wants)
        self._sent, self._asked = begun.request or 0, wanted
        return [begun]

    def _rest(self, now: float) -> list[Received[T]]:
        if self._off:
            return []
        if self._since and now - self._since >= STEADY_AFTER:
            self._failures = 0
        pause = min(FIRST_PAUSE * 2.0**self._failures, LONGEST_PAUSE)
        self._failures = min(self._failures + 1, 8)
        self._resting = True
        return [Later(pause)]

    def _unheard(self) -> list[Received[T]]:
        """Of tasks nobody knows what was missed either: whoever wants to hear of one begins anew."""
        waiting = {thing for thing, _ in self._waiting.values()}
        lost = [thing for thing in self._wanted if thing[0] == TASKS and thing not in waiting]
        for thing in lost:
            del self._wanted[thing]
        return [TaskUnheard(task) for _, task in lost]

    def _answered(self, things: frozenset[_Thing], answer: Result | Failure) -> list[Received[T]]:
        calls = [call for call, (thing, _) in self._waiting.items() if thing in things]
        return [Deliver(self._waiting.pop(call)[1], answer) for call in calls]


def subscription_of(params: Mapping[str, Raw]) -> int | str | None:
    """The subscription that a notification says it belongs to."""
    return envelope.identifier(members(params.get("_meta")).get(SUBSCRIPTION))


def _without_subscription(params: Mapping[str, Raw]) -> dict[str, Raw]:
    found = {name: raw for name, raw in params.items() if name != "_meta"}
    meta = {name: raw for name, raw in members(params.get("_meta")).items() if name != SUBSCRIPTION}
    if meta:
        found["_meta"] = Raw(envelope.encode(meta))
    return found


def _texts(raw: Raw | None) -> frozenset[str]:
    try:
        return frozenset() if raw is None else frozenset(_TEXTS.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return frozenset()


def _is_true(raw: Raw | None) -> bool:
    return raw is not None and bytes(raw) == b"true"
