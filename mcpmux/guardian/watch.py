"""The guardian process: waits for mcpmux to end, in whatever way, and ends what mcpmux started.

Run as `python -I -S watch.py <pid of mcpmux> <first mark>` with a socket as standard input, on which mcpmux and its
children (between fork and exec) write one record a line:

    + server 4711 918273 1152921504606846975    a group: kind, leader's pid (= group id), its start time, its mark
    - 4711                                      that group has ended and is reaped
    q                                           orderly end: end what is left, then exit
    x                                           another guardian took over: exit and touch nothing

End of input or the death of mcpmux means: end everything. A server's group gets SIGKILL; PostgreSQL gets SIGINT
(fast shutdown), then SIGQUIT (immediate shutdown), then SIGKILL, each after a while.

A process that left its group (`setsid`, as browsers and daemons do) is found by its *mark*: a value of the resource
limit RLIMIT_RTTIME, which is inherited over fork, exec and setsid, can be read in /proc, and means nothing to a
process without real-time scheduling. A pid that has been given to a stranger since is told by its start time.

Imports nothing but the standard library. Linux has all of it; elsewhere marks and start times are left out.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

MARKS = 1 << 20
"""How many marks one mcpmux has: `first mark` downwards. They repeat after that, which is harmless."""

POSTGRES_SIGNALS = ((signal.SIGINT, 5.0), (signal.SIGQUIT, 6.0), (signal.SIGKILL, 2.0))
"""What PostgreSQL is sent and how long it may take; a postmaster itself kills its children 5 s after SIGQUIT."""

LATE_RECORDS = 2.0
"""Seconds after the death of mcpmux in which a child that was just forked may still register."""

SWEEPS = 50
"""How often marked processes are looked for at most: each round may find what the one before had just forked."""


class Group(NamedTuple):
    """One registered process group."""

    kind: str
    pid: int
    start: int
    mark: int


def start_time(pid: int | str) -> int:
    """Give the start time of a process in clock ticks since boot; 0 when there is none or nobody can say."""
    fields = status(pid)
    return int(fields[19]) if fields else 0


def status(pid: int | str) -> list[bytes]:
    """Give the fields of /proc/<pid>/stat from the third on, which is the state; empty when there is no such process.

    Runs between fork and exec too, perhaps as a user who cannot read Python's library: bytes only, because the first
    use of a codec imports it.
    """
    try:
        # The second field is the command in parentheses and may hold anything: count from the last one.
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []


def mark_of(pid: int | str) -> int:
    """Give the mark (soft RLIMIT_RTTIME) of a process, 0 when it has none."""
    try:
        limits = Path(f"/proc/{pid}/limits").read_bytes()
    except OSError:
        return 0
    _, found, rest = limits.partition(b"Max realtime timeout")
    soft = rest.split(None, 1)[0] if found else b""
    return int(soft) if soft.isdigit() else 0


def record_of(line: str) -> Group:
    """Read a `+` line. Raises ValueError when it is not one."""
    sign, kind, pid, start, mark = line.split()
    if sign != "+":
        raise ValueError(line)
    return Group(kind, int(pid), int(start), int(mark))


def stranger(group: Group) -> bool:
    """Say whether the group's number belongs to another process by now."""
    now = start_time(group.pid)
    return now != 0 and group.start != 0 and now != group.start


