"""The keys of an issuer, fetched, kept and renewed.

Owns the issuer's metadata and key set and the pace at which they are asked for; how long a key may be believed that
could not be looked at again. What a key is good for is `keys.py`'s.

The theory. One task per issuer does all the fetching (`Verifier.run`); whoever needs a key that is not there wakes
that task and waits for the round to end. So there is one fetch at a time, and no caller who goes away takes it along.

    renew        every hour in the background, so that a key that was withdrawn is gone within an hour
    ask          a token names an unknown key: at once, but at most once per 5 minutes, however many tokens come
                 (what Microsoft's signing-key-rollover page says); the others are refused from memory
    retry        after a failure: 1 s, doubling up to 1 minute, or when the issuer says (`Retry-After`)
    ttl          24 h after they were last seen, keys count no more: then `issuer_unavailable`, not an hour-old guess
    wait         a token waits this long for a round under way, then it is refused; less while the issuer is failing

Metadata is read once and again after a failure or `ttl`; renewing reads the keys alone.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from yarl import URL

from mcpmux.config.schema import Issuer
from mcpmux.errors import OutboundFailed
from mcpmux.identity.keys import Key, KeySet, read_keys
from mcpmux.identity.token import read_object, refused
from mcpmux.observe.log import logger
from mcpmux.outbound import LONGEST_RETRY_AFTER, Fetched, Outbound, is_loopback, is_secure

WELL_KNOWN: Final = "/.well-known/openid-configuration"
METADATA_LIMIT: Final = 256 * 1024  # bytes
KEYS_LIMIT: Final = 1024 * 1024  # bytes

log = logger("identity")


@dataclass(frozen=True, slots=True)
class Pace:
    """When keys are fetched and how long they count, in seconds (what each is for: see the module), and the clocks."""

    renew: float = 3600.0
    ask: float = 300.0
    retry: float = 1.0
    longest_retry: float = 60.0
    ttl: float = 24 * 3600.0
    wait: float = 8.0
    failing_wait: float = 2.0
    fetch: float = 10.0  # limit of one request
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time  # for what tokens say


class Keys(Protocol):
    """Where one issuer's keys come from: `IssuerKeys` over HTTP, `LocalKeys` in memory."""

    async def find(self, key_id: str, algorithm: str) -> Key:
        """The key of that id for that algorithm. Raises: TokenRefused."""

    def lasts(self) -> float:
        """How many more seconds a key found now counts."""


class LocalKeys:
    """Keys that we have ourselves and that never change."""

    __slots__ = ("_keys",)

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys

    async def find(self, key_id: str, algorithm: str) -> Key:
        """The key of that id. Raises: TokenRefused."""
        if (key := self._keys.find(key_id, algorithm)) is None:
            raise refused("unknown_key")
        return key

    def lasts(self) -> float:
        """For ever."""
        return float("inf")


