"""The official conformance suite against a server directly and behind mcpmux, compared check by check."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conformance import suite
from tests.conformance.bearer_proxy import bearer_proxy
from tests.gateway_process import running
from tests.servers import Section, listening, stdio

pytestmark = pytest.mark.timeout(400)

EXPECTED: dict[str, str] = json.loads(Path(__file__).with_name("expected_failures.json").read_text())
# The server cuts its stream in the middle of a call. mcpmux goes back to it for the rest and keeps its own client's
# stream open, so that the client has nothing to resume: the suite notes that (INFO) instead of checking it.
NOTHING_TO_RESUME = "server-sse-polling/server-sse-disconnect-resume"


@contextmanager
def behind(transport: str) -> Iterator[Section]:
    """The config section that reaches the conformance server over one transport."""
    if transport == "stdio":
        yield stdio("conformance_server", "stdio")
        return
    with listening(transport) as (url, _):
        yield {"transport": transport, "url": url}


async def test_the_server_itself_passes_every_check(tmp_path: Path) -> None:
    with listening("http") as (url, _):
        checks = await suite.run(url, tmp_path)
    statuses = [status for status in checks.values() if status != "INFO"]
    assert statuses == ["SUCCESS"] * suite.CHECKS


async def test_the_proxy_that_adds_the_token_changes_nothing(tmp_path: Path) -> None:
    with listening("http") as (url, _):
        async with bearer_proxy(url.removesuffix("/mcp"), "a-token") as proxy:
            checks = await suite.run(f"{proxy}/mcp", tmp_path)
    assert set(checks.values()) == {"SUCCESS", "INFO"}


@pytest.mark.parametrize("transport", ["stdio", "http", "sse"])
async def test_behind_mcpmux_only_requests_from_servers_are_lost(transport: str, tmp_path: Path) -> None:
    direct, behind_us = tmp_path / "direct", tmp_path / "behind"
    with listening("http") as (url, _):
        wanted = await suite.run(url, direct)
    with behind(transport) as section, running(tmp_path / "gateway", {"conformance": section}) as gateway:
        await gateway.ready("conformance")
        token = gateway.token("ana@example.com", "MCP-Admin")
        async with bearer_proxy(gateway.url, token) as proxy:
            got = await suite.run(f"{proxy}/servers/conformance/mcp", behind_us)
    checked = {name for name, status in wanted.items() if status != "INFO"}
    lost = {name: got.get(name, "absent") for name in checked if got.get(name) != "SUCCESS"}
    if lost.get(NOTHING_TO_RESUME) == "INFO":
        del lost[NOTHING_TO_RESUME]
    assert lost.keys() - EXPECTED.keys() == set(), f"lost: {lost}; the results are in {tmp_path}"
    assert EXPECTED.keys() - lost.keys() == set(), "these pass now: take them from the list"
