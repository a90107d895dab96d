"""Links to real child processes: what goes through, whose it is, and what is left at the end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
import uvloop
from msgspec import Raw

from mcpmux.protocol.events import Ask, Failure, Log, Opening, Progress, Result
from tests.links.harness import PATIENCE, call, counter, ending, events, faulty, link_of, running, text, tool


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Everything here has to work on both loops: their pipes differ."""
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


async def test_a_call_goes_to_the_child_and_its_answer_comes_back(tmp_path: Path) -> None:
    async with running(tmp_path, counter()) as pool:
        link = await link_of(pool, "counter")
        assert await call(link, "echo", text="hello") == "hello"
        assert link.greeting is not None
        assert link.greeting.protocol_version == "2025-11-25"
        assert link.in_flight == 0


async def test_many_calls_are_in_flight_at_once_and_each_gets_its_own_answer(tmp_path: Path) -> None:
    async with running(tmp_path, counter()) as pool:
        link = await link_of(pool, "counter")
        gate = tmp_path / "gate"
        held = [link.open(tool("slow", gate=str(gate))) for _ in range(5)]
        quick = [link.open(tool("echo", text=f"n{number}")) for number in range(20)]
        assert [await text(exchange) for exchange in quick] == [f"n{number}" for number in range(20)]
        assert link.in_flight == 5
        gate.touch()
        assert [await text(exchange) for exchange in held] == [f"{gate} is open"] * 5


async def test_progress_comes_to_the_call_that_wants_it_without_our_token(tmp_path: Path) -> None:
    async with running(tmp_path, counter()) as pool:
        link = await link_of(pool, "counter")
        found = await events(link.open(tool("progress", progress=True, steps=3)))
        assert [type(event) for event in found] == [Progress, Progress, Progress, Result]
        first = found[0]
        assert isinstance(first, Progress)
        assert {name: msgspec.json.decode(raw) for name, raw in first.params.items()} == {
            "progress": 1, "total": 3, "message": "step 1"
        }  # fmt: skip
        assert [type(event) for event in await events(link.open(tool("progress", steps=3)))] == [Result]


async def test_a_log_message_comes_to_the_only_call_in_flight(tmp_path: Path) -> None:
    async with running(tmp_path, counter()) as pool:
        link = await link_of(pool, "counter")
        found = await events(link.open(tool("log", level="info", text="working")))
        assert [type(event) for event in found] == [Log, Result]
        assert b"working" in bytes(found[0].params)  # type: ignore[union-attr, arg-type]


async def test_a_log_message_soon_after_another_callers_call_comes_to_nobody(tmp_path: Path) -> None:
    async with running(tmp_path, counter()) as pool:
        link = await link_of(pool, "counter")
        await ending(link.open(tool("echo", caller="ben", text="mine")))
        found = await events(link.open(tool("log", caller="ana", level="info", text="whose?")))
        assert [type(event) for event in found] == [Result]


async def test_an_error_of_the_server_comes_verbatim(tmp_path: Path) -> None:
    async with running(tmp_path, counter()) as pool:
        link = await link_of(pool, "counter")
        end = await ending(link.open(tool("refuse")))
        assert isinstance(end, Failure)
        assert (end.code, end.message, msgspec.json.decode(end.data or b"")) == (
            -32050, "This tool refuses", {"why": "because"}
        )  # fmt: skip


async def test_what_the_server_asks_of_a_client_comes_out_of_its_call_and_the_answer_goes_back(tmp_path: Path) -> None:
    async with running(tmp_path, counter()) as pool:
        link = await link_of(pool, "counter")
        exchange = link.open(tool("ask", method="sampling/createMessage"))
        async with asyncio.timeout(PATIENCE):
            ask = await exchange.next()
        assert isinstance(ask, Ask)
        exchange.answer(ask.id, Result(Raw(b'{"model":"m"}')))
        exchange.answer(ask.id, Result(Raw(b'{"model":"again"}')))
        assert msgspec.json.decode(await text(exchange))["result"] == {"model": "m"}
        assert msgspec.json.decode(await call(link, "ask", method="ping"))["result"] == {}


async def test_a_cancelled_call_is_cancelled_in_the_server_and_frees_its_seat(tmp_path: Path) -> None:
    async with running(tmp_path, counter(concurrency=1)) as pool:
        link = await link_of(pool, "counter")
        gate = tmp_path / "gate"
        exchange = link.open(tool("slow", gate=str(gate)))
        assert pool.ready(link.key) is None
        exchange.cancel("the user is tired of waiting")
        assert pool.ready(link.key) is link
        assert await call(link, "echo", text="next") == "next"
        assert (tmp_path / "gate.cancelled").read_text().strip() == str(exchange.id)
        with pytest.raises(Exception, match="cancelled"):
            await exchange.next()


async def test_an_answer_of_a_megabyte_on_one_line_comes_whole(tmp_path: Path) -> None:
    async with running(tmp_path, counter()) as pool:
        link = await link_of(pool, "counter")
        assert len(await call(link, "big", bytes=5_000_000)) == 5_000_000


async def test_pretty_printed_arguments_reach_the_server_as_one_line(tmp_path: Path) -> None:
    async with running(tmp_path, counter()) as pool:
        link = await link_of(pool, "counter")
        opening = tool("echo")
        assert opening.params is not None
        opening.params["arguments"] = msgspec.Raw(b'{\n  "text":\r\n "split"\n}')
        assert await text(link.open(opening)) == "split"


async def test_what_the_server_did_not_announce_is_not_asked(tmp_path: Path) -> None:
    async with running(tmp_path, faulty("no-tools")) as pool:
        link = await link_of(pool, "no-tools")
        assert await ending(link.open(Opening("tools/list", None, ""))) == Failure(
            -32601, "Method not found: tools/list"
        )
        assert link.in_flight == 0
