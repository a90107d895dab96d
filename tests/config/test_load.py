"""The contract of `servers.yaml`: its shape, units and defaults, what is derived from it, and what it may refer to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mcpmux.config.load import config_path, data_dir_in, environment, load, read
from mcpmux.config.schema import Overrides, ToolRules
from mcpmux.errors import ConfigInvalid
from mcpmux.seal import Secret
from tests.config.reading import problems_of, server_of, snapshot_of, written

WHOLE = """
gateway:
  listen: {host: 0.0.0.0, port: 9000}
  data_dir: /srv/mcpmux
  public_url: https://mcp.example.com
  keys: ["${env:KEY}"]
  database: {url: "postgresql://u:${env:PASSWORD}@db/mux"}
  identity:
    issuers:
      - {issuer: "https://login.microsoftonline.com/d/v2.0", audiences: [client, "api://mcpmux"], trust_email: true}
      - issuer: http://localhost:9999/
        audiences: [x]
        metadata: http://127.0.0.1:9999/keys
        kind: oidc
        groups: names
        algorithms: [ES256]
  cors: {origins: ["https://chat.example.com", "http://localhost:3000"]}
  metrics: {public: false}
  limits: {body: 4MiB, upstream_message: 16MiB, sessions_per_user: 7, session_idle: 30m, drain: 1.5s, starts: 2}
  names: {max_length: 60}
servers:
  filesystem:
    title: Files
    enabled: true
    transport: stdio
    command: [npx, -y, "@modelcontextprotocol/server-filesystem@2026.8.31", .]
    env: {EXAMPLE: "${env:EXAMPLE}"}
    cwd: work
    isolation: shared
    timeout: 90s
    concurrency: 8
    tools: {allow: ["read_*"], deny: ["delete_*"]}
    tags: [dev]
  grafana:
    transport: http
    url: https://grafana.example.com/mcp
    headers: {Authorization: "Bearer ${file:SECRET_FILE}"}