class Watch:
    """The groups that are alive as far as mcpmux said, and their end."""

    __slots__ = ("_base", "_groups", "_input", "_parent")

    def __init__(self, parent: int, base: int, records: socket.socket) -> None:
        self._groups: dict[int, Group] = {}
        self._parent = parent
        self._base = base
        self._input = records

    def run(self) -> None:
        """Wait for the end of mcpmux or its word, then act on it."""
        if self._wait():
            self._end_everything()

    def _wait(self) -> bool:
        """Follow the records until mcpmux has ended; False: another guardian took over."""
        poll = select.poll()
        poll.register(self._input, select.POLLIN)
        parent = pidfd(self._parent)
        if parent is not None:
            poll.register(parent, select.POLLIN)
        # Asked after the pidfd is open: from here on, a death is an event.
        limit = None if os.getppid() == self._parent else LATE_RECORDS
        rest = b""
        while ready := poll.poll(None if limit is None else limit * 1000):
            if parent is not None and any(fd == parent for fd, _ in ready):
                poll.unregister(parent)
                limit = LATE_RECORDS
            if not any(fd == self._input.fileno() for fd, _ in ready):
                continue
            data = self._input.recv(65536)
            if not data:
                return True
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line in (b"q", b"x"):
                    return line == b"q"
                with contextlib.suppress(ValueError):
                    self._follow(line.decode())
        return True

    def _follow(self, line: str) -> None:
        if not line.startswith("-"):
            group = record_of(line)
            self._groups[group.pid] = group
            return
        ended = self._groups.pop(int(line[1:]), None)
        if ended is not None and ended.kind == "server" and ended.mark:
            sweep({ended.mark}, spared=())

    def _end_everything(self) -> None:
        servers = [group for group in self._groups.values() if group.kind == "server"]
        others = [group for group in self._groups.values() if group.kind != "server"]
        for group in servers:
            if not stranger(group):
                send(-group.pid, signal.SIGKILL)
                # The leader alone, in case that it has not made its group yet.
                if start_time(group.pid) == group.start:
                    send(group.pid, signal.SIGKILL)
        # PostgreSQL goes down while we look for processes that left their groups.
        for group in others:
            if not stranger(group):
                send(group.pid, POSTGRES_SIGNALS[0][0])
        if self._base:
            sweep(range(self._base - MARKS + 1, self._base + 1), spared={group.mark for group in others})
        for group in others:
            end_postgres(group)


def sweep(marks: Container[int], spared: Container[int]) -> None:
    """SIGKILL every process that carries one of these marks, except the spared ones, until none is found."""
    for _ in range(SWEEPS):
        marked = ((entry, mark_of(entry)) for entry in numbered())
        found = [int(entry) for entry, mark in marked if mark in marks and mark not in spared and alive(entry)]
        if not found:
            return
        for pid in found:
            send(pid, signal.SIGKILL)
        time.sleep(0.02)


def numbered() -> list[str]:
    """List the pids of all processes that can be seen."""
    try:
        return [entry for entry in os.listdir("/proc") if entry.isdecimal()]  # noqa: PTH208
    except OSError:
        return []


def alive(pid: str) -> bool:
    """Say whether a process is more than a zombie, which only waits to be reaped and cannot be killed."""
    return status(pid)[:1] not in ([], [b"Z"], [b"X"])


def end_postgres(group: Group) -> None:
    """End a postmaster by ever harder signals. Its children end with it: each notices that it has gone."""
    process = pidfd(group.pid)
    for number, seconds in POSTGRES_SIGNALS:
        if stranger(group) or not send(group.pid, number):
            return
        if gone(group.pid, process, seconds):
            return


def gone(pid: int, process: int | None, seconds: float) -> bool:
    """Wait up to `seconds` for the end of a process that is not our child."""
    if process is not None:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not send(pid, 0):
            return True
        time.sleep(0.05)
    return False


def pidfd(pid: int) -> int | None:
    """Open a descriptor that becomes readable when the process ends; None where there is no such thing."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def send(pid: int, number: int) -> bool:
    """Send a signal; False when there is nobody (left) to take it."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def main(arguments: list[str]) -> None:
    """Guard the process named on the command line."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        # A service manager sends SIGTERM to all of a unit's processes: we have to outlive mcpmux.
        signal.signal(number, signal.SIG_IGN)
    parent, base = (int(argument) for argument in arguments)
    if base:
        # Under an outer mcpmux we carry its mark, and would end with its servers instead of ending our own.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_RTTIME, (base - MARKS, base - MARKS))
    Watch(parent, base, socket.socket(fileno=0)).run()


if __name__ == "__main__":
    main(sys.argv[1:])
