"""Cluster: one PostgreSQL as a child of ours, from `initdb` to its end.

Only the programs of the package are used, in the foreground: PostgreSQL is our own child, in the guardian's list, and
listens on a Unix socket in a private folder and nowhere else. The kernel says who connects (`peer`), and only our own
user and root are let in: not even the user whom it runs as under root. Its log lines are lines of our log.

Whoever makes a Cluster holds the lock of the data directory (`embedded.py`): nobody else starts or ends anything here.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import shutil
import signal
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from mcpmux.errors import StoreUnavailable
from mcpmux.guardian import Guardian, Kind
from mcpmux.guardian.watch import pidfd
from mcpmux.observe.log import logger
from mcpmux.store import place as places
from mcpmux.store.place import MAJOR, Account, Place

log = logger("store")

START_SECONDS: Final = 120.0
"""How long a start may take: after a crash the log of changes is replayed first."""

END_SIGNALS: Final = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 7.0), (signal.SIGKILL, 5.0))
"""Fast shutdown, then immediate shutdown, then the hard way; each with the seconds that it may take."""

STILL_THERE: Final = ("is still in use", "already exists")
"""What PostgreSQL says of processes of an earlier one that have not quite gone."""
ATTEMPTS: Final = 10
ATTEMPT_PAUSE: Final = 0.5

FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 10.0
LINE: Final = 8192

READY: Final = "database system is ready to accept connections"

SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "port": str(places.PORT),
    "unix_socket_permissions": "0700",
    # What it logs is read line by line: in English, terse (details may hold users' data), with pid and SQLSTATE.
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_line_prefix": "%p %e ",
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
    "lc_messages": "C",
    # One small program's database: few connections, little memory, no processes that nobody needs.
    "max_connections": "60",
    "shared_buffers": "32MB",
    "max_wal_size": "128MB",
    "min_wal_size": "32MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "io_method": "sync",
    "huge_pages": "off",
    "jit": "off",
}

ENVIRONMENT: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", "HOME": "/"}

_LOG_LINE: Final = re.compile(r"(\d+) (\w{5}) (\w+):  (.*)")
_LEVELS: Final = {"PANIC": "error", "FATAL": "warning", "ERROR": "warning", "WARNING": "warning"}


def dsn_of(folder: Path, database: str = "mcpmux", user: str = "mcpmux") -> str:
    """Give the URI of a database behind a socket folder."""
    return f"postgresql://{user}@/{database}?host={quote(str(folder))}&port={places.PORT}&sslmode=disable"


class Cluster:
    """One PostgreSQL that runs as our child and is started again when it dies."""

    __slots__ = ("_ending", "_first", "_guardian", "_heard", "_place", "_process", "_programs", "_settings", "folder")

    def __init__(self, place: Place, guardian: Guardian, programs: Path, settings: Mapping[str, str]) -> None:
        """Use `running`."""
        self.folder = Path()
        self._place = place
        self._guardian = guardian
        self._programs = programs
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._heard: deque[str] = deque(maxlen=8)
        self._ending = False

    async def prepare(self) -> None:
        """Make what a start needs: nobody left of the last run, data, the rules of who may connect, a socket folder.

        Raises: StoreUnavailable.
        """
        places.remove_socket_folder(self._place)
        await end_leftover(self._place)
        await self._make_data()
        self.folder = self._write_files()

    async def run(self) -> None:
        """Keep PostgreSQL running until `end()`; returns early when the first start fails (see `started()`)."""
        pause = FIRST_PAUSE
        attempts = 0
        while not self._ending:
            try:
                await self._live()
            except StoreUnavailable as exc:
                self._heard.append(str(exc))
            if self._ending:
                return
            if not self._first.done():
                attempts += 1
                last = self._heard[-1] if self._heard else "it said nothing"
                if attempts < ATTEMPTS and any(words in line for line in self._heard for words in STILL_THERE):
                    await asyncio.sleep(ATTEMPT_PAUSE)
                    continue
                self._first.set_exception(StoreUnavailable(f"the embedded PostgreSQL does not start: {last}"))
                return
            log.error("postgres_lost", last_line=self._heard[-1] if self._heard else "", pause=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
            with suppress(StoreUnavailable):
                await end_leftover(self._place)

    async def started(self) -> None:
        """Wait until it takes connections. Raises: StoreUnavailable."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._first
        except TimeoutError as exc:
            raise StoreUnavailable(f"the embedded PostgreSQL was not ready within {START_SECONDS:g} s") from exc

    async def end(self) -> None:
        """Shut it down; `run()` returns when it has gone."""
        self._ending = True
        for number, seconds in END_SIGNALS:
            process = self._process
            if process is None or process.returncode is not None:
                break
            with suppress(ProcessLookupError):
                process.send_signal(number)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await process.wait()
        places.remove_socket_folder(self._place)

    async def _live(self) -> None:
        """Run one postmaster from its start to its end."""
        options = {**SETTINGS, **self._settings, "unix_socket_directories": str(self.folder)}
        for file in ("hba_file", "ident_file"):
            options[file] = str(self._place.home / f"pg_{file.removesuffix('_file')}.conf")
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self._heard.clear()
        process = self._process = await self._spawn(
            "postgres", ["-D", str(self._place.data), *arguments], kind="postgres", stdout=asyncio.subprocess.DEVNULL
        )
        try:
            if process.stderr is not None:
                async for line in lines_of(process.stderr):
                    self._hear(line)
            await process.wait()
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGQUIT)
                await process.wait()
            self._guardian.forget(process.pid)

    def _hear(self, line: str) -> None:
        self._heard.append(line)
        match = _LOG_LINE.fullmatch(line)
        if match is None:
            log.info("postgres_logged", message=line)
            return
        pid, state, severity, message = match.groups()
        if message == READY and not self._first.done():
            self._first.set_result(None)
        shown = log.info if severity not in _LEVELS else log.error if severity == "PANIC" else log.warning
        shown("postgres_logged", message=message, severity=severity, sqlstate=state, postgres_pid=int(pid))

    async def _make_data(self) -> None:
        """Run `initdb` if there are no data yet: beside, then renamed, so that half of it is never taken for all.

        Raises: StoreUnavailable.
        """
        version = places.read_file(self._place.data / "PG_VERSION")
        if version is not None:
            if version.strip() != MAJOR:
                raise StoreUnavailable(f"{self._place.data} was made by PostgreSQL {version.strip()}, not {MAJOR}")
            return
        with places.held(self._place) as home:
            with suppress(FileNotFoundError):
                shutil.rmtree("data.new", dir_fd=home)
            places.make_folder(home, "data.new", self._place.account)
            await self._initdb(self._place.home / "data.new")
            os.rename("data.new", "data", src_dir_fd=home, dst_dir_fd=home)
            os.fsync(home)
        log.info("database_created", path=str(self._place.data))

    async def _initdb(self, folder: Path) -> None:
        arguments = ["-D", str(folder), "--username=postgres", "--auth-local=peer", "--auth-host=reject"]
        arguments += ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        arguments += ["--no-instructions", *(["--no-sync"] if self._settings.get("fsync") == "off" else [])]
        process = await self._spawn("initdb", arguments, kind="server", stdout=asyncio.subprocess.PIPE)
        try:
            _, errors = await process.communicate()
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
            self._guardian.forget(process.pid)
        if process.returncode != 0:
            said = errors.decode("utf-8", "replace").strip().splitlines() or [f"exit code {process.returncode}"]
            raise StoreUnavailable(f"the embedded PostgreSQL could not be created: {said[0]}")

    def _write_files(self) -> Path:
        """Write who may connect and where the socket is; gives the socket's folder. Raises: StoreUnavailable."""
        with places.held(self._place) as home:
            folder = places.make_socket_folder(self._place, home)
            # Read by PostgreSQL's user, written by nobody but us.
            places.write_file(home, "pg_hba.conf", "local all all peer map=mcpmux\n", 0o644)
            users = sorted({_user_name(os.geteuid()), _user_name(0)})
            rules = "".join(f'mcpmux "{user}" {role}\n' for user in users for role in ("mcpmux", "postgres"))
            places.write_file(home, "pg_ident.conf", rules, 0o644)
            places.write_file(home, "socket", str(folder), 0o600)
        return folder

    async def _spawn(
        self, program: str, arguments: list[str], *, kind: Kind, stdout: int
    ) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                str(self._programs / program),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout,
                stderr=asyncio.subprocess.PIPE,
                cwd="/",
                env=ENVIRONMENT,
                start_new_session=True,
                preexec_fn=_before_exec(self._place.account, self._guardian.preexec(kind)),
            )
        except (OSError, subprocess.SubprocessError) as exc:
            user = f" as user {self._place.account.name}" if self._place.account else ""
            raise StoreUnavailable(f"{self._programs / program} cannot be started{user}") from exc


