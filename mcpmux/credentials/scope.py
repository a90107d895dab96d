"""Who may share a link: the isolation of a server and its kind of credentials, as the address of the link.

Pure. A link is addressed by its `LinkKey` everywhere, never by an object that another room keeps.
"""

from __future__ import annotations

from msgspec import Struct

from mcpmux.config.schema import Server
from mcpmux.errors import ServerUnavailable

SHARED = ""
"""The scope of the one link that all callers of a server share."""


class LinkKey(Struct, frozen=True, gc=False):
    """The address of a link: the server's id, and who shares it (an opaque word, empty for everybody)."""

    server: str
    scope: str = SHARED


def link_key(server: Server, principal_key: str, session: str | None) -> LinkKey:
    """The link that this caller's calls to `server` go through.

    Raises: ServerUnavailable for an isolation that is not built: such a server is `unconfigured`, and if anybody asks
    all the same, nobody may end up on a link that is shared.
    """
    if server.isolation != "shared":
        raise ServerUnavailable(server.id)
    return LinkKey(server.id)
