"""The guardian: whatever happens to mcpmux, nothing that it started is left."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import uvloop

from mcpmux.guardian import Guardian, watch
from tests.processes import Watched, program

# Starts what it is told (kind and code), prints the pids that come from there, obeys words on its standard input.
MCPMUX = """
import json, os, subprocess, sys
from mcpmux.guardian import Guardian

guardian = Guardian.start()
child = subprocess.Popen(
    [sys.executable, "-c", sys.argv[2]], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
    start_new_session=True, preexec_fn=guardian.preexec(sys.argv[1]),
)
pids = json.loads(child.stdout.readline())
print(json.dumps([guardian.pid, child.pid, *pids]), flush=True)
for word in sys.stdin:
    if word == "reap\\n":
        child.wait()
    if word == "forget\\n":
        guardian.forget(child.pid)
    if word == "close\\n":
        guardian.close()
    print(json.dumps(word), flush=True)
"""

# A server behind a launcher, as with npx: it and its child ignore what a polite end would send.
WITH_GRANDCHILD = """
import json, os, signal
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
    signal.signal(number, signal.SIG_IGN)
child = os.fork()
if child:
    print(json.dumps([child]), flush=True)
signal.pause()
"""

# A server that starts a daemon, as with a browser: forked twice, in a session of its own, without our pipes.
WITH_DAEMON = """
import json, os, signal, sys
read, write = os.pipe()
if not os.fork():
    os.setsid()
    if not os.fork():
        os.write(write, str(os.getpid()).encode())
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        signal.pause()
    os._exit(0)
os.wait()
print(json.dumps([int(os.read(read, 20))]), flush=True)
if "leave" not in sys.argv:
    signal.pause()
"""

SIGNALLED = """
import json, os, signal
signal.signal(signal.SIGINT, lambda *_: os._exit(0) if {polite} else None)
signal.signal(signal.SIGQUIT, lambda *_: os._exit(0))
print(json.dumps([os.getpid()]), flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def guardian() -> Iterator[Guardian]:
    running = Guardian.start()
    yield running
    running.close()


def sleeper(guardian: Guardian) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "1000"], start_new_session=True, preexec_fn=guardian.preexec("server"))


@pytest.mark.parametrize("server", [WITH_GRANDCHILD, WITH_DAEMON], ids=["grandchild", "daemon"])
def test_nothing_is_left_after_kill_9(server: str) -> None:
    with program(MCPMUX, "server", server) as mcpmux:
        watched = [Watched(pid) for pid in mcpmux.says()]
        mcpmux.kill()
        assert [process.ended() for process in watched] == [True, True, True]


@pytest.mark.parametrize("server", [WITH_GRANDCHILD, WITH_DAEMON], ids=["grandchild", "daemon"])
def test_an_orderly_end_leaves_nothing_either(server: str) -> None:
    with program(MCPMUX, "server", server) as mcpmux:
        watched = [Watched(pid) for pid in mcpmux.says()]
        mcpmux.hears("close")
        mcpmux.says()
        mcpmux.hears("reap")
        mcpmux.says()
        assert [process.ended() for process in watched] == [True, True, True]


def test_the_daemon_of_a_server_that_has_ended_is_ended_when_the_group_is_forgotten() -> None:
    with program(MCPMUX, "server", WITH_DAEMON.replace('"leave" not in sys.argv', "False")) as mcpmux:
        _, _, daemon = (Watched(pid) for pid in mcpmux.says())
        mcpmux.hears("reap")
        mcpmux.says()
        assert daemon.alive()
        mcpmux.hears("forget")
        assert daemon.ended()


def test_a_child_dies_with_mcpmux_even_without_a_guardian() -> None:
    with program(MCPMUX, "server", WITH_GRANDCHILD) as mcpmux:
        guardian, child, grandchild = (Watched(pid) for pid in mcpmux.says())
        with grandchild:
            guardian.kill()
            assert guardian.ended()
            mcpmux.kill()
            assert child.ended()


