"""The seats of one server: in line, several at a time, bounded, and never lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from mcpmux.errors import ServerBusy
from mcpmux.links.bulkhead import Bulkhead


async def turn() -> None:
    """Let everything run that is ready, and what that makes ready."""
    for _ in range(5):
        await asyncio.sleep(0)


def waiters(bulkhead: Bulkhead, count: int, wait: float = 10.0) -> tuple[list[asyncio.Task[None]], list[int]]:
    """Tasks that wait in line and take their seat; the order in which they got it."""
    served: list[int] = []

    async def one(number: int) -> None:
        await bulkhead.seat(asyncio.get_running_loop().time() + wait)
        bulkhead.take()
        served.append(number)

    return [asyncio.create_task(one(number)) for number in range(count)], served


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
    bulkhead = Bulkhead("github", 2)
    bulkhead.take()
    bulkhead.take()
    tasks, served = waiters(bulkhead, 4)
    await turn()
    assert served == []
    bulkhead.give_back()
    assert not bulkhead.free  # kept for the first in line, who has not run yet
    with pytest.raises(ServerBusy):
        bulkhead.take()
    bulkhead.give_back()
    await turn()
    assert served == [0, 1]
    bulkhead.give_back()
    await turn()
    assert served == [0, 1, 2]
    bulkhead.give_back()
    await asyncio.gather(*tasks)
    assert served == [0, 1, 2, 3]
    assert bulkhead.taken == 2


async def test_a_wait_ends_at_its_time_and_the_others_go_on() -> None:
    bulkhead = Bulkhead("github", 1)
    bulkhead.take()
    patient, served = waiters(bulkhead, 1)
    await turn()
    hasty, _ = waiters(bulkhead, 2, wait=0.05)
    for task in hasty:
        with pytest.raises(ServerBusy):
            await task
    assert served == []
    bulkhead.give_back()
    await asyncio.gather(*patient)
    assert served == [0]


@pytest.mark.parametrize("end", [lambda task: task.cancel(), lambda task: None])
async def test_who_is_cancelled_leaves_the_seat_to_the_next(end: Callable[[asyncio.Task[None]], object]) -> None:
    bulkhead = Bulkhead("github", 1)
    bulkhead.take()
    tasks, served = waiters(bulkhead, 3)
    await turn()
    tasks[1].cancel()  # while it waits
    await turn()
    bulkhead.give_back()
    end(tasks[0])  # after the seat was kept for it, before it could run
    await turn()
    assert served == ([2] if tasks[0].cancelled() else [0])
    bulkhead.give_back()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert bulkhead.taken == (0 if tasks[0].cancelled() else 1)


async def test_who_does_not_take_the_seat_leaves_it_to_the_next() -> None:
    bulkhead = Bulkhead("github", 1)
    bulkhead.take()
    idle = asyncio.create_task(bulkhead.seat(asyncio.get_running_loop().time() + 10))
    await turn()
    tasks, served = waiters(bulkhead, 1)
    await turn()
    bulkhead.give_back()
    await asyncio.gather(idle, *tasks)
    assert served == [0]


async def test_more_seats_are_given_to_who_waits() -> None:
    bulkhead = Bulkhead("github", 1)
    bulkhead.take()
    tasks, served = waiters(bulkhead, 3)
    await turn()
    bulkhead.resize(3)
    await turn()
    assert served == [0, 1]
    bulkhead.give_back()
    await asyncio.gather(*tasks)
    bulkhead.resize(1)
    with pytest.raises(ServerBusy):
        bulkhead.take()
