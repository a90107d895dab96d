"""Who gives way to whom when a server has no place left: `calls/relief.py` in front of real servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import pytest

from mcpmux.calls import Call
from mcpmux.calls.relief import AGAIN, UNDISTURBED, WAITED
from mcpmux.config.schema import Server
from mcpmux.credentials import LinkKey
from mcpmux.errors import CallCancelled, ServerBusy, StateRefused
from mcpmux.identity.principal import Principal
from mcpmux.links import Link, hold
from mcpmux.protocol.events import Result, Withdrawn
from mcpmux.seal import Secret
from tests.calls.room import ACCEPTED, ANA, Room, following, made, somebody
from tests.links.harness import PATIENCE as WAIT
from tests.links.harness import counter, of, stdio, until, with_section

BEN, CEM, DAN = somebody("ben"), somebody("cem"), somebody("dan")


@pytest.fixture(autouse=True)
def _links_settle_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "SETTLE", 0.05)


def pooled(links: int) -> Server:
    return counter(isolation="pooled", links=links)


@asynccontextmanager
async def full(folder: Path, server: Server, *people: Principal) -> AsyncIterator[tuple[Room, list[tuple[str, str]]]]:
    """A room that has no place left, with one call left by each of these, in this order, long ago: key and state."""
    async with made(folder, server) as room:
        left = [(await room.left(who))[1:] for who in people]
        for number, parked in enumerate(room.parking):
            parked.since -= UNDISTURBED + 10 - number
        yield room, left


@asynccontextmanager
async def waiting(room: Room, *people: Principal) -> AsyncIterator[list[asyncio.Task[Link]]]:
    """Calls of these people that wait for a link; whoever waits in the end does so no more."""
    before = len(room.relief)
    calls = [room.request(who=who) for who in people]
    async with asyncio.TaskGroup() as tasks:
        found = [tasks.create_task(room.link(call)) for call in calls]
        await until(lambda: len(room.relief) == before + len(people))
        yield found
        for call, task in zip(calls, found, strict=True):
            call.cancel("the test is over")
            task.cancel()


def soon(room: Room, after: float = WAITED) -> None:
    """A sweep when whoever waits has waited for so long."""
    room.sweep(time.monotonic() + after)


def owners(room: Room) -> list[str]:
    """Whose calls are left, the oldest first."""
    left = sorted(room.parking, key=lambda parked: parked.since)
    return [parked.principal.label.partition("@")[0] for parked in left]


def resumes(room: Room, who: Principal, left: tuple[str, str]) -> bool:
    """Whether this call can be taken up again."""
    key, state = left
    with ending(room.request(state, {key: ACCEPTED}, who)) as again:
        try:
            return room.parking.resume(again)
        except StateRefused:
            return False


async def done(link: asyncio.Task[Link]) -> Link:
    async with asyncio.timeout(WAIT):
        return await link


@contextmanager
def ending(call: Call) -> Iterator[Call]:
    yield call
    call.cancel("the test is over")


# What gives way, and what comes of it ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pooled", "shared", "session"])
async def test_the_call_of_a_client_that_is_away_gives_its_place_to_one_that_waits(kind: str, tmp_path: Path) -> None:
    server = counter(isolation=kind, links=1, concurrency=1, max_links=1)
    async with full(tmp_path, server, BEN) as (room, (left,)):
        (parked,) = room.parking
        async with waiting(room, ANA) as (link,):
            soon(room)
            with pytest.raises(CallCancelled):
                await parked.exchange.next()
            got = await done(link)
            assert got.lost is None
        assert not resumes(room, BEN, left)
        assert (len(room.parking), room.inputs.open) == (0, 0)


async def test_nothing_gives_way_before_somebody_has_waited_and_its_client_had_time(tmp_path: Path) -> None:
    async with full(tmp_path, pooled(1), BEN) as (room, (left,)):
        async with waiting(room, ANA):
            soon(room, WAITED - 0.5)
            assert owners(room) == ["ben"]
            (parked,) = room.parking
            parked.since = time.monotonic() + WAITED + 1 - UNDISTURBED
            soon(room)
            assert owners(room) == ["ben"]
            soon(room, WAITED + 2)
            assert owners(room) == []
        assert not resumes(room, BEN, left)


async def test_nothing_gives_way_where_nobody_waits(tmp_path: Path) -> None:
    async with full(tmp_path, pooled(1), BEN) as (room, (left,)):
        soon(room, 100)
        assert resumes(room, BEN, left)


async def test_nothing_gives_way_to_a_call_of_another_server(tmp_path: Path) -> None:
    async with full(tmp_path, pooled(1), BEN) as (room, _):
        (parked,) = room.parking
        assert room.pool.relieves(LinkKey("counter"), parked.exchange.link)
        assert not room.pool.relieves(LinkKey("other"), parked.exchange.link)


async def test_nothing_gives_way_whose_end_does_not_help(tmp_path: Path) -> None:
    async with full(tmp_path, pooled(1), BEN) as (room, (left,)):
        (old,) = (parked.exchange.link for parked in room.parking)
        room.pool.apply(of(with_section(msgspec.structs.replace(room.server, env={"NEW": Secret("x")}))))
        await until(lambda: (link := room.pool.ready(LinkKey("counter"))) is not None and link is not old)
        await room.left(CEM)
        for parked in room.parking:
            parked.since -= 100
        async with waiting(room, ANA):
            soon(room)
            assert owners(room) == ["ben"]
        assert resumes(room, BEN, left)


async def test_a_call_that_has_ended_meanwhile_holds_no_place_and_keeps_its_answer(tmp_path: Path) -> None:
    record, gate, other = (tmp_path / name for name in ("record", "gate", "other"))
    server = stdio("counter", "../calls/witness.py", "--record", str(record), isolation="pooled", links=1)
    async with made(tmp_path, server) as room:
        _, key, state = await room.left(BEN, "retract", gate=str(gate))
        (parked,) = room.parking
        parked.since -= 100
        gate.touch()
        await until(lambda: parked.exchange.ended)
        with ending(room.request(who=CEM)) as at_work:
            await room.open(at_work, "slow", gate=str(other))
            async with waiting(room, ANA):
                soon(room)
        again = room.request(state, {key: ACCEPTED}, BEN, "retract")
        assert room.parking.resume(again)
        assert await following(again) == Withdrawn(1)
        end = await following(again)
        assert isinstance(end, Result) and "taken back" in bytes(end.result).decode()


async def test_where_a_place_is_free_the_end_of_no_call_helps(tmp_path: Path) -> None:
    for number, server in enumerate((pooled(2), counter(), counter(isolation="session"))):
        async with full(tmp_path / str(number), server, BEN) as (room, _):
            (parked,) = room.parking
            key = LinkKey("counter", "somebody" if server.isolation == "session" else "")
            await until(lambda: room.pool.status()[0].state == "ready")
            if server.isolation == "pooled":
                await until(lambda: room.pool.ready(key) is not None)  # noqa: B023
            assert not room.pool.relieves(key, parked.exchange.link)


async def test_who_waits_where_parked_calls_are_in_the_way_waits_for_as_long_as_its_server_may_take(
    tmp_path: Path,
) -> None:
    server = msgspec.structs.replace(pooled(1), timeout=0.4)
    async with full(tmp_path, server, BEN) as (room, _):
        with ending(room.request(who=ANA)) as call:
            began = time.monotonic()
            with pytest.raises(ServerBusy):
                await room.link(call, 0.01)
            assert time.monotonic() - began >= 0.3


# Whose call it is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "waits", "still"),
    [
        ([BEN, BEN], ANA, ["ben"]),
        ([CEM, BEN, BEN], ANA, ["cem", "ben"]),  # who has most gives way first, though another's is older
        ([BEN, CEM], ANA, ["cem"]),
        ([ANA, ANA], ANA, ["ana"]),
        ([BEN, ANA], ANA, ["ben"]),  # nobody gets beyond a fair share: it is her own
        ([BEN, BEN, ANA], ANA, ["ben", "ana"]),
        ([BEN, BEN, ANA, ANA], ANA, ["ben", "ben", "ana"]),
    ],
)
async def test_one_call_gives_way_and_never_one_of_a_person_who_has_no_more_than_who_waits(
    left: list[Principal], waits: Principal, still: list[str], tmp_path: Path
) -> None:
    async with full(tmp_path, pooled(len(left)), *left) as (room, _), waiting(room, waits):
        soon(room)
        assert owners(room) == still


async def test_calls_at_work_count_like_those_that_are_parked(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with full(tmp_path, pooled(2), BEN) as (room, (left,)):
        with ending(room.request(who=ANA)) as at_work:
            await room.open(at_work, "slow", gate=str(gate))
            async with waiting(room, ANA):
                soon(room)
                assert owners(room) == ["ben"]
        assert resumes(room, BEN, left)


async def test_a_crowd_of_one_person_throws_out_no_more_than_one_call_of_those_who_have_one(tmp_path: Path) -> None:
    async with (
        full(tmp_path, pooled(3), BEN, CEM, DAN) as (room, _),
        waiting(room, ANA, ANA, ANA, ANA),
    ):
        for number in range(5):
            soon(room, WAITED + number * AGAIN)
        assert owners(room) == ["cem", "dan"]


async def test_who_still_waits_later_displaces_another_call_of_who_has_most(tmp_path: Path) -> None:
    async with full(tmp_path, pooled(3), BEN, BEN, BEN) as (room, _), waiting(room, ANA) as (link,):
        soon(room)
        soon(room, WAITED + AGAIN - 0.5)
        assert owners(room) == ["ben", "ben"]
        assert not link.done()
        soon(room, WAITED + AGAIN)
        assert owners(room) == ["ben"]


async def test_two_people_who_wait_displace_one_call_each(tmp_path: Path) -> None:
    async with full(tmp_path, pooled(3), BEN, BEN, BEN) as (room, _), waiting(room, ANA, CEM):
        soon(room)
        assert owners(room) == ["ben"]


# The end -----------------------------------------------------------------------------------------------------------


async def test_who_comes_back_at_the_last_moment_keeps_the_call(tmp_path: Path) -> None:
    async with full(tmp_path, pooled(1), BEN) as (room, ((key, state),)), waiting(room, ANA) as (link,):
        again = room.request(state, {key: ACCEPTED}, BEN)
        assert room.parking.resume(again)
        soon(room)
        assert isinstance(await following(again), Result)
        await done(link)


async def test_a_call_that_ends_while_it_waits_leaves_the_line(tmp_path: Path) -> None:
    async with full(tmp_path, pooled(1), BEN) as (room, (left,)):
        call = room.request(who=ANA)

        async def waits() -> None:
            with pytest.raises(CallCancelled):
                await room.link(call)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(waits())
            await until(lambda: len(room.relief) == 1)
            call.cancel("the client closed the response")
        assert len(room.relief) == 0
        soon(room)
        assert resumes(room, BEN, left)