"""


def test_every_field_of_the_contract_is_read_in_its_unit(tmp_path: Path) -> None:
    secret = tmp_path / "grafana"
    secret.write_text("glsa_1\n")
    environ = {"KEY": "k" * 32, "PASSWORD": "pw", "EXAMPLE": "e"}
    snapshot = snapshot_of(tmp_path, WHOLE.replace("SECRET_FILE", str(secret)), environ)

    gateway = snapshot.gateway
    assert (gateway.listen.host, gateway.listen.port) == ("0.0.0.0", 9000)
    assert gateway.data_dir == Path("/srv/mcpmux")
    assert gateway.public_url == "https://mcp.example.com"
    assert gateway.keys == (Secret("k" * 32),)
    assert gateway.database.url == Secret("postgresql://u:pw@db/mux")
    entra, local = gateway.identity.issuers
    assert entra.audiences == ("client", "api://mcpmux")
    assert entra.trust_email
    assert entra.kind is None
    assert entra.algorithms == ("RS256",)
    assert (local.kind, local.groups, local.algorithms) == ("oidc", "names", ("ES256",))
    assert gateway.cors.origins == ("https://chat.example.com", "http://localhost:3000")
    assert not gateway.metrics.public
    limits = gateway.limits
    assert (limits.body, limits.upstream_message, limits.sessions_per_user) == (4 * 2**20, 16 * 2**20, 7)
    assert (limits.session_idle, limits.drain, limits.starts) == (1800.0, 1.5, 2)
    assert gateway.names.max_length == 60

    files = snapshot.servers["filesystem"]
    assert files.command == ("npx", "-y", "@modelcontextprotocol/server-filesystem@2026.8.31", ".")
    assert files.env == {"EXAMPLE": Secret("e")}
    assert files.cwd == Path.cwd() / "work"
    assert (files.timeout, files.concurrency, files.tags) == (90.0, 8, ("dev",))
    assert files.tools == ToolRules(allow=("read_*",), deny=("delete_*",))
    grafana = snapshot.servers["grafana"]
    assert grafana.url == "https://grafana.example.com/mcp"
    assert grafana.headers["Authorization"].reveal() == "Bearer glsa_1"
    assert list(snapshot.servers) == ["filesystem", "grafana"]


def test_a_file_that_says_nothing_has_the_defaults_of_the_contract(tmp_path: Path) -> None:
    snapshot = snapshot_of(tmp_path, "gateway:\nservers:\n  one:\n    command: [x]\n")

    gateway = snapshot.gateway
    assert (gateway.listen.host, gateway.listen.port) == ("127.0.0.1", 8090)
    assert gateway.data_dir == Path.cwd() / "data"
    assert (gateway.public_url, gateway.keys, gateway.database.url) == (None, (), None)
    assert (gateway.identity.issuers, gateway.cors.origins, gateway.metrics.public) == ((), (), True)
    limits = gateway.limits
    assert (limits.body, limits.upstream_message, limits.sessions_per_user) == (4 * 2**20, 16 * 2**20, 1024)
    assert (limits.session_idle, limits.drain, limits.starts) == (1800.0, 20.0, 4)
    assert gateway.names.max_length == 56
    one = snapshot.servers["one"]
    assert (one.title, one.enabled, one.transport, one.isolation) == ("one", True, "stdio", "shared")
    assert (one.timeout, one.concurrency, one.links) == (60.0, 32, 4)
    assert one.tools == ToolRules(allow=("*",), deny=())
    assert (one.cwd, one.url, dict(one.env), dict(one.headers)) == (None, None, {}, {})
    assert not one.unconfigured


def test_the_data_directory_follows_its_variable_also_when_the_file_does_not_name_it(tmp_path: Path) -> None:
    environ = {"MCPMUX_DATA_DIR": "/srv/data"}
    assert snapshot_of(tmp_path, "servers: {}", environ).gateway.data_dir == Path("/srv/data")


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    overrides = Overrides(host="::1", port=0, data_dir=Path("elsewhere"))
    gateway = snapshot_of(tmp_path, WHOLE.partition("  public_url")[0], overrides=overrides).gateway
    assert (gateway.listen.host, gateway.listen.port) == ("::1", 0)
    assert gateway.data_dir == Path.cwd() / "elsewhere"


@pytest.mark.parametrize("overrides", [Overrides(host="http://x"), Overrides(port=70_000), Overrides(port=-1)])
def test_a_bad_override_is_refused_by_the_name_of_its_option(tmp_path: Path, overrides: Overrides) -> None:
    with pytest.raises(ConfigInvalid, match="--host" if overrides.host else "--port"):
        snapshot_of(tmp_path, "servers: {}", overrides=overrides)


def test_an_unset_variable_makes_its_server_unconfigured_and_nothing_else(tmp_path: Path) -> None:
    snapshot = snapshot_of(
        tmp_path,
        """
servers:
  github: {transport: http, url: "https://x/mcp", headers: {Authorization: "Bearer ${env:TOKEN}", X: "${env:TOKEN}"}}
  remote: {transport: http, url: "${env:BASE}/mcp", headers: {A: "${file:/nowhere/at/all}"}, concurrency: "${env:N}"}
  local: {command: [x]}
