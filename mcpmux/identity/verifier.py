"""A bearer token in, a verified caller out. The last place that ever holds the caller's token.

Owns which issuers are believed, the verdicts that are remembered, and the log lines about refusals. What a token must
look like is `token.py`'s, what it must say `claims.py`'s, which keys there are `issuers.py`'s.

Rules of the file:
* a verdict is kept under the SHA-256 of the exact token and never longer than the token, or the keys that it was
  verified with, count; a key that is withdrawn takes its verdicts with it. `known` is one hash and one look-up.
* a refusal says why to the log alone, with a word of `CAUSES`; neither the token nor an unverified claim is logged
  but a `kid`, escaped and cut. Lines are limited per cause: refusals are the one thing that anybody can cause.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar, get_args

from mcpmux.config.schema import Issuer
from mcpmux.errors import AuthorizationMalformed, ConfigInvalid, TokenMissing, TokenRefused
from mcpmux.identity import claims
from mcpmux.identity.claims import Rules
from mcpmux.identity.development import DevelopmentIssuer
from mcpmux.identity.issuers import IssuerKeys, Keys, LocalKeys, Pace, metadata_url
from mcpmux.identity.keys import Key
from mcpmux.identity.principal import Verified
from mcpmux.identity.token import LONGEST_TOKEN, Cause, Token, read, refused
from mcpmux.observe.fence import fenced
from mcpmux.observe.log import logger
from mcpmux.observe.metrics import Metrics
from mcpmux.outbound import Outbound, is_secure

CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)

MOST_VERDICTS: Final = 65_536
MOST_REFUSALS: Final = 4_096
REFUSAL_LASTS: Final = 60.0  # seconds for which a refused token is refused from memory
LINES: Final = 5  # log lines per cause and window
WINDOW: Final = 10.0  # seconds

# What may be another answer a moment later: the clock goes on, keys come.
_PASSING: Final[frozenset[str]] = frozenset({"not_yet_valid", "lifetime", "unknown_key", "issuer_unavailable"})
# RFC 6750 section 2.1 `b64token`; a comma is what a proxy makes of two headers.
_CREDENTIALS: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)
_HINTS: Final[dict[str, str]] = {
    "graph_token": "a token for Microsoft Graph; Open WebUI: set MICROSOFT_OAUTH_SCOPE to a scope of mcpmux's app",
    "audience": "made for another audience; all that `aud` names must be in identity.issuers[].audiences",
    "token_kind": "an ID, refresh or application token; an access token is needed",
}

log = logger("identity")


def bearer(values: Sequence[str]) -> str:
    """The token of the `Authorization` headers of one request, of which there must be exactly one.

    A scheme other than `Bearer`, and `Bearer` alone, count as no token (Open WebUI sends that for an empty key).

    Raises: TokenMissing, AuthorizationMalformed, TokenRefused. RFC 6750 sections 2.1 and 3.1.
    """
    if not values:
        raise TokenMissing
    if len(values) > 1:
        raise AuthorizationMalformed
    scheme, _, token = values[0].strip(" \t").partition(" ")
    token = token.strip(" ")
    if scheme.lower() != "bearer" or not token:
        raise TokenMissing
    if len(token) > LONGEST_TOKEN:
        raise refused("too_large")
    if "," in token:
        raise AuthorizationMalformed
    if _CREDENTIALS.fullmatch(token) is None:
        raise refused("malformed")
    return token


class Verifier:
    """Says who is calling. One per process; `run` is its background loop, one task per issuer."""

    __slots__ = ("_issuers", "_lines", "_metrics", "_now", "_refusals", "_remote", "_verdicts")

    def __init__(
        self,
        issuers: Sequence[Issuer],
        outbound: Outbound,
        metrics: Metrics,
        *,
        development: DevelopmentIssuer | None = None,
        pace: Pace | None = None,
    ) -> None:
        """`development` is believed only while there are no `issuers`.

        Raises: ConfigInvalid for issuers that cannot be used, ValueError for both kinds at once.
        """
        if issuers and development is not None:
            raise ValueError("the development issuer exists only while no issuer is configured")
        if problems := tuple(problem for issuer in issuers if (problem := _problem_of(issuer))):
            raise ConfigInvalid(problems)
        pace = pace or Pace()
        self._metrics = metrics
        self._now = pace.wall
        self._remote = [IssuerKeys(issuer, outbound, pace) for issuer in issuers]
        self._issuers = {
            issuer.issuer: _Issuer(Rules.of(issuer), keys) for issuer, keys in zip(issuers, self._remote, strict=True)
        }
        if development is not None:
            self._issuers[development.rules.issuer] = _Issuer(development.rules, LocalKeys(development.keys))
        self._verdicts: dict[bytes, _Verdict] = {}
        self._refusals: dict[bytes, _Refusal] = {}
        self._lines: dict[str, _Window] = {}

    def known(self, token: str) -> Verified | None:
        """The verdict on this very token if it was verified before and still counts."""
        verdict = self._verdicts.get(_digest(token))
        return verdict.verified if verdict is not None and self._now() < verdict.until else None

    async def verify(self, token: str) -> Verified:
        """Who sent this token. Waits only if keys have to be fetched for it.

        Raises: TokenRefused, its `cause` one of `CAUSES`.
        """
        if (verified := self.known(token)) is not None:
            return verified
        digest = _digest(token)
        remembered = self._refusals.get(digest)
        if remembered is None or self._now() >= remembered.until:
            outcome = await self._judge(token, digest)
        else:
            outcome = remembered
        if isinstance(outcome, Verified):
            return outcome
        self._report(outcome)
        raise TokenRefused(outcome.cause)

    async def run(self) -> None:
        """Keep the keys of every configured issuer fresh, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for keys in self._remote:
                loop = partial(self._keep_fresh, keys)
                tasks.create_task(fenced("issuer_keys", loop, self._metrics), name=f"keys of {keys.issuer}")

    async def _keep_fresh(self, keys: IssuerKeys) -> None:
        while True:
            if await keys.renew():
                self._forget_withdrawn(keys)
            await keys.due()

    async def _judge(self, token: str, digest: bytes) -> Verified | _Refusal:
        """Verify a token and remember the outcome."""
        unverified: Token | None = None
        try:
            unverified = read(token)
            issuer = self._issuer_of(unverified)
            claims.admit(issuer.rules, unverified, self._now())
            key = await issuer.keys.find(unverified.key_id, unverified.algorithm)
            if not key.verifies(unverified.algorithm, unverified.signed, unverified.signature):
                raise refused("signature")
            verified = claims.principal_of(issuer.rules, unverified.claims)
        except TokenRefused as error:
            refusal = self._refusal(error.cause, unverified)
            if refusal.cause not in _PASSING:
                _put(self._refusals, digest, refusal, MOST_REFUSALS)
            return refusal
        until = min(verified.expires, self._now() + issuer.keys.lasts())
        _put(self._verdicts, digest, _Verdict(verified, until, key), MOST_VERDICTS)
        return verified

    def _issuer_of(self, token: Token) -> _Issuer:
        """The configured issuer that the token names, by exact comparison. Raises: TokenRefused."""
        name = token.claims.get("iss")
        if claims.is_for_graph(token.claims):
            raise refused("graph_token")
        if not isinstance(name, str) or not name:
            raise refused("claims")
        issuer = self._issuers.get(name)
        if issuer is None:
            raise refused("issuer")
        return issuer

    def _forget_withdrawn(self, keys: IssuerKeys) -> None:
        """Drop every verdict that rests on a key which its issuer publishes no more.

        Refusals go too: a key that took the place of another may have made a signature that was refused.
        """
        for digest, verdict in list(self._verdicts.items()):
            if verdict.verified.principal.issuer == keys.issuer and not keys.has(verdict.key):
                del self._verdicts[digest]
        self._refusals.clear()

    def _refusal(self, cause: str, token: Token | None) -> _Refusal:
        issuer = None if token is None else token.claims.get("iss")
        return _Refusal(
            cause=cause,
            issuer=issuer if isinstance(issuer, str) and issuer in self._issuers else None,
            key_id=None if token is None else _shown(token.key_id),
            until=self._now() + REFUSAL_LASTS,
        )

    def _report(self, refusal: _Refusal) -> None:
        """One log line, or, past `LINES` in a window, a count on the first line of the next."""
        now = self._now()
        window = self._lines.get(refusal.cause)
        suppressed = 0
        if window is None or not 0 <= now - window.start < WINDOW:
            suppressed = 0 if window is None else max(0, window.refusals - LINES)
            window = self._lines[refusal.cause] = _Window(now)
        window.refusals += 1
        if window.refusals > LINES:
            return
        log.info(
            "token_refused",
            cause=refusal.cause,
            issuer=refusal.issuer,
            kid=refusal.key_id,
            suppressed=suppressed,
            hint=_HINTS.get(refusal.cause),
        )


