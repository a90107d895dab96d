"""Berth: a link that several calls use at a time, with its seats; waiting for a start and for a seat in one."""

from __future__ import annotations

from mcpmux.config.schema import Server
from mcpmux.links.bulkhead import Bulkhead
from mcpmux.links.link import Link
from mcpmux.links.supervisor import Supervisor


class Berth:
    """One supervisor and the bulkhead of its link."""

    __slots__ = ("bulkhead", "supervisor")

    def __init__(self, supervisor: Supervisor, bulkhead: Bulkhead) -> None:
        self.supervisor = supervisor
        self.bulkhead = bulkhead

    @property
    def ready(self) -> Link | None:
        """The link, if a call can be opened on it this very moment."""
        return self.supervisor.ready if self.bulkhead.free else None

    async def link(self, until: float) -> Link | None:
        """The link with a free seat, which the caller takes at once; None: something is different, look again.

        Raises: ServerUnavailable, ServerBusy.
        """
        if self.supervisor.ready is None:
            await self.supervisor.turned(until)
            return None
        await self.bulkhead.seat(until)
        return self.supervisor.ready

    def relieves(self, link: Link) -> bool:
        """Whether it is this link that calls wait for, and for a seat alone."""
        return link is self.supervisor.ready and not self.bulkhead.free

    def update(self, server: Server) -> None:
        """Take over a config that leaves the link as it is."""
        self.supervisor.server = server
        self.bulkhead.resize(server.concurrency)