@asynccontextmanager
async def running(
    place: Place, guardian: Guardian, *, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Cluster]:
    """Start PostgreSQL, give it while it takes connections, and shut it down; it is restarted should it die.

    Raises: StoreUnavailable.
    """
    programs = await asyncio.to_thread(places.programs, place)
    cluster = Cluster(place, guardian, programs, settings or {})
    await cluster.prepare()
    failure: BaseException | None = None
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(cluster.run(), name="embedded postgres")
        try:
            await cluster.started()
            yield cluster
        except BaseException as exc:  # noqa: BLE001 (a task group would wrap it: it is raised below as it came)
            failure = exc
        finally:
            await cluster.end()
            task.cancel()
    if failure is not None:
        raise failure


async def end_leftover(place: Place) -> None:
    """End a PostgreSQL that the last run left on these data, and wait for one that is ending.

    We hold the lock, so its owner has gone. A `postmaster.pid` that names a stranger is removed: PostgreSQL would
    take any process of its user with that pid, as there often is one in a container, for another PostgreSQL.
    """
    named = (places.read_file(place.data / "postmaster.pid") or "").partition("\n")[0].strip()
    if not named.isdecimal() or int(named) <= 1:
        return
    pid = int(named)
    process = pidfd(pid)
    try:
        if not _works_in(pid, place.data):
            (place.data / "postmaster.pid").unlink(missing_ok=True)
            return
        log.info("postgres_found", pid=pid, path=str(place.data))
        for number, seconds in END_SIGNALS:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            if await _ended(pid, process, seconds):
                return
    finally:
        if process is not None:
            os.close(process)
    raise StoreUnavailable(f"a PostgreSQL of an earlier run (pid {pid}) cannot be ended")


