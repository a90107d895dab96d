"""Pooled: a few warm links, each lent to one call at a time, for servers that keep nothing between calls.

Whatever a server says while it has one call, and no other, belongs to that call for certain: so it may ask, log and
report progress on warm, shared processes. One link starts first and the others follow when it is ready: a server that
cannot start is tried once at a time, and `npx` and `uvx` fill their caches before they are run side by side. From then
on each link has its own life: one that dies is restarted, with its own backoff, while the others serve.

The server is as well as its best link. What outlasts a call (a subscription) lives on the link of the chief.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mcpmux.config.schema import Server
from mcpmux.credentials.scope import LinkKey
from mcpmux.errors import ServerBusy, ServerUnavailable
from mcpmux.links.fleet import Fleet, Listener
from mcpmux.links.lending import Desk
from mcpmux.links.link import Link
from mcpmux.links.states import State
from mcpmux.links.supervisor import Fittings, Supervisor
from mcpmux.protocol.abilities import Capabilities
from mcpmux.protocol.events import Completed, News

_BEST_FIRST: Final = (
    State.READY, State.DEGRADED, State.STARTING, State.FAILED, State.DRAINING, State.UNCONFIGURED, State.DISABLED
)  # fmt: skip


class Pooled(Fleet):
    """See the module."""

    __slots__ = ("_chief", "_desk", "_members")

    def __init__(self, server: Server, fittings: Fittings, listener: Listener) -> None:
        super().__init__(server, fittings, listener)
        self._desk = Desk(server.id)
        self._members: list[Supervisor] = []
        self._chief = self._joined()

    @property
    def chief(self) -> Supervisor:
        """The best one; it stays the same as long as none is better."""
        return self._chief

    @property
    def reason(self) -> str | None:
        """Why the server is not ready, or not with all its links."""
        well = sum(member.ready is not None for member in self._members)
        problem = next((member.reason for member in self._members if member.reason), None)
        if not well or well >= self.server.links:
            return problem
        return f"{well} of {self.server.links} links are ready" + (f": {problem}" if problem else "")

    @property
    def lasting(self) -> LinkKey:
        """The address of what outlasts a call: the chief's link."""
        return self._chief.key

    def common(self) -> list[LinkKey]:
        """Those links that live."""
        return self.living()

    def supervisors(self) -> Sequence[Supervisor]:
        """Those that have joined so far."""
        return self._members

    def ready(self, scope: str) -> Link | None:
        """A link that is free, or the free one of `scope`."""
        return self._desk.ready(scope)

    async def link(self, scope: str, until: float, client: Capabilities) -> Link | None:
        """See `Fleet`; `scope` empty: any of the links."""
        meant = [member for member in self._members if not scope or member.key.scope == scope]
        if not any(member.hopeful for member in meant):
            raise ServerUnavailable(self.server.id, self._chief.retry_after)
        for member in meant:
            member.wanted = member.ready is None
        try:
            return await self._desk.lend(scope, until)
        except ServerBusy:
            if any(member.ready is not None for member in meant):
                raise
            raise ServerUnavailable(self.server.id, self._chief.retry_after) from None

    def relieves(self, scope: str, link: Link) -> bool:
        """See `Fleet`; `scope` empty: any of the links."""
        return self._desk.relieves(scope, link)

    def update(self, server: Server) -> None:
        """Take over a config that leaves the links as they are."""
        self.server = server
        for member in self._members:
            member.server = server

    def turn(self) -> None:
        """Let everybody look again who waits for a link."""
        super().turn()
        self._desk.scatter()

    def moved(self, supervisor: Supervisor) -> None:
        """For supervisors: one is in another state."""
        best = min(self._members, key=lambda member: _BEST_FIRST.index(member.state))
        if best.state is not self._chief.state:
            self._chief = best
        if supervisor.ready is not None:
            self._complete()
        if any(member.hopeful for member in self._members):
            self._desk.look()
        else:
            self._desk.scatter()
        super().moved(supervisor)

    def noticed(self, supervisor: Supervisor, what: News | None) -> None:
        """For supervisors: what one link's server says of itself is true of them all; an elicitation is its own."""
        everybody = LinkKey(self.server.id)
        if what is not None:
            self._listener.noticed(self, supervisor.key if isinstance(what, Completed) else everybody, what)
            return
        super().noticed(supervisor, None)
        if supervisor is self._chief:
            self._listener.noticed(self, everybody, supervisor.link)

    def _joined(self) -> Supervisor:
        loan = self._desk.loan()
        member = loan.supervisor = self._supervisor(f"pooled {len(self._members) + 1}", loan)
        self._members.append(member)
        return member

    def _complete(self) -> None:
        """One is ready: let the others start."""
        while len(self._members) < self.server.links and not self._retiring:
            self._start(self._joined())
