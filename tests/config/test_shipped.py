"""The `config/servers.yaml` that we ship: real, pinned, grouped, and harmless on a first run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mcpmux.config.load import load
from mcpmux.config.schema import VARIABLE_PATTERN, Snapshot

SHIPPED = Path(__file__).parents[2] / "config" / "servers.yaml"
TEXT = SHIPPED.read_text()

READY = {"filesystem", "everything", "memory", "sequential-thinking", "git", "time", "fetch"}
EXACT = READY | {
    "github",
    "atlassian",
    "datadog",
    "grafana",
    "snyk",
    "gitlab",
    "sentry",
    "slack",
    "notion",
    "kubernetes",
}

# `name@1.2`, `@scope/name@1.2`, `name==1.2`; what `--with` holds back has an upper bound instead.
PIN = re.compile(r"(@?[a-z0-9][\w./-]*@\d[\w.+-]*|[a-z0-9][\w.-]*==\d[\w.+]*)", re.IGNORECASE)


@pytest.fixture(scope="module")
def fresh() -> Snapshot:
    """As on a machine where nothing is set."""
    return load(SHIPPED, {})


@pytest.fixture(scope="module")
def complete() -> Snapshot:
    """As where every variable that the file names is set."""
    names = set(re.findall(r"\$\{env:(\w+)\}", TEXT))
    values = {name: "https://example.com" if name.endswith("_URL") else "value.example" for name in names}
    return load(SHIPPED, values)


def test_there_are_enough_servers_for_a_company_and_their_ids_are_exact(fresh: Snapshot) -> None:
    assert len(fresh.servers) >= 75
    assert fresh.servers.keys() >= EXACT


def test_on_a_first_run_exactly_the_light_ones_without_credentials_start(fresh: Snapshot) -> None:
    assert {id_ for id_, server in fresh.servers.items() if server.enabled and not server.unconfigured} == READY
    assert not any("${env:" in entry_of(id_) for id_ in READY)


def test_every_other_enabled_server_names_the_variables_that_it_misses(fresh: Snapshot) -> None:
    others = [server for server in fresh.servers.values() if server.enabled and server.id not in READY]
    assert len(others) >= 60
    for server in others:
        assert server.missing, server.id
        assert server.reason is None, server.id
        assert all(re.fullmatch(VARIABLE_PATTERN, name) for name in server.missing), server.id
    assert fresh.servers["github"].missing == ("GITHUB_TOKEN",)


def test_they_start_once_the_variables_are_set(complete: Snapshot) -> None:
    for server in complete.servers.values():
        if server.enabled:
            assert not server.unconfigured, (server.id, server.why_unconfigured)
            assert server.isolation == "shared", server.id


def test_what_needs_an_isolation_that_is_not_built_is_off_and_never_shared(complete: Snapshot) -> None:
    kept_apart = {id_ for id_, server in complete.servers.items() if server.isolation in ("user", "tenant")}
    assert {"ms365", "google-workspace"} <= kept_apart
    assert not any(complete.servers[id_].enabled for id_ in kept_apart)
    assert all(complete.servers[id_].unconfigured for id_ in kept_apart)


def test_a_browser_is_one_session_s_alone(complete: Snapshot) -> None:
    for name in ("playwright", "chrome-devtools"):
        assert complete.servers[name].isolation == "session"
        assert not complete.servers[name].unconfigured


def test_only_what_needs_no_credentials_or_is_kept_apart_is_off(complete: Snapshot) -> None:
    for server in complete.servers.values():
        if not server.enabled:
            assert "${env:" not in entry_of(server.id) or server.isolation != "shared", server.id


def test_every_package_is_pinned(complete: Snapshot) -> None:
    for server in complete.servers.values():
        if server.transport == "stdio":
            assert server.command[0] in ("npx", "uvx"), server.id
            packages = _packages(server.command)
            assert packages, server.id
            assert all(PIN.fullmatch(package) for package in packages), (server.id, packages)


def _packages(command: tuple[str, ...]) -> list[str]:
    """What npx or uvx is told to install; what `--with` holds back is no package of its own."""
    named = [argument.removeprefix("--package=") for argument in command if argument.startswith("--package=")]
    if named:
        return named
    if "--from" in command:
        return [command[command.index("--from") + 1]]
    rest = list(command[1:])
    while rest[0].startswith("-"):
        del rest[: 1 if rest[0] == "-y" else 2]
    return rest[:1]


def test_npx_never_asks_and_never_waits_for_an_answer(complete: Snapshot) -> None:
    assert all("-y" in server.command for server in complete.servers.values() if server.command[:1] == ("npx",))


def test_remote_servers_are_reached_by_https_with_a_credential_from_outside(complete: Snapshot) -> None:
    remote = [server for server in complete.servers.values() if server.transport != "stdio"]
    assert len(remote) >= 15
    for server in remote:
        assert (server.url or "").startswith("https://"), server.id
        assert server.headers or not server.enabled, server.id
        for value in server.headers.values():
            assert "value.example" in value.reveal(), server.id


def test_no_value_of_a_credential_stands_in_the_file(complete: Snapshot) -> None:
    for server in complete.servers.values():
        for name, value in server.env.items():
            if re.search(r"TOKEN|SECRET|PASS|KEY", name):
                assert "value.example" in value.reveal(), (server.id, name)


def test_every_server_has_a_title_and_tags_and_stands_under_a_heading(fresh: Snapshot) -> None:
    for server in fresh.servers.values():
        assert "    title: " in entry_of(server.id), server.id
        assert server.tags, server.id
    headings = re.findall(r"^  # (\w[\w ]+) -{20,}$", TEXT, re.MULTILINE)
    assert len(headings) >= 9
    assert len(set(headings)) == len(headings)


def test_titles_are_told_apart(fresh: Snapshot) -> None:
    titles = [server.title for server in fresh.servers.values()]
    assert len(set(titles)) == len(titles)


def test_the_gateway_section_shows_the_defaults(fresh: Snapshot, tmp_path: Path) -> None:
    nothing = tmp_path / "servers.yaml"
    nothing.write_text("servers: {}\n")
    assert fresh.gateway == load(nothing, {}).gateway
    assert fresh.restart_digest == load(nothing, {}).restart_digest


def test_the_servers_for_aws_take_one_account_under_the_usual_names(fresh: Snapshot) -> None:
    aws = [server for id_, server in fresh.servers.items() if id_.startswith("aws-") and server.enabled]
    assert len(aws) >= 8
    assert {server.missing for server in aws} == {("AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}


def entry_of(id_: str) -> str:
    """The lines of one server, as they stand in the file."""
    found = re.search(rf"^  {id_}:\n((?:    .*\n)+)", TEXT, re.MULTILINE)
    assert found is not None, id_
    return found.group(1)
