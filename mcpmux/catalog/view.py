"""Catalog: the servers that one endpoint shows, their lists in one order, and what a name on it leads to.

Owns what *exists* on an endpoint; who may see it is `access/decision.py`'s, and the rooms above ask that for every
server and item they get from here. In particular an endpoint of one tenant shows every server: which of them belong
to the tenant, the grants know. A server that is disabled or unconfigured exists on no endpoint.

An aggregate (`View.aggregate`) shows public names, the endpoint of one server its native ones. What is shown changes
only when `serial` does, so whatever is made of it can be kept until then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from msgspec import Struct

from mcpmux.catalog.changes import Broadcast, Mailbox
from mcpmux.catalog.items import Item, Offer
from mcpmux.catalog.names import split_name, split_uri
from mcpmux.catalog.offers import Offers
from mcpmux.config.schema import Server
from mcpmux.protocol.events import Offered
from mcpmux.protocol.methods import Subject

MOST_INSTRUCTIONS: Final = 2048  # bytes: clients put them into every chat's prompt

_NOTHING: Final = "No servers are available to you here. Ask your administrator for access."
_HEAD: Final = "Tools of these servers, each named <server>__<tool>:"

# Where a name of this subject is looked up.
_LISTED: Final[Mapping[Subject, tuple[Offered, ...]]] = {
    Subject.TOOL: (Offered.TOOLS,),
    Subject.PROMPT: (Offered.PROMPTS,),
    Subject.RESOURCE: (Offered.RESOURCES, Offered.TEMPLATES),
}


class View(Struct, frozen=True, gc=False):
    """What one endpoint shows, before grants: all servers, one server (`id`), or one tenant's (`id`)."""

    kind: Literal["all", "server", "tenant"]
    id: str = ""

    @property
    def aggregate(self) -> bool:
        """Whether names carry their server's prefix here."""
        return self.kind != "server"


@dataclass(frozen=True, slots=True)
class Found:
    """What a name leads to: a server, and the name as that server knows it.

    `item` is its entry in the server's list; a resource needs none. `pending`: the server has not said yet what it
    offers, so nobody knows whether there is such a thing, and `native` is only what stands behind the prefix.
    `awaited`: its call may be a task at the server although its client wants none.
    """

    server: Server
    native: str
    item: Item | None
    pending: bool = False
    awaited: bool = False


class Catalog:
    """What exists on every endpoint."""

    def __init__(self, offers: Offers) -> None:
        self._offers = offers
        self._servers: dict[str, Server] = {}
        self._applied = 0
        self._changed: Broadcast[str] = Broadcast()
        self._entries: dict[Offered, tuple[Item, ...]] = {}
        self._entries_serial = -1

    def apply(self, servers: Mapping[str, Server]) -> None:
        """Show these servers from now on, as far as they are enabled and configured."""
        usable = {id: servers[id] for id in sorted(servers) if servers[id].enabled and not servers[id].unconfigured}
        if usable != self._servers:
            self._servers = usable
            self._applied += 1
            self._changed.tell("")

    @property
    def serial(self) -> int:
        """Grows with every change that can change any list."""
        return self._applied + self._offers.serial

    def servers(self, view: View) -> tuple[Server, ...]:
        """The servers of an endpoint, by id."""
        if view.aggregate:
            return tuple(self._servers.values())
        server = self._servers.get(view.id)
        return () if server is None else (server,)

    def server(self, id: str) -> Server | None:
        """The server of this id, if it is enabled and configured."""
        return self._servers.get(id)

    def entries(self, view: View, what: Offered) -> tuple[Item, ...]:
        """One list of an endpoint: by server, and within one in its own order.

        A server that is starting, restarting or degraded shows what it last offered, one that has failed nothing.
        """
        if not view.aggregate:
            return tuple(item for server in self.servers(view) for item in self._of(server, what) or ())
        if self._entries_serial != self.serial:
            self._entries = {}
            self._entries_serial = self.serial
        if (known := self._entries.get(what)) is None:
            known = tuple(item for server in self._servers.values() for item in self._of(server, what) or ())
            self._entries[what] = known
        return known

    def lacking(self, view: View, what: Offered) -> tuple[Server, ...]:
        """The servers that `entries` leaves out, because they have failed or their list has never been had."""
        return tuple(server for server in self.servers(view) if self._of(server, what) is None)

    def find(self, view: View, subject: Subject, name: str) -> Found | None:
        """What `name`, a tool, prompt or resource (template), leads to on this endpoint; None if to nothing.

        A resource is found by its server alone: what it may read, the server knows. A `REFERENCE` is asked for as
        what it refers to (`rewrite.reference`).
        """
        split = self._split(view, subject, name)
        server = None if split is None else self._servers.get(split[0])
        if split is None or server is None:
            return None
        offer = self._offers.of(server.id)
        item = None if offer is None else _item(offer, view, _LISTED[subject], name)
        if item is not None:
            awaited = subject is Subject.TOOL and offer is not None and offer.awaited(item)
            return Found(server, item.native, item, awaited=awaited)
        if subject is Subject.RESOURCE:
            return Found(server, split[1], None)
        known = offer is not None and all(what in offer.items for what in _LISTED[subject])
        return None if known else Found(server, split[1], None, pending=True)

    def instructions(self, view: View, servers: Sequence[Server]) -> str | None:
        """What a client is told about an endpoint of which the caller may use `servers`; at most 2 KB if it is ours."""
        if not view.aggregate:
            offer = self._offers.of(view.id)
            return None if offer is None else offer.instructions
        if not servers:
            return _NOTHING
        return _told([_line(server) for server in servers]) or _told([f"- {server.id}" for server in servers]) or (
            f"Tools of {len(servers)} servers, each named <server>__<tool>."
        )  # fmt: skip

    def changes(self) -> AsyncIterator[None]:
        """One for each time that `serial` has grown, from now on, several at once as one; for one consumer."""
        news: Mailbox[str] = Mailbox()
        self._changed.follow(news)
        self._offers.follow(news)
        return _every(news)

    def _of(self, server: Server, what: Offered) -> tuple[Item, ...] | None:
        offer = self._offers.of(server.id)
        return None if offer is None or self._offers.failed(server.id) else offer.items.get(what)

    def _split(self, view: View, subject: Subject, name: str) -> tuple[str, str] | None:
        if not view.aggregate:
            return view.id, name
        return split_uri(name, self._servers) if subject is Subject.RESOURCE else split_name(name, self._servers)


def _item(offer: Offer, view: View, lists: tuple[Offered, ...], name: str) -> Item | None:
    look_up = offer.public if view.aggregate else offer.native
    return next((item for what in lists if (item := look_up(what, name)) is not None), None)


def _told(lines: Sequence[str]) -> str | None:
    """The instructions of an aggregate, None if they would be too long."""
    whole = "\n".join((_HEAD, *lines))
    return whole if len(whole.encode()) <= MOST_INSTRUCTIONS else None


def _line(server: Server) -> str:
    # A title is a person's text in the config: no line of it may pass for one of ours.
    title = " ".join(server.title.split())
    return f"- {server.id}: {title}" if title and title != server.id else f"- {server.id}"


async def _every(news: Mailbox[str]) -> AsyncIterator[None]:
    while True:
        await news.take_all()
        yield None
