"""The seats of one server: in line, several at a time, bounded, and never lost."""

from __future__ import annotations

import asyncio

import pytest

from mcpmux.errors import ServerBusy
from mcpmux.links.bulkhead import Bulkhead


async def turn() -> None:
    """Let everything run that is ready, and what that makes ready."""
    for _ in range(5):
        await asyncio.sleep(0)


class Line:
    """Those who wait for a seat of one bulkhead, by number, and what became of them."""

    def __init__(self, tasks: asyncio.TaskGroup, seats: int, taken: int) -> None:
        self.bulkhead = Bulkhead("github", seats)
        self.served: list[int] = []
        self.refused: list[int] = []
        self._tasks = tasks
        self._count = 0
        for _ in range(taken):
            self.bulkhead.take()

    async def add(self, *, wait: float = 10.0, takes: bool = True) -> asyncio.Task[None]:
        """One more waits, for so many seconds."""
        task = self._tasks.create_task(self._one(self._count, wait, takes))
        self._count += 1
        await turn()
        return task

    async def _one(self, number: int, wait: float, takes: bool) -> None:
        try:
            await self.bulkhead.seat(asyncio.get_running_loop().time() + wait)
        except ServerBusy:
            self.refused.append(number)
            return
        if takes:
            self.bulkhead.take()
            self.served.append(number)


async def test_a_free_seat_is_had_at_once_and_a_taken_one_is_refused() -> None:
    bulkhead = Bulkhead("github", 1)
    assert bulkhead.free
    await bulkhead.seat(0.0)
    bulkhead.take()
    assert not bulkhead.free
    with pytest.raises(ServerBusy):
        bulkhead.take()
    bulkhead.give_back()
    assert bulkhead.free


async def test_who_waits_is_served_in_order_and_not_overtaken() -> None:
    async with asyncio.TaskGroup() as tasks:
        line = Line(tasks, seats=2, taken=2)
        for _ in range(4):
            await line.add()
        assert line.served == []
        line.bulkhead.give_back()
        assert not line.bulkhead.free
        with pytest.raises(ServerBusy):
            line.bulkhead.take()  # the seat is kept for the first in line, who has not run yet
        line.bulkhead.give_back()
        await turn()
        assert line.served == [0, 1]
        line.bulkhead.give_back()
        await turn()
        assert line.served == [0, 1, 2]
        line.bulkhead.give_back()
    assert line.served == [0, 1, 2, 3]
    assert line.bulkhead.taken == 2


async def test_a_wait_ends_at_its_time_and_the_others_go_on() -> None:
    async with asyncio.TaskGroup() as tasks:
        line = Line(tasks, seats=1, taken=1)
        await line.add()
        for hasty in [await line.add(wait=0.05), await line.add(wait=0.01)]:
            await hasty
        assert sorted(line.refused) == [1, 2]
        assert line.served == []
        line.bulkhead.give_back()
    assert line.served == [0]


@pytest.mark.parametrize("late", [False, True])
async def test_who_is_cancelled_leaves_the_seat_to_the_next(late: bool) -> None:
    """`late`: after the seat was kept for it, before it could run."""
    async with asyncio.TaskGroup() as tasks:
        line = Line(tasks, seats=1, taken=1)
        first, second, _ = [await line.add() for _ in range(3)]
        second.cancel()
        if not late:
            first.cancel()
            await turn()
        line.bulkhead.give_back()
        if late:
            first.cancel()
        await turn()
        assert line.served == [2]
    line.bulkhead.give_back()
    assert line.bulkhead.free


async def test_who_does_not_take_the_seat_leaves_it_to_the_next() -> None:
    async with asyncio.TaskGroup() as tasks:
        line = Line(tasks, seats=1, taken=1)
        await line.add(takes=False)
        await line.add()
        line.bulkhead.give_back()
    assert line.served == [1]


async def test_more_seats_are_given_to_who_waits() -> None:
    async with asyncio.TaskGroup() as tasks:
        line = Line(tasks, seats=1, taken=1)
        for _ in range(3):
            await line.add()
        line.bulkhead.resize(3)
        await turn()
        assert line.served == [0, 1]
        line.bulkhead.resize(1)
        line.bulkhead.give_back()
        line.bulkhead.give_back()
        await turn()
        assert line.served == [0, 1]
        line.bulkhead.give_back()
    assert line.served == [0, 1, 2]
