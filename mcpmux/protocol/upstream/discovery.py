"""The greeting of a modern server: what every request says of us, and what `server/discover` and its answer say.

A legacy server answers `server/discover` with some error, or with something that is no answer to it; a modern one that
does not speak our revision says which ones it speaks instead.

Source: MCP 2026-07-28 basic/versioning, basic/transports/stdio ("Backward Compatibility"), server/discover, basic
(`_meta`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw

from mcpmux.protocol import abilities, envelope, methods, tasks
from mcpmux.protocol.envelope import Reply
from mcpmux.protocol.events import Opening
from mcpmux.protocol.revisions import LEGACY, MODERN, SAYS_REVISION
from mcpmux.protocol.upstream.greeting import members, not_announced
from mcpmux.protocol.upstream.received import Greeting, Outdated, Unwelcome

CLIENT_INFO: Final = "io.modelcontextprotocol/clientInfo"
CLIENT_CAPABILITIES: Final = "io.modelcontextprotocol/clientCapabilities"
LOG_LEVEL: Final = "io.modelcontextprotocol/logLevel"
SERVER_INFO: Final = "io.modelcontextprotocol/serverInfo"
PROGRESS_TOKEN: Final = "progressToken"  # noqa: S105 (no credential)

# What only a server of this era answers, if with the data that belongs to it.
CAPABILITY_MISSING: Final = -32021
UNSUPPORTED: Final = -32022

_SHOWN: Final = 200
_EMPTY: Final = Raw(b"{}")
_REVISION: Final = Raw(envelope.encode(MODERN))
_TEXTS: Final = msgspec.json.Decoder(list[str])


class Sayings:
    """What requests say of themselves in `_meta`; `version` is ours."""

    __slots__ = ("_client", "_client_info", "_declared")

    def __init__(self, version: str) -> None:
        self._client_info = Raw(envelope.encode({"name": "mcpmux", "version": version}))
        self._client: Mapping[str, Raw] | None = None  # the last one, whose capabilities are `_declared`
        self._declared = _EMPTY

    def said(self, opening: Opening, params: Mapping[str, Raw] | None, token: int) -> dict[str, Raw]:
        """The params of a request, with what goes into `_meta`; `token` is that of its progress."""
        found = dict(params or {})
        meta = members(found.get("_meta"))
        for name in (PROGRESS_TOKEN, LOG_LEVEL):
            meta.pop(name, None)
        meta[SAYS_REVISION] = _REVISION
        meta[CLIENT_INFO] = self._client_info
        known = self._capabilities(opening.client)
        meta[CLIENT_CAPABILITIES] = (
            Raw(envelope.encode(tasks.extended(members(known), True))) if opening.task else known
        )
        if opening.log_level is not None:
            meta[LOG_LEVEL] = Raw(envelope.encode(opening.log_level))
        if opening.wants_progress:
            meta[PROGRESS_TOKEN] = Raw(b"%d" % token)
        found["_meta"] = Raw(envelope.encode(meta))
        return found

    def _capabilities(self, client: Mapping[str, Raw]) -> Raw:
        # Most calls in a row are of one client, or of clients that share one set.
        if client is not self._client:
            self._client, self._declared = client, Raw(envelope.encode(declared(client)))
        return self._declared


def declared(client: Mapping[str, Raw]) -> dict[str, Raw]:
    """The capabilities of a client as this era has them, without tasks, which only some calls can become."""
    found = abilities.announced(client, MODERN)
    if "roots" in found:
        found["roots"] = _EMPTY  # nobody is told any more that they changed
    return tasks.extended(found, False)


def read(reply: Reply) -> Greeting | Outdated | Unwelcome:
    """What a server answered to `server/discover`."""
    if reply.result is None:
        return _refused(reply)
    found = members(reply.result)
    supported = _texts(found.get("supportedVersions"))
    if MODERN in supported:
        info = members(found.get("_meta")).get(SERVER_INFO, _EMPTY)
        return Greeting(MODERN, members(found.get("capabilities")), info, envelope.text(found.get("instructions")))
    if not supported or any(revision in LEGACY for revision in supported):
        return Outdated()
    return Unwelcome(_speaks(supported))


def outgrown(reply: Reply) -> str | None:
    """What is wrong with a greeted server that refuses a request because of our revision; None for any other error."""
    supported = _texts(members(reply.data).get("supported")) if reply.code == UNSUPPORTED else []
    return _speaks(supported) if supported and MODERN not in supported else None


def not_served(greeting: Greeting) -> frozenset[str]:
    """The methods that the server did not announce, or that this era does not have."""
    return not_announced(greeting) | {"logging/setLevel"}


def _refused(reply: Reply) -> Outdated | Unwelcome:
    data = members(reply.data)
    if reply.code == UNSUPPORTED and (supported := _texts(data.get("supported"))):
        return Outdated() if any(revision in LEGACY for revision in supported) else Unwelcome(_speaks(supported))
    if reply.code == CAPABILITY_MISSING and "requiredCapabilities" in data:
        return Unwelcome(f"it refused {methods.DISCOVER}: {reply.message[:_SHOWN]} ({reply.code})")
    return Outdated()


def _speaks(supported: list[str]) -> str:
    return f"it speaks protocol version {', '.join(supported)[:_SHOWN]}, which is not spoken here"


def _texts(raw: Raw | None) -> list[str]:
    try:
        return [] if raw is None else _TEXTS.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
