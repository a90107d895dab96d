"""What machines ask mcpmux about itself, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import RawTestServer

from mcpmux.errors import TokenMissing
from mcpmux.faces.health import Admit, Health
from mcpmux.observe.metrics import Metrics

Get = Callable[..., Awaitable[tuple[int, str, str]]]


@asynccontextmanager
async def served(health: Health) -> AsyncIterator[Get]:
    paths = {"/healthz": health.healthz, "/readyz": health.readyz, "/metrics": health.metrics}

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await paths[request.path](request)
        except TokenMissing as error:
            return web.Response(status=401, text=str(error))

    async with RawTestServer(handler) as server, ClientSession() as client:

        async def get(path: str, *, method: str = "GET", accept: str = "*/*") -> tuple[int, str, str]:
            async with client.request(method, server.make_url(path), headers={"Accept": accept}) as answer:
                return answer.status, answer.headers["Content-Type"], await answer.text()

        yield get


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(["tools/call"])


async def test_readiness_follows_the_phase_and_liveness_does_not(metrics: Metrics) -> None:
    health = Health(metrics, None)
    async with served(health) as get:
        told = []
        for phase in ("starting", "ready", "draining"):
            health.phase = phase  # type: ignore[assignment]
            told.append(((await get("/readyz"))[0], (await get("/healthz"))[0]))
        assert told == [(503, 200), (200, 200), (503, 200)]
        assert (await get("/readyz"))[2] == '{"status":"draining"}'


async def test_metrics_come_in_the_format_that_the_scraper_accepts(metrics: Metrics) -> None:
    metrics.server("github").tally.call("tools/call", "ok", 0.1)
    async with served(Health(metrics, None)) as get:
        status, kind, text = await get("/metrics")
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert 'mcpmux_calls_total{method="tools/call",outcome="ok",server="github"} 1.0' in text
        _, kind, text = await get("/metrics", accept="application/openmetrics-text; version=1.0.0,text/plain;q=0.5")
        assert kind.startswith("application/openmetrics-text")
        assert text.endswith("# EOF\n")


async def test_metrics_that_are_not_public_need_a_token(metrics: Metrics) -> None:
    async def nobody(request: web.BaseRequest) -> None:
        if "Authorization" not in request.headers:
            raise TokenMissing

    admit: Admit = nobody
    async with served(Health(metrics, admit)) as get:
        assert (await get("/metrics"))[0] == 401
        assert (await get("/healthz"))[0] == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_nothing_can_be_posted(metrics: Metrics, path: str) -> None:
    async with served(Health(metrics, None)) as get:
        assert (await get(path, method="POST"))[0] == 405
        assert (await get(path, method="HEAD"))[0] in (200, 503)
