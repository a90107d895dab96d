"""Where finished log lines go: gathered, written in batches, and never waited for by the event loop.

Owns the buffer between whoever logs and the stream. With a running loop a line waits up to 50 ms for others; a
warning, 32 KiB, or no loop at all makes them go at once.

A log must not stop what it reports on. The stream may be a file, a terminal, a pipe or a socket (systemd's journal),
and whoever reads it may be slow or stopped. Non-blocking mode is no way out: it belongs to the open file that we
share with our parent and everybody else who writes to it. So everything but a file is asked first (`poll`) and given
at most 4,096 bytes at once (PIPE_BUF: what a pipe that says it is writable takes without blocking). What is not taken
waits in a buffer of 1 MiB; past it new lines are dropped and counted, and a `log_dropped` line tells how many when the
reader is back. A reader that is gone for good (EPIPE) takes the log with it, not the process.

Lines may come from any thread: appending to a deque is atomic, and only one at a time drains it.
"""

from __future__ import annotations

import asyncio
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, TextIO

FLUSH_AFTER: Final = 0.05  # seconds
FLUSH_AT: Final = 32 * 1024  # bytes
KEEP: Final = 1024 * 1024  # bytes
PATIENCE: Final = 1.0  # seconds that `flush` waits for a slow reader

_CHUNK: Final = 4096
_BATCH: Final = 64 * 1024


class LogOutput:
    """Takes lines; `flush()` before the process ends, `close()` puts back all that `configure` took over."""

    __slots__ = (
        "_draining", "_dropped", "_fd", "_gone", "_kept", "_lines", "_lock", "_pending", "_poll", "_report", "_stream",
        "_stuck", "_undo", "_waking",
    )  # fmt: skip

    def __init__(self, stream: TextIO, report: Callable[[int], bytes], undo: ExitStack | None = None) -> None:
        """`report` makes the line that says how many were dropped; `undo` is run by `close`."""
        self._stream = stream
        self._report = report
        self._undo = undo or ExitStack()
        self._fd = _descriptor(stream)
        self._poll = _poll(self._fd)
        self._lines: deque[bytes] = deque()
        self._kept = 0  # bytes in `_lines`, about: other threads may add while we count
        self._pending = memoryview(b"")
        self._dropped = 0
        self._stuck = False  # the last attempt found no room
        self._gone = False
        self._draining = False
        self._lock = threading.RLock()
        self._waking: asyncio.AbstractEventLoop | None = None

    def write(self, line: bytes, count: int = 1) -> None:
        """Take one line with its line feed, or `count` such lines; written within 50 ms."""
        if not self._keep(line, count):
            return
        loop = asyncio._get_running_loop()
        if loop is None:
            self.flush()
        elif self._waking is not loop:
            self._waking = loop
            loop.call_later(FLUSH_AFTER, self._wake)
        elif self._kept >= FLUSH_AT and not self._stuck:
            self._drain(0.0)

    def write_now(self, line: bytes) -> None:
        """Take one line that somebody should see at once."""
        if not self._keep(line):
            return
        if (loop := asyncio._get_running_loop()) is None:
            self.flush()
            return
        if not self._stuck:
            self._drain(0.0)
        if (self._kept or self._pending) and self._waking is not loop:
            self._waking = loop
            loop.call_later(FLUSH_AFTER, self._wake)

    def flush(self) -> None:
        """Write all that is there; a reader who takes nothing is waited for once, for a second."""
        self._drain(0.0 if self._stuck else PATIENCE)

    def close(self) -> None:
        """Write what can be written, then give back the stream and all that was taken over."""
        self._stuck = False
        self.flush()
        self._undo.close()

    def _keep(self, line: bytes, count: int = 1) -> bool:
        if self._gone:
            return False
        if self._kept + len(line) > KEEP:
            self._dropped += count
            return self._waking is None  # nobody would look again
        self._lines.append(line)
        self._kept += len(line)
        return True

    def _wake(self) -> None:
        self._waking = None
        self._drain(0.0)
        if (self._kept or self._pending or self._dropped) and not self._gone:
            self._waking = asyncio.get_running_loop()
            self._waking.call_later(FLUSH_AFTER, self._wake)

    def _drain(self, patience: float) -> None:
        """Write until nothing is left or no more is taken."""
        with self._lock:
            # A warning raised in here (by the garbage collector) comes back to us: its line is taken by our loop.
            if self._draining:
                return
            self._draining = True
            try:
                self._write_out(time.monotonic() + patience)
            finally:
                self._draining = False

    def _write_out(self, deadline: float) -> None:
        while self._pending or self._next_batch():
            try:
                written = self._put(deadline)
            except BlockingIOError:
                written = 0
            except (BrokenPipeError, ValueError):  # ValueError: a closed stream
                self._give_up()
                return
            except OSError:  # a full disk, a terminal that hung up: it may come back
                written = 0
            self._stuck = written == 0
            if self._stuck:
                return
            self._pending = self._pending[written:]

    def _next_batch(self) -> bool:
        batch: list[bytes] = []
        size = 0
        while self._lines and size < _BATCH:
            line = self._lines.popleft()
            batch.append(line)
            size += len(line)
        self._kept = self._kept - size if self._lines else 0
        if not batch and self._dropped:
            dropped, self._dropped = self._dropped, 0
            batch.append(self._report(dropped))
        self._pending = memoryview(b"".join(batch))
        return bool(batch)

    def _put(self, deadline: float) -> int:
        """Write some of what is pending; how many bytes of it, 0 when the reader takes nothing until the deadline."""
        if self._fd is None:
            self._stream.write(str(self._pending, "utf-8"))
            self._stream.flush()
            return len(self._pending)
        if self._poll is None:
            return os.write(self._fd, self._pending)
        left = max(0.0, deadline - time.monotonic())
        if not self._poll.poll(left * 1000):
            return 0
        return os.write(self._fd, self._pending[:_CHUNK])

    def _give_up(self) -> None:
        self._gone = True
        self._lines.clear()
        self._kept = 0
        self._pending = memoryview(b"")


def _descriptor(stream: TextIO) -> int | None:
    """The descriptor below the stream, if there is one: a test's or a library's stand-in has none."""
    try:
        stream.flush()
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None


def _poll(fd: int | None) -> select.poll | None:
    """What tells whether `fd` takes anything now; None where that is no question."""
    if fd is None or stat.S_ISREG(os.fstat(fd).st_mode):
        return None
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return poll