""",
    )
    github, remote, local = snapshot.servers.values()
    assert github.unconfigured
    assert github.missing == ("TOKEN",)
    assert github.why_unconfigured == "not set: TOKEN"
    assert remote.missing == ("BASE", "/nowhere/at/all", "N")
    assert not local.unconfigured


@pytest.mark.parametrize("value", [None, ""])
def test_an_empty_variable_counts_as_unset(tmp_path: Path, value: str | None) -> None:
    environ = {} if value is None else {"T": value}
    assert server_of(tmp_path, "command: [x], env: {T: '${env:T}'}", environ).missing == ("T",)
    assert server_of(tmp_path, "command: [x], env: {T: '${env:T:-d}'}", environ).env["T"].reveal() == "d"
    assert server_of(tmp_path, "command: [x], env: {T: '${env:T:-}'}", environ).env["T"].reveal() == ""


def test_references_fill_numbers_and_truth_values_too(tmp_path: Path) -> None:
    environ = {"N": "5", "T": "2m", "ON": "false", "KIND": "http"}
    one = server_of(
        tmp_path,
        "transport: '${env:KIND}', url: 'http://x/', concurrency: '${env:N}', timeout: '${env:T}', "
        "enabled: '${env:ON}'",
        environ,
    )
    assert (one.concurrency, one.timeout, one.enabled, one.transport) == (5, 120.0, False, "http")


def test_a_doubled_dollar_is_a_literal_one(tmp_path: Path) -> None:
    one = server_of(tmp_path, "command: [sh, -c, 'echo $${HOME} $HOME $$ $']")
    assert one.command[2] == "echo ${HOME} $HOME $$ $"


def test_a_wrong_value_from_outside_the_file_stops_only_its_server(tmp_path: Path) -> None:
    environ = {"URL": "not a url hunter2", "H": "line\nbreak hunter2", "N": "many"}
    fields = "transport: http, url: '${env:URL}', headers: {A: '${env:H}'}, concurrency: '${env:N}'"
    one = server_of(tmp_path, fields, environ)
    assert one.unconfigured
    assert one.missing == ()
    assert one.reason is not None
    for place in ("url: not a URL", "headers.A: a header value with a line break", "concurrency: "):
        assert place in one.reason
    assert "hunter2" not in one.reason


@pytest.mark.parametrize("kind", ["folder", "huge", "binary", "pipe"])
def test_a_secret_file_that_cannot_be_used_says_why(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "secret"
    match kind:
        case "folder":
            path.mkdir()
        case "huge":
            path.write_bytes(b"x" * 70_000)
        case "binary":
            path.write_bytes(b"\xff\xfe")
        case "pipe":
            os.mkfifo(path)
    one = server_of(tmp_path, f"command: [x], env: {{T: '${{file:{path}}}'}}")
    assert one.reason is not None
    assert one.reason.startswith(f"env.T: the file {path} cannot be used (")


@pytest.mark.parametrize("isolation", ["tenant", "user"])
def test_an_isolation_that_is_not_built_is_never_silently_shared(tmp_path: Path, isolation: str) -> None:
    one = server_of(tmp_path, f"command: [x], isolation: {isolation}")
    assert one.unconfigured
    assert one.why_unconfigured == f"isolation '{isolation}' is not built yet"


def test_what_is_built_says_how_many_links_there_are(tmp_path: Path) -> None:
    pooled = server_of(tmp_path, "command: [x], isolation: pooled, links: 2")
    assert (pooled.unconfigured, pooled.links) == (False, 2)
    apart = server_of(tmp_path, "command: [x], isolation: session, max_links: 8, idle: 5m")
    assert (apart.unconfigured, apart.max_links, apart.idle) == (False, 8, 300.0)
    usual = server_of(tmp_path, "command: [x], isolation: session")
    assert (usual.links, usual.max_links, usual.idle) == (4, 64, 600.0)


def test_the_link_stays_when_only_the_bounds_of_links_change(tmp_path: Path) -> None:
    one = server_of(tmp_path, "command: [x], isolation: session")
    assert server_of(tmp_path, "command: [x], isolation: session, max_links: 8, idle: 5m").section == one.section
    pool = server_of(tmp_path, "command: [x], isolation: pooled")
    assert server_of(tmp_path, "command: [x], isolation: pooled, links: 8").section != pool.section


def test_an_unset_reference_under_gateway_is_an_error(tmp_path: Path) -> None:
    found = problems_of(tmp_path, 'gateway:\n  database: {url: "${env:DB}"}\n  keys: ["${file:/no/key}"]\n')
    assert found == [
        "servers.yaml:2:14: gateway.database.url: the variable DB is not set or empty, "
        "expected a value: the gateway needs it",
        "servers.yaml:3:10: gateway.keys[0]: the file /no/key is not set or empty, "
        "expected a value: the gateway needs it",
    ]


def test_the_restart_digest_is_of_the_gateway_alone(tmp_path: Path) -> None:
    def digest(text: str, environ: dict[str, str] | None = None) -> bytes:
        return snapshot_of(tmp_path, text, environ).restart_digest

    base = digest("servers: {}")
    assert digest("# said\ngateway: {listen: {port: 8090}}\nservers: {a: {command: [x]}}") == base
    assert digest("gateway: {listen: {port: 8091}}") != base
    keys = 'gateway: {keys: ["${env:K}"]}'
    assert digest(keys, {"K": "a" * 32}) != digest(keys, {"K": "b" * 32})


def test_the_section_of_a_server_changes_only_with_what_its_link_is_made_of(tmp_path: Path) -> None:
    base = server_of(tmp_path, "command: [x], env: {A: '1'}")
    for same in ("title: T", "timeout: 5s", "concurrency: 2", "tags: [a]", "tools: {deny: [x]}", "enabled: false"):
        one = server_of(tmp_path, f"command: [x], env: {{A: '1'}}, {same}")
        assert one.section == base.section, same
        assert one != base, same
    for other in ("command: [y], env: {A: '1'}", "command: [x], env: {A: '2'}", "command: [x], env: {A: '1'}, cwd: /"):
        assert server_of(tmp_path, other).section != base.section, other
    assert server_of(tmp_path, "env: {A: '1'}, command: [x]") == base


def test_no_secret_shows_in_what_is_printed_of_a_snapshot(tmp_path: Path) -> None:
    environ = {"T": "hunter2", "K": "hunter2" * 6, "U": "https://x/hunter2"}
    snapshot = snapshot_of(
        tmp_path,
        """
