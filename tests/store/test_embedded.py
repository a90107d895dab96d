"""The embedded PostgreSQL: one owner, nothing left behind, and up again on the same data, whatever happened."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
import uvloop

from mcpmux.errors import DataDirBusy, StoreUnavailable
from mcpmux.guardian import Guardian
from mcpmux.guardian.watch import numbered, status
from mcpmux.observe.log import configure
from mcpmux.seal import Secret
from mcpmux.store import migrate, opened
from mcpmux.store.cluster import Cluster, end_leftover
from mcpmux.store.place import make_place, programs, read_file
from tests.postgres import open_folder
from tests.processes import ROOT, Watched, program

GRANT = "INSERT INTO user_tenant_access (user_email, tenant_id) VALUES ($1, 'github')"
COUNT = "SELECT count(*) FROM user_tenant_access"

# `serve` as far as the store goes: prints its guardian's and PostgreSQL's pid, writes a row for each line it is told.
SERVE = """
import asyncio, json, sys, uvloop
from pathlib import Path
from mcpmux.errors import MuxError
from mcpmux.guardian import Guardian
from mcpmux.store import opened

async def main():
    guardian = Guardian.start()
    data = Path(sys.argv[1])
    try:
        async with opened(None, data, guardian, wait=10, exclusive=True) as db:
            postmaster = int((data / "postgres/data/postmaster.pid").read_text().split()[0])
            print(json.dumps([guardian.pid, postmaster]), flush=True)
            while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
                await db.execute("INSERT INTO user_tenant_access (user_email, tenant_id) VALUES ($1, 'github')", line)
                print(json.dumps(line), flush=True)
    except MuxError as exc:
        print(json.dumps(type(exc).__name__), flush=True)
    guardian.close()
uvloop.run(main())
"""

# A command: adds a row, says how many there are.
COMMAND = """
import asyncio, json, sys
from pathlib import Path
from mcpmux.store import opened

async def main():
    async with opened(None, Path(sys.argv[1]), None, wait=20) as db:
        await db.execute("INSERT INTO user_tenant_access (user_email, tenant_id) VALUES ($1, 'github')", sys.argv[2])
        await db.fetchval("SELECT pg_sleep(0.1)")
        print(json.dumps(await db.fetchval("SELECT count(*) FROM user_tenant_access")), flush=True)
