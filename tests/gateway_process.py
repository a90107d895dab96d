"""A real `mcpmux serve` for tests: started on its own folder and config, read through its log, proven gone afterwards.

`running(folder, servers)` gives a `Gateway` once it has logged `ready`. It belongs to no event loop, so a module of
tests may share one. Its log goes to a file, read when somebody asks for it: a measurement is not disturbed, and the
log outlives a process that was killed. Waiting for anything is waiting for a log event, a metric or a file, bounded
by 5 s unless said otherwise. On the way out every process that mcpmux ever had in its tree must be gone.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.schemas.heard import check_heard
from tests.servers.testimony import FOLDER

Json = dict[str, object]
Event = dict[str, object]
WAIT = 5.0  # seconds: how long anything may take unless a test says otherwise
START = 40.0  # seconds: the first start makes a database
END = 30.0  # seconds: longer than the drain limit that tests configure


class NotSeen(AssertionError):
    """What a test waited for did not happen in time."""


def program() -> str:
    """The installed command, beside the interpreter that runs the tests."""
    found = shutil.which("mcpmux", path=str(Path(sys.executable).parent)) or shutil.which("mcpmux")
    assert found, "mcpmux is not installed beside this interpreter (pip install -e .)"
    return found


class Gateway:
    """One folder with a config and data, and the mcpmux process on it, if one runs."""

    def __init__(self, folder: Path, servers: Mapping[str, object], gateway: Mapping[str, object]) -> None:
        self.folder = folder
        self.config = folder / "servers.yaml"
        self.data = folder / "data"
        self.servers = dict(servers)
        self.section: Json = {"listen": {"host": "127.0.0.1", "port": 0}, **gateway}
        self.url = ""
        self.environment: dict[str, str] = {}
        self.log = folder / "log"
        self._events: list[Event] = []
        self._read = 0
        self.unreadable: list[str] = []
        self._places: set[str] = set()
        self.process: subprocess.Popen[bytes] | None = None
        self._seen: dict[int, psutil.Process] = {}
        self._tokens: dict[tuple[str, ...], str] = {}
        self.save()

    # Config and commands ----------------------------------------------------------------------------------------

    def save(self, servers: Mapping[str, object] | None = None) -> None:
        """Write the config file as an editor does: a new file moved over the old one. JSON is YAML too."""
        if servers is not None:
            self.servers = dict(servers)
        written = self.config.with_suffix(".new")
        written.write_text(json.dumps({"gateway": self.section, "servers": self.servers}, indent=2))
        written.replace(self.config)

    def command(self, *arguments: str) -> list[str]:
        """The command line of one command on this folder."""
        return [program(), *arguments, "--config", str(self.config), "--data-dir", str(self.data)]

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One command, to its end."""
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=60, env=self._environ(), check=False
        )
        assert not check or done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def token(self, email: str, *groups: str, ttl: str = "1h") -> str:
        """A token of the development issuer; the same one for the same question."""
        asked = (email, *groups, ttl)
        if asked not in self._tokens:
            wanted = [word for group in groups for word in ("--group", group)]
            made = self.run("token", "--email", email, *wanted, "--ttl", ttl)
            self._tokens[asked] = made.stdout.strip()
        return self._tokens[asked]

    def grant(self, who: str, tenant: str, level: str = "write") -> None:
        """Grant a user (with an @) or a group a tenant."""
        self.run("access", "grant-user" if "@" in who else "grant-group", who, tenant, "--level", level)

    def revoke(self, who: str, tenant: str) -> None:
        """Take a grant away."""
        self.run("access", "revoke-user" if "@" in who else "revoke-group", who, tenant)

    def status(self) -> dict[str, Json]:
        """What `mcpmux status` says of each server, by id."""
        answered = json.loads(self.run("status", "--json").stdout)
        return {server["id"]: server for server in answered["servers"]}

    # The process ------------------------------------------------------------------------------------------------

    def start(self, *arguments: str, wait: float = START) -> float:
        """Start `serve` and wait until it is ready. Seconds that it took."""
        assert self.process is None, "one runs already"
        begun = time.monotonic()
        self.url = ""
        self._events.clear()
        self._read = 0
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command("serve", *arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environ(),
                start_new_session=True,
            )
        ready = self.wait_for(lambda: self.logged("ready"), wait, "the event `ready`")
        self.url = str(ready[0]["url"]).rstrip("/").removesuffix("/mcp")
        return time.monotonic() - begun

    def end(self, how: signal.Signals = signal.SIGTERM, wait: float = END) -> int:
        """Signal the process, wait for its end, prove that nothing of its tree is left. Its exit code."""
        process = self.process
        assert process is not None, "none runs"
        self.note_tree()
        process.send_signal(how)
        return self.ended(wait)

    def ended(self, wait: float = END) -> int:
        """Wait for the end of the process, prove that nothing of its tree is left. Its exit code."""
        process = self.process
        assert process is not None, "none runs"
        try:
            code = process.wait(wait)
        except subprocess.TimeoutExpired:
            self._clean_up()
            raise NotSeen(f"mcpmux did not end within {wait} s; {self._tail()}") from None
        finally:
            self.process = None
        try:
            self.wait_for(lambda: not self.left(), WAIT, "the end of every process")
        except NotSeen:
            left = [f"{one.pid} {' '.join(one.cmdline())[:160]}" for one in self.left()]
            self._clean_up()
            raise NotSeen(f"left running: {left}") from None
        return code

    def note_tree(self) -> list[psutil.Process]:
        """Remember every process below mcpmux now, so that `left` finds it wherever it goes. All seen so far."""
        if self.process is not None and self.process.poll() is None:
            root = psutil.Process(self.process.pid)
            for one in [root, *root.children(recursive=True)]:
                self._seen[one.pid] = one
        return list(self._seen.values())

    def left(self) -> list[psutil.Process]:
        """Processes that are still there: seen below mcpmux once, or marked as ours by their environment."""
        found = [one for one in self._seen.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        known = {one.pid for one in found}
        marker = f"TMPDIR={self.folder}".encode()
        for one in psutil.process_iter():
            if one.pid in known or one.pid == os.getpid():
                continue
            try:
                environment = Path(f"/proc/{one.pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if marker in environment:
                found.append(one)
        return found

    def children_of(self, server: str) -> list[psutil.Process]:
        """The processes of one server: those whose working folder is its own."""
        place = str(self.data / "servers" / server)
        return [one for one in self.note_tree() if one.is_running() and _folder_of(one) == place]

    # What it says -----------------------------------------------------------------------------------------------

    def events(self) -> list[Event]:
        """Every log line so far; all of them must be JSON objects with an `event` (design, section 8)."""
        if self.log.exists():
            with self.log.open("rb") as log:
                log.seek(self._read)
                data = log.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in whole.splitlines():
                self._take(line)
        return self._events

    def logged(self, event: str, **fields: object) -> list[Event]:
        """Every log line so far with this event and these fields."""
        return [
            line
            for line in self.events()
            if line.get("event") == event and all(line.get(key) == value for key, value in fields.items())
        ]

    def wait_for(self, happened: Callable[[], object], wait: float = WAIT, what: str = "it") -> list[Event]:
        """Whatever `happened` gives once it is true. Raises: NotSeen, with the end of the log."""
        end = time.monotonic() + wait
        while True:
            found = happened()
            if found:
                return found if isinstance(found, list) else []
            if time.monotonic() > end:
                raise NotSeen(f"{what} did not happen within {wait} s; {self._tail()}")
            if self.process is not None and self.process.poll() is not None and not self.left():
                raise NotSeen(f"{what} did not happen, mcpmux ended with {self.process.returncode}; {self._tail()}")
            time.sleep(0.01)

    async def soon(self, happened: Callable[[], object], wait: float = WAIT, what: str = "it") -> None:
        """`wait_for` beside other tasks of a test."""
        await asyncio.to_thread(self.wait_for, happened, wait, what)

    async def ready(self, *servers: str, wait: float = 20.0) -> None:
        """Wait until each of these servers (default: all in the config) has a ready link."""
        for server in servers or self.servers:
            await self.soon(functools.partial(self.logged, "link_ready", server=server), wait, f"{server} ready")

    def metrics(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """Every sample of `/metrics`: name -> sorted labels -> value."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=WAIT) as answer:
            text = answer.read().decode()
        found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return found

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of one metric with at least these labels."""
        samples = self.metrics().get(name, {})
        return sum(value for key, value in samples.items() if set(labels.items()) <= set(key))

    def memory(self) -> int:
        """Resident bytes of mcpmux itself, without its children."""
        assert self.process is not None
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def cpu(self) -> float:
        """Seconds of CPU that mcpmux itself has used, user and system."""
        assert self.process is not None
        # The scheduler's own count, per thread, in nanoseconds: /proc/PID/stat counts in ticks of 10 ms.
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9

    # Inside -----------------------------------------------------------------------------------------------------

    def _environ(self) -> dict[str, str]:
        """Our environment; TMPDIR is passed on to every child and marks it as ours."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("MCPMUX_")}
        return {**kept, "TMPDIR": str(self.folder), **self.environment}

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict) and "event" in event:
            self._events.append(event)
            if event["event"] == "database_placed":
                self._places.add(str(event["path"]))
        else:
            self.unreadable.append(line.decode(errors="replace"))

    def _tail(self) -> str:
        lines = [json.dumps(event) for event in self.events()[-25:]] + self.unreadable[-10:]
        return "the log ends with\n" + "\n".join(lines)

    def _clean_up(self) -> None:
        """Kill what a failed test leaves, so that the next one starts clean."""
        for one in self.left():
            with suppress(psutil.NoSuchProcess):
                one.kill()


def _folder_of(process: psutil.Process) -> str:
    try:
        return str(process.cwd())
    except psutil.Error:
        return ""


@contextmanager
def prepared(folder: Path, servers: Mapping[str, object], **gateway: object) -> Iterator[Gateway]:
    """A folder with a config on which nothing runs yet; `gateway` are keys of the config's section."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Gateway(folder, servers, gateway)
    (folder / FOLDER).mkdir(exist_ok=True)
    try:
        yield made
    finally:
        try:
            if made.process is not None:
                made.end()
        finally:
            made.events()
            made._clean_up()
            # Run as root, the database of a folder that nobody else may enter lies elsewhere.
            for place in made._places:
                shutil.rmtree(place, ignore_errors=True)
    assert not made.unreadable, f"lines that are no JSON event: {made.unreadable[:5]}"
    check_heard(folder)


@contextmanager
def running(folder: Path, servers: Mapping[str, object], **gateway: object) -> Iterator[Gateway]:
    """A ready mcpmux on these servers; ended, and proven gone, on the way out."""
    with prepared(folder, servers, **gateway) as made:
        made.start()
        yield made
