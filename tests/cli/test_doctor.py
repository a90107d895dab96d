"""`doctor` and `migrate`, as real processes with real databases."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.gateway_process import program, running
from tests.postgres import open_folder
from tests.servers import counter


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that PostgreSQL's own user may pass when the tests run as root."""
    with open_folder() as made:
        yield made


def run(folder: Path, config: Mapping[str, object], *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """One command on this config."""
    path = folder / "servers.yaml"
    path.write_text(json.dumps(config))
    command = [program(), *words, "--config", str(path), "--data-dir", str(folder / "data")]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=90, env={**os.environ, **environ}, check=False
    )


def findings(folder: Path, config: Mapping[str, object], **environ: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """The exit code of `doctor --json`, and name -> (result, detail)."""
    done = run(folder, config, "doctor", "--json", **environ)
    told = json.loads(done.stdout)
    assert told["ok"] is (done.returncode == 0)
    return done.returncode, {check["name"]: (check["result"], check["detail"]) for check in told["checks"]}


def test_a_good_machine_is_all_ok(folder: Path) -> None:
    code, found = findings(folder, {"gateway": {"listen": {"port": 0}}, "servers": {"alpha": counter()}})
    assert code == 0
    assert {name: result for name, (result, _) in found.items()} == dict.fromkeys(
        ("python", "config", "node", "uvx", "data_dir", "port", "database", "issuers"), "ok"
    )
    assert "embedded: PostgreSQL 18" in found["database"][1]


def test_what_will_not_work_fails_and_says_what_to_do(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        closed = socket.socket()
        closed.bind(("127.0.0.1", 0))
        nowhere = closed.getsockname()[1]
        closed.close()
        issuers = [{"issuer": f"http://127.0.0.1:{nowhere}", "audiences": ["x"]}]
        gateway = {
            "listen": {"port": taken.getsockname()[1]},
            "database": {"url": f"postgresql://nobody@127.0.0.1:{nowhere}/none"},
            "identity": {"issuers": issuers},
        }
        servers = {"one": {"command": ["no-such-program-here"]}, "two": {"command": ["npx", "x"]}}
        code, found = findings(folder, {"gateway": gateway, "servers": servers}, PATH="/nonexistent")
    assert code == 1
    for name in ("node", "program", "port", "database", "issuer"):
        assert found[name][0] == "fail", name
    assert "no-such-program-here not found; needed by one" in found["program"][1]
    assert "install Node.js" in found["node"][1]
    assert "unreachable" in found["issuer"][1]


def test_a_broken_config_is_a_finding(folder: Path) -> None:
    code, found = findings(folder, {"gatewy": {}})
    assert code == 1
    assert found["config"][0] == "fail"
    assert "gatewy" in found["config"][1]


def test_a_running_mcpmux_is_no_trouble(folder: Path) -> None:
    with running(folder, {"alpha": counter()}) as gateway:
        told = json.loads(gateway.run("doctor", "--json").stdout)
        port = next(check for check in told["checks"] if check["name"] == "port")
        assert port == {"name": "port", "result": "ok", "detail": f"mcpmux runs already, at {gateway.url}"}
        assert gateway.run("migrate").stdout == "the database is up to date\n"


def test_migrate_says_what_it_applied_and_then_that_there_is_nothing(folder: Path) -> None:
    first = run(folder, {}, "migrate")
    assert first.returncode == 0, first.stderr
    assert "applied 0001_" in first.stdout
    assert run(folder, {}, "migrate").stdout == "the database is up to date\n"


def test_migrate_brings_a_database_of_yours_up_to_date(folder: Path, database_url: str) -> None:
    done = run(folder, {"gateway": {"database": {"url": database_url}}}, "migrate")
    assert (done.returncode, done.stdout) == (0, "the database is up to date\n")
    gone = run(folder, {"gateway": {"database": {"url": "postgresql://x@127.0.0.1:1/x"}}}, "migrate")
    assert gone.returncode == 1
    assert gone.stderr.startswith("mcpmux: The database is not available")
    assert gone.stderr.count("\n") == 1
