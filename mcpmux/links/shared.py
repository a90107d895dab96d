"""Shared: one link for everybody, with so many calls at a time as `concurrency` allows."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from mcpmux.config.schema import Server
from mcpmux.errors import ServerUnavailable
from mcpmux.links.berth import Berth
from mcpmux.links.bulkhead import Bulkhead
from mcpmux.links.fleet import Fleet, Listener
from mcpmux.links.link import Link
from mcpmux.links.supervisor import Fittings, Supervisor
from mcpmux.protocol.abilities import Capabilities


class Shared(Fleet):
    """See the module."""

    __slots__ = ("_berth",)

    def __init__(self, server: Server, fittings: Fittings, listener: Listener) -> None:
        super().__init__(server, fittings, listener)
        bulkhead = Bulkhead(server.id, server.concurrency)
        self.alone = self._berth = Berth(self._supervisor("", bulkhead), bulkhead)

    @property
    def chief(self) -> Supervisor:
        """The only one."""
        return self._berth.supervisor

    def supervisors(self) -> Sequence[Supervisor]:
        """The only one."""
        return (self._berth.supervisor,)

    def ready(self, scope: str) -> Link | None:
        """The link, if it is asked for as everybody's, lives, and has a free seat."""
        return None if scope else self._berth.ready

    def link(self, scope: str, until: float, client: Capabilities) -> Awaitable[Link | None]:
        """See `Fleet`; whoever gives no scope is everybody."""
        if scope:
            raise ServerUnavailable(self.server.id)
        return self._berth.link(until)

    def relieves(self, scope: str, link: Link) -> bool:
        """See `Fleet`."""
        return not scope and self._berth.relieves(link)

    def update(self, server: Server) -> None:
        """Take over a config that leaves the link as it is."""
        self.server = server
        self._berth.update(server)
