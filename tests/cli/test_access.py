"""The `access` commands as people and scripts call them: real processes, a real database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from mcpmux.access import rows
from mcpmux.catalog.items import Offer, read_items
from mcpmux.catalog.kept import keep, kept_bytes
from mcpmux.cli.main import parser
from mcpmux.config.load import load
from mcpmux.config.schema import Overrides
from mcpmux.errors import UsageWrong
from mcpmux.protocol.events import Offered
from mcpmux.seal import keyring
from mcpmux.store import Database

MAIN = "import sys; from mcpmux.cli.main import main; sys.argv[0] = 'mcpmux'; sys.exit(main())"

SERVERS = """
servers:
  github:
    transport: http
    url: https://example.com/mcp
    tools: {deny: ["delete_*"]}
  jira: {transport: http, url: "https://example.com/jira"}
  bare: {transport: http, url: "https://example.com/b", headers: {Authorization: "Bearer ${env:MCPMUX_TEST_UNSET}"}}
  old: {transport: http, url: "https://example.com/old", enabled: false}
"""


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


Access = Callable[..., Awaitable[Done]]


def process(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command as its users run it."""
    command = [sys.executable, "-c", MAIN, "access", *words, "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])


@pytest.fixture
def config(tmp_path: Path, database_url: str) -> Path:
    path = tmp_path / "servers.yaml"
    section = {"data_dir": str(tmp_path / "data"), "database": {"url": database_url}}
    path.write_text(f"gateway: {json.dumps(section)}\n{SERVERS}")
    return path


@pytest.fixture
def access(config: Path, capsys: pytest.CaptureFixture[str]) -> Access:
    """The commands in this process: a second of start-up less for each."""

    async def run(*words: str) -> Done:
        arguments = parser().parse_args(["access", *words])
        code = await arguments.run(arguments, load(config, dict(os.environ), overrides=Overrides()))
        return Done(code, *capsys.readouterr())

    return run


def explained(done: Done | subprocess.CompletedProcess[str]) -> dict[str, object]:
    found = json.loads(done.stdout)
    assert {"allowed", "level", "tenant", "chain"} <= set(found)
    assert isinstance(found, dict)
    return found


async def test_granting_explaining_and_revoking_a_person(access: Access) -> None:
    assert (await access("explain", "ana@example.com", "github")).returncode == 1
    done = await access("grant-user", "Ana@Example.COM", "github")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "user ana@example.com has tenant github at level write\n"
    done = await access("explain", "ANA@example.com", "github", "--json")
    found = explained(done)
    assert (done.returncode, found["allowed"], found["level"], found["tenant"]) == (0, True, "write", "github")
    assert (await access("revoke-user", "ana@EXAMPLE.com", "github")).returncode == 0
    assert (await access("explain", "ana@example.com", "github")).returncode == 1
    done = await access("revoke-user", "ana@example.com", "github")
    assert (done.returncode, done.stdout) == (1, "user ana@example.com has no grant of tenant github\n")


async def test_granting_again_replaces_the_level(access: Access) -> None:
    for level in ("admin", "read"):
        assert (await access("grant-group", "MCP-GitHub", "github", "--level", level)).returncode == 0
    listed = json.loads((await access("list", "--json")).stdout)
    assert listed["groups"] == [{"group": "MCP-GitHub", "tenant": "github", "level": "read"}]


async def test_groups_are_exactly_those_that_are_given(access: Access) -> None:
    await access("grant-group", "MCP-GitHub", "github")
    done = await access("explain", "ana@example.com", "github", "--json")
    assert done.returncode == 1
    assert any("groups are unknown" in step for step in explained(done)["chain"])  # type: ignore[attr-defined]
    assert (await access("explain", "ana@example.com", "github", "--group", "mcp-github")).returncode == 1
    done = await access("explain", "ana@example.com", "github", "--group", "Staff", "--group", "MCP-GitHub", "--json")
    assert done.returncode == 0
    assert any("group MCP-GitHub" in step for step in explained(done)["chain"])  # type: ignore[attr-defined]
    assert (await access("revoke-group", "MCP-GitHub", "github")).returncode == 0
    assert (await access("revoke-group", "MCP-GitHub", "github")).returncode == 1


@pytest.mark.parametrize(("server", "code"), [("jira", 0), ("old", 1), ("nowhere", 1)])
async def test_administrators_may_use_what_is_there_and_enabled(access: Access, server: str, code: int) -> None:
    assert (await access("explain", "root@example.com", server, "--group", "MCP-Admin")).returncode == code


async def test_what_is_missing_for_a_server_to_start_is_said_but_denies_nothing(access: Access) -> None:
    done = await access("explain", "root@example.com", "bare", "--group", "MCP-Admin")
    assert done.returncode == 0
    assert "MCPMUX_TEST_UNSET" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["grant-user", "not-an-address", "github"],
        ["grant-user", "ana@b@c", "github"],
        ["grant-user", "an\u0430@example.com\u200b", "github"],
        ["grant-user", "ana@example.com", ""],
        ["grant-user", "ana@example.com", "git\x1bhub"],
        ["grant-user", "ana@example.com", " github"],
        ["grant-user", "ana@example.com", "github", "--level", "god"],
        ["grant-user", "ana@example.com"],
        ["grant-group", "", "github"],
        ["grant-group", "MCP-GitHub ", "github"],
        ["grant-group", "MCP\u200b-GitHub", "github"],
        ["grant-group", "x" * 300, "github"],
        ["tenant-add", "eng", "github", "--tool", ""],
        ["explain", "nobody", "github"],
        ["explain", "ana@example.com"],
        ["lst"],
        [],
    ],
)
async def test_wrong_use_is_refused_before_the_database_is_touched(tmp_path: Path, words: list[str]) -> None:
    config = tmp_path / "servers.yaml"
    config.write_text(f"gateway: {json.dumps({'data_dir': str(tmp_path / 'data')})}\n{SERVERS}")
    snapshot = load(config, dict(os.environ), overrides=Overrides())
    with pytest.raises(UsageWrong) as refused:
        arguments = parser().parse_args(["access", *words])
        await arguments.run(arguments, snapshot)
    assert all(line.isprintable() for line in str(refused.value).splitlines())
    assert not (tmp_path / "data").exists()