def _works_in(pid: int, folder: Path) -> bool:
    """Say whether a process has this working directory, as a postmaster has its data; a zombie has none."""
    try:
        return Path(f"/proc/{pid}/cwd").samefile(folder)
    except FileNotFoundError:
        return not Path("/proc/self").exists() and _exists(pid)
    except PermissionError:
        return False


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


async def _ended(pid: int, process: int | None, seconds: float) -> bool:
    """Wait up to `seconds` for the end of a process that is not our child."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            if process is None:
                while _exists(pid):  # noqa: ASYNC110 (a process that is no child has no event without pidfds)
                    await asyncio.sleep(0.05)
                return True
            loop.add_reader(process, gone.set)
            try:
                await gone.wait()
            finally:
                loop.remove_reader(process)
    return gone.is_set()


def _before_exec(account: Account | None, guard: Callable[[], None]) -> Callable[[], None]:
    """Become the user who runs PostgreSQL, then register: a change of user clears the parent-death signal."""

    def run() -> None:
        os.umask(0o077)
        if account is not None:
            os.setgroups([])
            os.setgid(account.gid)
            os.setuid(account.uid)
        guard()

    return run


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError as exc:
        raise StoreUnavailable(f"the user id {uid} has no name on this machine, which PostgreSQL needs") from exc


async def lines_of(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Iterate over the lines of a stream; a line is cut at 8 KiB and the rest of it left out."""
    rest = b""
    cut = False
    while data := await stream.read(65536):
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            if not cut:
                yield line[:LINE].decode("utf-8", "replace").strip()
            cut = False
        if len(rest) > LINE:
            if not cut:
                yield rest[:LINE].decode("utf-8", "replace").strip()
            rest, cut = b"", True
    if rest and not cut:
        yield rest.decode("utf-8", "replace").strip()
