"""Every client at every server with every feature, and the README says what came of it."""

from __future__ import annotations

import asyncio
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mcp.shared.exceptions import MCPDeprecationWarning

from tests.gateway_process import running
from tests.matrix import servers, table
from tests.matrix.features import FEATURES
from tests.matrix.missing import reason_of
from tests.matrix.run import Cell, run
from tests.schemas import MODERN
from tests.schemas.wire import Wire

pytestmark = pytest.mark.timeout(400)

SHOWN = 12  # failing cells of one feature


@dataclass(frozen=True)
class Found:
    """What a run found, and the folder with what servers were told."""

    cells: list[Cell]
    wires: Path


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    """One run of the whole matrix."""
    folder = tmp_path_factory.mktemp("matrix")
    wires, gates = folder / "wires", folder / "gates"
    wires.mkdir()
    gates.mkdir()
    with servers.started(wires) as sections, running(folder / "gateway", sections) as gateway:
        token = gateway.token("ana@example.com", "MCP-Admin")
        for server in servers.UPSTREAMS:
            gateway.wait_for(lambda id_=server.id: gateway.logged("link_ready", server=id_), 20, server.id)
        with warnings.catch_warnings():
            # Log levels, subscriptions of resources and ping are gone from 2026-07-28.
            warnings.simplefilter("ignore", MCPDeprecationWarning)
            yield Found(asyncio.run(run(gateway, token, gates)), wires)


@pytest.mark.parametrize("feature", [feature.name for feature in FEATURES])
def test_it_works_wherever_both_sides_have_it_and_is_not_there_elsewhere(feature: str, found: Found) -> None:
    cells = [cell for cell in found.cells if cell.feature == feature]
    wrong = [str(cell) for cell in cells if cell.problem and reason_of(cell) is None]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(cells)} cells", *wrong[:SHOWN]])
    right = [str(cell) for cell in cells if not cell.problem and reason_of(cell) is not None]
    assert not right, "\n".join(["these work now: take them out of tests/matrix/missing.py", *right[:SHOWN]])


def test_what_servers_are_told_is_as_the_schema_of_their_revision_has_it(found: Found) -> None:
    problems: dict[str, str] = {}
    for file in found.wires.iterdir():
        wire, probe = Wire(file.name[:10], "Client"), Wire(MODERN, "Client")
        for line in file.read_text().splitlines():
            direction, message = json.loads(line)
            if direction == "out":
                wire.heard(message)
                continue
            try:
                (probe if message.get("method") == "server/discover" else wire).sent(message)
            except AssertionError as problem:
                problems[f"{wire.revision} {message.get('method')}"] = str(problem)
    assert problems == {}


def test_the_readme_shows_what_was_found(found: Found) -> None:
    made = table.tables(found.cells)
    if "REWRITE_README" in os.environ:
        table.rewrite(made)
    assert table.shown() == made, f"to rewrite it: {table.COMMAND}"
