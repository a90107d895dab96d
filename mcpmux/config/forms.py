"""What a text must look like beyond its type: URLs, origins, header values, keys.

Owns one pure function a form, named in `schema.py`. Each takes the text and says what is wrong and what was expected,
or None. Rules of the file: an answer never repeats the text, which may hold a secret; where the design rules on
something (plain http, `*` in CORS), the answer says why.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final
from urllib.parse import SplitResult, urlsplit

from mcpmux.config import schema

LEAST_KEY: Final = 32  # bytes, as seal.py wants

# mcpmux sets these itself on every request upstream.
RESERVED_HEADERS: Final = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "last-event-id",
        "mcp-method",
        "mcp-name",
        "mcp-protocol-version",
        "mcp-session-id",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

# What the patterns of schema.py mean in words.
PATTERN_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        schema.ID_PATTERN: "a lower-case letter, then up to 23 of a-z, 0-9 and -",
        schema.VARIABLE_PATTERN: "letters, digits and _, not beginning with a digit",
        schema.HEADER_PATTERN: "a header name",
        schema.TOOL_PATTERN: "a glob pattern of 1 to 128 printable ASCII characters without spaces",
        schema.TAG_PATTERN: "up to 32 of a-z, 0-9 and -",
    }
)


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only be this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _split(text: str, schemes: tuple[str, ...]) -> SplitResult | None:
    """The parts of an absolute URL with one of these schemes, without white space or control characters."""
    if not text.isprintable() or " " in text or "\\" in text or len(text) > 2048:
        return None
    try:
        parts = urlsplit(text)
        # `.port` raises on a port that is none.
        usable = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if usable else None


def url(text: str) -> str | None:
    """An address of an MCP endpoint."""
    parts = _split(text, ("http", "https"))
    if parts is None:
        return "not a URL, expected http:// or https:// with a host"
    if "@" in parts.netloc:
        return "user or password in a URL, expected them in `headers`"
    return "a fragment (#…), expected a URL without" if "#" in text else None


def public_url(text: str) -> str | None:
    """An address that clients use for mcpmux itself."""
    parts = _split(text, ("http", "https"))
    if parts is None or "@" in parts.netloc or "?" in text or "#" in text:
        return "not a base URL, expected http:// or https:// with a host, and no user, query or fragment"
    return None


def metadata_url(text: str) -> str | None:
    """An address of an identity provider that we fetch keys from."""
    parts = _split(text, ("http", "https"))
    if parts is None or "@" in parts.netloc or "#" in text:
        return "not a URL, expected https:// with a host, and no user or fragment"
    # Whoever can change the answer on the way can sign tokens for anybody.
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        return "plain http, expected https (http is for loopback hosts only)"
    return None


def issuer_url(text: str) -> str | None:
    """An issuer as RFC 8414 section 2 has it: no query, no fragment."""
    if "?" in text:
        return "a query (?…), expected an issuer URL without"
    return metadata_url(text)


def origin(text: str) -> str | None:
    """A web origin as a browser sends it (RFC 6454 section 6.2)."""
    if text == "*":
        return "every origin, expected them one by one: requests carry credentials"
    if (
        _split(text, ("http", "https")) is None
        or re.fullmatch(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]+)?", text) is None
    ):
        return "not an origin, expected scheme://host or scheme://host:port in lower case, without a path"
    return None


def host(text: str) -> str | None:
    """A name or address to listen on."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if (
            re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*", text) is None
            or text.replace(".", "").isdigit()
        ):
            return "not a host, expected a name or an address without scheme, port or brackets"
    return None


def postgres_url(text: str) -> str | None:
    """A PostgreSQL connection URL."""
    # Only the scheme: what follows has forms (several hosts, sockets) that only libpq's rules tell.
    if not text.startswith(("postgresql://", "postgres://")) or not text.isprintable():
        return "not a PostgreSQL URL, expected postgresql://user:password@host/database"
    return None


def key(text: str) -> str | None:
    """Material of a sealing key."""
    if len(text.strip().encode()) < LEAST_KEY:
        return f"a key of under {LEAST_KEY} bytes, expected for example the output of: openssl rand -base64 32"
    return None


def header(text: str) -> str | None:
    """A header value (RFC 9110 section 5.5)."""
    if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", text) or text != text.strip():
        return "a header value with a line break, control character or space at its ends, expected one clean line"
    return None


def line(text: str) -> str | None:
    """Text for people, on one line."""
    return None if text.isprintable() else "a line break or control character, expected one line of text"


FORMS: Final[Mapping[str, Callable[[str], str | None]]] = MappingProxyType(
    {
        form.__name__: form
        for form in (url, public_url, metadata_url, issuer_url, origin, host, postgres_url, key, header, line)
    }
)