def test_wrong_use_ends_with_two_and_one_line(config: Path) -> None:
    done = process(config, "grant-user", "not-an-address", "github")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mcpmux: 'not-an-address' is no e-mail address that a token could have\n"


async def test_an_unknown_or_disabled_tenant_is_kept_with_a_warning(access: Access) -> None:
    done = await access("grant-user", "ana@example.com", "later")
    assert done.returncode == 0
    assert "no server or tenant later" in done.stderr
    assert "disabled" in (await access("grant-group", "G", "old")).stderr
    assert "anyway" in (await access("grant-group", "MCP-Admin", "github")).stderr
    done = await access("list", "--json")
    assert {"email": "ana@example.com", "tenant": "later", "level": "write"} in json.loads(done.stdout)["users"]
    assert "later" in done.stderr
    assert (await access("grant-group", "G", "github")).stderr == ""


async def test_a_tenant_of_several_servers_and_of_some_of_their_tools(access: Access) -> None:
    assert (await access("tenant-add", "eng", "jira")).returncode == 0
    assert (await access("tenant-add", "eng", "github", "--tool", "get_*", "--tool", "list_*")).returncode == 0
    assert (await access("grant-group", "Engineers", "eng")).stderr == ""
    as_engineer = ("--group", "Engineers", "--json")
    found = explained(await access("explain", "ana@example.com", "github", "get_issue", *as_engineer))
    assert (found["allowed"], found["tenant"]) == (True, "eng")
    assert not explained(await access("explain", "ana@example.com", "github", "create_issue", *as_engineer))["allowed"]
    assert explained(await access("explain", "ana@example.com", "jira", "create_issue", *as_engineer))["allowed"]
    listed = await access("list")
    assert [line.split() for line in listed.stdout.splitlines()] == [
        ["group", "Engineers", "eng", "write"],
        ["tenant", "eng", "github", "get_*,", "list_*"],
        ["tenant", "eng", "jira", "*"],
    ]
    assert (await access("tenant-remove", "eng", "jira")).returncode == 0
    assert (await access("tenant-remove", "eng", "jira")).returncode == 1
    assert (await access("explain", "ana@example.com", "jira", "--group", "Engineers")).returncode == 1


