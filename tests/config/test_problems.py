"""What a wrong file is told: each problem at its line and column, all at once, and never a secret."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcpmux.config.load import load, read
from mcpmux.config.schema import Overrides
from mcpmux.errors import ConfigInvalid
from tests.config.reading import problems_of, written

BROKEN = """\
gatway: {}
gateway:
  listen: {host: "http://x", port: 99999}
  keys: [short]
  identity:
    issuers:
      - {issuer: http://login.example.com/x, audiences: []}
  cors: {origins: ["*"]}
  limits: {body: 4 apples, drain: yes, starts: 0, sessions_per_user: many}
servers:
  file_system: {command: [x]}
  a:
    comand: [x]
    args: [x]
    timeout: 0s
    enabled: yes
  b:
    transport: http
    command: [x]
    headers: {host: x, A: "a\\nb", a: c}
  a: {command: [x]}
"""


def test_all_problems_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    assert problems_of(tmp_path, BROKEN) == [
        "servers.yaml:1:1: gatway: unknown key, did you mean `gateway`?",
        "servers.yaml:3:12: gateway.listen.host: not a host, expected a name or an address without scheme, port or "
        "brackets",
        "servers.yaml:3:30: gateway.listen.port: too large, expected at most 65535",
        "servers.yaml:4:10: gateway.keys[0]: a key of under 32 bytes, expected for example the output of: "
        "openssl rand -base64 32",
        "servers.yaml:7:10: gateway.identity.issuers[0].issuer: plain http, expected https (http is for loopback "
        "hosts only)",
        "servers.yaml:7:46: gateway.identity.issuers[0].audiences: an empty list, expected 1 or more entries",
        "servers.yaml:8:20: gateway.cors.origins[0]: every origin, expected them one by one: requests carry "
        "credentials",
        "servers.yaml:9:12: gateway.limits.body: text, expected a size such as 4MiB",
        "servers.yaml:9:28: gateway.limits.drain: text, expected a duration such as 60s or 30m",
        "servers.yaml:9:40: gateway.limits.starts: too small, expected at least 1",
        "servers.yaml:9:51: gateway.limits.sessions_per_user: text, expected a whole number",
        "servers.yaml:11:3: servers.file_system: not a name that can stand here, expected a lower-case letter, then "
        "up to 23 of a-z, 0-9 and -",
        "servers.yaml:12:3: servers.a.command: missing, expected it for transport stdio",
        "servers.yaml:13:5: servers.a.comand: unknown key, did you mean `command`?",
        "servers.yaml:14:5: servers.a.args: unknown key, expected the arguments in `command`, behind the program",
        "servers.yaml:15:5: servers.a.timeout: too small, expected more than 0s",
        "servers.yaml:16:5: servers.a.enabled: text, expected true or false",
        "servers.yaml:17:3: servers.b.url: missing, expected it for transport http",
        "servers.yaml:19:5: servers.b.command: not for transport http, expected only with stdio",
        "servers.yaml:20:15: servers.b.headers.host: a header that mcpmux sets itself, expected headers of the "
        "server's own",
        "servers.yaml:20:24: servers.b.headers.A: a header value with a line break, control character or space at "
        "its ends, expected one clean line",
        "servers.yaml:21:3: servers.a: given twice, expected once (the first is in line 12)",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1:1: the file is empty, expected `gateway:` and `servers:`"),
        ("# nothing\n", "1:1: the file is empty, expected `gateway:` and `servers:`"),
        ("- a\n", "1:1: not a mapping, expected `gateway:` and `servers:`"),
        ("servers:\n\ta: b\n", "2:1: not good YAML: a tab, expected spaces for indentation"),
        ("servers: [\n", "2:1: not good YAML: expected the node content, but found '<stream end>'"),
        ("servers: {a: b\n", "2:1: not good YAML: expected ',' or '}', but got '<stream end>'"),
        ("a: b: c\n", "1:5: not good YAML: a colon where no key may stand, expected other indentation or quotes"),
        ("a: 'b\n", "2:1: not good YAML: a quote that is never closed, expected it before the end of the file"),
        ("a: 1\n---\nb: 2\n", "2:1: not good YAML: a second YAML document (---), expected one in the file"),
        ("a: \x07\n", "1:4: a control character, expected printable text"),
        ("servers: 5\n", "1:1: servers: not a section, expected server ids with their fields"),
        ("servers: {1: {}}\n", "1:11: servers: a key that is not text, expected a name (quote numbers and true)"),
        ("servers: {[a]: {}}\n", "1:11: servers: a key that is not text, expected a name (quote numbers and true)"),
        ("servers: !!set {a}\n", "1:10: servers: a YAML tag, expected plain values"),
        ("servers: {a: {command: !x [b]}}\n", "1:24: servers.a.command: a YAML tag, expected plain values"),
        ("servers: {a: {<<: {}}}\n", "1:15: servers.a: a merge key (<<), expected the fields themselves"),
        ("servers: {a: [x]}\n", "1:11: servers.a: a list, expected a section with keys"),
    ],
)
def test_bad_syntax_is_pointed_at(tmp_path: Path, text: str, problem: str) -> None:
    found = problems_of(tmp_path, text)
    assert f"servers.yaml:{problem}" in found


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ("", "servers.one.command: missing, expected it for transport stdio"),
        ("command: []", "servers.one.command: missing, expected it for transport stdio"),
        ("command: npx -y x", "servers.one.command: text, expected a list"),
        ("command: ['']", "servers.one.command[0]: an empty program, expected a name or path"),
        ("command: [x, 8080]", "servers.one.command[1]: a number, expected text (quote numbers, true and false)"),
        ("command: [x], url: 'http://x'", "servers.one.url: not for transport stdio, expected only with http or sse"),
        ("command: [x], headers: {}", "servers.one.headers: not for transport stdio, expected only with http or sse"),
        ("transport: http, url: x.com", "servers.one.url: not a URL, expected http:// or https:// with a host"),
        ("transport: sse, url: 'ftp://x'", "servers.one.url: not a URL, expected http:// or https:// with a host"),
        ("transport: http, url: 'http://x:99999/'", "servers.one.url: not a URL"),
        ("transport: http, url: 'http://u:p@x/'", "servers.one.url: user or password in a URL"),
        ("transport: http, url: 'http://x/', cwd: /", "servers.one.cwd: not for transport http"),
        ("transport: http, url: 'http://x/', env: {}", "servers.one.env: not for transport http"),
        ("transport: studio", "servers.one.transport: `studio`, expected one of stdio, http, sse"),
        ("type: http", "servers.one.type: unknown key, expected `transport`"),
        ("disabled: true", "servers.one.disabled: unknown key, expected `enabled: false`"),
        ("Title: x", "servers.one.Title: unknown key, did you mean `title`?"),
        ("command: [x], env: {A: 1}", "servers.one.env.A: a number, expected text"),
        ("command: [x], env: {A: true}", "servers.one.env.A: true or false, expected text"),
        ("command: [x], env: {A: }", "servers.one.env.A: nothing, expected text"),
        ("command: [x], env: {A-B: x}", "servers.one.env.A-B: not a name that can stand here"),
        ("command: [x], env: [A]", "servers.one.env: a list, expected names with values"),
        ("command: [x], timeout: 60 seconds", "servers.one.timeout: text, expected a duration such as 60s or 30m"),
        ("command: [x], timeout: .inf", "servers.one.timeout: a number, expected a duration"),
        ("command: [x], timeout: 25h", "servers.one.timeout: too large, expected at most 86400s"),
        ("command: [x], concurrency: 1.5", "servers.one.concurrency: a number, expected a whole number"),
        ("command: [x], concurrency: true", "servers.one.concurrency: true or false, expected a whole number"),
        ("command: [x], isolation: none", "servers.one.isolation: `none`, expected one of shared, pooled, tenant"),
        ("command: [x], links: 2", "servers.one.links: not for isolation shared, expected only with pooled"),
        ("command: [x], isolation: pooled, links: 0", "servers.one.links: too small, expected at least 1"),
        ("command: [x], isolation: pooled, idle: 1m", "servers.one.idle: not for isolation pooled, expected only with"),
        ("command: [x], isolation: session, idle: 0s", "servers.one.idle: too small, expected at least 1s"),
        ("command: [x], isolation: session, links: 4", "servers.one.links: not for isolation session"),
        ("command: [x], isolation: session, max_links: 0", "servers.one.max_links: too small, expected at least 1"),
        ("command: [x], tools: {allow: }", "servers.one.tools.allow: nothing, expected a list"),
        ("command: [x], tools: {allow: ['a b']}", "servers.one.tools.allow[0]: does not fit, expected a glob pattern"),
        ("command: [x], tools: {denied: []}", "servers.one.tools.denied: unknown key, did you mean `deny`?"),
        ("command: [x], tags: [Two Words]", "servers.one.tags[0]: does not fit, expected up to 32 of a-z"),
        ('command: [x], title: "a\\nb"', "servers.one.title: a line break or control character"),
        ('command: [x], title: "a\\0b"', "servers.one.title: a NUL character"),
        ('command: ["\\ud800"]', "servers.one.command[0]: a NUL character or half a character pair"),
        ("command: ['${HOME}']", "servers.one.command[0]: a reference that is not known, expected ${env:NAME}"),
        ("command: ['${env:}']", "servers.one.command[0]: a reference that is not known"),
        ("command: ['${env:1A}']", "servers.one.command[0]: a reference that is not known"),
        ("command: ['${file:}']", "servers.one.command[0]: a reference that is not known"),
        ("command: ['${env:A:-${env:B}}']", "servers.one.command[0]: a reference not closed or with braces inside"),
        ("command: ['${env:A']", "servers.one.command[0]: a reference not closed"),
        ("transport: http, url: 'http://x', headers: {A: ' b'}", "servers.one.headers.A: a header value with"),
        ("transport: http, url: 'http://x', headers: {A B: c}", "servers.one.headers.(unreadable key): not a name"),
        ("transport: http, url: 'http://x', headers: {A: b, a: c}", "servers.one.headers.a: given twice (case"),
        ("transport: http, url: 'http://x', headers: {Mcp-Session-Id: c}", "servers.one.headers.Mcp-Session-Id: a"),
    ],
)
def test_a_bad_server_is_told_where_and_what_was_expected(tmp_path: Path, fields: str, problem: str) -> None:
    found = problems_of(tmp_path, f"servers:\n  one: {{{fields}}}\n")
    assert any(line.partition(": ")[2].startswith(problem) for line in found), found


@pytest.mark.parametrize("id_", ["A", "1a", "a_b", "a__b", "-a", "a" * 25, "", "ä", "a\nb"])
def test_a_bad_server_id_is_refused(tmp_path: Path, id_: str) -> None:
    quoted = '"' + id_.replace("\n", "\\n") + '"'
    assert "not a name that can stand here" in problems_of(tmp_path, f"servers: {{{quoted}: {{command: [x]}}}}")[0]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ("public_url: mcp.example.com", "gateway.public_url: not a base URL"),
        ("public_url: 'https://x/?a=b'", "gateway.public_url: not a base URL"),
        ("database: {url: 'mysql://x'}", "gateway.database.url: not a PostgreSQL URL"),
        ("listen: {host: '[::1]'}", "gateway.listen.host: not a host"),
        ("listen: {host: ''}", "gateway.listen.host: not a host"),
        ("listen: {port: -1}", "gateway.listen.port: too small, expected at least 0"),
        ("listen: {port: '8090'}", "gateway.listen.port: text, expected a whole number"),
        ("limits: {body: 1}", "gateway.limits.body: too small, expected at least 1KiB"),
        ("limits: {body: 2GiB}", "gateway.limits.body: too large, expected at most 256MiB"),
        ("limits: {body: 4Mb}", "gateway.limits.body: text, expected a size such as 4MiB"),
        ("names: {max_length: 10}", "gateway.names.max_length: too small, expected at least 40"),
        ("cors: {origins: ['null']}", "gateway.cors.origins[0]: not an origin"),
        ("cors: {origins: ['https://x/']}", "gateway.cors.origins[0]: not an origin"),
        ("cors: {origins: ['https://X.com']}", "gateway.cors.origins[0]: not an origin"),
        ("cors: {origins: ['https://*.x.com']}", "gateway.cors.origins[0]: not an origin"),
        ("cors: {origins: }", "gateway.cors.origins: nothing, expected a list"),
        ("data_dir: ''", "gateway.data_dir: an empty path"),
        ("identity: {issuers: }", "gateway.identity.issuers: nothing, expected a list"),
        ("identity: {issuers: [{issuer: 'https://x'}]}", "gateway.identity.issuers[0].audiences: missing, expected:"),
        (
            "identity: {issuers: [{issuer: 'https://x', audiences: [a], algorithms: [HS256]}]}",
            "gateway.identity.issuers[0].algorithms[0]: `HS256`, expected one of RS256",
        ),
        (
            "identity: {issuers: [{issuer: 'https://x?a', audiences: [a]}]}",
            "gateway.identity.issuers[0].issuer: a query",
        ),
        (
            "identity: {issuers: [{issuer: 'https://x', audiences: [a], metadata: 'http://x/'}]}",
            "gateway.identity.issuers[0].metadata: plain http",
        ),
        (
            "identity: {issuers: [{issuer: 'https://x', audiences: [a]}, {issuer: 'https://x', audiences: [b]}]}",
            "gateway.identity.issuers[1]: the same issuer again",
        ),
    ],
)
def test_a_bad_gateway_is_told_where_and_what_was_expected(tmp_path: Path, fields: str, problem: str) -> None:
    found = problems_of(tmp_path, f"gateway: {{{fields}}}\n")
    assert any(line.partition(": ")[2].startswith(problem) for line in found), found


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]"])
def test_an_issuer_on_loopback_may_speak_plain_http(tmp_path: Path, host: str) -> None:
    text = f"gateway: {{identity: {{issuers: [{{issuer: 'http://{host}:8000', audiences: [a]}}]}}}}"
    assert load(written(tmp_path, text), {}).gateway.identity.issuers[0].issuer == f"http://{host}:8000"


@pytest.mark.parametrize("host", ["example.com", "localhost.example.com", "10.0.0.1", "127.0.0.1.nip.io"])
def test_an_issuer_elsewhere_may_not(tmp_path: Path, host: str) -> None:
    text = f"gateway: {{identity: {{issuers: [{{issuer: 'http://{host}:8000', audiences: [a]}}]}}}}"
    assert "plain http" in problems_of(tmp_path, text)[0]


def test_a_missing_file_a_folder_and_foreign_bytes_are_named(tmp_path: Path) -> None:
    for path, text in ((tmp_path / "none.yaml", "the file does not exist"), (tmp_path, "the file cannot be read")):
        with pytest.raises(ConfigInvalid, match=text):
            load(path, {})
    found = problems_of(tmp_path, b"servers:\n  a: {title: \xff}\n")
    assert found == ["servers.yaml:2:14: a byte that is not UTF-8, expected a text file in UTF-8"]


def test_windows_files_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    assert load(written(tmp_path, b"\xef\xbb\xbfservers:\r\n  a: {command: [x]}\r\n"), {}).servers.keys() == {"a"}


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"{c}: &{c} [{','.join(f'*{p}' for _ in range(10))}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "servers: &s {a: *s}\n",
        "servers: &s [*s]\n",
        "a: " + "[" * 5000,
        "servers: " + "{a: " * 200 + "}" * 200,
        "servers:\n" + "  a: b\n" * 200_000,
        "a: " + "9" * 50_000,
    ],
)
def test_a_yaml_bomb_is_refused_quickly(tmp_path: Path, text: str) -> None:
    before = time.process_time()
    assert problems_of(tmp_path, text)
    assert time.process_time() - before < 5


def test_a_file_with_thousands_of_problems_says_how_many_are_left(tmp_path: Path) -> None:
    found = problems_of(tmp_path, "servers:\n" + "".join(f"  A{n}: {{}}\n" for n in range(1000)))
    assert len(found) == 201
    assert "800 more problems" in found[-1]


@pytest.mark.parametrize(
    "text",
    [
        "servers: {a: {transport: http, url: 'http://x', headers: {Authorization: *hunter2}}}",
        "servers: {a: {transport: http, url: 'http://x', headers: {Authorization: !hunter2!x y}}}",
        "servers: {a: {transport: http, url: 'http://x', headers: {Authorization: &hunter2}}}",
        "servers: {a: {transport: http, url: 'http://x', headers: {Authorization: %hunter2}}}",
        "servers: {a: {transport: http, url: 'http://x', headers: {Authorization: 'hunter2}}}",
        "servers: {a: {transport: http, url: 'http://x', headers: {Authorization: \"hunter2\\q\"}}}",
        "servers: {a: {transport: http, url: 'http://x', headers: {Authorization: [hunter2]}}}",
        "servers: {a: {transport: http, url: 'http://x', headers: {'Bearer hunter2': x}}}",
        "servers: {a: {transport: http, url: 'http://u:hunter2@x/'}}",
        "servers: {a: {transport: http, url: 'hunter2'}}",
        "servers: {a: {command: [x], env: {T: 'hunter2${x}'}}}",
        "servers: {a: {command: [x], env: 'hunter2'}}",
        "servers: {a: {command: hunter2}}",
        "gateway: {keys: [hunter2]}",
        "gateway: {keys: hunter2}",
        "gateway: {database: {url: hunter2}}",
        "gateway: {database: hunter2}",
        "gateway: {public_url: hunter2}",
        "gateway: {listen: {port: '${env:SECRET}', host: '${env:SECRET}'}, data_dir: '${env:SECRET}'}",
        "gateway: {identity: {issuers: [{issuer: '${env:SECRET}', kind: '${env:SECRET}', audiences: [a]}]}}",
        "gateway: {cors: {origins: ['${env:SECRET}']}, limits: {body: '${env:SECRET}', drain: '${env:SECRET}'}}",
        "servers: {a: {password hunter2}}",
        "servers:\n  a:\n    env:\n      T: |hunter2\n",
    ],
)
def test_no_message_repeats_what_may_be_a_secret(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    outcome = read(path, {"SECRET": "hunter2 "}, overrides=Overrides()).outcome
    assert isinstance(outcome, ConfigInvalid)
    assert "hunter2" not in str(outcome)
    assert "hunter2" not in repr(outcome)
    assert outcome.__cause__ is None
    assert outcome.__context__ is None


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.text(max_size=80),
        st.binary(max_size=80),
        st.lists(st.sampled_from(BROKEN.split("\n")), max_size=30).map("\n".join),
    )
)
def test_any_file_gives_a_snapshot_or_lines_of_problems(tmp_path: Path, text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    outcome = read(written(tmp_path, data), {}, overrides=Overrides()).outcome
    if isinstance(outcome, ConfigInvalid):
        assert outcome.problems
        for line in outcome.problems:
            assert line.isprintable(), line
            assert line.startswith(str(tmp_path))
