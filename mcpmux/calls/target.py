"""What `decide()` is asked about the thing that a request names. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mcpmux.access.decision import Kind, Target
from mcpmux.catalog.view import Catalog, Found, View
from mcpmux.config.schema import Server
from mcpmux.protocol.methods import Subject

_KINDS: Final[Mapping[Subject, Kind]] = {
    Subject.TOOL: "tool",
    Subject.PROMPT: "prompt",
    Subject.RESOURCE: "resource",
}


def of_found(found: Found, subject: Subject) -> Target:
    """One thing of a server, as the catalog found it."""
    server, read_only = found.server, found.item is not None and found.item.read_only
    return Target(server.id, server.enabled, _KINDS[subject], found.native, read_only, server.tools)


def of_tool(catalog: Catalog, server: Server, native: str) -> Target:
    """A tool that was called before; one that is not offered any more counts as one that writes."""
    found = catalog.find(View("server", server.id), Subject.TOOL, native)
    return of_found(Found(server, native, None if found is None else found.item), Subject.TOOL)
