"""Guardian: mcpmux's side of the guardian process, and the list of every process group that is alive.

A group registers *itself*, between fork and exec, so that there is no moment in which a `kill -9` of mcpmux could
leave it behind unknown. It writes two copies of its record: one to the guardian, one to a journal that mcpmux reads
when it next has something to do here, and from which a new guardian is told if the first one was killed.

What a child gets beside: a session and group of its own, a mark (see `watch.py`), the parent-death signal, a clean
signal mask, and none of our descriptors but its own standard ones: uvloop hands on copies of ours, and the end of a
sibling's pipe in a child would keep that sibling from ever seeing its end of input.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Final, Literal

from mcpmux.guardian import watch
from mcpmux.guardian.watch import MARKS, Group, pidfd, record_of, start_time
from mcpmux.observe.log import logger

Kind = Literal["server", "postgres"]

log = logger("guardian")

DEATH_SIGNALS: Final = {"server": signal.SIGKILL, "postgres": signal.SIGINT}
PR_SET_PDEATHSIG: Final = 1
CLOSE_SECONDS: Final = 15.0
"""How long an orderly end waits: PostgreSQL, if somebody left it running, may need it all."""

RESTART_SECONDS: Final = 1.0
"""Pause after a guardian was lost, so that one that cannot live is not started in a circle."""

# Loaded here: between fork and exec nothing may be imported.
_libc: Final = ctypes.CDLL(None) if sys.platform == "linux" else None
CLOSE_RANGE: Final = 436
"""close_range(2) by its number, the same on all machines: older C libraries have no function for it."""
CLOSE_RANGE_CLOEXEC: Final = 4


class Guardian:
    """The small process that outlives us just long enough to end every registered group."""

    __slots__ = ("_base", "_closed", "_groups", "_journal", "_made", "_pid", "_process", "_register", "_socket")

    def __init__(self) -> None:
        """Prepare the registry; use `start()`."""
        self._groups: dict[int, Group] = {}
        self._journal, self._register = os.pipe()
        os.set_blocking(self._journal, False)
        os.set_blocking(self._register, False)
        self._pid = os.getpid()
        self._base = first_mark()
        self._made = 0
        self._closed = False
        self._socket, self._process = self._spawn()

    @classmethod
    def start(cls) -> Guardian:
        """Start the guardian process. Do it before anything else is started, and before threads.

        Raises: OSError when no process can be started.
        """
        return cls()

    @property
    def pid(self) -> int:
        """The pid of the guardian process."""
        return self._process.pid

    def preexec(self, kind: Kind) -> Callable[[], None]:
        """Give what a child has to run between fork and exec, as `preexec_fn` with `start_new_session=True`.

        Call it from the thread that will fork, once per child; a change of user has to come before what it gives.
        The parent-death signal is set only in the main thread, because the kernel sends it at the end of the *thread*
        that forked (prctl(2)).
        """
        if self._closed:
            raise RuntimeError("the guardian is closed: nothing may be started any more")
        self.ensure()
        self._read_journal()
        mark = self._base - self._made % MARKS if self._base else 0
        self._made += 1
        lasting = threading.current_thread() is threading.main_thread()

        def run() -> None:
            # uvloop comes here before setsid, CPython after it; a second setsid by uvloop fails unseen.
            with contextlib.suppress(PermissionError):
                os.setsid()
            self._enrol(kind, mark)
            if mark:
                # An outer mcpmux or an administrator may have set a lower limit: then there is no mark.
                with contextlib.suppress(OSError, ValueError):
                    resource.setrlimit(resource.RLIMIT_RTTIME, (mark, mark))
            keep_descriptors()
            if _libc is not None and lasting:
                # After any change of user, which would clear it again.
                _libc.prctl(PR_SET_PDEATHSIG, int(DEATH_SIGNALS[kind]), 0, 0, 0)
                if os.getppid() != self._pid:
                    os._exit(1)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())

        return run

    def forget(self, pgid: int) -> None:
        """Strike a group off: it has ended and is reaped. What had left the group of a server is ended now."""
        if self._closed:
            return
        self._read_journal()
        if self._groups.pop(pgid, None) is not None:
            self._tell(f"- {pgid}\n")

    def ensure(self) -> None:
        """Start another guardian if this one was killed, and tell it all groups that are registered."""
        if self._closed or self._process.poll() is None:
            return
        log.warning("guardian_lost", exit_code=self._process.returncode)
        # Should somebody else have reaped it, it may be alive after all: then it must not end our groups.
        self._tell("x\n")
        self._socket.close()
        self._socket, self._process = self._spawn()
        self._read_journal()
        for group in self._groups.values():
            self._tell(record(group))
        log.info("guardian_started", pid=self._process.pid, groups=len(self._groups))

    async def run(self) -> None:
        """Watch the guardian and replace it when it ends, until cancelled. Its owner fences it."""
        loop = asyncio.get_running_loop()
        while True:
            lost = asyncio.Event()
            process = pidfd(self._process.pid)
            # Where there are no pidfds: it never writes, so readable means that its end is closed.
            watched = os.dup(self._socket.fileno()) if process is None else process
            loop.add_reader(watched, lost.set)
            try:
                await lost.wait()
            finally:
                loop.remove_reader(watched)
                os.close(watched)
            self.ensure()
            await asyncio.sleep(RESTART_SECONDS)

    def close(self) -> None:
        """End the guardian; groups that are still registered are killed first. Blocks for as long as that takes."""
        if self._closed:
            return
        self._closed = True
        self._tell("q\n")
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_SECONDS)
        os.close(self._journal)
        os.close(self._register)

    def _spawn(self) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", watch.__file__, str(self._pid), str(self._base)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        return ours, process

    def _enrol(self, kind: Kind, mark: int) -> None:
        """Write our own record; runs in the child, where a lost guardian must not stop the start."""
        pid = os.getpid()
        line = record(Group(kind, pid, start_time("self"), mark))
        self._tell(line)
        with contextlib.suppress(OSError):
            os.write(self._register, line.encode())

    def _tell(self, line: str) -> None:
        # MSG_NOSIGNAL: in a child SIGPIPE is back at its default already.
        with contextlib.suppress(OSError):
            self._socket.send(line.encode(), socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0))

    def _read_journal(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._journal, 65536):
                for line in data.decode().splitlines():
                    group = record_of(line)
                    self._groups[group.pid] = group


def keep_descriptors() -> None:
    """Have all descriptors but the standard ones closed by exec."""
    first, last = ctypes.c_uint(3), ctypes.c_uint(0xFFFFFFFF)
    if _libc is not None and _libc.syscall(CLOSE_RANGE, first, last, CLOSE_RANGE_CLOEXEC) == 0:
        return
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 (between fork and exec)
        with contextlib.suppress(OSError):
            if int(name) > 2:
                os.set_inheritable(int(name), False)


def record(group: Group) -> str:
    """Write the `+` line of a group."""
    return f"+ {group.kind} {group.pid} {group.start} {group.mark}\n"


def first_mark() -> int:
    """Choose the highest of the marks that are ours: random, below every limit that we have; 0 where there is none."""
    if not hasattr(resource, "RLIMIT_RTTIME"):
        return 0
    soft, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
    # Over 30 years of real-time processor time. A lower limit was set on purpose, unless by an mcpmux around us.
    lowest = 1 << 50
    highest = min((limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY), default=1 << 61)
    blocks = (highest - lowest) // MARKS
    return lowest + secrets.randbelow(blocks) * MARKS + MARKS - 1 if blocks > 0 else 0
