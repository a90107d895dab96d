"""Who may share a link: the isolation of a server and its kind of credentials, as the address of the link.

Pure. A link is addressed by its `LinkKey` everywhere, never by an object that another room keeps.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from mcpmux.config.schema import Server
from mcpmux.errors import ServerUnavailable

EVERYBODY: Final = ""
"""The scope of what all callers of a server share: its one link, or any link of a pool."""


class LinkKey(Struct, frozen=True, gc=False):
    """The address of a link: the server's id, and who shares it (an opaque word, empty for everybody)."""

    server: str
    scope: str = EVERYBODY


def link_key(server: Server, principal_key: str, session: str) -> LinkKey:
    """The link that this caller's calls to `server` go through.

    `session` is the id of the downstream session. A request that belongs to none (the modern era has none) counts as a
    session of its own: two requests of one principal may be two people's, where a client has one key for all of them,
    so nothing that one of them left in a server may be there for the other.

    Raises: ServerUnavailable for an isolation that is not built: such a server is `unconfigured`, and if anybody asks
    all the same, nobody may end up on a link that is shared.
    """
    if server.isolation in ("shared", "pooled"):
        return LinkKey(server.id)
    if server.isolation == "session" and session:
        return LinkKey(server.id, session)
    raise ServerUnavailable(server.id)