asyncio.run(main())
"""


@pytest.fixture
def guardian() -> Iterator[Guardian]:
    running = Guardian.start()
    yield running
    running.close()


@pytest.fixture(scope="session")
def made() -> Iterator[Path]:
    """A data directory with a migrated database: `initdb` costs the most of a first run."""
    with open_folder() as folder:

        async def make() -> None:
            async with opened(None, folder / "data", None, wait=1):
                pass

        asyncio.run(make())
        yield folder / "data"


@pytest.fixture
def used_dir(made: Path, data_dir: Path) -> Path:
    """A data directory that has been used before."""
    subprocess.run(["cp", "-a", made, data_dir], check=True)
    return data_dir


def postmaster_of(data_dir: Path) -> int:
    return int((read_file(data_dir / "postgres/data/postmaster.pid") or "0").split()[0])


def family(pid: int) -> list[Watched]:
    """A process and its children, watched."""
    watched = [Watched(pid)]
    for child in numbered():
        if status(child)[1:2] == [str(pid).encode()]:
            # The backend of a connection that has just been closed may be gone by now.
            with suppress(ProcessLookupError):
                watched.append(Watched(int(child)))
    return watched


async def test_the_first_run_makes_a_migrated_database_and_later_ones_find_it(
    data_dir: Path, guardian: Guardian
) -> None:
    async with opened(None, data_dir, guardian, wait=1, exclusive=True) as db:
        await db.execute(GRANT, "ana@example.com")
        assert await migrate(db) == []
        version = await db.fetchval("SHOW server_version_num")
        assert str(version).startswith("18")
        assert await db.fetchval("SELECT NOT rolsuper FROM pg_roles WHERE rolname = current_user")
        assert await db.fetchval("SELECT current_setting('server_encoding')") == "UTF8"
        postmaster = Watched(postmaster_of(data_dir))
    assert not postmaster.alive()
    async with opened(None, data_dir, None, wait=1) as db:
        assert await db.fetchval(COUNT) == 1


def test_it_works_under_uvloop(data_dir: Path, guardian: Guardian) -> None:
    async def use() -> object:
        async with opened(None, data_dir, guardian, wait=1) as db:
            return await db.fetchval(COUNT)

    assert uvloop.run(use()) == 0


async def test_the_event_loop_is_not_blocked_while_a_database_is_made(data_dir: Path, guardian: Guardian) -> None:
    loop = asyncio.get_running_loop()
    longest = 0.0

    async def measure() -> None:
        nonlocal longest
        while True:
            before = loop.time()
            await asyncio.sleep(0.001)
            longest = max(longest, loop.time() - before)

    async with asyncio.TaskGroup() as tasks:
        measuring = tasks.create_task(measure())
        async with opened(None, data_dir, guardian, wait=1):
            measuring.cancel()
    # initdb alone takes longer than that on any machine; two forks take a few milliseconds.
    assert longest < 0.3


async def test_the_error_of_the_block_comes_out_as_it_is_and_postgres_ends(used_dir: Path, guardian: Guardian) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with opened(None, used_dir, guardian, wait=1):
            postmaster = Watched(postmaster_of(used_dir))
            raise KeyError("mine")
    assert not postmaster.alive()


@pytest.mark.parametrize("after", [0.0, 0.05, 0.3, 0.6, 0.8])
async def test_a_start_that_is_cancelled_leaves_nothing(data_dir: Path, guardian: Guardian, after: float) -> None:
    before = postgres_children()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(after), opened(None, data_dir, guardian, wait=1):
            await asyncio.Event().wait()
    assert postgres_children() == before
    async with opened(None, data_dir, guardian, wait=1) as db:
        assert await db.fetchval(COUNT) == 0


def postgres_children() -> set[str]:
    """Our children that are PostgreSQL; the test run itself has one."""
    children = (pid for pid in numbered() if status(pid)[1:2] == [str(os.getpid()).encode()])
    programs = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] for pid in children}
    return {pid for pid, name in programs.items() if name.endswith((b"/postgres", b"/initdb"))}


def test_nothing_is_left_after_kill_9_and_the_next_start_has_all_data(used_dir: Path) -> None:
    for number in range(3):
        with program(SERVE, str(used_dir)) as serve:
            guardian, postmaster = serve.says()  # type: ignore[misc]
            watched = [Watched(guardian), *family(postmaster)]
            assert len(watched) > 3
            serve.hears(f"{number}@example.com")
            serve.says()
            serve.kill()
            if number == 1:
                assert [process.ended() for process in watched] == [True] * len(watched)
            # Otherwise the next one starts while this one's PostgreSQL may still be ending.
    with program(COMMAND, str(used_dir), "last@example.com") as command:
        assert command.says() == 4
    assert [process.ended() for process in watched] == [True] * len(watched)


def test_kill_9_during_the_first_run_leaves_nothing_and_the_next_run_works(data_dir: Path) -> None:
    with program(SERVE, str(data_dir)) as serve:
        while not (data_dir / "postgres/data.new/base").exists():
            assert serve.process.poll() is None
        watched = [Watched(int(pid)) for pid in numbered() if status(pid)[1:2] == [str(serve.pid).encode()]]
        assert len(watched) == 2, "the guardian and initdb"
        serve.kill()
        assert [process.ended() for process in watched] == [True, True]
    with program(COMMAND, str(data_dir), "ana@example.com") as command:
        assert command.says() == 1
    assert not (data_dir / "postgres/data.new").exists()


def test_postgres_ends_after_kill_9_even_without_a_guardian(used_dir: Path) -> None:
    with program(SERVE, str(used_dir)) as serve:
        guardian, postmaster = serve.says()  # type: ignore[misc]
        watched = family(postmaster)
        os.kill(guardian, signal.SIGKILL)
        serve.kill()
        assert [process.ended() for process in watched] == [True] * len(watched)


def test_it_starts_again_after_everything_was_killed_at_once(used_dir: Path) -> None:
    with program(SERVE, str(used_dir)) as serve:
        guardian, postmaster = serve.says()  # type: ignore[misc]
        serve.hears("ana@example.com")
        serve.says()
        # Stopped first, so that none can act on another's end.
        for pid in (guardian, postmaster):
            os.kill(pid, signal.SIGSTOP)
        for pid in (guardian, serve.pid, postmaster):
            os.kill(pid, signal.SIGKILL)
        with program(COMMAND, str(used_dir), "ben@example.com") as command:
            assert command.says() == 2


async def test_a_postmaster_pid_that_names_a_stranger_does_not_stop_the_start(
    used_dir: Path, guardian: Guardian
) -> None:
    async with opened(None, used_dir, guardian, wait=1) as db:
        await db.execute(GRANT, "ana@example.com")
        lines = (used_dir / "postgres/data/postmaster.pid").read_text().splitlines()
    owner = (used_dir / "postgres/data").stat()
    stranger = subprocess.Popen(
        ["sleep", "1000"], preexec_fn=lambda: os.setuid(owner.st_uid), cwd="/"
    )  # As in a container, where pids are the same at every start.
    lines[0] = str(stranger.pid)
    named = used_dir / "postgres/data/postmaster.pid"
    named.write_text("\n".join(lines) + "\n")
    os.chown(named, owner.st_uid, owner.st_gid)
    async with opened(None, used_dir, guardian, wait=1) as db:
        assert await db.fetchval(COUNT) == 1
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


async def test_a_postgres_that_dies_is_started_again_and_its_data_are_there(used_dir: Path, guardian: Guardian) -> None:
    async with opened(None, used_dir, guardian, wait=1) as db, asyncio.timeout(20):
        await db.execute(GRANT, "ana@example.com")
        listening = db.listen("things")
        assert await anext(listening) is None
        os.kill(postmaster_of(used_dir), signal.SIGKILL)
        # The listener is told when it is back.
        assert await anext(listening) is None
        assert await db.fetchval(COUNT) == 1
        await listening.aclose()  # type: ignore[attr-defined]


def test_a_second_serve_on_the_same_data_is_refused(used_dir: Path) -> None:
    with program(SERVE, str(used_dir)) as serve:
        serve.says()
        again = SERVE.replace("wait=10", "wait=0.3")
        with program(again, str(used_dir)) as second:
            assert second.says() == "DataDirBusy"
            assert second.process.wait(5) == 0
        serve.hears("ana@example.com")
        assert serve.says() == "ana@example.com"


async def test_two_serves_with_a_database_of_their_own_do_not_share_a_data_directory(
    data_dir: Path, database_url: str
) -> None:
    url = Secret(database_url)
    async with opened(url, data_dir, None, wait=0, exclusive=True):
        with pytest.raises(DataDirBusy, match="data"):
            async with opened(url, data_dir, None, wait=0.2, exclusive=True):
                pass
        async with opened(url, data_dir, None, wait=0) as db:
            assert await db.fetchval(COUNT) == 0
    async with opened(url, data_dir, None, wait=0, exclusive=True):
        pass


async def test_serve_waits_for_the_one_before_it(used_dir: Path, guardian: Guardian) -> None:
    async with AsyncExitStack() as first:
        await first.enter_async_context(opened(None, used_dir, guardian, wait=1, exclusive=True))
        async with asyncio.TaskGroup() as tasks:

            async def second() -> object:
                async with opened(None, used_dir, guardian, wait=10, exclusive=True) as db:
                    return await db.fetchval(COUNT)

            waiting = tasks.create_task(second())
            await asyncio.sleep(0.3)
            assert not waiting.done()
            await first.aclose()
        assert waiting.result() == 0


def test_commands_work_while_serve_runs_and_serve_hears_of_it(used_dir: Path) -> None:
    with program(SERVE, str(used_dir)) as serve:
        _, postmaster = serve.says()  # type: ignore[misc]
        with program(COMMAND, str(used_dir), "ana@example.com") as command:
            assert command.says() == 1
        with Watched(postmaster) as watched:
            assert watched.alive()
            serve.process.communicate(b"\n", 10)
            assert watched.ended()


def test_commands_at_the_same_time_share_one_postgres_and_none_is_cut_off(used_dir: Path) -> None:
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(used_dir), f"{number}@example.com"],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": ROOT},
        )
        for number in range(6)
    ]
    said = [command.communicate(timeout=60)[0] for command in commands]
    assert [command.returncode for command in commands] == [0] * 6
    assert max(json.loads(count) for count in said) == 6


async def test_its_log_lines_are_lines_of_our_log(used_dir: Path, guardian: Guardian, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as stream:
        output = configure(console=False, stream=stream)
        async with opened(None, used_dir, guardian, wait=1) as db:
            with pytest.raises(StoreUnavailable):
                await db.execute("DO $$ BEGIN RAISE 'first line\nsecond line of ana@example.com'; END $$")
        output.close()
        lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    said = [line for line in lines if line["event"] == "postgres_logged"]
    assert any(line["message"] == "database system is ready to accept connections" for line in said)
    assert any(line["level"] == "warning" and line["message"] == "first line" for line in said)


async def test_only_we_and_root_get_in(used_dir: Path, guardian: Guardian) -> None:
    async with opened(None, used_dir, guardian, wait=1) as db:
        home = used_dir / "postgres"
        folder = Path(read_file(home / "socket") or "")
        assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((home / "data").stat().st_mode) == 0o700
        assert await db.fetchval("SHOW listen_addresses") == ""
        assert not tcp_sockets_of(postmaster_of(used_dir))
        if os.geteuid() == 0:
            assert connects_as(2, folder) == "no connection"
            folder.chmod(0o777)
            (folder / ".s.PGSQL.5432").chmod(0o777)
            # Even past the folder, and even as the user whom PostgreSQL runs as.
            for uid in (65534, 2):
                assert connects_as(uid, folder) == "refused"


def connects_as(uid: int, folder: Path) -> str:
    """Speak PostgreSQL's protocol over its socket as another user, with nothing but what a shell could do."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        import socket

        answer = b"no connection"
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            wire = socket.socket(socket.AF_UNIX)
            wire.connect(f"{folder}/.s.PGSQL.5432")
            start = b"\0\3\0\0user\0postgres\0database\0mcpmux\0\0"
            wire.send((len(start) + 4).to_bytes(4, "big") + start)
            answer = {b"R": b"let in", b"E": b"refused"}[wire.recv(1)]
        finally:
            os.write(write, answer)
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as answers:
        return answers.read()


