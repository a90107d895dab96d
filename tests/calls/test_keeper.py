"""How long what a task asks waits for a client to look, and that nothing stays: `calls/keeper.py`, `calls/crossing.py`.

Source: the extension io.modelcontextprotocol/tasks (SEP-2663); design section 3.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import msgspec
import pytest
from msgspec import Raw

from mcpmux.calls import Caller, Inputs, Tasks
from mcpmux.calls.call import Call
from mcpmux.calls.crossing import Crossing
from mcpmux.calls.errand import Errand
from mcpmux.calls.inputs import PATIENCE
from mcpmux.catalog.view import View
from mcpmux.links import Pool
from mcpmux.links.link import Link
from mcpmux.protocol.events import Opening, Result
from tests.calls.room import ABLE, ANA
from tests.calls.upstream import Json
from tests.links.harness import PATIENCE as WAIT
from tests.links.harness import counter, link_of, running, with_section
from tests.servers import HERE

CALLER = Caller(ANA, View("all"), "", ABLE)
NO_TASKS = cast(Tasks, None)  # told of the end of a task alone
NO_CALL = cast(Call, None)  # looked into for answers alone


@pytest.fixture
async def link(tmp_path: Path) -> AsyncIterator[Link]:
    """The link of a server with tasks, which forgets everything in the end."""
    command = (sys.executable, str(HERE / "tasks_server.py"), "--record", str(tmp_path / "record"))
    async with running(tmp_path, with_section(msgspec.structs.replace(counter(), command=command))) as pool:
        found = await link_of(pool, "counter")
        yield found
        assert found._core.leftovers == 0


async def asking(link: Link) -> Errand:
    """A look at a new task that asks for something."""
    params = {"name": Raw(b'"confirm"'), "task": Raw(b"{}")}
    event = await link.open(Opening("tools/call", params, ANA.key)).next()
    assert isinstance(event, Result)
    task = json.loads(bytes(event.result))["task"]["taskId"]
    return Errand(NO_TASKS, CALLER, counter(), "confirm", "tasks/get", task, "sealed")


async def looked(crossing: Crossing, link: Link, errand: Errand) -> Json:
    """How the task stands."""
    async with asyncio.timeout(WAIT):
        end = await crossing.carry_out(NO_CALL, link, errand)
    assert isinstance(end, Result)
    found = json.loads(bytes(end.result))
    assert isinstance(found, dict)
    return found


async def test_what_a_task_asks_waits_for_ten_minutes_after_the_last_look(link: Link) -> None:
    inputs = Inputs(cast(Pool, None))  # it counts, and no more
    crossing = Crossing(inputs)
    errand = await asking(link)
    first = await looked(crossing, link, errand)
    assert first["status"] == "input_required"
    assert (len(crossing), inputs.open, link._core.in_flight) == (1, 1, 1)
    now = time.monotonic()
    crossing.sweep(now + PATIENCE - 5)
    assert (len(crossing), inputs.open) == (1, 1)
    assert (await looked(crossing, link, errand))["inputRequests"] == first["inputRequests"]
    crossing.sweep(now + PATIENCE + 5)
    assert (len(crossing), inputs.open, link._core.in_flight) == (0, 0, 0)