def test_postgres_is_asked_to_shut_down_first() -> None:
    with program(MCPMUX, "postgres", SIGNALLED.format(polite=True)) as mcpmux:
        watched = [Watched(pid) for pid in mcpmux.says()]
        mcpmux.kill()
        assert [process.ended() for process in watched] == [True, True, True]


@pytest.mark.parametrize("deaf", [(), (signal.SIGQUIT,)], ids=["SIGINT", "SIGINT and SIGQUIT"])
def test_postgres_that_does_not_shut_down_is_ended_harder(
    monkeypatch: pytest.MonkeyPatch, deaf: tuple[int, ...]
) -> None:
    ignored = (signal.SIGINT, *deaf)
    short = [(number, 0.2 if number in ignored else seconds) for number, seconds in watch.POSTGRES_SIGNALS]
    monkeypatch.setattr(watch, "POSTGRES_SIGNALS", short)
    code = "import signal; " + "".join(f"signal.signal({int(n)}, signal.SIG_IGN); " for n in deaf)
    with program(
        code + SIGNALLED.format(polite=False).replace("signal.SIGQUIT, lambda", "signal.SIGUSR1, lambda")
    ) as it:
        it.says()
        with Watched(it.pid) as postgres:
            watch.end_postgres(watch.Group("postgres", it.pid, watch.start_time(it.pid), 0))
            assert postgres.ended()
        assert it.process.wait(5) == -(signal.SIGKILL if deaf else signal.SIGQUIT)


@pytest.fixture
def alone() -> Iterator[tuple[socket.socket, Watched]]:
    """The guardian process, guarding this one, without a Guardian."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", watch.__file__, str(os.getpid()), "0"], stdin=theirs.fileno()
    )
    theirs.close()
    with Watched(process.pid) as watched:
        yield ours, watched
    ours.close()
    process.wait(5)


def test_a_group_is_ended_by_its_number_where_there_are_no_marks(alone: tuple[socket.socket, Watched]) -> None:
    records, guardian = alone
    with program(WITH_GRANDCHILD, session=True) as leader:
        (grandchild,) = leader.says()  # type: ignore[misc]
        with Watched(grandchild) as watched:
            records.send(f"+ server {leader.pid} {watch.start_time(leader.pid)} 0\n".encode())
            records.close()
            assert guardian.ended()
            assert watched.ended()
        assert leader.process.wait(5) == -signal.SIGKILL


def test_a_stranger_with_the_pid_of_a_group_is_left_alone(alone: tuple[socket.socket, Watched]) -> None:
    records, guardian = alone
    stranger = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    ours = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    with Watched(stranger.pid) as other, Watched(ours.pid) as known:
        records.send(f"+ server {stranger.pid} {watch.start_time(stranger.pid) - 1} 0\n".encode())
        records.send(f"+ server {ours.pid} {watch.start_time(ours.pid)} 0\n".encode())
        records.close()
        assert guardian.ended()
        assert known.ended()
        assert other.alive()
    ours.wait(5)
    stranger.wait(5)


def test_a_forgotten_group_is_left_alone(alone: tuple[socket.socket, Watched]) -> None:
    records, guardian = alone
    process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    with Watched(process.pid) as forgotten:
        records.send(f"+ server {process.pid} {watch.start_time(process.pid)} 0\n- {process.pid}\n".encode())
        records.close()
        assert guardian.ended()
        assert forgotten.alive()
    process.wait(5)


def test_broken_records_do_not_end_the_guardian(alone: tuple[socket.socket, Watched]) -> None:
    records, guardian = alone
    ours = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    with Watched(ours.pid) as known:
        records.send(b"nonsense\n+ server x y z\n-\n- 1 2\n\n\xff\n+ server ")
        records.send(f"{ours.pid} {watch.start_time(ours.pid)} 0\n".encode())
        records.close()
        assert known.ended()
        assert guardian.ended()
    ours.wait(5)


def test_the_signals_of_a_service_manager_do_not_end_it(guardian: Guardian) -> None:
    child = sleeper(guardian)
    with Watched(guardian.pid) as process, Watched(child.pid) as watched:
        # A group is ended only after the guardian is up: from then on the signals are ignored.
        guardian.forget(child.pid)
        child.kill()
        child.wait(5)
        second = sleeper(guardian)
        wait_until_up(guardian)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            process.kill(number)
        guardian.close()
        assert second.wait(5) == -signal.SIGKILL
        assert watched.ended()


def wait_until_up(guardian: Guardian) -> None:
    """Have the guardian do something that can be seen: it sweeps the daemon of a group that is forgotten."""
    child = subprocess.Popen(
        [sys.executable, "-c", WITH_DAEMON.replace('"leave" not in sys.argv', "False")],
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=guardian.preexec("server"),
    )
    out, _ = child.communicate()
    with Watched(int(out.strip(b"[]\n"))) as daemon:
        guardian.forget(child.pid)
        assert daemon.ended()


def test_a_guardian_that_was_killed_is_replaced_and_told_every_group(guardian: Guardian) -> None:
    prepared = guardian.preexec("server")

    def unmarked() -> None:
        prepared()
        resource.setrlimit(resource.RLIMIT_RTTIME, (1, 1))

    # Without its mark it can be found by its record alone.
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True, preexec_fn=unmarked)
    first = guardian.pid
    with Watched(first) as process:
        process.kill()
        assert process.ended()
    guardian.ensure()
    assert guardian.pid != first
    guardian.close()
    assert child.wait(5) == -signal.SIGKILL


def test_a_group_that_is_started_while_there_is_no_guardian_is_guarded_too(guardian: Guardian) -> None:
    with Watched(guardian.pid) as process:
        prepared = guardian.preexec("server")
        process.kill()
        assert process.ended()
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True, preexec_fn=prepared)
    guardian.ensure()
    guardian.close()
    assert child.wait(5) == -signal.SIGKILL


async def test_a_guardian_that_was_killed_is_replaced_without_anybody_asking(guardian: Guardian) -> None:
    child = sleeper(guardian)
    with Watched(guardian.pid) as process:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(guardian.run())
            process.kill()
            async with asyncio.timeout(5):
                while guardian.pid == process.pid:
                    await asyncio.sleep(0)
            watching.cancel()
    guardian.close()
    assert child.wait(5) == -signal.SIGKILL


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_child_leads_a_session_of_its_own_and_inherits_nothing_of_ours(run: object, guardian: Guardian) -> None:
    code = """
