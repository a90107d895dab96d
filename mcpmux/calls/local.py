"""What mcpmux answers itself: `initialize` and `ping`.

Source: MCP basic/lifecycle, basic/utilities/ping; design section 3 (`instructions` of an aggregate are ours and
short).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Raw

from mcpmux.access.decision import GrantSet, decide, whole
from mcpmux.catalog.offers import Offers
from mcpmux.catalog.view import Catalog, View
from mcpmux.protocol.envelope import encode

EMPTY: Final = Raw(b"{}")
GREETING_WAIT: Final = 5.0

# On an aggregate all of it may come, now or when grants and servers change.
_EVERYTHING: Final[Mapping[str, object]] = {
    "tools": {"listChanged": True},
    "resources": {"subscribe": True, "listChanged": True},
    "prompts": {"listChanged": True},
    "completions": {},
    "logging": {},
}


class Local:
    """Answers `initialize`."""

    def __init__(self, catalog: Catalog, offers: Offers, version: str) -> None:
        self._catalog = catalog
        self._offers = offers
        self._ours = {"name": "mcpmux", "title": "mcpmux", "version": version}

    async def initialize(self, view: View, grants: GrantSet, revision: str) -> Raw:
        """The result of `initialize`: what this endpoint can do, and for whom it is made."""
        servers = [server for server in self._catalog.servers(view) if decide(grants, whole(server)).allowed]
        answer: dict[str, object] = {"protocolVersion": revision, "capabilities": _EVERYTHING, "serverInfo": self._ours}
        if not view.aggregate:
            await self._offers.settled((view.id,), GREETING_WAIT)
            offer = self._offers.of(view.id)
            if offer is not None:
                answer["capabilities"] = _announced(offer.capabilities)
                answer["serverInfo"] = offer.server_info or self._ours
        instructions = self._catalog.instructions(view, servers)
        if instructions:
            answer["instructions"] = instructions
        return Raw(encode(answer))


def _announced(capabilities: Mapping[str, Raw]) -> dict[str, object]:
    # `listChanged` always: also a change of grants changes a list. What is not bridged yet is not announced.
    return {name: value for name, value in _EVERYTHING.items() if name in capabilities}
