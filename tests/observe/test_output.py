"""The log never stops the process: a slow reader, a dead one, a full disk, many threads."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from mcpmux.observe.log import configure, logger
from mcpmux.observe.output import KEEP, LogOutput

log = logger("tests")


@contextmanager
def a_pipe() -> Iterator[tuple[int, TextIO]]:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        try:
            yield reader, stream
        finally:
            os.close(reader)


def take(reader: int, size: int = 1 << 20) -> bytes:
    """All that is in the pipe now."""
    os.set_blocking(reader, False)
    data = b""
    try:
        while chunk := os.read(reader, size):
            data += chunk
    except BlockingIOError:
        pass
    return data


async def reading_until(reader: int, sign: bytes) -> bytes:
    data = b""
    async with asyncio.timeout(5):
        while sign not in data:
            data += take(reader)
            await asyncio.sleep(0.01)
    return data


async def test_lines_are_gathered_and_written_within_a_moment() -> None:
    with a_pipe() as (reader, stream), closing(configure(console=False, stream=stream)):
        log.info("first")
        log.info("second")
        assert take(reader) == b""
        data = await reading_until(reader, b"second")
    assert [json.loads(line)["event"] for line in data.splitlines()] == ["first", "second"]


async def test_a_warning_takes_all_before_it_out_at_once() -> None:
    with a_pipe() as (reader, stream), closing(configure(console=False, stream=stream)):
        log.info("first")
        log.warning("second")
        assert [json.loads(line)["event"] for line in take(reader).splitlines()] == ["first", "second"]


async def test_many_lines_go_out_before_their_time() -> None:
    with a_pipe() as (reader, stream), closing(configure(console=False, stream=stream)):
        for number in range(400):
            log.info("filled", number=number, text="x" * 100)
        assert len(take(reader)) > 32 * 1024


def test_without_a_loop_a_line_is_there_at_once() -> None:
    with a_pipe() as (reader, stream), closing(configure(console=False, stream=stream)):
        log.info("first")
        assert json.loads(take(reader))["event"] == "first"


def test_lines_that_a_loop_left_behind_are_not_lost_and_the_next_loop_writes_too() -> None:
    async def main(event: str) -> None:
        log.info(event)

    with a_pipe() as (reader, stream), closing(configure(console=False, stream=stream)) as output:
        asyncio.run(main("first"))
        asyncio.run(main("second"))
        log.info("third")
        output.flush()
        assert [json.loads(line)["event"] for line in take(reader).splitlines()] == ["first", "second", "third"]


async def longest_pause(done: asyncio.Event) -> float:
    longest, before = 0.0, time.monotonic()
    while not done.is_set():
        await asyncio.sleep(0)
        longest, before = max(longest, time.monotonic() - before), time.monotonic()
    return longest


@pytest.mark.parametrize("method", ["info", "warning"])
async def test_a_reader_who_stops_costs_lines_but_never_time_or_memory(method: str) -> None:
    done = asyncio.Event()
    with a_pipe() as (reader, stream), closing(configure(console=False, stream=stream)) as output:
        async with asyncio.TaskGroup() as tasks:
            pause = tasks.create_task(longest_pause(done))
            for number in range(12_000):
                getattr(log, method)("flooded", number=number, text="x" * 200)
                if number % 100 == 0:
                    await asyncio.sleep(0)
            done.set()
        assert pause.result() < 2
        assert output._kept <= KEEP
        data = await reading_until(reader, b"log_dropped")
        log.info("back_again")
        data += await reading_until(reader, b"back_again")
    lines = [json.loads(line) for line in data.splitlines()]
    numbers = [line["number"] for line in lines if line["event"] == "flooded"]
    (dropped,) = [line for line in lines if line["event"] == "log_dropped"]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) + dropped["lines"] == 12_000
    assert dropped["level"] == "warning"
    assert lines[-1]["event"] == "back_again"


async def test_the_rest_of_a_line_follows_when_the_reader_is_back_without_another_line() -> None:
    with a_pipe() as (reader, stream), closing(configure(console=False, stream=stream)):
        os.set_blocking(stream.fileno(), False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(stream.fileno(), b"\n" * 4096)
        os.set_blocking(stream.fileno(), True)
        os.read(reader, 4096)
        log.warning("long_line", text="x" * 8000, end="the end")
        data = await reading_until(reader, b"the end")
    assert len(json.loads(data)["text"]) == 8000


def test_a_process_whose_stderr_nobody_reads_comes_to_its_end() -> None:
    program = (
        "import asyncio\nfrom mcpmux.observe.log import configure, logger\n"
        "configure(console=False); log = logger('x')\n"
        "async def main():\n  for n in range(20000): log.info('flooded', n=n, text='x' * 200)\n"
        "asyncio.run(main())\n"
        "for n in range(200): log.warning('flooded', n=n)\n"
        "print('done')"
    )
    with a_pipe() as (_reader, stream):
        done = subprocess.run([sys.executable, "-c", program], stderr=stream, stdout=subprocess.PIPE, timeout=30)
    assert done.stdout == b"done\n"
    assert done.returncode == 0


async def test_the_mode_of_a_shared_pipe_is_left_as_it_is() -> None:
    with a_pipe() as (_reader, stream), closing(configure(console=False, stream=stream)):
        for _ in range(2000):
            log.warning("flooded", text="x" * 200)
        assert os.get_blocking(stream.fileno())


async def test_a_reader_who_is_gone_takes_the_log_with_him_and_nothing_else() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream, closing(configure(console=False, stream=stream)) as output:
        os.close(reader)
        for _ in range(1000):
            log.warning("lost", text="x" * 100)
        assert output._kept == 0


async def test_a_socket_is_as_good_as_a_pipe() -> None:
    """Under systemd stderr is a socket to the journal."""
    ours, theirs = socket.socketpair()
    with ours, theirs, os.fdopen(os.dup(theirs.fileno()), "w") as stream:
        with closing(configure(console=False, stream=stream)):
            for number in range(30_000):
                log.info("flooded", number=number)
            log.warning("last")
        first = ours.recv(100_000)
    assert json.loads(first.splitlines()[0])["number"] == 0


async def test_a_full_disk_drops_lines_and_nothing_fails() -> None:
    with Path("/dev/full").open("w") as stream:
        output = LogOutput(stream, lambda lines: b"dropped %d\n" % lines)
        for _ in range(100):
            output.write_now(b"x" * 50_000 + b"\n")
        assert output._kept <= KEEP
        output._give_up()
        output.close()


async def test_a_closed_stream_is_no_error() -> None:
    stream = io.StringIO()
    with closing(configure(console=False, stream=stream)):
        stream.close()
        log.warning("nobody_listens")


def test_lines_of_many_threads_are_whole_and_all_there(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream, closing(configure(console=False, stream=stream)) as output:
        start = threading.Barrier(8)

        def work(worker: int) -> None:
            start.wait()
            for number in range(500):
                log.info("worked", worker=worker, number=number)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        output.flush()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {(line["worker"], line["number"]) for line in lines} == {(w, n) for w in range(8) for n in range(500)}


def test_a_file_that_others_append_to_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("a") as stream, closing(configure(console=False, stream=stream)):
        log.info("first")
        with path.open("a") as other:
            other.write("other\n")
        log.info("second")
    first, other_line, second = path.read_text().splitlines()
    assert json.loads(first)["event"] == "first"
    assert other_line == "other"
    assert json.loads(second)["event"] == "second"
