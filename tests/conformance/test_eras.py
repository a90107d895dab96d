"""The official suite in front of servers of both eras and of the modern one alone, over each transport and isolation.

One mcpmux has them all. The runs wait for the suite's own clocks more than for anything else, so some go on at once;
each test then looks at one of them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conformance import suite
from tests.conformance.bearer_proxy import bearer_proxy
from tests.gateway_process import Gateway, running
from tests.servers import Section, listening, stdio

pytestmark = pytest.mark.timeout(400)

HERE = Path(__file__).parent
NOTED = json.loads((HERE / "expected_failures.json").read_text())["noted"]
EXPECTED = json.loads((HERE / "expected_eras.json").read_text())
AT_ONCE = 2
DIRECT = "directly"
CHECKS = {suite.LEGACY: suite.CHECKS, suite.MODERN: 136}

Runs = Mapping[tuple[str, str], suite.Checks]


def conformance(era: str, **more: object) -> Section:
    """A section with the conformance server on pipes."""
    return stdio("conformance_modern", "stdio", "--era", era, **more)


# The suite begins many calls that it never goes on with, and each keeps its process until it is given up.
LENT = {"links": 10}
BOTH = (suite.MODERN, suite.LEGACY)
# What each server is asked for; those over HTTP get their address when it listens.
ASKED: dict[str, tuple[str, ...]] = {
    "dual-http": BOTH,
    "dual-http-session": (suite.MODERN,),
    "dual-http-pooled": (suite.MODERN,),
    "dual-stdio": BOTH,
    "dual-stdio-pooled": (suite.MODERN,),
    "dual-stdio-session": (suite.MODERN,),
    "modern-http": BOTH,
    "modern-stdio": BOTH,
}


def sections(addresses: Mapping[str, str]) -> dict[str, Section]:
    """The servers by id: era, transport and isolation, if it is not `shared`."""
    found: dict[str, Section] = {}
    for name in ASKED:
        era, transport, isolation = (*name.split("-"), "shared")[:3]
        if transport == "http":
            found[name] = {"transport": "http", "url": addresses[era], "isolation": isolation}
        else:
            found[name] = conformance(era, isolation=isolation, **(LENT if isolation == "pooled" else {}))
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every run: by server and revision."""
    folder = tmp_path_factory.mktemp("eras")
    arguments = {era: ["--era", era] for era in ("dual", "modern")}
    with (
        listening("http", program="conformance_modern", arguments=arguments["dual"]) as (dual, _),
        listening("http", program="conformance_modern", arguments=arguments["modern"]) as (modern, _),
        running(folder / "gateway", sections({"dual": dual, "modern": modern})) as gateway,
    ):
        return asyncio.run(_all(gateway, dual, folder))


async def _all(gateway: Gateway, direct: str, folder: Path) -> Runs:
    for name in ASKED:
        await gateway.ready(name)
    found: dict[tuple[str, str], suite.Checks] = {}
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(name: str, url: str, revision: str) -> None:
        results = folder / f"{name}-{revision}"
        results.mkdir()
        async with turn:
            found[name, revision] = await suite.run(url, results, revision)

    token = gateway.token("ana@example.com", "MCP-Admin")
    async with bearer_proxy(gateway.url, token) as proxy, asyncio.TaskGroup() as tasks:
        for revision in BOTH:
            tasks.create_task(one(DIRECT, direct, revision))
        for name, revisions in ASKED.items():
            for revision in revisions:
                tasks.create_task(one(name, f"{proxy}/servers/{name}/mcp", revision))
    return found


@pytest.mark.parametrize("revision", BOTH)
def test_the_server_itself_passes_every_check(runs: Runs, revision: str) -> None:
    statuses = [status for status in runs[DIRECT, revision].values() if status != "INFO"]
    assert statuses == ["SUCCESS"] * CHECKS[revision]


@pytest.mark.parametrize(("name", "revision"), [(name, revision) for name, all_ in ASKED.items() for revision in all_])
def test_behind_mcpmux_nothing_is_lost_but_what_the_list_has(runs: Runs, name: str, revision: str) -> None:
    got = runs[name, revision]
    checked = {check for check, status in runs[DIRECT, revision].items() if status != "INFO"}
    lost = {check: got.get(check, "absent") for check in checked if got.get(check) != "SUCCESS"}
    expected = EXPECTED["anywhere"] | EXPECTED.get(f"{name} {revision}", {})
    unexpected = {
        check: status
        for check, status in lost.items()
        if check not in expected and not (status == "INFO" and check in NOTED)
    }
    assert unexpected == {}
