"""Every line is one JSON object off a terminal, whoever wrote it, and one safe line of text on it."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import os
import pty
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
import structlog

from mcpmux.observe.log import Stencil, configure, logger
from mcpmux.observe.output import LogOutput
from mcpmux.seal import Secret

log = logger("tests")


@contextmanager
def lines_in(stream: io.StringIO, *, console: bool = False, level: str = "info") -> Iterator[LogOutput]:
    with closing(configure(console=console, level=level, stream=stream)) as output:
        yield output


def read(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_stencil_writes_the_line_that_info_writes() -> None:
    stream = io.StringIO()
    words = {"server": "github", "tool": "Bearer abcdefghijkl\u202e", "tenant": None}
    at = datetime(2026, 11, 23, 12, 0, 0, 5, tzinfo=UTC)
    with lines_in(stream):
        log.info("call_finished", timestamp=at, **words, duration_ms=1.5, request_id="r-1")
        stencil = Stencil("tests", "call_finished", words)
        Stencil.write([(stencil, at.timestamp(), 1.5, "r-1"), (stencil, at.timestamp() + 1, 2.5, "r-2")])
    first, second, third = stream.getvalue().splitlines()
    assert first == second
    assert "abcdefghijkl" not in second
    assert json.loads(third) | {"timestamp": 0} == json.loads(first) | {"timestamp": 0, "duration_ms": 2.5} | {
        "request_id": "r-2"
    }


def test_a_stencil_obeys_the_level_and_the_terminal() -> None:
    stream = io.StringIO()
    stencil = Stencil("tests", "call_finished", {"server": "github"})
    with lines_in(stream, level="warning"):
        Stencil.write([(stencil, 0.0, 1.5, "r-1")])
    assert stream.getvalue() == ""
    with lines_in(stream, console=True):
        Stencil.write([(stencil, 0.0, 1.5, "r-1")])
    assert "call_finished" in stream.getvalue()
    assert "{" not in stream.getvalue()


def test_a_line_is_one_json_object_with_time_level_event_room_and_fields() -> None:
    stream = io.StringIO()
    with lines_in(stream):
        log.info("call_finished", server="github", outcome="ok", duration_ms=12.5, streamed=False, tenant=None)
    (line,) = read(stream)
    written = datetime.fromisoformat(str(line.pop("timestamp")))
    assert abs(datetime.now(UTC) - written) < timedelta(seconds=5)
    assert line == {
        "level": "info",
        "event": "call_finished",
        "room": "tests",
        "server": "github",
        "outcome": "ok",
        "duration_ms": 12.5,
        "streamed": False,
        "tenant": None,
    }


def test_lines_below_the_level_cost_nothing_and_write_nothing() -> None:
    stream = io.StringIO()
    with lines_in(stream, level="warning"):
        log.debug("a")
        log.info("b")
        log.warning("c")
        log.error("d")
        log.critical("e")
    assert [line["level"] for line in read(stream)] == ["warning", "error", "critical"]
    stream = io.StringIO()
    with lines_in(stream, level="debug"):
        log.debug("a", n=1)
    assert [line["event"] for line in read(stream)] == ["a"]


def test_a_bound_logger_and_any_other_structlog_logger_write_the_same_lines() -> None:
    stream = io.StringIO()
    with lines_in(stream):
        log.bind(server="time").info("link_ready", pid=7)
        structlog.get_logger().info("seen", n=1)
    first, second = read(stream)
    assert (first["server"], first["pid"], first["room"]) == ("time", 7, "tests")
    assert (second["event"], second["n"]) == ("seen", 1)


def test_fields_cannot_take_the_place_of_time_and_level() -> None:
    stream = io.StringIO()
    with lines_in(stream):
        log.info("server_stderr", level="fatal", timestamp="never")
        log.info("server_stderr", timestamp="never")
    line, other = read(stream)
    assert (line["level"], line["field_level"], line["field_timestamp"]) == ("info", "fatal", "never")
    assert other["field_timestamp"] == "never"
    datetime.fromisoformat(str(other["timestamp"]))


def test_a_line_that_is_written_late_has_the_time_of_what_it_tells() -> None:
    stream = io.StringIO()
    at = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
    with lines_in(stream):
        log.info("call_finished", timestamp=at)
        log.warning("call_finished", timestamp=at)
    assert {str(line["timestamp"]) for line in read(stream)} == {"2026-11-23T12:00:00Z"}


def test_whatever_is_logged_there_is_a_line_and_no_secret_in_it() -> None:
    stream = io.StringIO()
    values: dict[str, object] = {
        "secret": Secret("hunter2"),
        "text": "Authorization: Basic hunter2",
        "headers": {"authorization": "Bearer hunter2", "nested": [{"api_key": "hunter2"}]},
        "dsn": "postgresql://mux:hunter2@db/mux",
        "huge": 2**100,
        "keys": {1: "a", None: "b", (1, 2): "c"},
        "surrogate": "\ud800",
        "raw": b"\xff\x00Bearer hunter2",
        "path": Path("/data"),
        "error": OSError(13, "no"),
        "nan": float("nan"),
        "set": {"a"},
    }
    with lines_in(stream):
        for name, value in values.items():
            log.info("tried", **{name: value})
        log.info("tried_all", **values)
    assert "hunter2" not in stream.getvalue()
    assert len(read(stream)) == len(values) + 1


def test_odd_characters_are_escapes_in_json_so_that_every_reader_sees_one_line() -> None:
    stream = io.StringIO()
    text = "a\r\n\x1b[31m\x7f\x9b\u2028\u202e\U000e0041é"
    with lines_in(stream):
        log.info("server_stderr", line=text)
    written = stream.getvalue()
    assert len(written.splitlines()) == 1
    assert written.rstrip("\n").isprintable()
    assert json.loads(written)["line"] == text


def test_an_exception_is_text_in_its_line_with_its_causes_and_without_secrets() -> None:
    stream = io.StringIO()
    with lines_in(stream):
        try:
            try:
                raise ValueError("Bearer hunter2")
            except ValueError as error:
                raise RuntimeError("it failed") from error
        except RuntimeError as error:
            log.exception("loop_failed")
            log.warning("loop_failed", exc_info=error)
        log.warning("nothing_failed", exc_info=True)
    first, second, third = read(stream)
    assert first["level"] == "error"
    assert "RuntimeError: it failed" in str(first["exception"])
    assert "ValueError" in str(first["exception"])
    assert first["exception"] == second["exception"]
    assert "exception" not in third
    assert "hunter2" not in stream.getvalue()


# The libraries and the interpreter -----------------------------------------------------------------------------


def test_what_libraries_log_is_a_line_of_ours() -> None:
    stream = io.StringIO()
    with lines_in(stream):
        logging.getLogger("aiohttp.server").error("refused %s", "Bearer hunter2")
        logging.getLogger("asyncpg").warning("broken %d arguments", "x")
        logging.getLogger("odd").log(35, "between")
        logging.getLogger("chatty").info("not wanted")
        try:
            raise KeyError("k")
        except KeyError:
            logging.getLogger("aiohttp").exception("failed")
    first, second, third, fourth = read(stream)
    assert first["event"] == "library_logged"
    assert (first["logger"], first["level"], first["message"]) == ("aiohttp.server", "error", "refused Bearer ***")
    assert second["message"] == "broken %d arguments (arguments do not fit)"
    assert third["level"] == "warning"
    assert "KeyError" in str(fourth["exception"])


def test_a_warning_of_python_is_a_line_of_ours() -> None:
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with lines_in(stream):
            warnings.warn("mind this", DeprecationWarning, stacklevel=1)
    (line,) = read(stream)
    assert (line["event"], line["category"], line["message"]) == ("warning_raised", "DeprecationWarning", "mind this")


def test_an_exception_in_a_thread_is_a_line_of_ours() -> None:
    stream = io.StringIO()
    with lines_in(stream):
        thread = threading.Thread(target=lambda: {}["missing"], name="worker")
        thread.start()
        thread.join()
    (line,) = read(stream)
    assert (line["event"], line["thread"]) == ("exception_uncaught", "worker")


def test_a_task_that_nobody_asked_is_a_line_of_ours() -> None:
    async def fail() -> None:
        raise RuntimeError("unseen")

    async def main() -> None:
        task = asyncio.get_running_loop().create_task(fail())
        await asyncio.sleep(0)
        del task
        gc.collect()

    stream = io.StringIO()
    with lines_in(stream):
        asyncio.run(main())
    assert any("unseen" in str(line.get("exception")) for line in read(stream))


def test_closing_puts_back_all_that_was_taken_over() -> None:
    root = logging.getLogger()
    before = (
        root.handlers[:], root.level, logging.raiseExceptions, warnings.showwarning, sys.excepthook, sys.unraisablehook,
        threading.excepthook,
    )  # fmt: skip
    with closing(configure(console=False, stream=io.StringIO())), lines_in(io.StringIO()):
        assert sys.excepthook is not before[4]
    after = (
        root.handlers[:], root.level, logging.raiseExceptions, warnings.showwarning, sys.excepthook, sys.unraisablehook,
        threading.excepthook,
    )  # fmt: skip
    assert after == before


def test_before_it_is_configured_a_line_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    log.info("early", n=1)
    captured = capsys.readouterr()
    assert json.loads(captured.err)["event"] == "early"
    assert captured.out == ""


FAILING = """
import asyncio, gc, logging, sys, threading, warnings
from mcpmux.observe.log import Stencil, configure, logger
configure(console=False)
log = logger("cli")
log.info("started")
warnings.warn("one")
logging.getLogger("aiohttp").error("two")
class Broken:
    def __del__(self):
        raise ValueError("three")
