"""What mcpmux answers itself: `initialize`, in the modern era `server/discover`, and `ping`.

Clients of the modern era ask anew in every chat, so that answer is kept like a list: one for each pair of view and
grants, until the catalog changes.
Source: MCP basic/lifecycle, basic/utilities/ping, 2026-07-28 server/discover; design section 3 (`instructions` of an
aggregate are ours and short).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw, Struct

from mcpmux.access.decision import GrantSet, decide, whole
from mcpmux.calls.tasks import Tasks
from mcpmux.catalog.offers import Offers
from mcpmux.catalog.view import Catalog, View
from mcpmux.config.schema import Server
from mcpmux.protocol.downstream.modern import SERVER, Signature
from mcpmux.protocol.envelope import encode
from mcpmux.protocol.revisions import SERVED
from mcpmux.protocol.tasks import CAPABILITY, EXTENSIONS, SINCE, extended

EMPTY: Final = Raw(b"{}")
GREETING_WAIT: Final = 5.0
KEPT_ANSWERS: Final = 2048

# On an aggregate all of it may come, now or when grants and servers change.
_EVERYTHING: Final[Mapping[str, object]] = {
    "tools": {"listChanged": True},
    "resources": {"subscribe": True, "listChanged": True},
    "prompts": {"listChanged": True},
    "completions": {},
    "logging": {},
}


class _Identity(Struct, omit_defaults=True):
    """What the schema wants of a server that says who it is, and its title; icons are too long to be said each time."""

    name: str
    version: str
    title: str | None = None


_IDENTITY: Final = msgspec.json.Decoder(_Identity)


class Local:
    """Answers `initialize` and `server/discover`."""

    def __init__(self, catalog: Catalog, offers: Offers, tasks: Tasks, version: str) -> None:
        self._catalog = catalog
        self._offers = offers
        self._tasks = tasks
        self._ours = {"name": "mcpmux", "title": "mcpmux", "version": version}
        self._identity = Raw(encode(self._ours))
        self._signature = Signature(Raw(encode(self._ours)), replaces=True)
        self._signatures: dict[str, tuple[Raw, Signature]] = {}  # by server, with what it says itself
        self._kept: dict[tuple[View, str], Raw] = {}
        self._serial = -1

    async def initialize(self, view: View, grants: GrantSet, revision: str) -> Raw:
        """The result of `initialize`: what this endpoint can do, and for whom it is made."""
        servers = self._usable(view, grants)
        capabilities, identity = _EVERYTHING, self._identity
        if not view.aggregate:
            await self._offers.settled((view.id,), GREETING_WAIT)
            offer = self._offers.of(view.id)
            if offer is not None:
                capabilities, identity = _announced(offer.capabilities), offer.server_info or self._identity
        tasks = self._tasks.capability(servers) if revision >= SINCE else None
        if tasks is not None:
            capabilities = {**capabilities, "tasks": tasks}
        answer = {"protocolVersion": revision, "capabilities": capabilities, "serverInfo": identity}
        instructions = self._catalog.instructions(view, servers)
        if instructions:
            answer["instructions"] = instructions
        return Raw(encode(answer))

    async def discover(self, view: View, grants: GrantSet) -> Raw:
        """The result of `server/discover`, without what every result of the modern era has."""
        if not view.aggregate:
            await self._offers.settled((view.id,), GREETING_WAIT)
        if self._serial != self._catalog.serial or len(self._kept) >= KEPT_ANSWERS:
            self._serial = self._catalog.serial
            self._kept.clear()
        key = (view, grants.fingerprint)
        answer = self._kept.get(key)
        if answer is None:
            answer = self._kept[key] = self._discovered(view, grants)
        return answer

    def signature(self, view: View) -> Signature:
        """Who answers on this endpoint: its server, if one is known that says who it is, or we."""
        offer = None if view.aggregate else self._offers.of(view.id)
        said = None if offer is None else offer.server_info
        if said is None:
            return self._signature
        former, found = self._signatures.get(view.id, (None, self._signature))
        if former is not said:
            read = _identity(said)
            found = self._signature if read is None else Signature(Raw(encode(read)), replaces=False)
            self._signatures[view.id] = (said, found)
        return found

    def _discovered(self, view: View, grants: GrantSet) -> Raw:
        offer = None if view.aggregate else self._offers.of(view.id)
        identity: object = self._ours
        if offer is not None and offer.server_info is not None and _identity(offer.server_info) is not None:
            identity = offer.server_info
        servers = self._usable(view, grants)
        knows = self._tasks.extended(servers)
        if offer is None:
            capabilities = {**_EVERYTHING, **CAPABILITY} if knows else _EVERYTHING
        else:
            capabilities = _announced(offer.capabilities, knows)
        answer: dict[str, object] = {
            "supportedVersions": SERVED,
            "capabilities": capabilities,
            "_meta": {SERVER: identity},
        }
        instructions = self._catalog.instructions(view, servers)
        if instructions:
            answer["instructions"] = instructions
        return Raw(encode(answer))

    def _usable(self, view: View, grants: GrantSet) -> list[Server]:
        return [server for server in self._catalog.servers(view) if decide(grants, whole(server)).allowed]


def _identity(raw: Raw) -> _Identity | None:
    try:
        return _IDENTITY.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _announced(capabilities: Mapping[str, Raw], tasks: bool = False) -> dict[str, object]:
    # `listChanged` always: also a change of grants changes a list. What is not bridged is not announced, and extensions
    # pass untouched, but for tasks, which are ours to announce.
    known: dict[str, object] = {name: value for name, value in _EVERYTHING.items() if name in capabilities}
    extensions = extended(capabilities, tasks).get(EXTENSIONS)
    return known if extensions is None else {**known, EXTENSIONS: extensions}
