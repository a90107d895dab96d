"""The five protocol revisions, their eras, what each of them has, and which one two sides agree on.

In the legacy eras two sides agree once, by `initialize`, and a session keeps it. In the modern era there is nothing to
agree on: each request says its revision, and whether it is modern is decided for each request alone (`is_modern`).

Source: MCP basic/lifecycle (version negotiation), basic/transports (`MCP-Protocol-Version`), 2026-07-28
basic/versioning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Raw

from mcpmux.errors import InvalidRequest, MalformedMessage, RevisionUnsupported
from mcpmux.protocol import envelope
from mcpmux.protocol.envelope import Message, Notification, Request
from mcpmux.protocol.methods import DISCOVER, LISTEN

MODERN: Final = "2026-07-28"
LEGACY: Final = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
LATEST_LEGACY: Final = LEGACY[0]

# Spoken over Streamable HTTP; 2024-11-05 has a transport of its own (HTTP+SSE).
STREAMABLE: Final = LEGACY[:3]

# What a client is told that asks for another one, and by `server/discover`: best first.
SERVED: Final = (MODERN, *STREAMABLE)

# The member of `_meta` by which a modern request says its revision.
SAYS_REVISION: Final = "io.modelcontextprotocol/protocolVersion"

# 2025-06-18 basic/transports: without the header a server should assume this one.
ASSUMED: Final = "2025-03-26"


def negotiate(asked: str) -> str:
    """The revision that we answer `initialize` with: the one asked for if we speak it, else our newest."""
    return asked if asked in LEGACY else LATEST_LEGACY


def check_header(header: str | None, agreed: str) -> None:
    """Refuse a `MCP-Protocol-Version` that is not spoken here; an absent one is fine.

    Raises: RevisionUnsupported. Source: 2025-06-18 basic/transports, "Protocol Version Header".
    """
    if header is not None and header != agreed and header not in LEGACY:
        raise RevisionUnsupported(header, LEGACY)


def is_modern(message: Message | list[Message | InvalidRequest], header: str | None, *, in_session: bool) -> bool:
    """Whether one POST belongs to the modern era; `header` is its `MCP-Protocol-Version`.

    What says its revision in `_meta` is modern, `initialize` without that is legacy. Otherwise the header decides: one
    that names no legacy revision is for the modern era to answer, be it only by what is served here. What belongs to a
    legacy session stays in it, unless its header says better.

    Source: 2026-07-28 basic/versioning, "Backward Compatibility with Initialization-Based Versions".
    """
    if in_session and header != MODERN:
        return False
    if not isinstance(message, Request | Notification):
        return header == MODERN
    if _says_revision(message.params):
        return True
    if message.method == "initialize":
        return False
    return message.method in (DISCOVER, LISTEN) or (header is not None and header not in LEGACY)


def has_batches(revision: str) -> bool:
    """Whether JSON-RPC batches exist: in 2025-03-26 alone, which brought them; the next revision took them away."""
    return revision == "2025-03-26"


def has_priming(revision: str) -> bool:
    """Whether a stream begins with an event that holds only an id (2025-11-25); older SDKs choke on empty data."""
    return revision >= "2025-11-25"


def _says_revision(params: Mapping[str, Raw] | None) -> bool:
    meta = (params or {}).get("_meta")
    if meta is None or SAYS_REVISION.encode() not in bytes(meta):
        return False
    try:
        return SAYS_REVISION in envelope.members(meta)
    except (InvalidRequest, MalformedMessage):
        return False
