"""HTTP that we start: towards issuers, their keys, and servers over HTTP.

Owns the one client session, its proxies and certificates, the limits on what others may answer, and the guard that
keeps addresses learnt from others out of the private network. It does not know what is fetched, nor why.

Rules of the file:
* Nothing of an answer reaches a message or a log but words of `PROBLEMS`: a body may be anything.
* The guard looks at the very address that is connected to, when the socket is made: between a check of the name and
  a connect of its own, the name may change its mind (DNS rebinding).
* The environment comes in as an argument. aiohttp's `trust_env` stays off although its proxies are honoured: it reads
  ~/.netrc in a thread for every request, sends what it finds there, and refuses requests that have an
  `Authorization` header of their own when that file names the host.
"""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import ipaddress
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Self, get_args

import aiohttp
from yarl import URL

from mcpmux.errors import OutboundFailed
from mcpmux.observe.log import logger

CONNECT_LIMIT: Final = 15.0  # seconds for name, connection and TLS together
REDIRECTS: Final = 3
LONGEST_RETRY_AFTER: Final = 3600.0  # seconds; whoever asks for more is asked again after this
READ_CHUNK: Final = 64 * 1024

# Why a fetch gave nothing, `OutboundFailed.problem`.
Problem = Literal["url", "unreachable", "tls", "timeout", "private_address", "redirect", "too_large", "broken"]
PROBLEMS: Final[tuple[Problem, ...]] = get_args(Problem)

_REDIRECT_STATUSES: Final = frozenset({301, 302, 303, 307, 308})
# A variable that replaces the system's certificates, or (the last) adds to them.
_BUNDLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_BUNDLE_FOLDER: Final = "SSL_CERT_DIR"
_EXTRA_BUNDLE: Final = "NODE_EXTRA_CA_CERTS"

