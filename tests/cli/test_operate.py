"""check, token, status and wrong use, as real processes with real exit codes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.gateway_process import program

GOOD = """\
gateway: {data_dir: data}
servers:
  plain: {command: [cat]}
  off: {command: [cat], enabled: false}
  github:
    transport: http
    url: https://github.example/mcp
    headers: {Authorization: "Bearer ${env:GITHUB_TEST_TOKEN}", X-Extra: "${file:absent/secret}"}
"""


def run(folder: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """One command in `folder`, off a terminal."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MCPMUX_")}
    return subprocess.run(
        [program(), *words],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env={**kept, **environ},
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "servers.yaml").write_text(GOOD)
    return tmp_path


def test_check_lists_every_server_and_what_it_misses(folder: Path) -> None:
    done = run(folder, "check")
    assert (done.returncode, done.stderr) == (0, "")
    assert "github  unconfigured  not set: GITHUB_TEST_TOKEN, " in done.stdout
    assert "plain   configured" in done.stdout
    assert "off     disabled" in done.stdout
    assert "good, 3 servers: 1 configured, 1 disabled, 1 unconfigured" in done.stdout


def test_check_answers_machines(folder: Path) -> None:
    done = run(folder, "check", "--json", GITHUB_TEST_TOKEN="t")
    told = json.loads(done.stdout)
    assert told["config"] == {"ok": True, "path": str(folder / "config" / "servers.yaml"), "errors": []}
    github = next(server for server in told["servers"] if server["id"] == "github")
    assert github["state"] == "unconfigured"
    assert github["missing"] == [str(folder / "absent" / "secret")] or github["missing"] == ["absent/secret"]
    assert "t" not in github["missing"]


def test_check_names_every_problem_with_its_place_and_answers_no(folder: Path) -> None:
    path = folder / "broken.yaml"
    path.write_text("gateway: {listn: {}}\nservers:\n  plain: {command: cat}\n")
    for way in (("check", "--config", "broken.yaml"), ("--config", "broken.yaml", "check")):
        done = run(folder, *way)
        assert done.returncode == 1
        assert "broken.yaml:1:" in done.stdout
        assert "broken.yaml:3:" in done.stdout
    done = run(folder, "check", "--json", MCPMUX_CONFIG=str(path))
    told = json.loads(done.stdout)
    assert (done.returncode, told["config"]["ok"], len(told["config"]["errors"])) == (1, False, 2)


def test_a_token_stands_alone_on_stdout_and_is_good_for_the_same_data_directory(folder: Path) -> None:
    done = run(folder, "token", "--email", "ana@example.com", "--group", "MCP-GitHub", "--group", "B", "--ttl", "5m")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    assert done.stdout.strip().count(".") == 2
    assert (folder / "data").stat().st_mode & 0o077 == 0


def test_there_are_no_tokens_where_issuers_are_configured(folder: Path) -> None:
    (folder / "config" / "servers.yaml").write_text(
        "gateway: {identity: {issuers: [{issuer: https://login.example, audiences: [x]}]}}\n"
    )
    done = run(folder, "token", "--email", "ana@example.com")
    assert (done.returncode, done.stdout) == (2, "")
    assert "development issuer only" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["token"],
        ["token", "--email", "ana@example.com", "--ttl", "soon"],
        ["token", "--email", "ana@example.com", "--ttl", "0s"],
        ["chekc"],
        [],
        ["check", "--bogus"],
        ["serve", "--port", "http", "--log-level", "info"],
        ["token", "--email", "a@b.example", "--config", "absent.yaml"],
    ],
)
def test_wrong_use_is_exit_2_and_one_clear_line(folder: Path, words: list[str]) -> None:
    done = run(folder, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_token_for_no_address_is_refused_in_one_line(folder: Path) -> None:
    done = run(folder, "token", "--email", "nobody")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_status_without_a_running_mcpmux_is_exit_1_and_says_so(folder: Path) -> None:
    done = run(folder, "status")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"mcpmux: No mcpmux is running on the data directory {folder / 'data'}\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("gateway:\n  data_dir: elsewhere # here\nservers: [\n", "elsewhere"),
        ('gateway:\n  data_dir: "${env:WHERE:-other}"\nservers: 7\n', "other"),
        ("servers: 7\n", "data"),
    ],
)
def test_status_finds_the_data_directory_of_a_config_that_is_broken(folder: Path, text: str, found: str) -> None:
    (folder / "config" / "servers.yaml").write_text(text)
    done = run(folder, "status")
    assert done.stderr == f"mcpmux: No mcpmux is running on the data directory {folder / found}\n"


def test_serve_says_what_is_wrong_as_json_off_a_terminal(folder: Path) -> None:
    (folder / "broken.yaml").write_text("gateway: {listn: {}}\n")
    for words in (["--port", "http"], ["--bogus"], ["--config", "broken.yaml"], ["--host", "192.0.2.1"]):
        done = run(folder, "serve", *words)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        told = json.loads(line)
        assert told["event"] == "start_refused"
        assert told["level"] == "error"
        assert told["timestamp"]


def test_the_development_issuer_refuses_an_address_that_others_reach(folder: Path) -> None:
    done = run(folder, "serve", "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    assert "--allow-dev-issuer" in json.loads(done.stderr)["message"]


def test_help_and_version_are_answers(folder: Path) -> None:
    assert run(folder, "--version").stdout.startswith("mcpmux ")
    for words in (["--help"], ["serve", "--help"], ["token", "--help"], ["access", "--help"]):
        done = run(folder, *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert "--config" in done.stdout


def test_a_reader_that_leaves_gets_no_traceback(folder: Path) -> None:
    process = subprocess.Popen(
        [program(), "check"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.wait(10)
    process.stderr.close()
