"""A verifier with its background loop running, one simulated issuer, and clocks that a test can turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from mcpmux.config.schema import Issuer
from mcpmux.errors import TokenRefused
from mcpmux.identity.development import DevelopmentIssuer
from mcpmux.identity.issuers import Pace
from mcpmux.identity.principal import Verified
from mcpmux.identity.verifier import CAUSES, Verifier
from mcpmux.observe.metrics import Metrics
from mcpmux.outbound import Outbound
from tests.simulators.oidc import AUDIENCE, OidcIssuer


class Clocks:
    """Both clocks, ahead of the real ones by `ahead` seconds."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def wall(self) -> float:
        return time.time() + self.ahead


def configured(issuer: OidcIssuer, /, **changes: object) -> Issuer:
    """The config of a simulated issuer."""
    values: dict[str, object] = {"issuer": issuer.url, "audiences": (AUDIENCE,), **changes}
    return Issuer(**values)  # type: ignore[arg-type]


@asynccontextmanager
async def running(
    *issuers: Issuer, pace: Pace | None = None, development: DevelopmentIssuer | None = None
) -> AsyncIterator[Verifier]:
    """A verifier of these issuers with its loop running, which ends with the block."""
    async with Outbound() as outbound:
        verifier = Verifier(issuers, outbound, Metrics(["tools/call"]), development=development, pace=pace)
        async with asyncio.TaskGroup() as tasks:
            loop = tasks.create_task(verifier.run())
            try:
                yield verifier
            finally:
                loop.cancel()


async def cause_of(verifier: Verifier, token: str) -> str:
    """The word for why a token is refused; fails if it is not, or if the word or the text is not what it must be."""
    try:
        verified = await verifier.verify(token)
    except TokenRefused as refusal:
        assert refusal.cause in CAUSES
        assert str(refusal) == "The access token is invalid or expired"
        assert refusal.__cause__ is None and refusal.__context__ is None
        assert verifier.known(token) is None
        return refusal.cause
    raise AssertionError(f"taken: {verified}")


async def accepted(verifier: Verifier, token: str) -> Verified:
    """The verdict on a token that must be taken, which is remembered from then on."""
    verified = await verifier.verify(token)
    assert verifier.known(token) == verified
    return verified


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def pace(clocks: Clocks) -> Pace:
    """The real pace by clocks that can be turned, with short waits for what never comes."""
    return replace(Pace(), clock=clocks.monotonic, wall=clocks.wall, wait=3.0, retry=0.01, longest_retry=0.02)


@pytest.fixture
async def issuer() -> AsyncIterator[OidcIssuer]:
    async with OidcIssuer() as started:
        yield started


@pytest.fixture
async def verifier(issuer: OidcIssuer, pace: Pace) -> AsyncIterator[Verifier]:
    async with running(configured(issuer, trust_email=True), pace=pace) as started:
        yield started