def tcp_sockets_of(pid: int) -> list[str]:
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        inodes.add(os.readlink(f"/proc/{pid}/fd/{name}").removeprefix("socket:[").removesuffix("]"))
    tables = [Path(f"/proc/net/{table}").read_text().splitlines()[1:] for table in ("tcp", "tcp6", "udp", "udp6")]
    return [line for table in tables for line in table if line.split()[9] in inodes]


async def test_a_data_directory_with_a_long_path_has_its_socket_elsewhere(data_dir: Path, guardian: Guardian) -> None:
    deep = data_dir / ("a" * 60) / ("b" * 60)
    for step in (data_dir, data_dir / ("a" * 60)):
        step.mkdir()
        step.chmod(0o711)
    async with opened(None, deep, guardian, wait=1, exclusive=True):
        folder = Path(read_file(deep / "postgres/socket") or "")
        assert folder.parent != deep / "postgres"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        async with opened(None, deep, None, wait=1) as db:
            assert await db.fetchval(COUNT) == 0
    assert not folder.exists()


async def test_the_socket_folder_of_a_killed_run_is_removed(data_dir: Path, guardian: Guardian) -> None:
    deep = data_dir / "with,comma"
    data_dir.mkdir()
    data_dir.chmod(0o711)
    with program(SERVE, str(deep)) as serve:
        serve.says()
        folder = Path(read_file(deep / "postgres/socket") or "")
        assert folder.is_dir()
        serve.kill()
    async with opened(None, deep, guardian, wait=5):
        assert not folder.exists()


