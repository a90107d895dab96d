"""The handshake with a legacy server: what `initialize` says, what its answer says, and what follows from that.

Source: MCP basic/lifecycle.
"""

from __future__ import annotations

from typing import Final

from msgspec import Raw

from mcpmux.errors import InvalidRequest, MalformedMessage
from mcpmux.protocol import abilities, envelope, methods, tasks
from mcpmux.protocol.abilities import Capabilities
from mcpmux.protocol.envelope import Reply
from mcpmux.protocol.revisions import LEGACY
from mcpmux.protocol.upstream.received import Greeting, Unwelcome

# Asked for a revision that they don't speak, servers answer with one of these instead of naming another.
_REVISION_REFUSED: Final = frozenset({-32602, -32600, -32603, -32000})
_EMPTY: Final = Raw(b"{}")


def initialize(revision: str, version: str, capabilities: Capabilities) -> dict[str, Raw]:
    """The params of `initialize`; `version` is ours."""
    return {
        "protocolVersion": Raw(envelope.encode(revision)),
        "capabilities": Raw(envelope.encode(tasks.extended(abilities.announced(capabilities, revision), False))),
        "clientInfo": Raw(envelope.encode({"name": "mcpmux", "version": version})),
    }


def read(result: Raw) -> Greeting | Unwelcome:
    """What a server answered to `initialize`."""
    try:
        found = envelope.members(result)
    except (InvalidRequest, MalformedMessage):
        return Unwelcome("its answer to initialize is not an object")
    revision = envelope.text(found.get("protocolVersion"))
    if revision not in LEGACY:
        return Unwelcome(f"it speaks protocol version {revision or '(none)'!s:.40}, which is not spoken here")
    return Greeting(
        revision,
        members(found.get("capabilities")),
        found.get("serverInfo", _EMPTY),
        envelope.text(found.get("instructions")),
    )


def older(refusal: Reply, asked: str) -> str | None:
    """The revision to ask for next, if the one `asked` for can be the reason for this refusal."""
    named = [revision for revision in LEGACY if _names(refusal.data, revision)]
    left = [revision for revision in named or LEGACY if revision < asked]
    return left[0] if refusal.code in _REVISION_REFUSED and left else None


def not_announced(greeting: Greeting) -> frozenset[str]:
    """The methods that need what the server did not announce."""
    announced = {name for name, value in greeting.capabilities.items() if bytes(value) not in (b"null", b"false")}
    absent = {
        method.name for method in methods.REQUESTS.values() if method.capability and method.capability not in announced
    }
    if greeting.protocol_version == LEGACY[-1]:
        absent.discard("completion/complete")  # 2024-11-05 had completion, but no capability for it
    if "logging" not in announced:
        absent.add("logging/setLevel")
    resources = members(greeting.capabilities.get("resources"))
    if bytes(resources.get("subscribe", b"")) != b"true":
        absent |= {"resources/subscribe", "resources/unsubscribe"}
    return frozenset(absent)


def members(raw: Raw | None) -> dict[str, Raw]:
    """The members of an object; none of anything else."""
    try:
        return {} if raw is None else envelope.members(raw)
    except (InvalidRequest, MalformedMessage):
        return {}


def _names(data: Raw | None, revision: str) -> bool:
    return data is not None and b'"%b"' % revision.encode() in bytes(data)
