"""`mcpmux stdio`: what it takes and what it refuses, before it carries anything."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mcpmux.cli.stdio import reachable
from tests.gateway_process import program


def ran(folder: Path, *arguments: str, token: str | None = "t", said: str = "") -> subprocess.CompletedProcess[str]:
    """The command in an empty folder, with this on its stdin, to its end."""
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(folder)} | ({} if token is None else {"MCPMUX_TOKEN": token})
    return subprocess.run(
        [program(), "stdio", *arguments], input=said, capture_output=True, text=True, timeout=30, env=environ,
        cwd=folder, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "token", "words"),
    [
        ((), None, "set MCPMUX_TOKEN"),
        (("--token-file", "missing"), "t", "missing cannot be read"),
        (("--url", "http://example.com/mcp"), "t", "--allow-http"),
        (("--url", "ftp://example.com/mcp"), "t", "https://"),
        (("--url", "ftp://example.com/mcp", "--allow-http"), "t", "https://"),
        (("--url", "https://me:secret@example.com/mcp"), "t", "without a user name"),
        (("--wait", "soon"), "t", "no duration"),
    ],
)
def test_wrong_use_is_one_clear_line_and_exit_2(
    arguments: tuple[str, ...], token: str | None, words: str, tmp_path: Path
) -> None:
    done = ran(tmp_path, *arguments, token=token)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and len(done.stderr.splitlines()) == 1
    assert "secret" not in done.stderr


def test_without_a_config_file_and_a_mcpmux_each_request_gets_an_error(tmp_path: Path) -> None:
    line = '{"jsonrpc":"2.0","id":1,"method":"server/discover"}\n'
    done = ran(tmp_path, "--wait", "0.1s", said=line)
    assert done.returncode == 0
    assert done.stdout == (
        '{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"mcpmux cannot be reached: it is not running",'
        '"data":{"reason":"unreachable"}}}\n'
    )


def test_an_address_for_all_is_reached_over_loopback() -> None:
    assert reachable("http://0.0.0.0:8090") == "http://127.0.0.1:8090"
    assert reachable("http://[::]:8090") == "http://[::1]:8090"
    assert reachable("http://10.0.0.0:8090") == "http://10.0.0.0:8090"
