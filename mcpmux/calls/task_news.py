"""Who hears how tasks of the modern era stand: the `taskIds` of open subscriptions.

A server tells of a task only on a subscription that names it, so the first who wants to hear has it named in the link's
own, and the last one who leaves takes it out. What cannot be heard any more, because the link that was told is gone or
its server has ended the link's own subscription, is said by ending the subscriptions that it was promised to: whoever
still wants to know begins another, or polls. A server of 2025-11-25 tells of every task, but not all that is to be told
here: so the task is looked at then.
Source: the extension io.modelcontextprotocol/tasks (SEP-2663).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec import Raw, Struct

from mcpmux.calls.errand import is_modern
from mcpmux.credentials.scope import LinkKey
from mcpmux.errors import MuxError
from mcpmux.links.link import Link
from mcpmux.links.pool import Pool
from mcpmux.protocol import envelope
from mcpmux.protocol.events import Opening
from mcpmux.protocol.methods import TASK_UNSUBSCRIBE
from mcpmux.protocol.upstream.attribution import OURSELVES

if TYPE_CHECKING:
    from mcpmux.calls.errand import Errand

_Place = tuple[LinkKey, str]  # where, and the task as its server names it


class Hearer(Struct, frozen=True):
    """One subscription that hears of one task: how its client names it, and the link that was asked.

    `crosses`: the server says less of its task than the client is to hear.
    """

    listen: str
    sealed: str
    tool: str
    life: str
    crosses: bool


class TaskNews:
    """The table of who hears of what."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._hearers: dict[_Place, dict[str, Hearer]] = {}  # by the id of the subscription

    def __len__(self) -> int:
        return sum(map(len, self._hearers.values()))

    def add(self, errand: Errand, link: Link) -> None:
        """A subscription wants to hear of a task, which this link is being asked for."""
        hearer = Hearer(errand.caller.session, errand.sealed, errand.tool, link.life, not is_modern(link))
        self._hearers.setdefault((link.key, errand.task), {})[hearer.listen] = hearer

    def remove(self, listen: str, key: LinkKey, task: str) -> None:
        """A subscription does not hear of a task, or not any more."""
        found = self._hearers.get((key, task), {})
        if found.pop(listen, None) is not None and not found:
            del self._hearers[key, task]
            self._unsubscribe(key, task)

    def leave(self, listen: str) -> None:
        """A subscription has ended."""
        for key, task in [place for place, found in self._hearers.items() if listen in found]:
            self.remove(listen, key, task)

    def of(self, key: LinkKey, task: str) -> Iterator[Hearer]:
        """Who hears of a task."""
        return iter(tuple(self._hearers.get((key, task), {}).values()))

    def over(self, key: LinkKey, task: str) -> None:
        """A task can say nothing more."""
        self._hearers.pop((key, task), None)

    def missed(self, key: LinkKey, task: str) -> list[Hearer]:
        """Whoever was to hear of a task by a link that does not any more."""
        return list(self._hearers.pop((key, task), {}).values())

    def lost(self, key: LinkKey) -> list[Hearer]:
        """Whoever was to hear of tasks by a link that stands at this address no more."""
        link = self._pool.ready(key)
        life = "" if link is None else link.life
        found = [
            (place, hearer)
            for place, hearers in self._hearers.items()
            for hearer in hearers.values()
            if place[0] == key and hearer.life != life
        ]
        for place, hearer in found:
            hearers = self._hearers[place]
            del hearers[hearer.listen]
            if not hearers:
                del self._hearers[place]
        return [hearer for _, hearer in found]

    def _unsubscribe(self, key: LinkKey, task: str) -> None:
        link = self._pool.ready(key)
        if link is None or not is_modern(link):
            return  # an older server tells of all its tasks of its own accord
        # Nothing is waited for: the next subscription of the link is without it.
        with suppress(MuxError):
            link.open(Opening(TASK_UNSUBSCRIBE, {"taskId": Raw(envelope.encode(task))}, OURSELVES))
