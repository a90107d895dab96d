"""One bearer token, read strictly, before anybody believes it.

Owns the way from text to header, claims and signature, and the words for why a token is refused. Pure: no key, no
clock, no issuer. What it gives is *unverified*.

Rules of the file, each against something that a lenient reader lets pass:
* cheap checks first: length and shape are looked at before any base64, base64 before JSON.
* JSON is UTF-8 without NaN and Infinity, and no member may come twice, at any depth: joserfc's own reader takes the
  last of two `sub`, another reader the first.
* base64url has no padding and its unused bits are zero, so that one token has one text.
* refusals are raised outside of `except`: the exceptions of JSON and UTF-8 hold the text that they could not read,
  and a chained one would carry the token's claims into a log.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

from mcpmux.errors import TokenRefused

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

Cause = Literal[
    "too_large",  # over LONGEST_TOKEN
    "malformed",  # not three parts of base64url with JSON objects in the first two
    "header",  # a header member that changes what the signature means, or names a key to fetch
    "algorithm",  # none, symmetric, unknown, or not configured for the issuer
    "key_id",  # no `kid`, or none that could be one
    "type",  # `typ` says that it is another kind of token
    "graph_token",  # made for Microsoft Graph, which nobody else can verify
    "claims",  # a claim that is needed is missing or of the wrong type
    "issuer",  # not one of ours
    "audience",  # made for somebody else
    "expired",
    "not_yet_valid",
    "lifetime",  # good for longer than tokens may be
    "token_kind",  # an ID, refresh or logout token, or an application's own
    "unknown_key",  # the issuer publishes no such key
    "signature",
    "issuer_unavailable",  # its keys could not be fetched for too long
]

LONGEST_TOKEN: Final = 16 * 1024  # characters; Entra's with 200 groups has 12,000
LONGEST_KEY_ID: Final = 512

# What can be verified with a public key. Never HS*: whoever has the public key could sign.
ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"}
)

_SHAPE: Final = re.compile(r"[A-Za-z0-9_-]{2,}\.[A-Za-z0-9_-]{2,}\.[A-Za-z0-9_-]{2,}", re.ASCII)
# What makes the rest mean something else (crit, b64, zip, cty: nested), is encryption (enc), or brings a key along.
_FORBIDDEN: Final = frozenset({"crit", "b64", "zip", "cty", "enc", "jku", "x5u", "jwk", "x5c"})
_TYPES: Final = frozenset({"jwt", "at+jwt"})
# The last character of a part holds 2 or 4 bits that nobody reads; these are the ones where they are zero.
_LAST: Final = {2: frozenset("AQgw"), 3: frozenset("AEIMQUYcgkosw048")}


@dataclass(frozen=True, slots=True)
class Token:
    """What an unverified token says; `signed` and `signature` are the bytes to verify it by."""

    algorithm: str
    key_id: str
    typ: str | None  # lower case, without `application/`
    claims: Mapping[str, Json]
    signed: bytes
    signature: bytes


def refused(cause: Cause) -> TokenRefused:
    """The exception to raise; exists so that mypy knows every cause."""
    return TokenRefused(cause)


def read(text: str) -> Token:
    """Header and claims of a compact JWS (RFC 7515 section 7.1), nothing of it verified.

    Raises: TokenRefused.
    """
    if len(text) > LONGEST_TOKEN:
        raise refused("too_large")
    if _SHAPE.fullmatch(text) is None:
        raise refused("malformed")
    head, payload, tail = text.split(".")
    header = _object(head)
    algorithm = _algorithm(header)
    typ = _typ(header["typ"]) if "typ" in header else None
    key_id = header.get("kid")
    if not isinstance(key_id, str) or not 0 < len(key_id) <= LONGEST_KEY_ID:
        raise refused("key_id")
    signature = _decoded(tail)
    if signature is None:
        raise refused("malformed")
    return Token(algorithm, key_id, typ, _object(payload), text[: -len(tail) - 1].encode(), signature)


def read_object(data: bytes) -> dict[str, Json] | None:
    """The JSON object in `data`, None if it is anything else, not UTF-8, or has a member twice."""
    try:
        found = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):  # bad UTF-8 and bad JSON are ValueErrors, as is a number of 5,000 digits
        return None
    return found if isinstance(found, dict) else None


def _object(part: str) -> dict[str, Json]:
    data = _decoded(part)
    found = None if data is None else read_object(data)
    if found is None:
        raise refused("malformed")
    return found


def _algorithm(header: Mapping[str, Json]) -> str:
    """The algorithm of a header that has nothing to hide. The issuer's own list comes later, this one never grows."""
    if not _FORBIDDEN.isdisjoint(header):
        raise refused("header")
    if "nonce" in header:
        # Graph signs over the hash of this nonce. Never to be "mended": those tokens are not for us.
        raise refused("graph_token")
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise refused("algorithm")
    return algorithm


def _typ(value: Json) -> str:
    """`typ` as RFC 7515 section 4.1.9 compares it. Only what an access token may call itself (RFC 9068 section 4)."""
    typ = value.lower().removeprefix("application/") if isinstance(value, str) else ""
    if typ not in _TYPES:
        raise refused("type")
    return typ


def _decoded(part: str) -> bytes | None:
    """The bytes of one part, None unless this is the one text that they have. `part` has only base64url characters."""
    over = len(part) % 4
    if over == 1 or (over and part[-1] not in _LAST[over]):
        return None
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member comes twice")
    return members


def _no_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")