async def test_old_rows_that_no_token_matches_are_pointed_out_and_can_be_revoked(
    access: Access, database: Database
) -> None:
    await rows.grant_user(database, "Ana@Example.com", "github", "write")
    done = await access("list")
    assert "no token matches Ana@Example.com" in done.stderr
    assert (await access("revoke-user", "Ana@Example.com", "github")).returncode == 0
    assert (await rows.listing(database)).users == ()


async def test_what_others_wrote_into_the_tables_moves_no_cursor(access: Access, database: Database) -> None:
    await rows.grant_group(database, "evil\x1b[2J\n\u202egroup", "github", "write")
    done = await access("list")
    assert done.returncode == 0
    assert all(line.isprintable() for line in (done.stdout + done.stderr).splitlines())


async def test_explain_knows_what_the_tools_say_of_themselves(access: Access, config: Path, database: Database) -> None:
    snapshot = load(config, dict(os.environ), overrides=Overrides())
    server = snapshot.servers["github"]
    tools = [
        {"name": "get_issue", "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}},
        {"name": "create_issue", "inputSchema": {"type": "object"}},
    ]
    items = read_items(Offered.TOOLS, "github", [msgspec.json.encode(tool) for tool in tools], 56).items
    digest = keyring(snapshot.gateway.data_dir, ()).digest("offer", server.section)

    async def explain(tool: str) -> tuple[int, str]:
        done = await access("explain", "ana@example.com", "github", tool)
        return done.returncode, done.stdout

    await rows.grant_user(database, "ana@example.com", "github", "read")
    code, said = await explain("get_issue")
    assert (code, "is not known" in said) == (1, True)
    await keep(database, "github", digest, kept_bytes(Offer("github", {Offered.TOOLS: items}, {}, None, None, 1)))
    code, said = await explain("get_issue")
    assert (code, "it is marked readOnlyHint" in said) == (0, True)
    code, said = await explain("create_issue")
    assert (code, "marked readOnlyHint, and create_issue is not" in said) == (1, True)
    await rows.grant_user(database, "ana@example.com", "github", "write")
    assert (await explain("create_issue"))[0] == 0
    code, said = await explain("no_such_tool")
    assert (code, "no tool no_such_tool when it was last seen" in said) == (1, True)
    code, said = await explain("Delete_everything")
    assert (code, "deny pattern delete_* matches" in said) == (1, True)


def test_on_a_fresh_data_directory_the_first_command_makes_the_database(data_dir: Path) -> None:
    config = data_dir.parent / "servers.yaml"
    config.write_text(f"gateway: {json.dumps({'data_dir': str(data_dir)})}\n{SERVERS}")
    assert process(config, "grant-user", "ana@example.com", "github", "--level", "read").returncode == 0
    done = process(config, "explain", "ana@example.com", "github", "--json")
    assert (done.returncode, explained(done)["level"]) == (0, "read")
    assert process(config, "explain", "ana@example.com", "jira").returncode == 1


def test_without_a_database_there_is_one_clear_line(tmp_path: Path) -> None:
    config = tmp_path / "servers.yaml"
    section = {"data_dir": str(tmp_path / "data"), "database": {"url": "postgresql://u:hunter2@127.0.0.1:9/x"}}
    config.write_text(f"gateway: {json.dumps(section)}\n{SERVERS}")
    done = process(config, "list")
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "hunter2" not in done.stderr