# IANA's special-purpose registries (RFC 6890 and its updates). Not `ipaddress.is_global`: its answers differ between
# Python releases, and it calls 64:ff9b::10.0.0.1, 2002:a00:1::, fec0::1 and multicast global.
_SPECIAL_V4: Final = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
    )
)  # fmt: skip
_GLOBAL_V6: Final = ipaddress.IPv6Network("2000::/3")
_SPECIAL_V6: Final = tuple(
    ipaddress.IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

AddressInfo = tuple[int, int, int, str, tuple[object, ...]]

log = logger("outbound")


@dataclass(frozen=True, slots=True)
class Fetched:
    """One whole answer; `retry_after` is what the service asked for, in seconds."""

    status: int
    body: bytes
    retry_after: float | None
    url: str  # where it came from after redirects on the same origin


@dataclass(frozen=True, slots=True)
class Proxies:
    """Which proxy a URL goes through, as `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say."""

    by_scheme: Mapping[str, URL]
    direct: tuple[str, ...]  # host names, with all below them, `*`, addresses and networks that need none

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Proxies:
        """Read the variables; the lower-case names win, as everywhere."""
        said = {name.lower(): value for name, value in environ.items() if name.isupper()}
        said |= {name: value for name, value in environ.items() if name.islower()}
        found: dict[str, URL] = {}
        for scheme in ("http", "https"):
            text = said.get(f"{scheme}_proxy") or said.get("all_proxy")
            if text and (proxy := _proxy_url(text)) is not None:
                found[scheme] = proxy
            elif text:
                log.warning("proxy_ignored", variable=f"{scheme}_proxy", reason="only http:// proxies can be used")
        parts = (part.strip().lower() for part in said.get("no_proxy", "").split(","))
        return cls(found, tuple("*" if part == "*" else part.lstrip("*.") for part in parts if part))

    def for_url(self, url: URL) -> URL | None:
        """The proxy for `url`, or None to go straight. Never one for loopback, which no proxy could mean."""
        proxy = self.by_scheme.get(url.scheme)
        if proxy is None or url.host is None or is_loopback(url.host):
            return None
        return None if any(_covers(part, url.host.lower()) for part in self.direct) else proxy


class Outbound:
    """The one HTTP client: `async with Outbound(environ) as outbound`.

    `environ` is the process's environment as `config` read it; of it only proxy and certificate variables count.
    """

    __slots__ = ("_environ", "_guarded", "_open", "_proxies", "session")

    session: aiohttp.ClientSession
    """For links: no total limit (streams last), no cookies, as many connections as asked for, proxies applied.

    A redirect to another origin raises `aiohttp.InvalidUrlRedirectClientError`, so that no header with a credential
    follows it there. Bodies come decompressed chunk by chunk; how much is read is the reader's to bound.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = dict(environ or {})
        self._proxies = Proxies.of(self._environ)
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        trust = tls_context(self._environ)
        async with AsyncExitStack() as opening:
            self.session = await opening.enter_async_context(_session(trust, self._proxies, None))
            self._guarded = await opening.enter_async_context(_session(trust, self._proxies, _public_socket))
            self._open = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def get_json_bytes(
        self, url: str, *, limit: int, timeout: float, headers: Mapping[str, str] | None = None, guard: bool = False
    ) -> Fetched:
        """One GET, whatever its status, following at most 3 redirects on the same origin.

        `limit` bounds the decompressed body in bytes, `timeout` all of it in seconds. `guard`, for a URL that another
        told us: no private, loopback or link-local address is connected to.

        Raises: OutboundFailed.
        """
        target = _parsed(url)
        try:
            async with asyncio.timeout(timeout):
                return await self._get(target, limit, headers or {}, guard)
        except TimeoutError:
            raise OutboundFailed("timeout") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise OutboundFailed(_problem_of(error)) from error

    async def is_private(self, host: str) -> bool:
        """Whether a host name or address leads (also) to an address that the guard would refuse.

        A name that does not resolve is not private: nothing can be connected to.
        """
        if (address := _literal(host)) is not None:
            return not is_public(address)
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return False
        return any(not is_public(str(info[4][0])) for info in found)

    async def _get(self, url: URL, limit: int, headers: Mapping[str, str], guard: bool) -> Fetched:
        for _ in range(REDIRECTS + 1):
            session = await self._session_for(url, guard)
            asked = {"Accept": "application/json", "Accept-Encoding": "identity", **headers}
            async with session.get(url, headers=asked, allow_redirects=False) as answer:
                if answer.status not in _REDIRECT_STATUSES:
                    body = await _read(answer, limit)
                    waits = retry_after(answer.headers.get("Retry-After"))
                    return Fetched(answer.status, body, waits, str(url))
                url = url.join(URL(answer.headers.get("Location", "")))  # of the same origin: see _stay_home
        raise OutboundFailed("redirect")

    async def _session_for(self, url: URL, guard: bool) -> aiohttp.ClientSession:
        """The session that connects to `url` under the guard, or without one.

        Through a proxy the guard cannot see the address: there it asks the name service itself, and for a name that
        only the proxy can resolve, the proxy's own rules decide.
        """
        if not guard:
            return self.session
        if self._proxies.for_url(url) is None:
            return self._guarded
        if await self.is_private(url.host or ""):
            raise OutboundFailed("private_address")
        return self.session


def is_loopback(host: str) -> bool:
    """Whether a URL's host can only be this machine."""
    address = _literal(host)
    return host.lower().rstrip(".") == "localhost" if address is None else address.is_loopback


def is_public(address: str | ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an IP address is one of the public internet; an IPv4 address inside an IPv6 one counts as itself."""
    if isinstance(address, str):
        address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and (inner := address.ipv4_mapped) is not None:
        address = inner
    elif isinstance(address, ipaddress.IPv6Address) and address in _NAT64:
        address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _SPECIAL_V4)
    return address in _GLOBAL_V6 and not any(address in network for network in _SPECIAL_V6)


def is_secure(url: str) -> bool:
    """Whether a URL may carry what we trust: https anywhere, plain http to loopback only, no user name in it."""
    try:
        parsed = _parsed(url)
    except OutboundFailed:
        return False
    return parsed.scheme == "https" or is_loopback(parsed.host or "")


def retry_after(value: str | None, now: datetime.datetime | None = None) -> float | None:
    """Seconds of a `Retry-After` header in either of its forms, at most an hour; None without a readable one.

    RFC 9110 section 10.2.3.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:10]), LONGEST_RETRY_AFTER)
    try:
        until = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=datetime.UTC)
    seconds = (until - (now or datetime.datetime.now(datetime.UTC))).total_seconds()
    return max(0.0, min(seconds, LONGEST_RETRY_AFTER))


