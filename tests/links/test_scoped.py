"""A link for each session: started by its first call, bounded, ended when idle or with its session; lists apart."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import psutil
import pytest
from msgspec import Raw

from mcpmux.config.schema import Limits, Server
from mcpmux.credentials import LinkKey
from mcpmux.errors import LinksTaken, ServerBusy, ServerEnded, ServerUnavailable
from mcpmux.links import Pool
from mcpmux.links.changes import LinkChange, LinkGone, LinkReady, ResourceUpdated
from mcpmux.protocol.events import Opening
from tests.links.harness import (
    PATIENCE,
    call,
    counter,
    ending,
    faulty,
    link_of,
    of,
    pids,
    running,
    text,
    tool,
    until,
    with_section,
)

LISTS = LinkKey("counter")
ANA, BEN, CEM = (LinkKey("counter", name) for name in ("ana-1", "ben-1", "cem-1"))


def apart(**fields: object) -> Server:
    """The well-behaved server with a link for each session."""
    return counter(isolation="session", **fields)


async def count(pool: Pool, key: LinkKey) -> str:
    """Count one up in the process of this session."""
    return await call(await pool.link(key, PATIENCE), "count")


def alive(pool: Pool) -> int:
    """How many processes the server has."""
    return len(pids(pool))


async def news(pool: Pool, *wanted: LinkChange) -> None:
    """Wait for these changes on a feed of their own."""
    feed, left = pool.changes(), set(wanted)
    async with asyncio.timeout(PATIENCE):
        while left:
            left.discard(await anext(feed))


# Whose link ------------------------------------------------------------------------------------------------------


async def test_each_session_has_a_process_of_its_own_from_its_first_call_on(tmp_path: Path) -> None:
    async with running(tmp_path, apart()) as pool:
        await link_of(pool, "counter")
        assert alive(pool) == 1
        assert pool.ready(ANA) is None
        assert [await count(pool, ANA) for _ in range(3)] == ["1", "2", "3"]
        assert await count(pool, BEN) == "1"
        await until(lambda: alive(pool) == 3)
        links = [pool.ready(key) for key in (ANA, BEN, LISTS)]
        assert len({link.pid for link in links if link is not None}) == 3
        assert pool.status()[0].state == "ready"


async def test_calls_of_one_session_that_come_together_share_its_one_link(tmp_path: Path) -> None:
    async with running(tmp_path, apart(max_links=1)) as pool:
        async with asyncio.TaskGroup() as tasks:
            found = [tasks.create_task(count(pool, ANA)) for _ in range(5)]
        assert sorted(task.result() for task in found) == ["1", "2", "3", "4", "5"]
        await until(lambda: alive(pool) == 2)  # the link that lists may come up after it


async def test_one_session_may_have_so_many_calls_in_flight_and_is_nobody_else_s_wait(tmp_path: Path) -> None:
    async with running(tmp_path, apart(concurrency=1)) as pool:
        busy = (await pool.link(ANA, PATIENCE)).open(tool("slow", gate=str(tmp_path / "gate")))
        assert pool.ready(ANA) is None
        with pytest.raises(ServerBusy):
            await pool.link(ANA, 0.02)
        assert await count(pool, BEN) == "1"
        (tmp_path / "gate").touch()
        await ending(busy)


async def test_a_session_s_link_that_dies_is_restarted_alone(tmp_path: Path) -> None:
    async with running(tmp_path, apart()) as pool:
        assert await count(pool, ANA) == "1"
        assert await count(pool, BEN) == "1"
        link = pool.ready(ANA)
        assert link is not None
        os.kill(link.pid or 0, signal.SIGKILL)
        await until(lambda: link.lost)
        assert await count(pool, ANA) == "1"
        assert await count(pool, BEN) == "2"
        assert pool.state("counter") == "ready"


# Ends ------------------------------------------------------------------------------------------------------------


async def test_the_link_ends_with_its_session_and_its_calls(tmp_path: Path) -> None:
    async with running(tmp_path, apart(), counter("other")) as pool:
        assert await count(pool, BEN) == "1"
        link = await pool.link(ANA, PATIENCE)
        busy = link.open(tool("slow", gate=str(tmp_path / "gate")))
        pool.end("ana-1")
        pool.end("ana-1")
        pool.end("who-never-called")
        with pytest.raises(ServerEnded):
            await ending(busy)
        await until(lambda: not psutil.pid_exists(link.pid or 0))
        assert pool.ready(ANA) is None
        assert await count(pool, BEN) == "2"
        await until(lambda: alive(pool) == 2)


async def test_a_session_that_ends_while_its_link_starts_leaves_nothing(tmp_path: Path) -> None:
    late = with_section(
        msgspec.structs.replace(faulty("late", "--gate", str(tmp_path / "gate"), isolation="session"), id="counter")
    )
    async with running(tmp_path, late) as pool:
        (tmp_path / "gate").touch()
        await link_of(pool, "counter")
        (tmp_path / "gate").unlink()
        async with asyncio.TaskGroup() as tasks:
            waits = tasks.create_task(pool.link(ANA, PATIENCE))
            await until(lambda: len(pool.status()[0].links) == 2)
            waits.cancel()  # as the end of a session does with its calls, first of all
            pool.end("ana-1")
        await until(lambda: len(pool.status()[0].links) == 1)


async def test_a_link_that_is_not_used_ends_and_a_busy_one_does_not(tmp_path: Path) -> None:
    async with running(tmp_path, apart(idle=0.2)) as pool:
        assert await count(pool, BEN) == "1"
        busy = (await pool.link(ANA, PATIENCE)).open(tool("slow", gate=str(tmp_path / "gate")))
        await until(lambda: alive(pool) == 2)
        assert pool.ready(BEN) is None
        await news(pool, LinkReady("counter", ANA), LinkReady("counter", LISTS))
        assert not busy.ended
        (tmp_path / "gate").touch()
        assert "is open" in await text(busy)
        await until(lambda: alive(pool) == 1)
        assert pool.state("counter") == "ready"
        # The next call of the session starts a new one.
        assert await count(pool, BEN) == "1"


async def test_a_link_on_which_something_is_waited_for_stays_unless_its_place_is_needed(tmp_path: Path) -> None:
    async with running(tmp_path, apart(idle=0.1, max_links=2)) as pool:
        await count(pool, ANA)
        pool.keep(ANA)  # before anything is awaited that may take longer than `idle`
        await count(pool, BEN)
        await until(lambda: alive(pool) == 2)
        assert pool.lives(ANA)
        async with asyncio.TaskGroup() as tasks:
            for key in (BEN, CEM):
                tasks.create_task(count(pool, key))
        assert not pool.lives(ANA)
        assert await count(pool, ANA) == "1"
        await until(lambda: alive(pool) == 2)
        pool.let_go(ANA)
        await until(lambda: alive(pool) == 1)


async def test_nothing_of_a_server_is_left_when_it_is_removed(tmp_path: Path) -> None:
    async with running(tmp_path, apart()) as pool:
        for key in (ANA, BEN, CEM):
            await count(pool, key)
        former = pids(pool)
        pool.apply({})
        with pytest.raises(ServerUnavailable):
            await pool.link(ANA, PATIENCE)
        await until(lambda: not any(map(psutil.pid_exists, former)))


async def test_a_changed_server_lets_calls_finish_on_their_sessions_old_links(tmp_path: Path) -> None:
    async with running(tmp_path, apart(), limits=Limits(drain=PATIENCE)) as pool:
        await count(pool, BEN)
        old = await pool.link(ANA, PATIENCE)
        busy = old.open(tool("slow", gate=str(tmp_path / "gate")))
        new = apart()
        pool.apply(of(with_section(msgspec.structs.replace(new, command=(*new.command, "--name", "new")))))
        await until(lambda: pool.ready(ANA) is None)
        assert await count(pool, ANA) == "1"
        assert await count(pool, BEN) == "1"
        assert pool.ready(ANA) is not old
        (tmp_path / "gate").touch()
        assert "is open" in await text(busy)
        await until(lambda: not psutil.pid_exists(old.pid or 0))


# Bounds ----------------------------------------------------------------------------------------------------------


async def test_the_link_unused_for_longest_gives_way(tmp_path: Path) -> None:
    async with running(tmp_path, apart(max_links=2)) as pool:
        for key in (ANA, BEN, ANA):
            await count(pool, key)
        assert await count(pool, CEM) == "1"
        await until(lambda: alive(pool) == 3)
        assert pool.ready(BEN) is None
        assert await count(pool, ANA) == "3"


async def test_there_are_never_more_processes_than_links_are_allowed(tmp_path: Path) -> None:
    """Those on their way out count: a stubborn one takes its time."""
    stubborn = with_section(msgspec.structs.replace(faulty("stubborn", isolation="session", max_links=1), id="counter"))
    async with running(tmp_path, stubborn) as pool:
        former = await pool.link(ANA, PATIENCE)
        async with asyncio.TaskGroup() as tasks:
            waits = tasks.create_task(pool.link(BEN, PATIENCE * 2))
            await until(lambda: former.lost)
            assert psutil.pid_exists(former.pid or 0)
            assert not waits.done()
        assert not psutil.pid_exists(former.pid or 0)
        assert waits.result().key == BEN


async def test_who_needs_a_place_waits_for_a_call_to_end_and_is_told_if_none_does(tmp_path: Path) -> None:
    async with running(tmp_path, apart(max_links=1)) as pool:
        busy = (await pool.link(ANA, PATIENCE)).open(tool("slow", gate=str(tmp_path / "gate")))
        with pytest.raises(LinksTaken, match="works for as many sessions as it may"):
            await pool.link(BEN, 0.05)
        async with asyncio.TaskGroup() as tasks:
            waits = tasks.create_task(count(pool, BEN))
            await asyncio.sleep(0)
            (tmp_path / "gate").touch()
            await ending(busy)
        assert waits.result() == "1"
        assert pool.ready(ANA) is None


async def test_who_is_cancelled_in_line_for_a_place_leaves_it_to_the_next(tmp_path: Path) -> None:
    async with running(tmp_path, apart(max_links=1)) as pool:
        busy = (await pool.link(ANA, PATIENCE)).open(tool("slow", gate=str(tmp_path / "gate")))
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(count(pool, BEN))
            second = tasks.create_task(count(pool, CEM))
            await asyncio.sleep(0)
            first.cancel()
            busy.cancel("enough")
        assert second.result() == "1"
        await until(lambda: alive(pool) == 2)


async def test_a_lower_bound_or_idle_time_counts_at_once_and_leaves_links_in_use_alone(tmp_path: Path) -> None:
    async with running(tmp_path, apart()) as pool:
        for key in (ANA, BEN, CEM):
            await count(pool, key)
        busy = (await pool.link(ANA, PATIENCE)).open(tool("slow", gate=str(tmp_path / "gate")))
        pool.apply(of(apart(max_links=1)))
        await until(lambda: alive(pool) == 2)
        assert not busy.ended
        (tmp_path / "gate").touch()
        await ending(busy)
        pool.apply(of(apart(idle=0.1)))
        await until(lambda: alive(pool) == 1)


async def test_no_session_starts_a_link_while_the_server_has_failed(tmp_path: Path) -> None:
    broken = with_section(Server(id="counter", command=("no-such-program",), isolation="session"))
    async with running(tmp_path, broken) as pool:
        await until(lambda: pool.state("counter") == "failed")
        with pytest.raises(ServerUnavailable, match="Try again in"):
            await pool.link(ANA, PATIENCE)
        assert len(pool.status()[0].links) == 1


# Lists and news --------------------------------------------------------------------------------------------------


async def test_lists_wait_for_nobody_s_own_link(tmp_path: Path) -> None:
    async with running(tmp_path, apart(max_links=1)) as pool:
        busy = (await pool.link(ANA, PATIENCE)).open(tool("slow", gate=str(tmp_path / "gate")))
        link = await link_of(pool, "counter")
        await ending(link.open(Opening("tools/list", None, "")))
        busy.cancel("enough")


async def test_what_a_session_s_own_link_says_bears_its_address(tmp_path: Path) -> None:
    async with running(tmp_path, apart()) as pool:
        feed = pool.changes()
        for key in (ANA, BEN):
            link = await pool.link(key, PATIENCE)
            await ending(link.open(Opening("resources/subscribe", {"uri": Raw(b'"counter://value"')}, "")))
        assert await call(link, "touch", uri="counter://value") == "subscribed"
        found: list[LinkChange] = []
        async with asyncio.timeout(PATIENCE):
            while not found or not isinstance(found[-1], ResourceUpdated):
                found.append(await anext(feed))
        assert found[-1].key == BEN  # type: ignore[union-attr]
        assert all(LinkReady("counter", key) in found for key in (ANA, BEN, LISTS))
        pool.end("ana-1")
        async with asyncio.timeout(PATIENCE):
            while found[-1] != LinkGone("counter", ANA):
                found.append(await anext(feed))


# Cancellation at every stage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13])
async def test_whenever_a_caller_is_cancelled_no_place_is_lost(tmp_path: Path, turns: int) -> None:
    async with running(tmp_path, apart(max_links=1)) as pool:
        await link_of(pool, "counter")
        async with asyncio.TaskGroup() as tasks:
            waits = tasks.create_task(pool.link(ANA, PATIENCE))
            for _ in range(turns):
                await asyncio.sleep(0)
            waits.cancel()
        assert await count(pool, BEN) == "1"
        assert await count(pool, CEM) == "1"
