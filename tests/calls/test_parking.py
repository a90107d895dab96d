"""How long a call is left, how it ends, and that nothing stays: `calls/parked.py` in front of a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mcpmux.calls import call as module
from mcpmux.calls.inputs import PATIENCE, PER_PRINCIPAL
from mcpmux.errors import CallCancelled, StateRefused
from mcpmux.links.link import Link
from mcpmux.protocol.events import InputRequired, Result
from tests.calls.room import ACCEPTED, ANA, Room, following, made
from tests.links.harness import link_of


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with made(tmp_path) as one:
        yield one


@pytest.fixture
async def link(room: Room) -> AsyncIterator[Link]:
    """The one link of the server, which forgets everything in the end."""
    link = await link_of(room.pool, "counter")
    yield link
    room.parking.close()
    assert link._core.leftovers == 0


async def test_a_call_that_is_left_keeps_its_seat_and_comes_back(room: Room, link: Link) -> None:
    call, key, state = await room.left()
    assert (call.outcome, room.inputs.open, len(room.parking), link._core.in_flight) == ("parked", 1, 1, 1)
    again = room.request(state, {key: ACCEPTED})
    assert room.parking.resume(again)
    assert again.deadline == pytest.approx(time.monotonic() + room.server.timeout, abs=5)
    event = await following(again)
    assert isinstance(event, Result)
    assert "accept" in bytes(event.result).decode()
    assert link._core.in_flight == 0


async def test_who_does_not_come_back_in_time_finds_nothing_and_the_server_is_told(room: Room, link: Link) -> None:
    _, key, state = await room.left()
    (parked,) = room.parking
    assert parked.deadline == pytest.approx(time.monotonic() + PATIENCE, abs=5)
    room.parking.sweep(parked.deadline - 1)
    assert len(room.parking) == 1
    room.parking.sweep(parked.deadline)
    assert (len(room.parking), room.inputs.open) == (0, 0)
    with pytest.raises(CallCancelled):
        await parked.exchange.next()
    again = room.request(state, {key: ACCEPTED})
    with pytest.raises(StateRefused):
        room.parking.resume(again)
    again.cancel("the test is over")


async def test_who_has_just_come_back_is_not_given_up(room: Room, link: Link) -> None:
    _, key, state = await room.left()
    (parked,) = room.parking
    again = room.request(state, {key: ACCEPTED})
    assert room.parking.resume(again)
    room.parking.drop(parked, "the grant is gone")
    assert isinstance(await following(again), Result)


async def test_coming_back_keeps_no_call_alive_for_ever(room: Room, link: Link) -> None:
    call = room.request()
    call.started -= module.LONGEST - 10
    await room.open(call, method="elicitation/create")
    assert isinstance(await following(call), InputRequired)
    (parked,) = room.parking
    assert parked.deadline == pytest.approx(time.monotonic() + 10, abs=5)
    assert parked.begun == call.started


async def test_coming_back_without_an_answer_makes_no_call_look_younger(room: Room, link: Link) -> None:
    _, _, state = await room.left()
    (parked,) = room.parking
    parked.since -= 20
    again = room.request(state)
    assert room.parking.resume(again)
    (still,) = room.parking
    assert (still.since, still.id == parked.id) == (parked.since, False)
    assert len(again.left.asks if again.left is not None else ()) == 1


async def test_beyond_what_one_person_may_be_asked_nothing_is_left(room: Room, link: Link) -> None:
    for _ in range(PER_PRINCIPAL):
        assert room.inputs.take(ANA.key)
    call = room.request()
    await room.open(call, method="elicitation/create")
    event = await following(call)
    assert isinstance(event, Result)
    assert "Too many requests wait" in bytes(event.result).decode()
    room.inputs.give_back(ANA.key, PER_PRINCIPAL)


async def test_a_request_that_ends_while_its_questions_gather_leaves_nothing(room: Room, link: Link) -> None:
    call = room.request()
    await room.open(call, method="elicitation/create")
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(following(call))
        while not room.inputs.open:
            await asyncio.sleep(0)
        waiting.cancel()
    call.cancel("the client closed the response")
    assert (len(room.parking), room.inputs.open) == (0, 0)


async def test_when_mcpmux_ends_what_is_left_is_given_up_and_nothing_more_is_left(room: Room, link: Link) -> None:
    await room.left()
    room.parking.close()
    assert len(room.parking) == 0
    call = room.request()
    await room.open(call, method="elicitation/create")
    event = await following(call)
    assert isinstance(event, Result)
    assert "shutting down" in bytes(event.result).decode()