gateway: {keys: ["${env:K}"], database: {url: "postgresql://u:${env:T}@h/d"}}
servers:
  a: {command: [x, "${env:T}"], env: {T: "${env:T}"}}
  b: {transport: http, url: "${env:U}", headers: {A: "${env:T}"}}
""",
        environ,
    )
    assert b"hunter2" in snapshot.servers["a"].section
    assert "hunter2" not in repr(snapshot)
    assert "hunter2" not in str(snapshot.servers["b"])


def test_a_reading_names_the_files_to_watch_also_when_it_fails(tmp_path: Path) -> None:
    path = written(tmp_path, "gateway: {keys: ['${file:k.txt}']}\nservers: {a: {command: ['${file:/x/y}'], bad: 1}}")
    reading = read(path, {}, overrides=Overrides())
    assert isinstance(reading.outcome, ConfigInvalid)
    assert reading.files == {Path.cwd() / "k.txt", Path("/x/y")}


def test_the_config_file_is_found_by_option_then_variable_then_default() -> None:
    assert config_path("a.yaml", {"MCPMUX_CONFIG": "b.yaml"}) == Path("a.yaml")
    assert config_path(None, {"MCPMUX_CONFIG": "b.yaml"}) == Path("b.yaml")
    assert config_path(None, {"MCPMUX_CONFIG": ""}) == Path("config/servers.yaml")


def test_the_environment_is_read_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCPMUX_TEST_VARIABLE", "1")
    assert environment()["MCPMUX_TEST_VARIABLE"] == "1"


def test_the_data_directory_is_known_of_a_file_that_is_broken(tmp_path: Path) -> None:
    broken = "gateway:\n  data_dir: ${env:D:-/srv/x} # here\n  listen: [\n"
    assert data_dir_in(written(tmp_path, broken), {}) == Path("/srv/x")
    assert data_dir_in(written(tmp_path, broken), {"D": "/srv/y"}) == Path("/srv/y")
    assert data_dir_in(written(tmp_path, "{"), {}) == Path.cwd() / "data"
    assert data_dir_in(tmp_path / "absent", {"MCPMUX_DATA_DIR": "/srv/z"}) == Path("/srv/z")


def test_the_path_of_a_snapshot_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "servers: {}")
    monkeypatch.chdir(tmp_path)
    assert load(Path("servers.yaml"), {}).path == tmp_path / "servers.yaml"
