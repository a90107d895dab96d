"""What both HTTP transports do alike: headers, bounded reading, and what an answer that is none means for a call."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from mcpmux.config.schema import Server
from mcpmux.credentials import static
from mcpmux.errors import LinkLost, ServerUnavailable, UpstreamBroken, UpstreamError, UpstreamRefused
from mcpmux.links.lines import EDGE
from mcpmux.outbound import Outbound, retry_after

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
ERROR_BODY: Final = 64 * 1024  # bytes of a refusal's body that are looked at

FAULTS: Final = (aiohttp.ClientError, OSError, TimeoutError)
"""What a request of ours may raise when the network or the server is at fault."""

_BUSY: Final = frozenset({429, 502, 503, 504})
_REFUSED: Final = frozenset({401, 403, 407})
_MOVED: Final = frozenset({307, 308})
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class TooLarge(Exception):
    """A body is over the limit; only its beginning was kept."""

    def __init__(self, head: bytes, size: int) -> None:
        super().__init__(size)
        self.head, self.size = head, size


class Requests:
    """Requests to one server: its headers and credentials, never to another origin than its own."""

    __slots__ = ("_headers", "_outbound", "_server", "url")

    def __init__(self, server: Server, outbound: Outbound) -> None:
        self.url = URL(server.url or "")
        self._server = server.id
        self._outbound = outbound
        self._headers = CIMultiDict(static.headers(server))
        # A body that may inflate a thousandfold is not worth what compression saves.
        self._headers["Accept-Encoding"] = "identity"

    def get(self, headers: Mapping[str, str]) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """A GET, whose redirects on the same origin are followed."""
        return self._outbound.session.get(self.url, headers=self._with({"Accept": EVENTS, **headers}))

    def post(
        self, wire: bytes, headers: Mapping[str, str], url: URL | None = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """A POST of one message; no redirect is followed, because it could turn it into a GET."""
        said = {"Accept": f"{JSON}, {EVENTS}", "Content-Type": JSON, **headers}
        return self._outbound.session.post(url or self.url, data=wire, headers=self._with(said), allow_redirects=False)

    def delete(self, headers: Mapping[str, str]) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """A DELETE."""
        return self._outbound.session.delete(self.url, headers=self._with(headers), allow_redirects=False)

    def moved(self, answer: aiohttp.ClientResponse) -> URL | None:
        """Where a POST should go instead, if that is on the same origin (a missing slash, mostly)."""
        if answer.status not in _MOVED:
            return None
        try:
            there = answer.url.join(URL(answer.headers.get("Location", "")))
        except ValueError:
            return None
        return there if there.origin() == self.url.origin() and there != answer.url else None

    def error(self, answer: aiohttp.ClientResponse) -> UpstreamError:
        """What a refusal means for the call that got it."""
        if answer.status in _BUSY:
            return ServerUnavailable(self._server, retry_after(answer.headers.get("Retry-After")))
        if 400 <= answer.status < 500:
            return UpstreamRefused(self._server, answer.status)
        return UpstreamBroken(self._server, f"HTTP status {answer.status}")

    def fault(self, error: BaseException) -> UpstreamError:
        """What a failed request means for its call: if it never left, nothing can have happened."""
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL):
            return ServerUnavailable(self._server)
        if isinstance(error, aiohttp.RedirectClientError):
            return UpstreamBroken(self._server, "it redirects to another origin")
        return LinkLost(self._server)

    def _with(self, headers: Mapping[str, str]) -> CIMultiDict[str]:
        merged = self._headers.copy()
        merged.update(headers)
        return merged


def is_refusal(status: int) -> bool:
    """Whether the server does not want us, so that trying again soon is no use."""
    return status in _REFUSED or status in REDIRECTS


def problem_of_status(answer: aiohttp.ClientResponse) -> str:
    """A reason for `status` and the log."""
    if answer.status in REDIRECTS:
        try:
            there = str(answer.url.join(URL(answer.headers.get("Location", ""))).origin())
        except ValueError:
            there = "nowhere"
        return f"HTTP status {answer.status}: it redirects to {there}, put the address that is meant into the config"
    hint = ": check its credentials" if answer.status in _REFUSED else ""
    return f"HTTP status {answer.status}{hint}"


def problem_of_fault(error: BaseException) -> str:
    """A reason for `status` and the log, without what a library may have put into its text."""
    seen: BaseException | None = error
    while seen is not None:
        match seen:
            case aiohttp.RedirectClientError():
                return "it redirects to another origin"
            case aiohttp.ClientSSLError() | ssl.SSLError():
                return "its certificate or TLS is not acceptable"
            case aiohttp.ClientConnectorDNSError():
                return "its name cannot be resolved"
            case ConnectionRefusedError():
                return "connection refused"
            case aiohttp.ClientProxyConnectionError() | aiohttp.ClientHttpProxyError():
                return "the proxy refused the connection"
            case TimeoutError():
                return "the connection timed out"
            case aiohttp.ServerDisconnectedError() | ConnectionResetError() | aiohttp.ClientPayloadError():
                return "it closed the connection"
            case _:
                seen = seen.__cause__ or (seen.os_error if isinstance(seen, aiohttp.ClientConnectorError) else None)
    return f"the request failed ({type(error).__name__})"


async def read_body(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body. Raises: TooLarge, FAULTS."""
    parts: list[bytes] = []
    size = 0
    async for chunk in answer.content.iter_any():
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            answer.close()
            raise TooLarge(b"".join(parts)[:EDGE], max(size, answer.content_length or 0))
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def read_refusal(answer: aiohttp.ClientResponse) -> bytes:
    """As much of a refusal's body as it takes to understand it; empty if it is too long or does not come."""
    try:
        async with asyncio.timeout(5):
            return await read_body(answer, ERROR_BODY)
    except (TooLarge, *FAULTS):
        return b""
