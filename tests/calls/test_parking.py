"""How long a call is left, how it ends, and that nothing stays: `calls/parked.py` in front of a real server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec import Raw

from mcpmux.access.decision import Decision, Target
from mcpmux.calls import Call, Caller, Inputs, Parking
from mcpmux.calls import call as module
from mcpmux.calls.inputs import PATIENCE, PER_PRINCIPAL
from mcpmux.catalog.view import View
from mcpmux.config.schema import Server, ToolRules
from mcpmux.errors import CallCancelled, SealBroken
from mcpmux.identity.principal import Principal
from mcpmux.links import Pool
from mcpmux.links.link import Link
from mcpmux.protocol.downstream.legacy import Admission
from mcpmux.protocol.downstream.modern import RequestCore
from mcpmux.protocol.events import Event, InputRequired, Result
from mcpmux.protocol.methods import REQUESTS
from mcpmux.seal import Keyring
from tests.links.harness import PATIENCE as WAIT
from tests.links.harness import counter, link_of, running, tool

ANA = Principal.of(("https://issuer.example", "", "ana"), email="ana@example.com", groups=())
ABLE: Mapping[str, Raw] = {"elicitation": Raw(b"{}"), "sampling": Raw(b"{}")}
ACCEPTED = Raw(b'{"action":"accept"}')


@dataclass
class Place:
    """A server with one link, and where its calls are left."""

    pool: Pool
    link: Link
    server: Server
    parking: Parking

    @property
    def inputs(self) -> Inputs:
        return self.parking.inputs

    def request(self, state: str | None = None, responses: dict[str, Raw] | None = None) -> Call:
        """A request of ana's that was decided on."""
        admission = Admission(1, REQUESTS["tools/call"], {"name": Raw(b'"ask"')}, None)
        said = RequestCore(admission, dict(ABLE), "t/1", 8, responses, state)
        call = Call(Caller(ANA, View("all"), "", ABLE), admission, "r-1", lambda _: None, self.inputs, None)
        call.said, call.parking, call.server, call.native = said, self.parking, self.server, "ask"
        target = Target("counter", True, "tool", "ask", False, ToolRules())
        call.decision = Decision(True, "write", "counter", "granted", target, ())
        return call

    async def left(self) -> tuple[Call, str, str]:
        """A request that has ended with a question: itself, the key of the question, and the state."""
        call = self.request()
        call.opened(self.link.open(tool("ask", method="elicitation/create")), 60.0)
        event = await following(call)
        assert isinstance(event, InputRequired)
        found = json.loads(bytes(event.result))
        (key,) = found["inputRequests"]
        return call, key, found["requestState"]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with made(tmp_path) as one:
        yield one


@asynccontextmanager
async def made(folder: Path) -> AsyncIterator[Place]:
    """The place; in the end nothing is open in it."""
    async with running(folder, server := counter()) as pool:
        link = await link_of(pool, "counter")
        parking = Parking(pool, Inputs(pool), Keyring([b"k" * 32]))
        yield Place(pool, link, server, parking)
        parking.close()
        assert (len(parking), parking.inputs.open, link._core.leftovers) == (0, 0, 0)


async def following(call: Call) -> Event:
    """The next event."""
    async with asyncio.timeout(WAIT):
        return await call.next()


async def test_a_call_that_is_left_keeps_its_seat_and_comes_back(place: Place) -> None:
    call, key, state = await place.left()
    assert (call.outcome, place.inputs.open, len(place.parking), place.link._core.in_flight) == ("parked", 1, 1, 1)
    again = place.request(state, {key: ACCEPTED})
    assert place.parking.resume(again)
    assert again.deadline == pytest.approx(time.monotonic() + place.server.timeout, abs=5)
    event = await following(again)
    assert isinstance(event, Result)
    assert "accept" in bytes(event.result).decode()
    assert place.link._core.in_flight == 0


async def test_who_does_not_come_back_in_time_finds_nothing_and_the_server_is_told(place: Place) -> None:
    _, key, state = await place.left()
    (parked,) = place.parking
    assert parked.deadline == pytest.approx(time.monotonic() + PATIENCE, abs=5)
    place.parking.sweep(parked.deadline - 1)
    assert len(place.parking) == 1
    place.parking.sweep(parked.deadline)
    assert (len(place.parking), place.inputs.open) == (0, 0)
    with pytest.raises(CallCancelled):
        await parked.exchange.next()
    with pytest.raises(SealBroken):
        place.parking.resume(place.request(state, {key: ACCEPTED}))


async def test_who_has_just_come_back_is_not_given_up(place: Place) -> None:
    _, key, state = await place.left()
    (parked,) = place.parking
    again = place.request(state, {key: ACCEPTED})
    assert place.parking.resume(again)
    place.parking.drop(parked, "the grant is gone")
    assert isinstance(await following(again), Result)


async def test_coming_back_keeps_no_call_alive_for_ever(place: Place) -> None:
    call = place.request()
    call.started -= module.LONGEST - 10
    call.opened(place.link.open(tool("ask", method="elicitation/create")), 60.0)
    assert isinstance(await following(call), InputRequired)
    (parked,) = place.parking
    assert parked.deadline == pytest.approx(time.monotonic() + 10, abs=5)
    assert parked.begun == call.started


async def test_beyond_what_one_person_may_be_asked_nothing_is_left(place: Place) -> None:
    for _ in range(PER_PRINCIPAL):
        assert place.inputs.take(ANA.key)
    call = place.request()
    call.opened(place.link.open(tool("ask", method="elicitation/create")), 60.0)
    event = await following(call)
    assert isinstance(event, Result)
    assert "Too many requests wait" in bytes(event.result).decode()
    place.inputs.give_back(ANA.key, PER_PRINCIPAL)


async def test_a_request_that_ends_while_its_questions_gather_leaves_nothing(place: Place) -> None:
    call = place.request()
    call.opened(place.link.open(tool("ask", method="elicitation/create")), 60.0)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(following(call))
        while not place.inputs.open:
            await asyncio.sleep(0)
        waiting.cancel()
    call.cancel("the client closed the response")
    assert (len(place.parking), place.inputs.open) == (0, 0)


async def test_when_mcpmux_ends_what_is_left_is_given_up_and_nothing_more_is_left(place: Place) -> None:
    await place.left()
    place.parking.close()
    assert len(place.parking) == 0
    call = place.request()
    call.opened(place.link.open(tool("ask", method="elicitation/create")), 60.0)
    event = await following(call)
    assert isinstance(event, Result)
    assert "shutting down" in bytes(event.result).decode()
