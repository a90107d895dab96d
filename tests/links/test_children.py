"""Children that die, hang, chatter, flood or refuse to end: what callers get and when, and what is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from mcpmux.config.schema import Limits, Server
from mcpmux.credentials import LinkKey
from mcpmux.errors import CallTimedOut, LinkLost, ServerBusy, ServerUnavailable, UpstreamBroken
from mcpmux.links import Pool
from mcpmux.protocol.events import Opening, Result
from mcpmux.seal import Secret
from tests.links.harness import (
    call,
    counter,
    ending,
    faulty,
    link_of,
    running,
    stdio,
    text,
    tool,
    until,
    with_section,
)


def state(pool: Pool, name: str) -> str:
    return next(status.state for status in pool.status() if status.id == name)


def reason(pool: Pool, name: str) -> str:
    return next(status.reason or "" for status in pool.status() if status.id == name)


def minimal(mode: str) -> Server:
    return stdio(mode, str(Path(__file__).parent / "servers" / "minimal.py"), mode)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# Death -----------------------------------------------------------------------------------------------------------


async def test_calls_in_flight_fail_at_once_when_the_child_is_killed_and_the_next_call_succeeds(tmp_path: Path) -> None:
    async with running(tmp_path, counter(), counter("other")) as pool:
        link, other = await link_of(pool, "counter"), await link_of(pool, "other")
        held = [link.open(tool("slow", gate=str(tmp_path / "gate"))) for _ in range(3)]
        theirs = other.open(tool("slow", gate=str(tmp_path / "theirs")))
        await until((tmp_path / "gate.entered").exists)
        assert link.pid is not None
        began = time.monotonic()
        os.kill(link.pid, signal.SIGKILL)
        for exchange in held:
            with pytest.raises(LinkLost, match="may or may not have taken effect"):
                await ending(exchange)
        assert time.monotonic() - began < 0.5
        again = await link_of(pool, "counter")
        assert again is not link
        assert await call(again, "echo", text="back") == "back"
        # Nobody else noticed.
        (tmp_path / "theirs").touch()
        assert "is open" in await text(theirs)


async def test_the_reason_of_a_death_is_the_exit_code_and_the_last_line_on_stderr(tmp_path: Path) -> None:
    async with running(tmp_path, faulty("die-in-call", "--code", "7")) as pool:
        link = await link_of(pool, "die-in-call")
        with pytest.raises(LinkLost):
            await call(link, "echo", text="x")
        await until(lambda: reason(pool, "die-in-call"))
        assert reason(pool, "die-in-call") == "exited with code 7: faulty: dying in the middle of a call"


async def test_half_an_answer_is_no_answer(tmp_path: Path) -> None:
    async with running(tmp_path, faulty("die-in-answer")) as pool:
        link = await link_of(pool, "die-in-answer")
        with pytest.raises((LinkLost, UpstreamBroken)):
            await call(link, "echo", text="x")
        await until(lambda: reason(pool, "die-in-answer"))
        assert reason(pool, "die-in-answer") == "was killed by SIGKILL"


async def test_an_answer_written_right_before_the_end_still_counts(tmp_path: Path) -> None:
    async with running(tmp_path, minimal("last-words")) as pool:
        for _ in range(3):
            link = await link_of(pool, "last-words")
            assert len(await call(link, "any")) == 200_000
            await until(lambda link=link: link.lost)


async def test_a_child_that_closes_its_output_is_replaced(tmp_path: Path) -> None:
    async with running(tmp_path, faulty("closes-output")) as pool:
        link = await link_of(pool, "closes-output")
        with pytest.raises(LinkLost):
            await call(link, "echo", text="x")
        assert (await link_of(pool, "closes-output")) is not link
        await until(lambda: not alive(link.pid or 0))


async def test_a_child_that_exits_at_start_is_failed_with_its_reason_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcpmux.links.backoff.FIRST", 0.01)
    async with running(tmp_path, faulty("exit-start", "--code", "4"), counter()) as pool:
        assert await call(await link_of(pool, "counter"), "echo", text="meanwhile") == "meanwhile"
        await until(lambda: state(pool, "exit-start") == "failed", 30)
        assert reason(pool, "exit-start") == "exited with code 4: faulty: FAULTY_TOKEN is not set"
        with pytest.raises(ServerUnavailable) as refused:
            await pool.link(LinkKey("exit-start"), 5)
        assert refused.value.retry_after is not None
        assert refused.value.retry_after > 40
        assert next(status.restarts for status in pool.status() if status.id == "exit-start") == 4


async def test_a_child_that_is_gone_before_it_is_greeted_is_noticed_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, with_section(Server(id="false", command=("/bin/false",)))) as pool:
        await until(lambda: reason(pool, "false"))
        assert reason(pool, "false") == "exited with code 1"


async def test_a_child_that_exits_at_its_first_start_only_becomes_ready(tmp_path: Path) -> None:
    async with running(tmp_path, faulty("exit-once", "--gate", str(tmp_path / "tried"))) as pool:
        assert await call(await link_of(pool, "exit-once"), "echo", text="x") == "x"


async def test_a_command_that_does_not_exist_is_a_clear_reason(tmp_path: Path) -> None:
    server = Server(id="counter", command=("no-such-program", "--now"))
    async with running(tmp_path, with_section(server)) as pool:
        await until(lambda: state(pool, "counter") == "failed")
        assert reason(pool, "counter") == "command not found: no-such-program"


# Greeting --------------------------------------------------------------------------------------------------------


async def test_a_slow_starter_delays_nobody_and_a_call_waits_for_it(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    servers = [faulty("late", "--gate", str(gate)), counter()]
    async with running(tmp_path, *servers, limits=Limits(starts=2)) as pool:
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(link_of(pool, "late"))
            assert await call(await link_of(pool, "counter"), "echo", text="x") == "x"
            assert state(pool, "late") == "starting"
            gate.touch()
        assert await call(waiting.result(), "echo", text="late") == "late"


async def test_a_call_waits_for_a_start_only_so_long(tmp_path: Path) -> None:
    async with running(tmp_path, faulty("silent-start")) as pool:
        with pytest.raises(ServerUnavailable):
            await pool.link(LinkKey("silent-start"), 0.05)


@pytest.mark.parametrize(
    ("mode", "said"), [("refuses-greeting", "No licence"), ("strange-revision", "protocol version 1999-12-31")]
)
async def test_a_server_that_cannot_be_greeted_says_why_in_status(tmp_path: Path, mode: str, said: str) -> None:
    async with running(tmp_path, faulty(mode)) as pool:
        await until(lambda: reason(pool, mode))
        assert said in reason(pool, mode)


async def test_a_server_that_refuses_newer_revisions_is_greeted_in_the_oldest(tmp_path: Path) -> None:
    async with running(tmp_path, minimal("older")) as pool:
        link = await link_of(pool, "older")
        assert link.greeting is not None
        assert link.greeting.protocol_version == "2024-11-05"


# Noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["chatter", "garbage", "strange-requests", "wrong-ids"])
async def test_noise_on_stdout_harms_no_call(tmp_path: Path, mode: str) -> None:
    async with running(tmp_path, faulty(mode)) as pool:
        link = await link_of(pool, mode)
        exchanges = [link.open(tool("echo", text=f"n{number}")) for number in range(10)]
        assert [await text(exchange) for exchange in exchanges] == [f"n{number}" for number in range(10)]
        assert link.in_flight == 0


async def test_a_line_of_100_megabytes_fails_its_call_without_being_held(tmp_path: Path) -> None:
    async with running(tmp_path, faulty("long-line"), counter()) as pool:
        link, other = await link_of(pool, "long-line"), await link_of(pool, "counter")
        memory = psutil.Process().memory_info().rss
        exchange = link.open(tool("echo", text="x"))
        with pytest.raises(UpstreamBroken, match="too large"):
            async with asyncio.timeout(60):
                while True:
                    assert await call(other, "echo", text="y") == "y"
                    if exchange.ended:
                        await exchange.next()
        assert psutil.Process().memory_info().rss - memory < 60_000_000
        assert (await link_of(pool, "long-line")) is link


async def test_endless_noise_without_a_line_end_is_skipped(tmp_path: Path) -> None:
    async with running(tmp_path, faulty("long-noise", "--bytes", "40000000")) as pool:
        link = await link_of(pool, "long-noise")
        assert await call(link, "echo", text="after the noise") == "after the noise"


async def test_a_flood_on_stderr_slows_nobody_down_for_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with running(tmp_path, faulty("flood-stderr"), counter()) as pool:
        link, other = await link_of(pool, "flood-stderr"), await link_of(pool, "counter")
        for number in range(20):
            assert await call(link, "echo", text=str(number)) == str(number)
            assert await call(other, "echo", text=str(number)) == str(number)
    lines = [line for line in capsys.readouterr().err.splitlines() if '"server_stderr"' in line]
    assert 50 < len(lines) < 500


@pytest.mark.parametrize("mode", ["deep-result"])
async def test_an_answer_that_cannot_be_read_fails_its_call_and_no_other(tmp_path: Path, mode: str) -> None:
    async with running(tmp_path, faulty(mode)) as pool:
        link = await link_of(pool, mode)
        with pytest.raises(UpstreamBroken):
            await call(link, "echo", text="x")
        assert isinstance(await ending(link.open(Opening("tools/list", None, ""))), Result)


# Silence ---------------------------------------------------------------------------------------------------------


async def test_a_child_that_does_not_read_refuses_calls_instead_of_piling_them_up(tmp_path: Path) -> None:
    async with running(tmp_path, faulty("deaf", concurrency=1000), counter()) as pool:
        link = await link_of(pool, "deaf")
        heavy = "x" * 1_000_000
        opened = []
        with pytest.raises(ServerBusy):
            for _ in range(50):
                opened.append(link.open(tool("echo", text=heavy)))
                await asyncio.sleep(0)
        assert 5 < len(opened) < 20
        assert await call(await link_of(pool, "counter"), "echo", text="y") == "y"


async def test_a_child_that_stops_answering_is_found_out_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mcpmux.links.health.PING_LIMIT", 0.2)
    monkeypatch.setattr("mcpmux.links.health.PROBE_PAUSE", 0.05)
    monkeypatch.setattr("mcpmux.links.link.NO_ANSWER_AFTER", 0.0)
    async with running(tmp_path, counter()) as pool:
        link = await link_of(pool, "counter")
        assert link.pid is not None
        os.kill(link.pid, signal.SIGSTOP)
        for _ in range(3):
            exchange = link.open(tool("echo", text="x"))
            exchange.fail(CallTimedOut("counter", 0.1))
            with pytest.raises(CallTimedOut):
                await exchange.next()
        await until(lambda: link.lost)
        assert link.lost == "it does not answer pings"
        assert await call(await link_of(pool, "counter"), "echo", text="x") == "x"
    assert "link_degraded" in capsys.readouterr().err


async def test_a_child_that_does_not_know_ping_is_asked_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcpmux.links.health.IDLE", 0.02)
    monkeypatch.setattr("mcpmux.links.health.PING_LIMIT", 0.1)
    monkeypatch.setattr("mcpmux.links.health.PROBE_PAUSE", 0.01)
    async with running(tmp_path, minimal("no-ping")) as pool:
        link = await link_of(pool, "no-ping")
        greeted = link.heard
        for _ in range(3):
            heard = link.heard
            await until(lambda heard=heard: link.heard > heard)
        assert link.heard > greeted
        assert (await link_of(pool, "no-ping")) is link


async def test_a_child_that_is_only_slow_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcpmux.links.link.NO_ANSWER_AFTER", 0.0)
    async with running(tmp_path, faulty("silent-call")) as pool:
        link = await link_of(pool, "silent-call")
        for _ in range(5):
            link.open(tool("echo", text="x")).fail(CallTimedOut("silent-call", 0.1))
        await until(lambda: link.heard > 0 and state(pool, "silent-call") == "ready" and not link.unanswered)
        assert (await link_of(pool, "silent-call")) is link


# The end ---------------------------------------------------------------------------------------------------------


async def test_a_stubborn_child_is_killed_in_the_end(tmp_path: Path) -> None:
    async with running(tmp_path, faulty("stubborn")) as pool:
        pid = (await link_of(pool, "stubborn")).pid
    assert pid is not None
    assert not alive(pid)


async def test_grandchildren_end_with_the_child_also_if_it_dies_alone(tmp_path: Path) -> None:
    note = tmp_path / "family"
    async with running(tmp_path, faulty("family", "--gate", str(note))) as pool:
        link = await link_of(pool, "family")
        assert link.pid is not None
        family = [process.pid for process in psutil.Process(link.pid).children(recursive=True)]
        assert family
        os.kill(link.pid, signal.SIGKILL)
        await until(lambda: not any(map(alive, family)))
        again = await link_of(pool, "family")
        family = [process.pid for process in psutil.Process(again.pid).children(recursive=True)]
        assert family
    assert not any(map(alive, family))


async def test_a_server_behind_a_wrapper_is_given_time_to_end_by_itself(tmp_path: Path) -> None:
    async with running(tmp_path, faulty("wrapper")) as pool:
        link = await link_of(pool, "wrapper")
        assert await call(link, "echo", text="x") == "x"
        family = [process.pid for process in psutil.Process(link.pid).children(recursive=True)]
        assert family
    assert not any(map(alive, family))


# What a child gets -----------------------------------------------------------------------------------------------


async def test_secrets_of_a_server_are_not_shown_when_it_repeats_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(tmp_path, counter(env={"TOKEN": Secret("very-s3cret-1")})) as pool:
        link = await link_of(pool, "counter")
        await call(link, "stderr", text="using very-s3cret-1 now")
    logged = capsys.readouterr().err
    assert "using *** now" in logged
    assert "very-s3cret-1" not in logged
