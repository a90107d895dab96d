"""How much may be asked, for how long, and that nothing is left: `calls/inputs.py` and the calls that use it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec import Raw

from mcpmux.calls import Call, Caller, Inputs
from mcpmux.calls import inputs as module
from mcpmux.calls.call import LONGEST
from mcpmux.calls.inputs import IN_TOTAL, MOST_ELICITATIONS, PATIENCE, PER_PRINCIPAL
from mcpmux.catalog.view import View
from mcpmux.credentials import LinkKey
from mcpmux.identity.principal import Principal
from mcpmux.links import Pool
from mcpmux.protocol.downstream.legacy import Admission
from mcpmux.protocol.events import Ask, Failure, Result, Withdrawn
from mcpmux.protocol.methods import REQUESTS
from tests.links.harness import PATIENCE as WAIT
from tests.links.harness import counter, link_of, running, surroundings, tool

ANA = Principal.of(("https://issuer.example", "", "ana"), email="ana@example.com", groups=())


@asynccontextmanager
async def asking(folder: Path) -> AsyncIterator[tuple[Call, Inputs]]:
    """A call of ana's that is about to be asked something by a real server."""
    async with running(folder, server := counter()) as pool:
        link = await link_of(pool, "counter")
        inputs = Inputs(pool)
        admission = Admission(1, REQUESTS["tools/call"], {}, None)
        call = Call(Caller(ANA, View("all"), "session"), admission, "r-1", lambda _: None, inputs, None)
        call.server = server
        call.opened(link.open(tool("ask", method="elicitation/create")), 60.0)
        yield call, inputs
        call.cancel("the test is over")
        assert inputs.open == 0
        assert link._core.leftovers == 0


async def asked(call: Call) -> Ask:
    """What the server asks."""
    async with asyncio.timeout(WAIT):
        event = await call.next()
    assert isinstance(event, Ask)
    return event


async def heard(call: Call) -> dict[str, object]:
    """What the server says that it was answered."""
    async with asyncio.timeout(WAIT):
        event = await call.next()
    assert isinstance(event, Result)
    found = json.loads(json.loads(bytes(event.result))["content"][0]["text"])
    assert isinstance(found, dict)
    return found


async def test_while_something_is_asked_a_call_has_as_long_as_a_person_may_take(tmp_path: Path) -> None:
    async with asking(tmp_path) as (call, inputs):
        ask = await asked(call)
        assert call.deadline == pytest.approx(time.monotonic() + PATIENCE, abs=5)
        assert inputs.open == 1
        call.reply(ask.id, Result(Raw(b'{"action":"accept"}')))
        assert call.deadline == pytest.approx(time.monotonic() + 60, abs=5)
        assert inputs.open == 0
        assert (await heard(call))["result"] == {"action": "accept"}


async def test_what_a_client_never_answers_is_answered_for_it_and_the_call_goes_on(tmp_path: Path) -> None:
    async with asking(tmp_path) as (call, _):
        ask = await asked(call)
        call.sweep(call.deadline, 1.0)
        async with asyncio.timeout(WAIT):
            assert await call.next() == Withdrawn(ask.id)
        assert call.deadline == pytest.approx(time.monotonic() + 60, abs=5)
        call.reply(ask.id, Result(Raw(b'{"action":"accept"}')))
        error = (await heard(call))["error"]
        assert isinstance(error, dict)
        assert "has not answered" in error["message"]


async def test_asking_keeps_no_call_alive_for_ever(tmp_path: Path) -> None:
    async with asking(tmp_path) as (call, _):
        call.started -= LONGEST - 10
        await asked(call)
        assert call.deadline == pytest.approx(time.monotonic() + 10, abs=5)
        call.sweep(call.started + LONGEST, 1.0)
        assert call.outcome == "timeout"


async def test_beyond_what_one_person_may_be_asked_the_server_gets_an_error(tmp_path: Path) -> None:
    async with asking(tmp_path) as (call, inputs):
        for _ in range(PER_PRINCIPAL):
            assert inputs.take(ANA.key)
        error = (await heard(call))["error"]
        assert error == {"code": module.EXHAUSTED.code, "message": module.EXHAUSTED.message}
        assert inputs.take("somebody else")
        inputs.give_back("somebody else")
        inputs.give_back(ANA.key, PER_PRINCIPAL)


async def test_what_is_asked_while_nobody_reads_is_void_when_the_call_has_ended(tmp_path: Path) -> None:
    async with asking(tmp_path) as (call, inputs):
        ask = await asked(call)
        call.fail(RuntimeError("broken"))
        assert inputs.open == 0
        call.reply(ask.id, Result(Raw(b"{}")))
        async with asyncio.timeout(WAIT):
            assert isinstance(await call.next(), Failure | Result)


async def test_in_total_only_so_many_wait(tmp_path: Path) -> None:
    async with surroundings(tmp_path) as ground:
        inputs = Inputs(Pool(ground))
        for number in range(IN_TOTAL):
            assert inputs.take(f"person {number // PER_PRINCIPAL}")
        assert not inputs.take("one more")
        inputs.give_back("person 0")
        assert inputs.take("one more")
        assert inputs.open == IN_TOTAL


async def test_only_so_many_ends_of_elicitations_are_waited_for(tmp_path: Path) -> None:
    async with surroundings(tmp_path) as ground:
        inputs = Inputs(Pool(ground))
        for number in range(MOST_ELICITATIONS + 10):
            inputs.elicited(LinkKey("a"), f"e-{number}", "session")
        assert inputs.elicitations == MOST_ELICITATIONS
