"""Clients that are asked something and never come back, on every place that their servers have: others get on.

As slow as it is: a call that is parked has half a minute before any other may have its place.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.calls.asker import ACCEPTED, NEVER_OURS, Asker, fitting, heard, person, shown
from tests.calls.upstream import Json, Witness
from tests.faces.client import read
from tests.faces.modern import Modern, asking
from tests.gateway_process import Gateway, running
from tests.schemas.watched import watching

pytestmark = pytest.mark.timeout(180)
SECTIONS: dict[str, Json] = {
    "pooled": {"isolation": "pooled", "links": 2},
    "shared": {"concurrency": 1},
    "own": {"isolation": "session", "max_links": 1},
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Witness]:
    folder = tmp_path_factory.mktemp("records")
    return {name: Witness(name, folder) for name in SECTIONS}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, servers: dict[str, Witness]) -> Iterator[Gateway]:
    sections = {name: one.section(**SECTIONS[name]) for name, one in servers.items()}
    with running(tmp_path_factory.mktemp("abandoned"), sections) as made:
        for name in SECTIONS:
            made.grant(f"MCP-{name}", name)
            made.wait_for(lambda name=name: made.logged("link_ready", server=name), 30, name)
        made.wait_for(lambda: len(made.logged("link_ready", server="pooled")) == 2, 30, "both links")
        yield made


async def patiently(asker: Asker, tool: str) -> object:
    """What a tool echoes, however long that takes."""
    async with watching() as http:
        client = Modern(http, f"{asker.gateway.url}/mcp", asker.who)
        message = asking("tools/call", {"name": tool, "arguments": {"text": "hello"}})
        async with client.posting(message) as answer:
            result = (await read(answer)).json["result"]
    assert isinstance(result, dict) and not result.get("isError"), result
    return result["content"][0]["text"]


async def test_abandoned_calls_block_nobody_for_longer_than_a_form_takes(
    gateway: Gateway, servers: dict[str, Witness]
) -> None:
    ana, ben = person(gateway, "ana", *SECTIONS), person(gateway, "ben", *SECTIONS)
    began = time.monotonic()
    left = {name: await ana.asked(f"{name}__talk") for name in SECTIONS}
    kept = await ana.asked("pooled__talk")
    async with asyncio.timeout(90), asyncio.TaskGroup() as tasks:
        got = [tasks.create_task(patiently(ben, f"{name}__echo")) for name in SECTIONS]
    assert [one.result() for one in got] == ["hello"] * len(SECTIONS)
    assert time.monotonic() - began > 29
    for name, asked in left.items():
        assert shown(await ana.answered(f"{name}__talk", asked, fitting(asked))) == NEVER_OURS
        await servers[name].hears("notifications/cancelled")
        (line,) = gateway.logged("parked_dropped", server=name)
        assert (line["reason"], line["principal"]) == ("another call needed its place", "ana@example.com")
        assert gateway.metric("mcpmux_asks_total", server=name, outcome="displaced") == 1
    assert heard(await ana.answered("pooled__talk", kept, fitting(kept)))["result"] == ACCEPTED  # type: ignore[index]
    await gateway.soon(lambda: gateway.metric("mcpmux_calls_parked") == 0)
    assert gateway.metric("mcpmux_calls_in_flight") == 0
