"""Processes that tests start and whose end they wait for, as an event, without being their parent."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Watched:
    """A process by its pidfd: no other one can take its place while we look."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def ended(self, seconds: float = 5.0) -> bool:
        """Wait for its end."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def alive(self) -> bool:
        """Say whether it runs now."""
        return not self.ended(0)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal, if it still is there."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.kill()
        os.close(self._fd)


class Program:
    """A Python program of ours in a process of its own; each line that it prints is JSON."""

    def __init__(self, code: str, *arguments: str, session: bool = False) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": ROOT},
            start_new_session=session,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def says(self) -> object:
        """Wait for the next line that it prints. Raises: EOFError when it ends instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise EOFError(f"it ended with {self.process.wait(5)}")
        return json.loads(line)

    def hears(self, text: str = "") -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal and wait for its end."""
        self.process.send_signal(number)
        self.process.wait(10)


@contextmanager
def program(code: str, *arguments: str, session: bool = False) -> Iterator[Program]:
    """Run one for as long as the block, in a session of its own if wanted."""
    running = Program(code, *arguments, session=session)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait(10)
        for stream in (running.process.stdin, running.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
