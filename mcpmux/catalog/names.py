"""The names that an aggregate shows: `{server}__{name}`, `{server}+{uri}`, and back.

Owns the spelling alone; which servers and tools exist is the caller's. Pure, and the same for every principal.

Tools and prompts. LLM APIs take 64 characters of `[A-Za-z0-9_-]`, and clients put a prefix of their own before ours.
A name that would be too long or has another character is shown as `{server}__{as much as fits}_{hash}`. Ids have no
underscore, so the first `__` always ends the id and names of two servers can never be alike. Within one server
`name_table` makes sure of it: names shown whole keep theirs, and a shortened one that meets a taken name (by accident,
or because a server crafts one) is hashed again until it is free. Which name means which tool is looked up in that
table and never computed backwards. Names of our own (`search_tools`) have no `__`, so no server can shadow them.

URIs. A prefix with `+` leaves a valid URI and a valid URI template (RFC 3986 section 3.1: `+` may stand in a scheme;
RFC 6570), and the rest is the server's own spelling byte for byte: nothing is decoded, folded or normalised.
`ui://…` has to stay `ui://…`, because hosts of MCP Apps look for that scheme. A URI that we would not have spelt so
ourselves leads nowhere, so each resource has exactly one name here.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Container, Iterable
from itertools import count
from typing import Final

NAME_MARK: Final = "__"
URI_MARK: Final = "+"
APP_SCHEME: Final = "ui://"  # MCP Apps (SEP-1865)

_SAFE: Final = re.compile(r"[A-Za-z0-9_-]+")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]+")
_HASH: Final = 8  # characters of base32: 40 bits, and collisions are resolved, not only unlikely


def public_name(server: str, native: str, limit: int) -> str:
    """How an aggregate calls a tool or prompt of `server` when no other of its names is in the way.

    At most `limit` characters (40 or more, see `gateway.names.max_length`) of `[A-Za-z0-9_-]`.
    """
    return _whole(server, native, limit) or _shortened(server, native, limit, 0)


def name_table(server: str, natives: Iterable[str], limit: int) -> dict[str, str]:
    """Public name → native name of everything in `natives`, no two alike, whatever their order."""
    table: dict[str, str] = {}
    long: list[str] = []
    for native in set(natives):
        whole = _whole(server, native, limit)
        if whole is None:
            long.append(native)
        else:
            table[whole] = native
    for native in sorted(long):
        candidates = (_shortened(server, native, limit, attempt) for attempt in count())
        table[next(name for name in candidates if name not in table)] = native
    return table


def split_name(name: str, servers: Container[str]) -> tuple[str, str] | None:
    """The known server that `name` begins with, and the rest: the native name unless that one is shown shortened."""
    server, mark, rest = name.partition(NAME_MARK)
    return (server, rest) if mark and rest and server in servers else None


def public_uri(server: str, uri: str) -> str:
    """How an aggregate calls a resource, or a URI template, of `server`."""
    if uri.startswith(APP_SCHEME):
        return f"{APP_SCHEME}{server}{URI_MARK}{uri[len(APP_SCHEME) :]}"
    return f"{server}{URI_MARK}{uri}"


def split_uri(uri: str, servers: Container[str]) -> tuple[str, str] | None:
    """The known server that `uri` leads to and the URI as that server spells it; None unless we spell it so."""
    scheme = APP_SCHEME if uri.startswith(APP_SCHEME) else ""
    server, mark, rest = uri[len(scheme) :].partition(URI_MARK)
    native = scheme + rest
    if not mark or server not in servers or public_uri(server, native) != uri:
        return None
    return server, native


def _whole(server: str, native: str, limit: int) -> str | None:
    fits = len(server) + len(NAME_MARK) + len(native) <= limit
    return f"{server}{NAME_MARK}{native}" if fits and _SAFE.fullmatch(native) else None


def _shortened(server: str, native: str, limit: int, attempt: int) -> str:
    """`{server}__{head}_{hash}`; the hash is of the exact name, so names that look alike stay apart."""
    # JSON can spell half a surrogate pair, UTF-8 cannot.
    digest = hashlib.sha256(b"%d:" % attempt + native.encode("utf-8", "surrogatepass")).digest()
    mark = base64.b32encode(digest).decode().lower()[:_HASH]
    room = limit - len(server) - len(NAME_MARK) - len("_") - _HASH
    head = _UNSAFE.sub("_", native[:limit])[:room].strip("_-")
    return f"{server}{NAME_MARK}{head}_{mark}" if head else f"{server}{NAME_MARK}{mark}"