@dataclass(frozen=True, slots=True)
class _Issuer:
    rules: Rules
    keys: Keys


@dataclass(frozen=True, slots=True)
class _Verdict:
    verified: Verified
    until: float  # Unix seconds
    key: Key


@dataclass(frozen=True, slots=True)
class _Refusal:
    cause: str
    issuer: str | None  # only one of ours
    key_id: str | None  # as the log may show it
    until: float  # Unix seconds


@dataclass(slots=True)
class _Window:
    start: float
    refusals: int = 0


_Kept = TypeVar("_Kept")


def _put(kept: dict[bytes, _Kept], digest: bytes, value: _Kept, most: int) -> None:
    """Remember, and let the oldest go: a dictionary keeps the order in which its keys came."""
    if digest not in kept and len(kept) >= most:
        del kept[next(iter(kept))]
    kept[digest] = value


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _shown(key_id: str) -> str:
    """A `kid` as a log line may hold it: ASCII, escaped, at most 64 characters."""
    return ascii(key_id[:64])[1:-1][:64]


def _problem_of(issuer: Issuer) -> str | None:
    """Why an issuer could not be believed: whoever answers in its place could sign for anybody."""
    if not is_secure(metadata_url(issuer)):
        return f"identity.issuers: {issuer.issuer}: its metadata must be read over https (or http on loopback)"
    return None
