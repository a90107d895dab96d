"""However often links come and go, and however mcpmux ends, nothing is left of them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest

from mcpmux.credentials import LinkKey
from mcpmux.errors import LinkLost
from mcpmux.links import Pool
from tests.links.harness import PATIENCE, call, counter, ending, link_of, of, running, surroundings, tool, until
from tests.processes import Watched, program

OWNER = """
import asyncio, json, os, sys
from pathlib import Path
import psutil
from tests.links.harness import counter, faulty, link_of, running, tool

async def main():
    async with running(Path(sys.argv[1]), counter(), faulty("family"), faulty("wrapper")) as pool:
        for name in ("counter", "family", "wrapper"):
            link = await link_of(pool, name, 20)
            if name == "counter":
                link.open(tool("slow", gate=sys.argv[1] + "/gate"))
        me = psutil.Process()
        while len(me.children(recursive=True)) < 7:
            await asyncio.sleep(0.01)
        print(json.dumps([child.pid for child in me.children(recursive=True)]), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_when_mcpmux_is_killed_every_child_and_grandchild_ends(tmp_path: Path) -> None:
    with program(OWNER, str(tmp_path)) as owner:
        pids = owner.says()
        assert isinstance(pids, list)
        # Three servers, the family's child and grandchild, the real server behind the wrapper, the guardian.
        assert len(pids) >= 7
        # What a server starts for a moment only may be gone already.
        watched = [Watched(pid) for pid in pids if psutil.pid_exists(pid)]
        assert len(watched) >= 7
        owner.kill(signal.SIGKILL)
        assert all(process.ended(10) for process in watched)


async def test_restarts_leave_no_descriptor_process_or_task_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcpmux.links.backoff.FIRST", 0.001)
    monkeypatch.setattr("mcpmux.links.backoff.TRIES_PROVEN", 1000)
    monkeypatch.setattr("mcpmux.links.backoff.FACTOR", 1)
    me = psutil.Process()
    async with running(tmp_path, counter()) as pool:
        descriptors = processes = 0
        for round_ in range(12):
            link = await link_of(pool, "counter")
            exchange = link.open(tool("slow", gate=str(tmp_path / "gate")))
            if round_ == 2:
                descriptors, processes = me.num_fds(), len(me.children(recursive=True))
            os.kill(link.pid or 0, signal.SIGKILL)
            with pytest.raises(LinkLost):
                await ending(exchange)
            assert link.in_flight == 0
        await link_of(pool, "counter")
        await until(lambda: len(me.children(recursive=True)) == processes)
        assert me.num_fds() <= descriptors
        assert pool.status()[0].restarts == 12


async def test_ten_thousand_calls_leave_nothing_in_the_tables(tmp_path: Path) -> None:
    async with running(tmp_path, counter(concurrency=64)) as pool:
        link = await link_of(pool, "counter")
        for _ in range(200):
            exchanges = [link.open(tool("echo", text="x")) for _ in range(50)]
            for number, exchange in enumerate(exchanges):
                if number % 5:
                    await ending(exchange)
                else:
                    exchange.cancel("enough")
        assert await call(link, "echo", text="last") == "last"
        assert link.in_flight == 0
        assert link._core.leftovers == 0
        assert pool.status()[0].in_flight == 0
        assert pool.ready(LinkKey("counter")) is link


@pytest.mark.parametrize("isolation", ["pooled", "session"])
@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.1, 0.4])
async def test_whenever_a_pool_of_several_links_is_cancelled_nothing_is_left(
    tmp_path: Path, isolation: str, seconds: float
) -> None:
    before = set(psutil.Process().children(recursive=True))
    async with surroundings(tmp_path) as ground:
        guarded = set(psutil.Process().children(recursive=True))
        pool = Pool(ground)
        pool.apply(of(counter(isolation=isolation)))
        async with asyncio.TaskGroup() as tasks:
            run = tasks.create_task(pool.run())
            keys = [LinkKey("counter", "" if isolation == "pooled" else f"session-{number}") for number in range(3)]
            waiting = [tasks.create_task(pool.link(key, PATIENCE)) for key in keys]
            await asyncio.sleep(seconds)
            run.cancel()
            for task in waiting:
                task.cancel()
        assert not set(psutil.Process().children(recursive=True)) - guarded
    assert not set(psutil.Process().children(recursive=True)) - before