import json, os, signal
print(json.dumps([os.getpgrp(), os.getsid(0), sorted(os.listdir("/proc/self/fd"))[:4],
                  sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))]), flush=True)
signal.pause()
"""

    async def spawn() -> tuple[int, list[object], int]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, start_new_session=True,
            preexec_fn=guardian.preexec("server"),
        )  # fmt: skip
        assert process.stdout is not None
        said = await process.stdout.readline()
        guardian.close()
        return process.pid, json.loads(said), await process.wait()

    pid, said, code_of_end = run(spawn())  # type: ignore[operator]
    # The fourth descriptor is the listing itself.
    assert said == [pid, pid, ["0", "1", "2", "3"], []]
    assert code_of_end == -signal.SIGKILL


def test_marks_stay_below_those_of_an_mcpmux_around_us() -> None:
    code = """
import json, resource
from mcpmux.guardian.registry import first_mark
outer = first_mark()
resource.setrlimit(resource.RLIMIT_RTTIME, (outer, outer))
print(json.dumps([outer, first_mark()]))
resource.setrlimit(resource.RLIMIT_RTTIME, (1000000, 1000000))
print(json.dumps(first_mark()))
"""
    with program(code) as it:
        outer, inner = it.says()  # type: ignore[misc]
        assert 0 < inner < outer
        # A limit that somebody set for real-time programs is not ours to use.
        assert it.says() == 0


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = children()
    yield
    assert children() == before


def children() -> set[str]:
    """Our own children that are alive: a test run may have a PostgreSQL already."""
    ours = [str(os.getpid()).encode()]
    return {pid for pid in watch.numbered() if watch.status(pid)[1:2] == ours and watch.alive(pid)}