class IssuerKeys:
    """The keys that one configured issuer publishes."""

    __slots__ = (
        "_asked", "_clock", "_failures", "_fetching", "_jwks_url", "_keys", "_metadata_seen", "_metadata_url",
        "_outbound", "_over", "_pace", "_seen", "_tried", "_wait", "_wanted", "issuer",
    )  # fmt: skip

    def __init__(self, issuer: Issuer, outbound: Outbound, pace: Pace) -> None:
        self.issuer = issuer.issuer
        self._metadata_url = metadata_url(issuer)
        self._outbound = outbound
        self._pace = pace
        self._clock = pace.clock
        self._keys: KeySet | None = None
        self._seen = 0.0  # when the keys were last fetched
        self._jwks_url = ""
        self._metadata_seen = 0.0
        self._fetching = True  # the first round is on its way before anybody can ask
        self._over = asyncio.Event()  # set and replaced at the end of each round
        self._wanted = asyncio.Event()
        self._asked: float | None = None  # when an unknown key last caused a round
        self._tried = 0.0  # when the last round ended
        self._failures = 0
        self._wait = 0.0

    async def find(self, key_id: str, algorithm: str) -> Key:
        """The published key of that id for that algorithm, after a fetch if one is due.

        Raises: TokenRefused (`issuer_unavailable`, `unknown_key`).
        """
        if self.lasts() <= 0 and self._may_retry():
            await self._round()
        if self.lasts() <= 0 or self._keys is None:
            raise refused("issuer_unavailable")
        key = self._keys.find(key_id, algorithm)
        if key is None and self._may_ask():
            await self._round()
            key = self._keys.find(key_id, algorithm)
        if key is None:
            raise refused("unknown_key")
        return key

    def has(self, key: Key) -> bool:
        """Whether this very key is still published."""
        return self._keys is not None and self._keys.has(key)

    def lasts(self) -> float:
        """How many more seconds the keys count; not above 0 if there are none or they are too old."""
        return 0.0 if self._keys is None else self._seen + self._pace.ttl - self._clock()

    async def renew(self) -> bool:
        """Fetch once, successful or not. Says whether a key that was there is gone or another one now."""
        self._fetching = True
        former = self._keys
        try:
            self._keys = await self._fetched()
        except OutboundFailed as error:
            self._fail(error)
            return False
        finally:
            self._tried = self._clock()
            self._fetching = False
            self._over.set()
            self._over = asyncio.Event()
        self._seen, self._failures, self._wait = self._clock(), 0, self._pace.renew
        changed = former is None or former != self._keys
        write = log.info if changed else log.debug
        write("issuer_keys_fetched", issuer=self.issuer, keys=len(self._keys.keys), skipped=dict(self._keys.skipped))
        return former is not None and not all(self._keys.has(key) for key in former.keys.values())

    async def due(self) -> None:
        """Wait until it is time for the next round, or somebody needs one."""
        try:
            async with asyncio.timeout(self._wait):
                await self._wanted.wait()
        except TimeoutError:
            pass
        self._wanted.clear()

    async def _round(self) -> None:
        """Wait for the end of the round under way, or of the next one, which is started."""
        if not self._fetching:
            self._wanted.set()
        wait = min(self._pace.wait, self._pace.failing_wait) if self._failures else self._pace.wait
        try:
            async with asyncio.timeout(wait):
                await self._over.wait()
        except TimeoutError:
            pass

    def _may_ask(self) -> bool:
        """Whether an unknown key is reason enough to fetch now, or a fetch is under way anyhow."""
        if self._fetching or self._wanted.is_set():
            return True
        if self._asked is not None and self._clock() < self._asked + self._pace.ask:
            return False
        self._asked = self._clock()
        return True

    def _may_retry(self) -> bool:
        """Whether a caller without any keys may hasten the next try: the pauses grow up to a minute."""
        return self._fetching or self._wanted.is_set() or self._clock() >= self._tried + 5 * self._pace.retry

    def _fail(self, error: OutboundFailed) -> None:
        self._jwks_url = ""  # the keys may have moved
        pause = min(self._pace.retry * 2**self._failures, self._pace.longest_retry)
        self._failures = min(self._failures + 1, 16)
        self._wait = max(pause * random.uniform(0.8, 1.2), min(error.retry_after or 0.0, LONGEST_RETRY_AFTER))  # noqa: S311
        log.warning(
            "issuer_keys_failed",
            issuer=self.issuer,
            reason=error.problem,
            retry_in=round(self._wait, 1),
            good_for=round(max(0.0, self.lasts())),
        )

    async def _fetched(self) -> KeySet:
        """The keys as published now. Raises: OutboundFailed."""
        if not self._jwks_url or self._clock() > self._metadata_seen + self._pace.ttl:
            self._jwks_url = await self._read_metadata()
            self._metadata_seen = self._clock()
        home = URL(self._metadata_url).host or ""
        # The config names the metadata; where that sends us is somebody else's word. Not so on its own host, and not
        # for an issuer that is itself in the private network.
        guard = URL(self._jwks_url).host != home and not await self._outbound.is_private(home)
        answer = await self._outbound.get_json_bytes(
            self._jwks_url, limit=KEYS_LIMIT, timeout=self._pace.fetch, guard=guard
        )
        keys = read_keys(_body(answer))
        if keys is None:
            raise OutboundFailed("not_keys")
        if not keys.keys:
            log.warning("issuer_keys_useless", issuer=self.issuer, skipped=dict(keys.skipped))
            raise OutboundFailed("no_usable_key")
        return keys

    async def _read_metadata(self) -> str:
        """Where the keys are. OpenID Connect Discovery section 4.3. Raises: OutboundFailed."""
        answer = await self._outbound.get_json_bytes(self._metadata_url, limit=METADATA_LIMIT, timeout=self._pace.fetch)
        metadata = read_object(_body(answer))
        if metadata is None:
            raise OutboundFailed("not_metadata")
        if metadata.get("issuer") != self.issuer:
            raise OutboundFailed("other_issuer")
        jwks_url = metadata.get("jwks_uri")
        if not isinstance(jwks_url, str) or not _may_lead_to(self._metadata_url, jwks_url):
            raise OutboundFailed("jwks_url")
        return jwks_url


def metadata_url(issuer: Issuer) -> str:
    """Where an issuer's metadata is, as configured or by OpenID Connect Discovery section 4.1."""
    return issuer.metadata or issuer.issuer.rstrip("/") + WELL_KNOWN


def _may_lead_to(metadata: str, jwks: str) -> bool:
    """https, or plain http on loopback for an issuer that is on loopback itself."""
    if not is_secure(jwks):
        return False
    return URL(jwks).scheme == "https" or is_loopback(URL(metadata).host or "")


def _body(answer: Fetched) -> bytes:
    if answer.status != 200:
        raise OutboundFailed("status", answer.retry_after)
    return answer.body
