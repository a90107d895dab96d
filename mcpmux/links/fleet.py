"""Fleet: the links of one server, for one version of its config; what it looks like is said by `isolation`.

`Shared` has one link for everybody, `Pooled` a few, each lent to one call at a time, `Scoped` one for each scope (a
downstream session; later a user, a tenant) besides one for lists. The pool knows a fleet by what stands here: the
supervisor that speaks for the server (`chief`), a link that is ready, and a link that is waited for.

Rules of the room: a fleet makes supervisors and chooses among them; whatever a link does is its supervisor's. The
address of what everybody shares has no scope: it is where lists, and what outlasts a call, are asked for.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from mcpmux.config.schema import Server
from mcpmux.credentials.scope import LinkKey
from mcpmux.links.berth import Berth
from mcpmux.links.link import Link
from mcpmux.links.seats import Seats
from mcpmux.links.states import State
from mcpmux.links.supervisor import Fittings, Supervisor
from mcpmux.protocol.abilities import Capabilities
from mcpmux.protocol.events import News


class Listener(ABC):
    """Who has fleets, and hears of them: the pool."""

    @abstractmethod
    def moved(self, fleet: Fleet) -> None:
        """One of its links is in another state."""

    @abstractmethod
    def noticed(self, fleet: Fleet, key: LinkKey, what: News | Link | None) -> None:
        """News of the link behind `key`: something of its server's changed, or the link is ready, or (None) gone."""


class Fleet(ABC):
    """See the module."""

    __slots__ = ("_at_work", "_ended", "_fittings", "_known", "_listener", "_retiring", "_seen", "_tasks", "alone",
                 "kept", "server", "since")  # fmt: skip

    def __init__(self, server: Server, fittings: Fittings, listener: Listener) -> None:
        self.server = server
        self.since = time.time()  # when the server came into its state
        self.alone: Berth | None = None  # the one link that serves whoever gives no scope
        self.kept: set[str] = set()  # scopes whose link stays although it is not used
        self._fittings = fittings
        self._listener = listener
        self._tasks: asyncio.TaskGroup | None = None
        self._ended: Callable[[], None] | None = None
        self._at_work = 0  # supervisors whose task has not ended
        self._retiring = False
        self._seen: State | None = None
        self._known: dict[LinkKey, Link] = {}  # the links of their own scope that were told of

    # What each kind answers ------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def chief(self) -> Supervisor:
        """The supervisor whose state is the server's."""

    @abstractmethod
    def supervisors(self) -> Sequence[Supervisor]:
        """All that there are now."""

    @abstractmethod
    def ready(self, scope: str) -> Link | None:
        """The link, if a call can be opened on it this very moment."""

    @abstractmethod
    def link(self, scope: str, until: float, client: Capabilities) -> Awaitable[Link | None]:
        """The link, waiting until loop time `until`; None: something is different, look again.

        `client`: what whoever has this scope can do, for a link that is started now.
        Raises: ServerUnavailable, ServerBusy.
        """

    @abstractmethod
    def relieves(self, scope: str, link: Link) -> bool:
        """Whether one who waits for the link of `scope` may get one when a call on `link` ends."""

    @abstractmethod
    def update(self, server: Server) -> None:
        """Take over a config that leaves the links as they are."""

    # What all have in common -----------------------------------------------------------------------------------

    @property
    def runs(self) -> bool:
        """Whether there is anything to supervise."""
        return self.chief.runs

    @property
    def reason(self) -> str | None:
        """Why the server is not ready, for people."""
        return self.chief.reason

    @property
    def stumbled(self) -> bool:
        """Whether an attempt to make a link has ended."""
        return any(supervisor.stumbled for supervisor in self.supervisors())

    @property
    def lasting(self) -> LinkKey:
        """The address of what outlasts a call, such as a subscription, for whoever has no scope of their own."""
        return LinkKey(self.server.id)

    def counts(self) -> dict[str, int]:
        """How many links are in which state."""
        return Counter(supervisor.state for supervisor in self.supervisors())

    def common(self) -> list[LinkKey]:
        """The addresses of the links that everybody's calls go through."""
        return [LinkKey(self.server.id)]

    def living(self) -> list[LinkKey]:
        """The addresses of all links that live."""
        return [supervisor.key for supervisor in self.supervisors() if supervisor.link is not None]

    def begin(self, tasks: asyncio.TaskGroup, ended: Callable[[], None]) -> None:
        """Start supervising; `ended` is called when, after `retire()`, nothing of this fleet runs any more."""
        self._tasks, self._ended = tasks, ended
        for supervisor in self.supervisors():
            self._start(supervisor)

    def retire(self, drain: float) -> None:
        """End every link for good, after calls in flight have had `drain` seconds. Never waits."""
        self._retiring = True
        for supervisor in self.supervisors():
            supervisor.retire(drain)

    def turn(self) -> None:
        """Let everybody look again who waits for a link."""
        for supervisor in self.supervisors():
            supervisor.turn()

    def end_scope(self, scope: str) -> None:
        """Whoever had this scope is gone: nothing to do where no link is anybody's own."""
        return

    def moved(self, supervisor: Supervisor) -> None:
        """For supervisors: one is in another state."""
        if self.chief.state is not self._seen:
            self._seen = self.chief.state
            self.since = time.time()
        if supervisor.key.scope:
            self._tell_link(supervisor.key, supervisor.link)
        self._listener.moved(self)

    def noticed(self, supervisor: Supervisor, what: News | None) -> None:
        """For supervisors: the server of one said something that is nobody's answer, or has a new session."""
        self._listener.noticed(self, supervisor.key, supervisor.link if what is None else what)

    def _supervisor(self, scope: str, seats: Seats) -> Supervisor:
        return Supervisor(LinkKey(self.server.id, scope), self.server, seats, self._fittings, self)

    def _start(self, supervisor: Supervisor) -> None:
        if self._tasks is not None and supervisor.runs and not self._retiring:
            self._at_work += 1
            supervisor.begin(self._tasks, lambda: self._over(supervisor))

    def _over(self, supervisor: Supervisor) -> None:
        """Nothing of this supervisor runs any more."""
        self._at_work -= 1
        if supervisor.key.scope:
            self._tell_link(supervisor.key, None)
        if not self._at_work and self._retiring and self._ended is not None:
            self._ended()

    def _tell_link(self, key: LinkKey, link: Link | None) -> None:
        if link is self._known.get(key):
            return
        if link is None:
            del self._known[key]
        else:
            self._known[key] = link
        self._listener.noticed(self, key, link)