Broken()
async def main():
    log.info("in_loop")
    async def fail(): raise RuntimeError("four")
    task = asyncio.get_running_loop().create_task(fail())
    await asyncio.sleep(0)
    del task
    gc.collect()
    log.info("last_in_loop")
asyncio.run(main())
raise SystemError("five")
"""


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_every_line_of_a_failing_process_is_one_json_object_and_none_is_lost(kind: str, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+b") as file:
        target = subprocess.PIPE if kind == "pipe" else file
        done = subprocess.run([sys.executable, "-c", FAILING], stderr=target, stdout=subprocess.PIPE, timeout=60)
        file.seek(0)
        written = done.stderr if kind == "pipe" else file.read()
    lines = [json.loads(line) for line in written.splitlines()]
    assert done.returncode == 1
    assert done.stdout == b""
    assert [line["event"] for line in lines] == [
        "started", "warning_raised", "library_logged", "exception_unraisable", "in_loop", "library_logged",
        "last_in_loop", "exception_uncaught",
    ]  # fmt: skip
    assert "SystemError: five" in lines[-1]["exception"]


# On a terminal -------------------------------------------------------------------------------------------------


def test_on_the_console_a_line_reads_well() -> None:
    stream = io.StringIO()
    with lines_in(stream, console=True):
        log.info("ready", url="http://127.0.0.1:8090/mcp", servers=7, note="seven are ready", nothing=None, empty="")
    written = stream.getvalue()
    assert (
        written[13:]
        == 'info     ready                url=http://127.0.0.1:8090/mcp servers=7 note="seven are ready" empty=""\n'
    )


def test_on_the_console_nobody_moves_the_cursor_or_forges_a_line() -> None:
    stream = io.StringIO()
    evil = "x\r\n12:00:00.000 info     ready\x1b[2J\x9b31m\u202e\x07"
    with lines_in(stream, console=True):
        log.info("server_stderr", line=evil, **{evil: "name"})
        log.info(evil)
        logging.getLogger("lib").warning(evil)
        try:
            raise ValueError(evil)
        except ValueError:
            log.exception("failed")
    written = stream.getvalue()
    assert all(character == "\n" or character.isprintable() for character in written)
    forged = [line for line in written.splitlines() if line.startswith("12:00:00.000") and "ready" in line[:30]]
    assert not forged
    assert written.splitlines()[4].startswith("    Traceback")


def test_on_the_console_secrets_are_hidden_as_well() -> None:
    stream = io.StringIO()
    with lines_in(stream, console=True):
        log.info(
            "x", key=Secret("hunter2"), text="Bearer hunter2", headers={"authorization": "hunter2"}, token="hunter2"
        )
        try:
            raise ValueError("password=hunter2")
        except ValueError:
            log.exception("failed")
    assert "hunter2" not in stream.getvalue()


def test_a_real_terminal_gets_colours() -> None:
    main, terminal = pty.openpty()
    with os.fdopen(main, "rb", buffering=0) as reader, os.fdopen(terminal, "w") as stream:
        with closing(configure(console=True, stream=stream)):
            log.info("ready", n=1)
        written = reader.read(4096)
    assert b"\x1b[32minfo" in written
    assert b"ready" in written


# What it costs -------------------------------------------------------------------------------------------------


def line_cost(lines: int) -> float:
    start = time.process_time()
    for number in range(lines):
        log.info(
            "call_finished", server="github", tenant="github", tool="create_issue", method="tools/call",
            principal="ana@example.com", request_id=f"k3f9a-{number}", decision="allowed", outcome="ok",
            duration_ms=12.43, streamed=False,
        )  # fmt: skip
    return (time.process_time() - start) / lines


async def test_a_line_of_ten_fields_costs_a_few_times_its_own_json(tmp_path: Path) -> None:
    """The yardstick is orjson on the same fields and structlog's own way, in the same run: machines differ."""
    fields = {f"field{n}": f"some value {n}" for n in range(10)}

    def yardstick() -> float:
        bare = structlog.make_filtering_bound_logger("info")(
            structlog.testing.CapturingLogger(), [structlog.processors.TimeStamper("iso"), lambda *_: "x"], {}
        )
        start = time.process_time()
        for _ in range(5000):
            bare.info("call_finished", **fields)
            orjson.dumps(fields)
        return (time.process_time() - start) / 5000

    with (tmp_path / "log").open("w") as stream, closing(configure(console=False, stream=stream)):
        line_cost(2000)
        ours = min(line_cost(5000) for _ in range(5))
        theirs = min(yardstick() for _ in range(5))
    assert ours < 3 * theirs, f"{ours * 1e6:.1f} µs beside {theirs * 1e6:.1f} µs"
