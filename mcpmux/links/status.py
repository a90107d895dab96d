"""What `status` says of one server and its links."""

from __future__ import annotations

from msgspec import Struct

from mcpmux.links.eras import era_of
from mcpmux.links.fleet import Fleet
from mcpmux.links.supervisor import Supervisor


class LinkStatus(Struct, frozen=True):
    """One link; `since` is when it came into this state, in unix seconds. Whose it is, is nobody's business here."""

    state: str
    reason: str | None
    pid: int | None
    restarts: int
    since: float
    in_flight: int


class ServerStatus(Struct, frozen=True):
    """One server; `restarts` and `in_flight` are those of all its links together.

    `era`, `revision` and `pid` are of the link that speaks for it.
    """

    id: str
    title: str
    transport: str
    isolation: str
    state: str
    reason: str | None
    missing: tuple[str, ...]
    era: str | None
    revision: str | None
    pid: int | None
    restarts: int
    since: float
    in_flight: int
    links: tuple[LinkStatus, ...]


def status_of(fleet: Fleet) -> ServerStatus:
    """What there is to say of a fleet now."""
    server, chief = fleet.server, fleet.chief
    link = chief.link
    greeting = link.greeting if link is not None else None
    links = tuple(_link(supervisor) for supervisor in fleet.supervisors() if supervisor.runs)
    return ServerStatus(
        id=server.id,
        title=server.title or server.id,
        transport=server.transport,
        isolation=server.isolation,
        state=chief.state,
        reason=fleet.reason,
        missing=server.missing,
        era=None if greeting is None else era_of(greeting.protocol_version),
        revision=None if greeting is None else greeting.protocol_version,
        pid=None if link is None else link.pid,
        restarts=sum(each.restarts for each in links),
        since=fleet.since,
        in_flight=sum(each.in_flight for each in links),
        links=links,
    )


def _link(supervisor: Supervisor) -> LinkStatus:
    link = supervisor.link
    return LinkStatus(
        state=supervisor.state,
        reason=supervisor.reason,
        pid=None if link is None else link.pid,
        restarts=supervisor.restarts,
        since=supervisor.since,
        in_flight=supervisor.seats.taken,
    )
