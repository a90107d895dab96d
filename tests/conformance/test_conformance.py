"""The official conformance suite against a server directly and behind mcpmux, compared check by check."""

from __future__ import annotations

import asyncio
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

# Why a check may be lost behind mcpmux, or become a note (INFO) because what it asks does not arise.
EXPECTED = json.loads(Path(__file__).with_name("expected_failures.json").read_text())


@contextmanager
def behind(transport: str) -> Iterator[Section]:
    """The config section that reaches the conformance server over one transport."""
    if transport == "stdio":
        yield stdio("conformance_server", "stdio")
        return
    with listening(transport) as (url, _):
        yield {"transport": transport, "url": url}


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> suite.Checks:
    """What the suite finds without mcpmux in between."""
    with listening("http") as (url, _):
        return asyncio.run(suite.run(url, tmp_path_factory.mktemp("direct")))


def test_the_server_itself_passes_every_check(direct: suite.Checks) -> None:
    statuses = [status for status in direct.values() if status != "INFO"]
    assert statuses == ["SUCCESS"] * suite.CHECKS


async def test_the_proxy_that_adds_the_token_changes_nothing(tmp_path: Path) -> None:
    with listening("http") as (url, _):
        async with bearer_proxy(url.removesuffix("/mcp"), "a-token") as proxy:
            checks = await suite.run(f"{proxy}/mcp", tmp_path)
    assert set(checks.values()) == {"SUCCESS", "INFO"}


@pytest.mark.parametrize(
    ("transport", "isolation"),
    [("stdio", "shared"), ("stdio", "pooled"), ("stdio", "session"), ("http", "shared"), ("sse", "shared")],
)
async def test_behind_mcpmux_nothing_is_lost(
    transport: str, isolation: str, direct: suite.Checks, tmp_path: Path
) -> None:
    with (
        behind(transport) as section,
        running(tmp_path / "gateway", {"conformance": {**section, "isolation": isolation}}) as gateway,
    ):
        await gateway.ready("conformance")
        token = gateway.token("ana@example.com", "MCP-Admin")
        async with bearer_proxy(gateway.url, token) as proxy:
            got = await suite.run(f"{proxy}/servers/conformance/mcp", tmp_path / "behind")
    checked = {name for name, status in direct.items() if status != "INFO"}
    lost = {name: got.get(name, "absent") for name in checked if got.get(name) != "SUCCESS"}
    unexpected = {
        name: status
        for name, status in lost.items()
        if name not in EXPECTED["lost"] and not (status == "INFO" and name in EXPECTED["noted"])
    }
    assert unexpected == {}, f"the results are in {tmp_path}"
    assert EXPECTED["lost"].keys() - lost.keys() == set(), "these pass now: take them from the list"


@pytest.mark.parametrize("transport", ["stdio", "http", "sse"])
async def test_in_front_of_a_legacy_server_a_modern_client_misses_what_the_list_has_alone(
    transport: str, tmp_path: Path
) -> None:
    with behind(transport) as section, running(tmp_path / "gateway", {"conformance": section}) as gateway:
        await gateway.ready("conformance")
        token = gateway.token("ana@example.com", "MCP-Admin")
        async with bearer_proxy(gateway.url, token) as proxy:
            got = await suite.run(f"{proxy}/servers/conformance/mcp", tmp_path / "modern", suite.MODERN)
    lost = {name: status for name, status in got.items() if status not in ("SUCCESS", "INFO")}
    unexpected = {name: status for name, status in lost.items() if name not in EXPECTED["modern"]}
    assert unexpected == {}, f"the results are in {tmp_path}"
    assert EXPECTED["modern"].keys() - lost.keys() == set(), "these pass now: take them from the list"
    assert len(got) - len(lost) >= suite.MODERN_CHECKS
