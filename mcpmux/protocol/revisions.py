"""The five protocol revisions, their eras, what each of them has, and which one two sides agree on.

Source: MCP basic/lifecycle (version negotiation), basic/transports (`MCP-Protocol-Version`), 2026-07-28
basic/versioning.
"""

from __future__ import annotations

from typing import Final

from mcpmux.errors import RevisionUnsupported

MODERN: Final = "2026-07-28"
LEGACY: Final = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
LATEST_LEGACY: Final = LEGACY[0]

# Spoken over Streamable HTTP; 2024-11-05 has a transport of its own (HTTP+SSE).
STREAMABLE: Final = LEGACY[:3]

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


def has_batches(revision: str) -> bool:
    """Whether JSON-RPC batches exist: in 2025-03-26 alone, which brought them; the next revision took them away."""
    return revision == "2025-03-26"


def has_priming(revision: str) -> bool:
    """Whether a stream begins with an event that holds only an id (2025-11-25); older SDKs choke on empty data."""
    return revision >= "2025-11-25"
