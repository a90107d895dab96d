"""The suite's client scenarios: its servers behind mcpmux, whose upstream side is the client under test."""

from __future__ import annotations

import asyncio
import itertools
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tests.conformance import suite
from tests.gateway_process import Gateway, running

pytestmark = pytest.mark.timeout(300)


@asynccontextmanager
async def control(gateway: Gateway, isolation: str) -> AsyncIterator[str]:
    """An address that puts a server behind mcpmux, and takes it away again when the client is done with it.

    The suite's servers end when the last connection to them does.
    """
    numbers = itertools.count(1)
    token = await asyncio.to_thread(gateway.token, "ana@example.com", "MCP-Admin")

    async def serve(request: web.Request) -> web.Response:
        section = {"transport": "http", "url": (await request.read()).decode(), "isolation": isolation}
        made = f"suite-{next(numbers)}"
        gateway.save({**gateway.servers, made: section})
        await gateway.ready(made)
        return web.json_response({"endpoint": f"{gateway.url}/servers/{made}/mcp", "token": token, "id": made})

    async def leave(request: web.Request) -> web.Response:
        gone = (await request.read()).decode()
        gateway.save({name: section for name, section in gateway.servers.items() if name != gone})
        return web.Response()

    app = web.Application()
    app.router.add_post("/", serve)
    app.router.add_delete("/", leave)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        (address,) = runner.addresses
        yield f"http://127.0.0.1:{address[1]}/"
    finally:
        await runner.cleanup()


# Only a link of its own tells a legacy server what this very client can do; modern links say it in each request.
@pytest.mark.parametrize(("revision", "isolation"), [(suite.LEGACY, "session"), (suite.MODERN, "shared")])
async def test_as_a_client_mcpmux_does_all_that_the_suite_wants(revision: str, isolation: str, tmp_path: Path) -> None:
    asking = Path(__file__).with_name("asking.py")
    with running(tmp_path / "gateway", {}) as gateway:
        async with control(gateway, isolation) as url:
            command = f"env MUX={url} {shlex.quote(sys.executable)} {shlex.quote(str(asking))}"
            got = await suite.run_client(command, tmp_path / "results", revision)
    lost = {name: status for name, status in got.items() if status not in ("SUCCESS", "INFO", "SKIPPED")}
    assert lost == {}, f"the results are in {tmp_path}"
    assert len(got) >= suite.CLIENT_CHECKS[revision]