def tls_context(environ: Mapping[str, str]) -> ssl.SSLContext:
    """The certificates to trust: those of `SSL_CERT_FILE`, `SSL_CERT_DIR`, `REQUESTS_CA_BUNDLE` and
    `CURL_CA_BUNDLE` together if any of them is set, else the system's; those of `NODE_EXTRA_CA_CERTS` besides.

    A file that cannot be read is named in the log and left out.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    loaded = [_trust(context, name, environ[name], folder=False) for name in _BUNDLES if environ.get(name)]
    if environ.get(_BUNDLE_FOLDER):
        loaded.append(_trust(context, _BUNDLE_FOLDER, environ[_BUNDLE_FOLDER], folder=True))
    if not any(loaded):
        context.load_default_certs()
    if environ.get(_EXTRA_BUNDLE):
        _trust(context, _EXTRA_BUNDLE, environ[_EXTRA_BUNDLE], folder=False)
    return context


def _trust(context: ssl.SSLContext, variable: str, path: str, *, folder: bool) -> bool:
    try:
        context.load_verify_locations(**({"capath": path} if folder else {"cafile": path}))
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        log.warning("certificates_unreadable", variable=variable, path=path, reason=type(error).__name__)
        return False
    return True


def _session(
    trust: ssl.SSLContext, proxies: Proxies, make_socket: Callable[[AddressInfo], socket.socket] | None
) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trust, limit=0, socket_factory=make_socket),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_LIMIT, sock_read=None),
        headers={"User-Agent": "mcpmux"},
        max_field_size=32 * 1024,
        middlewares=(_stay_home(proxies),),
    )


def _stay_home(proxies: Proxies) -> aiohttp.ClientMiddlewareType:
    """Around each request: choose its proxy, and let no redirect lead to another origin.

    aiohttp drops `Authorization` on the way to another origin, but not the many other headers that carry credentials.
    """

    async def around(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        if proxies.by_scheme and request.proxy is None:
            request.update_proxy(proxies.for_url(request.url), None, None)
        answer = await handler(request)
        if answer.status in _REDIRECT_STATUSES and not _same_origin(request.url, answer.headers.get("Location")):
            answer.close()
            raise aiohttp.InvalidUrlRedirectClientError(request.url.origin(), "redirects to another origin")
        return answer

    return around


def _same_origin(url: URL, location: str | None) -> bool:
    try:
        return location is None or url.join(URL(location)).origin() == url.origin()
    except ValueError:
        return False


class _PrivateAddress(OSError):
    """The guard refused the address; an OSError, so that the other addresses of the name are tried."""


def _public_socket(info: AddressInfo) -> socket.socket:
    family, kind, protocol, _, address = info
    if not is_public(str(address[0])):
        raise _PrivateAddress("not a public address")
    return socket.socket(family=family, type=kind, proto=protocol)


async def _read(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    """The decompressed body. Raises: OutboundFailed when it is over `limit` bytes."""
    if answer.content_length is not None and answer.content_length > limit:
        raise OutboundFailed("too_large")
    body = bytearray()
    async for chunk in answer.content.iter_chunked(READ_CHUNK):
        body += chunk
        if len(body) > limit:
            raise OutboundFailed("too_large")
    return bytes(body)


def _problem_of(error: Exception) -> Problem:
    """The word for what aiohttp or the system raised."""
    seen: BaseException | None = error
    while seen is not None:
        match seen:
            case _PrivateAddress():
                return "private_address"
            case aiohttp.RedirectClientError():
                return "redirect"
            case aiohttp.ClientSSLError() | ssl.SSLError():
                return "tls"
            case aiohttp.InvalidURL():
                return "url"
            case TimeoutError():
                return "timeout"
            case aiohttp.ClientConnectorError():
                return "private_address" if isinstance(seen.os_error, _PrivateAddress) else "unreachable"
            case aiohttp.ClientOSError() | aiohttp.ServerDisconnectedError():
                return "unreachable"
            case _:
                seen = seen.__cause__
    return "broken"


def _parsed(url: str) -> URL:
    """Raises: OutboundFailed unless it is an absolute http or https URL without a user name."""
    try:
        parsed = URL(url)
    except ValueError:
        parsed = URL()
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.user is not None:
        raise OutboundFailed("url")
    return parsed


def _covers(direct: str, host: str) -> bool:
    """Whether one entry of `NO_PROXY` (lower case, without leading dots) means this host."""
    if direct == "*" or host == direct or host.endswith(f".{direct}"):
        return True
    if (address := _literal(host)) is None or not direct[:1].isalnum():
        return False
    try:
        return address in ipaddress.ip_network(direct, strict=False)
    except ValueError:
        return False


def _proxy_url(text: str) -> URL | None:
    try:
        url = URL(text if "://" in text else f"http://{text}")
    except ValueError:
        return None
    return url if url.scheme == "http" and url.host else None


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