async def test_data_of_another_postgres_version_are_refused(used_dir: Path, guardian: Guardian) -> None:
    async with opened(None, used_dir, guardian, wait=1):
        pass
    version = used_dir / "postgres/data/PG_VERSION"
    version.write_text("17\n")
    with pytest.raises(StoreUnavailable, match="made by PostgreSQL 17, not 18"):
        async with opened(None, used_dir, guardian, wait=1):
            pass


async def test_a_postgres_that_cannot_start_says_why(used_dir: Path, guardian: Guardian) -> None:
    async with opened(None, used_dir, guardian, wait=1):
        pass
    (used_dir / "postgres/data/global/pg_control").unlink()
    with pytest.raises(StoreUnavailable, match=r"does not start.*pg_control"):
        async with opened(None, used_dir, guardian, wait=1):
            pass


async def test_half_of_an_initdb_is_thrown_away(data_dir: Path, guardian: Guardian) -> None:
    async with opened(None, data_dir, guardian, wait=1):
        pass
    (data_dir / "postgres/data").rename(data_dir / "postgres/data.new")
    (data_dir / "postgres/data.new/PG_VERSION").unlink()
    async with opened(None, data_dir, guardian, wait=1) as db:
        assert await db.fetchval(COUNT) == 0
    assert not (data_dir / "postgres/data.new").exists()


async def test_a_postgres_that_somebody_left_running_is_ended_first(used_dir: Path, guardian: Guardian) -> None:
    async with opened(None, used_dir, guardian, wait=1) as db:
        await db.execute(GRANT, "ana@example.com")
    place = make_place(used_dir.resolve())
    left = Cluster(place, guardian, programs(place), {})
    await left.prepare()
    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(left._live())
        await left.started()
        with Watched(postmaster_of(used_dir)) as watched:
            async with opened(None, used_dir, guardian, wait=1) as db:
                assert await db.fetchval(COUNT) == 1
            assert watched.ended()
        await run
    await end_leftover(place)
