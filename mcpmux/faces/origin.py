"""`Host` and `Origin`: who may reach mcpmux from a browser, and what a listed web page is told (CORS).

Bound to loopback, `Host` and `Origin` must be loopback names (DNS rebinding) or the public URL's; otherwise an
`Origin` must be the public URL's or a listed one. Only listed origins get CORS headers, each its own, never `*`.
Source: MCP basic/transports, "Security Warning"; WHATWG Fetch, "CORS protocol"; design section 8.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from mcpmux.errors import OriginRefused

_METHODS: Final = "GET, POST, DELETE"
_SENT: Final = (
    "Authorization, Content-Type, Accept, Mcp-Session-Id, MCP-Protocol-Version, Last-Event-ID, Mcp-Method, Mcp-Name"
)
_READ: Final = "Mcp-Session-Id, WWW-Authenticate, X-Request-Id"
# `urlsplit` would take `[::1]x` for `::1`.
_AUTHORITY: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?\Z", re.ASCII)
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class Origins:
    """The rule for one listener."""

    def __init__(self, host: str, public_url: str | None, listed: Sequence[str]) -> None:
        self._loopback = is_loopback(host)
        self._names = _LOOPBACK_NAMES | {host.strip("[]").lower()}  # an address of this machine cannot be rebound
        self._usual: str | None = None  # the last Host that was good: nearly always the next one, too
        self._listed = frozenset(origin.rstrip("/").lower() for origin in listed)
        public = urlsplit(public_url or "")
        self._public_host = (public.hostname or "").lower()
        self._public_origin = f"{public.scheme}://{public.netloc}".lower() if public_url else None

    def check(self, request: web.BaseRequest) -> Mapping[str, str]:
        """The CORS headers of the answer (none for most).

        Raises: OriginRefused.
        """
        hosts = request.headers.getall(hdrs.HOST, ())
        if len(hosts) != 1 or hosts[0] != self._usual:
            if len(hosts) > 1 or (self._loopback and hosts and not self._is_ours(_name(hosts[0]))):
                raise OriginRefused
            self._usual = hosts[0] if hosts else None
        if hdrs.ORIGIN not in request.headers:
            return {}
        origins = request.headers.getall(hdrs.ORIGIN)
        origin = origins[0].lower()
        if len(origins) > 1:
            raise OriginRefused
        if origin in self._listed:
            return {
                "Access-Control-Allow-Origin": origins[0],
                "Access-Control-Expose-Headers": _READ,
                "Vary": "Origin",
            }
        if origin == self._public_origin or (self._loopback and _is_loopback_origin(origin)):
            return {"Vary": "Origin"}
        raise OriginRefused

    def preflight(self, request: web.BaseRequest, headers: Mapping[str, str]) -> web.Response:
        """The answer to OPTIONS: what a listed page may send; a plain 405 for everybody else."""
        if "Access-Control-Allow-Origin" not in headers or "Access-Control-Request-Method" not in request.headers:
            return web.Response(status=405, text="Method Not Allowed\n", headers={**headers, "Allow": _METHODS})
        allowed = {
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": _SENT,
            "Access-Control-Max-Age": "600",
        }
        return web.Response(status=204, headers={**headers, **allowed})

    def _is_ours(self, name: str) -> bool:
        return name in self._names or (bool(self._public_host) and name == self._public_host)


def is_loopback(host: str) -> bool:
    """Whether a listener on `host` can be reached from this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_loopback_origin(origin: str) -> bool:
    scheme, _, authority = origin.partition("://")
    return scheme in ("http", "https") and _name(authority) in _LOOPBACK_NAMES


@lru_cache(maxsize=256)
def _name(authority: str) -> str:
    """The host of `host:port`; empty for what is no authority."""
    found = _AUTHORITY.match(authority.lower())
    return found[1].strip("[]") if found else ""
