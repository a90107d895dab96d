"""What happens to links, for whoever wants to know: one feed for each consumer, bounded, the newest word on a thing.

Nobody is called back: a consumer iterates its feed. What it has not taken yet is replaced by what is newer on the same
thing, so a slow consumer misses nothing that still matters, and holds up nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from msgspec import Raw, Struct

from mcpmux.credentials.scope import LinkKey
from mcpmux.protocol.events import Offered

MAX_PENDING: Final = 4096


class LinkReady(Struct, frozen=True):
    """Calls can be opened; whatever was known of the link before (lists, subscriptions) has to be made anew."""

    server: str
    key: LinkKey


class LinkGone(Struct, frozen=True):
    """The link has ended and none has taken its place yet."""

    server: str
    key: LinkKey


class StateChanged(Struct, frozen=True):
    """The server is in another state (a word of `states.State`); `removed`: it is in the config no more."""

    server: str
    state: str
    removed: bool = False


class OfferChanged(Struct, frozen=True):
    """The server says that a list of its own has changed."""

    server: str
    key: LinkKey
    what: Offered


class ResourceUpdated(Struct, frozen=True):
    """A subscribed resource has changed; `uri` as the server knows it."""

    server: str
    key: LinkKey
    uri: str
    params: Raw


class ElicitationCompleted(Struct, frozen=True):
    """What a person had to do at a URL is done, after the call in which the server asked for it."""

    server: str
    key: LinkKey
    elicitation: str
    params: dict[str, Raw]


class TaskChanged(Struct, frozen=True):
    """How a task stands; `task` and `params` as the server has them."""

    server: str
    key: LinkKey
    task: str
    params: dict[str, Raw]


class TaskMissed(Struct, frozen=True):
    """News of this task may have been missed, and there will be none any more."""

    server: str
    key: LinkKey
    task: str


class TaskMoved(Struct, frozen=True):
    """Progress of a task; `params` as the server has them, without the progress token."""

    server: str
    key: LinkKey
    task: str
    params: dict[str, Raw]


LinkChange = (
    LinkReady
    | LinkGone
    | StateChanged
    | OfferChanged
    | ResourceUpdated
    | ElicitationCompleted
    | TaskChanged
    | TaskMoved
    | TaskMissed
)


class ChangeFeed(AsyncIterator[LinkChange]):
    """One consumer's changes, in order; it never ends by itself."""

    __slots__ = ("__weakref__", "_news", "_pending")

    def __init__(self) -> None:
        self._pending: dict[tuple[object, ...], LinkChange] = {}
        self._news = asyncio.Event()

    def put(self, change: LinkChange) -> None:
        """Add a change; what it makes obsolete goes."""
        thing = _thing(change)
        self._pending.pop(thing, None)
        if len(self._pending) >= MAX_PENDING:
            # Only these can be that many: whoever is that slow reads the resources anew sooner or later.
            many = (old for old in self._pending if old[0] in ("uri", "elicitation", "task", "progress", "missed"))
            del self._pending[next(many, next(iter(self._pending)))]
        self._pending[thing] = change
        self._news.set()

    async def __anext__(self) -> LinkChange:
        while not self._pending:
            self._news.clear()
            await self._news.wait()
        return self._pending.pop(next(iter(self._pending)))


def _thing(change: LinkChange) -> tuple[object, ...]:
    match change:
        case LinkReady() | LinkGone():
            return "link", change.key
        case StateChanged():
            return "state", change.server
        case OfferChanged():
            return "offer", change.key, change.what
        case ResourceUpdated():
            return "uri", change.key, change.uri
        case ElicitationCompleted():
            return "elicitation", change.key, change.elicitation
        case TaskChanged():
            return "task", change.key, change.task
        case TaskMoved():
            return "progress", change.key, change.task
        case TaskMissed():
            return "missed", change.key, change.task
