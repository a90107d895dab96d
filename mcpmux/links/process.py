"""Child: one child process with its whole group, from fork to the last of its descendants.

Owns environment and folder of a server's process, its signals and its end. It does not know what runs through its
pipes.

Rules of the file:
* The process exists from one line to the next, without an `await`: nobody can be cancelled between a process and the
  `try` that guards it. So `subprocess` starts it, and a pidfd tells when it has ended.
* The leader stays a zombie, unreaped, until its group has been killed. Until then nobody else can get its number, so
  a signal to the group can never hit a stranger.
* Whatever happens, what is left of the group gets SIGKILL: `npx`, `uvx` and shells leave the real server behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Final

from mcpmux.config.schema import Server
from mcpmux.credentials import static
from mcpmux.errors import LinkFailed
from mcpmux.guardian import Guardian

# design.md section 5, "Children".
_PASSED: Final = frozenset({"PATH", "HOME", "LANG", "TZ", "TMPDIR"})
_PROXIES: Final = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"})
_CERTIFICATES: Final = frozenset(
    {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"}
)
_LOCALE: Final = "LC_"
_INSTALLERS: Final = frozenset({"npx", "uvx"})
_INSTALLER_PREFIXES: Final = ("PIP_", "UV_")
_NPM_PREFIX: Final = "npm_config_"

CLOSE_LIMIT: Final = 1.0  # seconds for a server to end by itself once its input is closed; many never do
TERM_LIMIT: Final = 3.0  # seconds between SIGTERM and SIGKILL
KILL_LIMIT: Final = 2.0  # seconds after which a killed process counts as stuck in the kernel


def installs(server: Server) -> bool:
    """Whether the command may first have to fetch the server (npx, uvx)."""
    return bool(server.command) and Path(server.command[0]).name in _INSTALLERS


def environment(server: Server, environ: Mapping[str, str]) -> dict[str, str]:
    """All variables of the server's process: the few of ours that it needs, and its own `env:`."""
    installer = installs(server)
    found = {name: value for name, value in environ.items() if _is_passed(name, installer)}
    # `uvx` is a dependency of ours, and lies beside our own interpreter.
    found["PATH"] = os.pathsep.join(part for part in (found.get("PATH"), str(Path(sys.executable).parent)) if part)
    return found | static.environment(server)


def folder(server: Server, data_dir: Path) -> Path:
    """The working directory of the server's process; its own one is made. Raises: LinkFailed."""
    path = server.cwd or data_dir / "servers" / server.id
    try:
        if server.cwd is None:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise LinkFailed(f"its folder cannot be made: {exc.strerror}") from exc
    if not path.is_dir():
        raise LinkFailed(f"its working directory does not exist: {path}")
    return path


class Child:
    """One running process group; made by `start()`. `code` is the leader's exit code once it has ended."""

    __slots__ = ("_doomed", "_guardian", "_loop", "_on_end", "_pidfd", "_process", "code", "ended", "signalled")

    def __init__(self, process: subprocess.Popen[bytes], guardian: Guardian, on_end: Callable[[], None]) -> None:
        self.code: int | None = None
        self.signalled = False  # by us, so that the exit code says nothing of the server
        self.ended = asyncio.Event()
        self._process = process
        self._guardian = guardian
        self._on_end = on_end
        self._doomed = False
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(self._pidfd, self._leader_ended)

    @property
    def pid(self) -> int:
        """The leader's process id, which is the group's as well."""
        return self._process.pid

    @property
    def pipes(self) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
        """Its standard input, output and error, our ends."""
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin is not None and stdout is not None and stderr is not None
        return stdin, stdout, stderr

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group."""
        if self.code is None:
            self.signalled = True
            self._send(number)

    async def wait(self, seconds: float) -> bool:
        """Whether the leader ends within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self.ended.wait()
        except TimeoutError:
            return False
        return True

    def reap(self) -> None:
        """Kill what is left of the group, at once; afterwards nothing of it runs. Idempotent."""
        if self.code is not None:
            return
        self._doomed = True
        self._send(signal.SIGKILL)
        if self.ended.is_set():
            self.code = self._process.wait()
            self._guardian.forget(self.pid)

    def _leader_ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.ended.set()
        if self._doomed:
            self.reap()
        self._on_end()

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def start(
    server: Server, data_dir: Path, environ: Mapping[str, str], guardian: Guardian, on_end: Callable[[], None]
) -> Child:
    """Start the server's process, in a group of its own that the guardian knows. `on_end` is called when it has ended.

    Raises: LinkFailed.
    """
    variables = environment(server, environ)
    cwd = folder(server, data_dir)
    program = _program(server.command[0], cwd, variables["PATH"])
    try:
        process = subprocess.Popen(
            server.command,
            executable=program,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=variables,
            start_new_session=True,
            preexec_fn=guardian.preexec("server"),  # it has to register before exec: see guardian
        )
    except (OSError, ValueError, subprocess.SubprocessError) as exc:
        problem = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise LinkFailed(f"{server.command[0]} cannot be started: {problem}") from exc
    try:
        return Child(process, guardian, on_end)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        guardian.forget(process.pid)
        raise


def _program(command: str, cwd: Path, path: str) -> str:
    """The file to execute. Raises: LinkFailed."""
    if os.sep in command:
        # As everywhere in the config, relative to where mcpmux was started; or to where the server will run.
        places = [Path(command).absolute(), cwd / command]
        found = next((str(place) for place in places if os.access(place, os.X_OK)), None)
    else:
        found = shutil.which(command, path=path)
    if found is None:
        raise LinkFailed(f"command not found: {command}", refused=True)
    return found


def _is_passed(name: str, installer: bool) -> bool:
    if name in _PASSED or name in _CERTIFICATES or name.startswith(_LOCALE) or name.upper() in _PROXIES:
        return True
    return installer and (name.startswith(_INSTALLER_PREFIXES) or name.lower().startswith(_NPM_PREFIX))
