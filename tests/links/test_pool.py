"""The pool: what a new config starts, replaces, ends and leaves alone; seats; news; cancellation anywhere."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import psutil
import pytest

from mcpmux.config.schema import Limits, Server
from mcpmux.credentials import LinkKey
from mcpmux.errors import ServerBusy, ServerEnded, ServerUnavailable
from mcpmux.links import Pool
from mcpmux.links.changes import LinkChange, LinkGone, LinkReady, OfferChanged, ResourceUpdated, StateChanged
from mcpmux.protocol.events import Offered, Opening
from tests.links.harness import (
    PATIENCE,
    call,
    counter,
    ending,
    faulty,
    link_of,
    of,
    running,
    surroundings,
    text,
    tool,
    until,
    with_section,
)

KEY = LinkKey("counter")


def changed(server: Server, *arguments: str) -> Server:
    """The same server with another command."""
    return with_section(msgspec.structs.replace(server, command=(*server.command, *arguments)))


def states(pool: Pool) -> dict[str, str]:
    return {status.id: status.state for status in pool.status()}


# A new config ----------------------------------------------------------------------------------------------------


async def test_an_unchanged_server_and_its_calls_are_untouched(tmp_path: Path) -> None:
    async with running(tmp_path, counter(), counter("other")) as pool:
        link = await link_of(pool, "counter")
        held = link.open(tool("slow", gate=str(tmp_path / "gate")))
        pool.apply(of(counter(), counter("new")))
        assert await call(await link_of(pool, "new"), "echo", text="x") == "x"
        assert pool.ready(KEY) is link
        (tmp_path / "gate").touch()
        assert "is open" in await text(held)
        assert list(states(pool)) == ["counter", "new"]


async def test_a_new_title_or_concurrency_leaves_the_link_alone(tmp_path: Path) -> None:
    async with running(tmp_path, counter(concurrency=1)) as pool:
        link = await link_of(pool, "counter")
        link.open(tool("slow", gate=str(tmp_path / "gate")))
        assert pool.ready(KEY) is None
        pool.apply(of(counter(title="Renamed", concurrency=2)))
        assert pool.ready(KEY) is link
        assert pool.status()[0].title == "Renamed"


async def test_a_changed_server_is_replaced_when_the_new_one_is_ready_and_old_calls_finish(tmp_path: Path) -> None:
    async with running(tmp_path, counter()) as pool:
        old = await link_of(pool, "counter")
        held = old.open(tool("slow", gate=str(tmp_path / "gate")))
        late = faulty("late", "--gate", str(tmp_path / "start"))
        pool.apply(of(with_section(msgspec.structs.replace(late, id="counter"))))
        # The new one is starting: the old one serves.
        assert pool.ready(KEY) is old
        assert await call(old, "echo", text="still here") == "still here"
        (tmp_path / "start").touch()
        await until(lambda: pool.ready(KEY) not in (old, None))
        assert not held.ended
        (tmp_path / "gate").touch()
        assert "is open" in await text(held)
        await until(lambda: old.lost and not psutil.pid_exists(old.pid or 0))


async def test_an_old_link_whose_calls_do_not_finish_is_ended_after_the_drain(tmp_path: Path) -> None:
    async with running(tmp_path, counter(), limits=Limits(drain=0.2)) as pool:
        held = (await link_of(pool, "counter")).open(tool("slow", gate=str(tmp_path / "gate")))
        pool.apply(of(changed(counter(), "--name", "second")))
        with pytest.raises(ServerEnded):
            await ending(held)


async def test_an_old_config_does_not_outlive_a_new_one_that_fails(tmp_path: Path) -> None:
    async with running(tmp_path, counter()) as pool:
        old = await link_of(pool, "counter")
        broken = with_section(msgspec.structs.replace(faulty("exit-start"), id="counter"))
        pool.apply(of(broken))
        await until(lambda: old.lost)
        assert states(pool)["counter"] in ("starting", "failed")
        assert "FAULTY_TOKEN" in (pool.status()[0].reason or "")


async def test_a_config_mended_meanwhile_starts_at_once(tmp_path: Path) -> None:
    server = Server(id="counter", command=("no-such-program",))
    async with running(tmp_path, with_section(server)) as pool:
        await until(lambda: states(pool)["counter"] == "failed")
        pool.apply(of(counter()))
        assert await call(await link_of(pool, "counter"), "echo", text="x") == "x"


@pytest.mark.parametrize("gone", ["removed", "disabled", "unconfigured"])
async def test_a_server_that_is_taken_away_ends_at_once_with_its_calls(tmp_path: Path, gone: str) -> None:
    async with running(tmp_path, counter()) as pool:
        link = await link_of(pool, "counter")
        held = link.open(tool("slow", gate=str(tmp_path / "gate")))
        await until((tmp_path / "gate.entered").exists)
        changes = {
            "removed": {},
            "disabled": of(counter(enabled=False)),
            "unconfigured": of(counter(missing=("TOKEN",))),
        }
        pool.apply(changes[gone])
        with pytest.raises(ServerEnded, match="was switched off"):
            await ending(held)
        assert pool.ready(KEY) is None
        with pytest.raises(ServerUnavailable):
            await pool.link(KEY, 5)
        await until(lambda: not psutil.pid_exists(link.pid or 0))
        assert states(pool).get("counter", "removed") == gone


async def test_servers_that_lack_something_cost_nothing_and_say_what(tmp_path: Path) -> None:
    servers = [counter("off", enabled=False), counter("bare", missing=("TOKEN", "URL")), counter("later", reason="no")]
    async with running(tmp_path, *servers) as pool:
        assert states(pool) == {"off": "disabled", "bare": "unconfigured", "later": "unconfigured"}
        assert [status.reason for status in pool.status()] == [None, "not set: TOKEN, URL", "no"]
        assert pool.status()[1].missing == ("TOKEN", "URL")
        assert pool.state("nobody") is None
        pool.apply(of(counter("off")))
        assert await call(await link_of(pool, "off"), "echo", text="on") == "on"


async def test_a_change_of_mind_in_the_middle_of_a_start_leaves_one_process(tmp_path: Path) -> None:
    async with running(tmp_path, counter()) as pool:
        old = await link_of(pool, "counter")
        silent = with_section(msgspec.structs.replace(faulty("silent-start"), id="counter"))
        for number in range(3):
            pool.apply(of(changed(silent, "--name", f"n{number}")))
            await asyncio.sleep(0)
        pool.apply(of(counter()))
        assert await call(await link_of(pool, "counter"), "echo", text="x") == "x"
        await until(lambda: old.lost)
        await until(lambda: len(_children(tmp_path)) == 1)


def _children(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cwd().startswith(str(folder)):
                found.append(process)
        except psutil.Error:
            continue
    return found


# Seats -----------------------------------------------------------------------------------------------------------


async def test_no_more_calls_are_open_than_seats_and_the_next_ones_wait_in_line(tmp_path: Path) -> None:
    async with running(tmp_path, counter(concurrency=2)) as pool:
        link = await link_of(pool, "counter")
        gates = [tmp_path / f"gate{number}" for number in range(2)]
        held = [link.open(tool("slow", gate=str(gate))) for gate in gates]
        assert pool.ready(KEY) is None
        with pytest.raises(ServerBusy):
            link.open(tool("echo", text="x"))
        with pytest.raises(ServerBusy):
            await pool.link(KEY, 0.02)
        order: list[int] = []

        async def waits(number: int) -> None:
            found = await pool.link(KEY, PATIENCE)
            order.append(number)
            assert await call(found, "echo", text=str(number)) == str(number)

        async with asyncio.TaskGroup() as tasks:
            for number in range(6):
                tasks.create_task(waits(number))
            await asyncio.sleep(0)
            gates[0].touch()
        assert order == list(range(6))
        gates[1].touch()
        for exchange in held:
            await ending(exchange)
        assert pool.ready(KEY) is link


async def test_whoever_is_cancelled_in_line_leaves_the_seat_to_the_next(tmp_path: Path) -> None:
    async with running(tmp_path, counter(concurrency=1)) as pool:
        link = await link_of(pool, "counter")
        held = link.open(tool("slow", gate=str(tmp_path / "gate")))
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(pool.link(KEY, PATIENCE))
            second = tasks.create_task(pool.link(KEY, PATIENCE))
            await asyncio.sleep(0)
            held.cancel("enough")
            first.cancel()
        assert second.result() is link
        assert pool.ready(KEY) is link


async def test_a_call_waits_for_the_restart(tmp_path: Path) -> None:
    async with running(tmp_path, counter()) as pool:
        link = await link_of(pool, "counter")
        os.kill(link.pid or 0, signal.SIGKILL)
        await until(lambda: link.lost)
        assert pool.ready(KEY) is None
        again = await pool.link(KEY, PATIENCE * 2)
        assert await call(again, "echo", text="x") == "x"
        assert pool.status()[0].restarts == 1


# Starts ----------------------------------------------------------------------------------------------------------


async def test_only_so_many_servers_start_at_once_and_one_that_is_wanted_goes_first(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    servers = [
        msgspec.structs.replace(faulty("late", "--gate", str(gate)), id="first"),
        *(counter(f"n{number}") for number in range(6)),
    ]
    async with running(tmp_path, *servers, limits=Limits(starts=1)) as pool:
        async with asyncio.TaskGroup() as tasks:
            wanted = tasks.create_task(link_of(pool, "n5"))
            await until(lambda: _children(tmp_path))
            assert len(_children(tmp_path)) == 1
            gate.touch()
        assert wanted.result().key == LinkKey("n5")
        assert [name for name, state in states(pool).items() if state == "ready"][-1] == "n5"
        assert states(pool)["n4"] == "starting"


# News ------------------------------------------------------------------------------------------------------------


async def news(pool: Pool, *wanted: LinkChange) -> None:
    """Wait for these changes on a feed of their own."""
    feed, left = pool.changes(), set(wanted)
    async with asyncio.timeout(PATIENCE * 2):
        while left:
            left.discard(await anext(feed))


async def test_a_late_consumer_hears_of_what_is_ready(tmp_path: Path) -> None:
    async with running(tmp_path, counter()) as pool:
        await link_of(pool, "counter")
        await news(pool, LinkReady("counter", KEY), StateChanged("counter", "ready"))


async def test_each_consumer_hears_of_changes_of_lists_and_resources(tmp_path: Path) -> None:
    async with running(tmp_path, counter()) as pool:
        link = await link_of(pool, "counter")
        feeds = [pool.changes() for _ in range(2)]
        await ending(link.open(Opening("resources/subscribe", {"uri": msgspec.Raw(b'"counter://value"')}, "")))
        await call(link, "offer", kind="tools", name="late_tool")
        await call(link, "touch", uri="counter://value")
        for feed in feeds:
            found: list[LinkChange] = []
            async with asyncio.timeout(PATIENCE):
                while not found or not isinstance(found[-1], ResourceUpdated):
                    found.append(await anext(feed))
            assert OfferChanged("counter", KEY, Offered.TOOLS) in found
            assert (found[-1].uri, found[-1].key) == ("counter://value", KEY)  # type: ignore[union-attr]


async def test_a_slow_consumer_hears_the_newest_word_once(tmp_path: Path) -> None:
    async with running(tmp_path, counter()) as pool:
        feed = pool.changes()
        for _ in range(2):
            link = await link_of(pool, "counter")
            for number in range(5):
                await call(link, "offer", kind="tools", name=f"tool{number}")
            os.kill(link.pid or 0, signal.SIGKILL)
            await until(lambda link=link: link.lost)
        await link_of(pool, "counter")
        found = []
        async with asyncio.timeout(PATIENCE):
            while len(found) < 3:
                found.append(await anext(feed))
        assert set(found) == {
            OfferChanged("counter", KEY, Offered.TOOLS),
            LinkReady("counter", KEY),
            StateChanged("counter", "ready"),
        }


async def test_the_end_of_a_link_and_of_a_server_is_news(tmp_path: Path) -> None:
    async with running(tmp_path, counter()) as pool:
        await link_of(pool, "counter")
        feed = pool.changes()
        pool.apply({})
        found = []
        async with asyncio.timeout(PATIENCE):
            while len(found) < 2:
                found.append(await anext(feed))
        assert LinkGone("counter", KEY) in found
        assert StateChanged("counter", "disabled", removed=True) in found


# Cancellation at every stage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "turns"),
    [
        *(("counter", turns) for turns in (0, 1, 2, 3, 4, 5, 8, 13, 40)),
        ("late", 40),
        ("exit-start", 40),
        ("stubborn", 40),
        ("family", 40),
    ],
)
async def test_whenever_the_pool_is_cancelled_nothing_is_left(tmp_path: Path, mode: str, turns: int) -> None:
    server = counter() if mode == "counter" else faulty(mode, "--gate", str(tmp_path / "gate"))
    async with surroundings(tmp_path) as ground:
        pool = Pool(ground)
        pool.apply(of(server))
        async with asyncio.TaskGroup() as tasks:
            run = tasks.create_task(pool.run())
            for _ in range(turns):
                await asyncio.sleep(0.01 if turns == 40 else 0)
            run.cancel()
        assert not _children(tmp_path)


async def test_cancelling_a_reader_leaves_the_call_open_until_it_is_cancelled(tmp_path: Path) -> None:
    async with running(tmp_path, counter()) as pool:
        link = await link_of(pool, "counter")
        exchange = link.open(tool("slow", gate=str(tmp_path / "gate")))
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(exchange.next())
            await asyncio.sleep(0)
            reader.cancel()
        assert not exchange.ended
        (tmp_path / "gate").touch()
        assert "is open" in await text(exchange)
        assert link.in_flight == 0
