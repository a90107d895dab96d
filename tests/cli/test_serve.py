"""`serve` on a terminal: the progress line, the summary, Ctrl-C, and a terminal that is closed."""

from __future__ import annotations

import os
import pty
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway_process import Gateway, prepared
from tests.postgres import open_folder
from tests.servers import counter

WAIT = 40.0  # seconds: the first start makes a database


class Terminal:
    """A person's terminal with `serve` in its foreground."""

    def __init__(self, gateway: Gateway) -> None:
        self.shown = ""
        words = gateway.command("serve")
        environ = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(words[0], words, environ)

    def until(self, text: str) -> str:
        """Read on until this is shown; all that was shown."""
        end = time.monotonic() + WAIT
        while text not in self.shown:
            assert time.monotonic() < end, f"{text!r} is not shown:\n{self.shown}"
            if not self.read():
                break
        assert text in self.shown, f"{text!r} is not shown:\n{self.shown}"
        return self.shown

    def read(self) -> bool:
        """Take what is shown now; whether anybody still writes."""
        if select.select([self.fd], [], [], 0.1)[0]:
            try:
                self.shown += os.read(self.fd, 65536).decode(errors="replace")
            except OSError:
                return False
        return True

    def ended(self) -> int:
        """Its exit code once it has ended; reads on meanwhile, as a terminal does."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            if self.fd >= 0:
                self.read()
            else:
                select.select([], [], [], 0.05)
        raise AssertionError(f"it does not end:\n{self.shown}")

    def close(self) -> None:
        """Close the window."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that PostgreSQL's own user may pass when the tests run as root."""
    with open_folder() as made:
        yield made


@pytest.fixture
def gateway(folder: Path) -> Iterator[Gateway]:
    slow = counter()
    command = slow["command"]
    assert isinstance(command, list)
    slow["command"] = [
        "sh",
        "-c",
        'until [ -e "$0" ]; do sleep 0.05; done; exec "$@"',
        str(folder / "gate"),
        *command,
    ]
    servers = {"alpha": counter(), "slow": slow}
    with prepared(folder, servers) as made:
        yield made


@pytest.fixture
def terminal(gateway: Gateway) -> Iterator[Terminal]:
    made = Terminal(gateway)
    try:
        yield made
    finally:
        made.close()
        if made.pid:
            os.kill(made.pid, signal.SIGTERM)
            made.ended()


def test_a_person_sees_who_is_starting_and_then_how_to_use_it(
    gateway: Gateway, terminal: Terminal, folder: Path
) -> None:
    terminal.until("1 of 2 servers started")
    terminal.until("waiting for slow")
    (folder / "gate").touch()
    shown = terminal.until("Open WebUI")
    assert "\r\x1b[K" in shown
    assert "2 ready" in shown
    assert f"--config {gateway.config} --data-dir {gateway.data}" in terminal.until("--data-dir")
    assert '{"timestamp"' not in shown
    os.write(terminal.fd, b"\x03")
    assert terminal.ended() == 0
    assert "stopped" in terminal.shown


def test_closing_the_window_ends_it(gateway: Gateway, terminal: Terminal) -> None:
    terminal.until("ready")
    terminal.close()
    assert terminal.ended() == 0
    assert gateway.run("status", check=False).returncode == 1
