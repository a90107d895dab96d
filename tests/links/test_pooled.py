"""Pooled servers: each link one call's alone, a fair line, restarts one by one, and what a cancelled call leaves."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import pytest

from mcpmux.config.schema import Limits, Server
from mcpmux.credentials import LinkKey
from mcpmux.errors import LinkLost, ServerBusy, ServerEnded, ServerUnavailable
from mcpmux.links import Exchange, Link, Pool, hold
from mcpmux.links.changes import LinkGone, LinkReady, OfferChanged, StateChanged
from mcpmux.protocol.events import Failure, Log, Offered, Opening, Result
from tests.links.harness import (
    PATIENCE,
    call,
    counter,
    ending,
    events,
    faulty,
    of,
    pids,
    running,
    surroundings,
    text,
    tool,
    until,
    with_section,
)

KEY = LinkKey("counter")


def pooled(links: int = 2, *arguments: str, **fields: object) -> Server:
    """The well-behaved server with so many links."""
    return counter("counter", *arguments, isolation="pooled", links=links, **fields)


def heedless(links: int) -> Server:
    """One that works on after a call was cancelled."""
    return with_section(msgspec.structs.replace(faulty("heedless", isolation="pooled", links=links), id="counter"))


def ready(pool: Pool) -> int:
    """How many links of the first server are ready."""
    return sum(link.state == "ready" for link in pool.status()[0].links)


async def full(pool: Pool, links: int) -> None:
    """Wait until all links are ready."""
    await until(lambda: ready(pool) == links, PATIENCE * 2)


async def held(pool: Pool, gate: Path, caller: str = "ana") -> Exchange:
    """A call that has reached its server and waits there for the gate."""
    exchange = (await pool.link(KEY, PATIENCE)).open(tool("slow", caller, gate=str(gate)))
    await until(gate.with_name(f"{gate.name}.entered").exists)
    return exchange


# Lending ---------------------------------------------------------------------------------------------------------


async def test_each_call_in_flight_has_a_process_of_its_own(tmp_path: Path) -> None:
    async with running(tmp_path, pooled(3)) as pool:
        await full(pool, 3)
        calls = [await held(pool, tmp_path / f"gate{number}") for number in range(3)]
        assert len({exchange.link.pid for exchange in calls}) == 3
        assert pool.ready(KEY) is None
        with pytest.raises(ServerBusy):
            calls[0].link.open(tool("echo", text="x"))
        with pytest.raises(ServerBusy):
            await pool.link(KEY, 0.02)
        assert pool.status()[0].in_flight == 3
        (tmp_path / "gate1").touch()
        assert "gate1 is open" in await text(calls[1])
        assert pool.ready(KEY) is calls[1].link
        for number in (0, 2):
            (tmp_path / f"gate{number}").touch()
            await ending(calls[number])
    assert pool.status()[0].in_flight == 0


async def test_the_others_start_when_the_first_is_ready(tmp_path: Path) -> None:
    late = with_section(
        msgspec.structs.replace(
            faulty("late", "--gate", str(tmp_path / "gate"), isolation="pooled", links=3), id="counter"
        )
    )
    async with running(tmp_path, late) as pool:
        await until(lambda: pool.status()[0].links[0].state == "starting")
        assert len(pool.status()[0].links) == 1
        (tmp_path / "gate").touch()
        await full(pool, 3)
        assert len(set(pids(pool))) == 3


async def test_the_link_that_has_rested_longest_is_lent(tmp_path: Path) -> None:
    async with running(tmp_path, pooled(2)) as pool:
        await full(pool, 2)
        seen = []
        for _ in range(4):
            link = pool.ready(KEY)
            assert link is not None
            seen.append(link)
            await call(link, "echo", text="x")
        assert seen[:2] == seen[2:]
        assert seen[0] is not seen[1]


async def test_who_waits_is_served_in_order_and_not_overtaken(tmp_path: Path) -> None:
    async with running(tmp_path, pooled(2)) as pool:
        await full(pool, 2)
        calls = [await held(pool, tmp_path / f"gate{number}") for number in range(2)]
        order: list[int] = []

        async def waits(number: int) -> None:
            link = await pool.link(KEY, PATIENCE)
            order.append(number)
            assert await call(link, "echo", text=str(number)) == str(number)

        async with asyncio.TaskGroup() as tasks:
            for number in range(6):
                tasks.create_task(waits(number))
            await asyncio.sleep(0)
            (tmp_path / "gate0").touch()
            await ending(calls[0])
            # The link is kept for the first in line, who has not run yet.
            assert pool.ready(KEY) is None
        assert order == list(range(6))
        calls[1].cancel("enough")


async def test_who_is_cancelled_in_line_or_does_not_call_leaves_the_link_to_the_next(tmp_path: Path) -> None:
    async with running(tmp_path, pooled(1)) as pool:
        await full(pool, 1)
        first = await held(pool, tmp_path / "gate")
        async with asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(pool.link(KEY, PATIENCE)) for _ in range(4)]
            await asyncio.sleep(0)
            waiting[1].cancel()
            (tmp_path / "gate").touch()
            await ending(first)
            waiting[0].cancel()  # after the link was kept for it
        assert [task.result() for task in waiting[2:]] == [first.link] * 2
        assert pool.ready(KEY) is first.link


async def test_a_certain_link_can_be_asked_for(tmp_path: Path) -> None:
    """The pages of one list come from one link."""
    async with running(tmp_path, pooled(2)) as pool:
        await full(pool, 2)
        one = pool.ready(KEY)
        assert one is not None
        gate = tmp_path / "gate"
        busy = one.open(tool("slow", gate=str(gate)))
        assert pool.ready(KEY) is not one
        assert pool.ready(one.key) is None
        with pytest.raises(ServerBusy):
            await pool.link(one.key, 0.02)
        async with asyncio.TaskGroup() as tasks:
            mine = tasks.create_task(pool.link(one.key, PATIENCE))
            others = tasks.create_task(pool.link(KEY, PATIENCE))
            assert await others is not one
            gate.touch()
            await ending(busy)
        assert mine.result() is one
        with pytest.raises(ServerUnavailable):
            await pool.link(LinkKey("counter", "session-1"), PATIENCE)


# Attribution -----------------------------------------------------------------------------------------------------


async def test_what_a_server_says_reaches_the_call_that_has_the_link_however_many_callers_there_are(
    tmp_path: Path,
) -> None:
    """On a shared link the second caller's log messages within 30 s would be nobody's."""
    async with running(tmp_path, pooled(2)) as pool:
        await full(pool, 2)

        async def heard(caller: str) -> None:
            link = await pool.link(KEY, PATIENCE)
            found = await events(link.open(tool("log", caller, level="info", text=caller, times=3)))
            said = [msgspec.json.decode(event.params)["data"]["text"] for event in found if isinstance(event, Log)]
            assert said == [caller] * 3

        for _ in range(5):
            async with asyncio.TaskGroup() as tasks:
                for caller in ("ana", "ben", "cem", "dan"):
                    tasks.create_task(heard(caller))


async def test_a_link_is_not_lent_again_until_the_server_has_answered_a_cancelled_call(tmp_path: Path) -> None:
    async with running(tmp_path, heedless(1)) as pool:
        await full(pool, 1)
        gate = tmp_path / "gate"
        given_up = await held(pool, gate, "ana")
        link = given_up.link
        given_up.cancel("the client went away")
        await until((tmp_path / "gate.cancelled").exists)
        assert pool.ready(KEY) is None
        with pytest.raises(ServerBusy):
            await pool.link(KEY, 0.05)
        async with asyncio.TaskGroup() as tasks:
            waits = tasks.create_task(pool.link(KEY, PATIENCE))
            await asyncio.sleep(0)
            gate.touch()
        assert waits.result() is link
        # What it said about ana's call on the way reaches nobody.
        assert [type(event) for event in await events(link.open(tool("echo", "ben", text="x")))] == [Result]
        assert pool.status()[0].restarts == 0


async def test_a_link_whose_server_never_answers_a_cancelled_call_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold, "SETTLE", 0.1)
    async with running(tmp_path, pooled(2)) as pool:
        await full(pool, 2)
        given_up = await held(pool, tmp_path / "gate")
        former, others = given_up.link, set(pids(pool)) - {given_up.link.pid}
        given_up.cancel("the client went away")
        assert pool.ready(KEY) not in (None, former)
        await until(lambda: former.lost and former.pid not in pids(pool))
        await full(pool, 2)
        assert others < set(pids(pool))
        assert former.pid not in pids(pool)
        status = pool.status()[0]
        assert (status.state, status.restarts, status.reason) == ("ready", 1, None)


async def test_calls_that_are_given_up_again_and_again_do_not_make_a_server_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold, "SETTLE", 0.01)
    async with running(tmp_path, pooled(1)) as pool:
        for number in range(10):
            (await held(pool, tmp_path / f"gate{number}")).cancel("enough")
        assert await call(await pool.link(KEY, PATIENCE), "echo", text="x") == "x"
        assert pool.status()[0].restarts == 10


# One dies --------------------------------------------------------------------------------------------------------


async def test_a_link_that_dies_is_restarted_alone_while_the_others_serve(tmp_path: Path) -> None:
    async with running(tmp_path, pooled(3)) as pool:
        await full(pool, 3)
        victim = await held(pool, tmp_path / "gate")
        others = set(pids(pool)) - {victim.link.pid}
        feed = pool.changes()
        os.kill(victim.link.pid or 0, signal.SIGKILL)
        with pytest.raises(LinkLost):
            await ending(victim)
        assert pool.state("counter") == "ready"
        assert await call(pool.ready(KEY) or await pool.link(KEY, PATIENCE), "echo", text="x") == "x"
        await full(pool, 3)
        assert others < set(pids(pool))
        status = pool.status()[0]
        assert sorted(link.restarts for link in status.links) == [0, 0, 1]
        found = []
        async with asyncio.timeout(PATIENCE):
            while LinkReady("counter", victim.link.key) not in found:
                found.append(await anext(feed))
        assert StateChanged("counter", "starting") not in found


async def test_the_server_is_as_well_as_its_best_link(tmp_path: Path) -> None:
    async with running(tmp_path, pooled(2)) as pool:
        await full(pool, 2)
        for pid in pids(pool):
            os.kill(pid, signal.SIGSTOP)
        for pid in (first := pids(pool)):
            os.kill(pid, signal.SIGKILL)
        await until(lambda: pool.state("counter") == "starting")
        async with asyncio.TaskGroup() as tasks:
            waits = [tasks.create_task(pool.link(KEY, PATIENCE * 2)) for _ in range(3)]
        assert all(isinstance(task.result(), Link) for task in waits)
        await full(pool, 2)
        assert not set(first) & set(pids(pool))


async def test_a_server_that_cannot_start_fails_as_one_that_has_one_link(tmp_path: Path) -> None:
    broken = Server(id="counter", command=("no-such-program",), isolation="pooled", links=4)
    async with running(tmp_path, with_section(broken)) as pool:
        with pytest.raises(ServerUnavailable):
            await pool.link(KEY, PATIENCE)
        await until(lambda: pool.state("counter") == "failed")
        assert len(pool.status()[0].links) == 1
        with pytest.raises(ServerUnavailable, match="Try again in"):
            await pool.link(KEY, PATIENCE)


async def test_who_waits_is_told_at_once_when_the_server_is_switched_off(tmp_path: Path) -> None:
    async with running(tmp_path, pooled(1)) as pool:
        busy = await held(pool, tmp_path / "gate")

        async def waits() -> None:
            with pytest.raises(ServerUnavailable):
                await pool.link(KEY, PATIENCE)

        async with asyncio.timeout(PATIENCE / 2), asyncio.TaskGroup() as tasks:
            tasks.create_task(waits())
            await asyncio.sleep(0)
            pool.apply(of(counter(enabled=False)))
        with pytest.raises(ServerEnded):
            await ending(busy)


async def test_metrics_count_the_links_by_their_state(tmp_path: Path) -> None:
    async with surroundings(tmp_path) as ground:
        pool = Pool(ground)
        pool.apply(of(pooled(3)))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pool.run())
            await full(pool, 3)
            page = ground.metrics.render(None)[0].decode()
            await pool.close(PATIENCE)
        assert 'mcpmux_links{server="counter",state="ready"} 3.0' in page


# The config ------------------------------------------------------------------------------------------------------


async def test_a_new_number_of_links_is_a_new_pool_beside_the_old_one(tmp_path: Path) -> None:
    async with running(tmp_path, pooled(2)) as pool:
        await full(pool, 2)
        busy = await held(pool, tmp_path / "gate")
        pool.apply(of(pooled(3)))
        await full(pool, 3)
        assert busy.link.pid not in pids(pool)
        (tmp_path / "gate").touch()
        assert "is open" in await text(busy)


async def test_who_waits_for_a_link_is_taken_along_to_the_new_pool(tmp_path: Path) -> None:
    async with running(tmp_path, pooled(1), limits=Limits(drain=PATIENCE)) as pool:
        await full(pool, 1)
        busy = await held(pool, tmp_path / "gate")
        async with asyncio.TaskGroup() as tasks:
            waits = tasks.create_task(pool.link(KEY, PATIENCE * 2))
            await asyncio.sleep(0)
            pool.apply(of(pooled(2)))
        assert waits.result() is not busy.link
        assert not busy.ended
        busy.cancel("enough")


@pytest.mark.parametrize("kind", ["shared", "session"])
async def test_another_isolation_leaves_nothing_of_the_pool(tmp_path: Path, kind: str) -> None:
    async with running(tmp_path, pooled(2)) as pool:
        await full(pool, 2)
        former = pids(pool)
        pool.apply(of(counter(isolation=kind)))
        await until(lambda: pool.status()[0].isolation == kind and pool.state("counter") == "ready", PATIENCE * 2)
        assert not set(former) & set(pids(pool))


# News ------------------------------------------------------------------------------------------------------------


async def test_lists_are_asked_for_where_everybody_is_and_again_when_the_chief_changes(tmp_path: Path) -> None:
    async with running(tmp_path, pooled(2)) as pool:
        await full(pool, 2)
        feed = pool.changes()
        link = await pool.link(KEY, PATIENCE)
        await call(link, "offer", kind="tools", name="late_tool")
        chief = pool.lasting(KEY)
        assert pool.lives(chief)
        os.kill(pool.status()[0].pid or 0, signal.SIGKILL)
        found = []
        async with asyncio.timeout(PATIENCE):
            while LinkGone("counter", chief) not in found or LinkReady("counter", KEY) not in found[2:]:
                found.append(await anext(feed))
        assert OfferChanged("counter", KEY, Offered.TOOLS) in found
        assert pool.lasting(KEY) != chief


async def test_a_method_that_the_server_does_not_have_takes_no_link(tmp_path: Path) -> None:
    bare = with_section(msgspec.structs.replace(faulty("no-tools", isolation="pooled", links=1), id="counter"))
    async with running(tmp_path, bare) as pool:
        await full(pool, 1)
        link = await pool.link(KEY, PATIENCE)
        assert isinstance(await link.open(Opening("tools/list", None, "ana")).next(), Failure)
        assert pool.ready(KEY) is link
