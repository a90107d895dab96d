"""The shape of `servers.yaml`: what may stand in it, in which unit, with which default.

Owns the frozen values that every other room gets as its section of a `Snapshot`. Knows no YAML, no environment and no
positions (`load.py` has those). One source for three readers: the checks of `check.py`, the JSON Schema for editors
(`describe.py`) and the person who reads this file, so each field carries its description and its bounds.

Rules of the file: sizes are int bytes, durations float seconds, paths absolute, secrets `Secret`. A field that is
derived and may not be written in the file stands in a subclass (`Server`), never in the `…Section` itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

from mcpmux.seal import Secret

KIB: Final = 1024
MIB: Final = 1024 * KIB

BYTE_UNITS: Final[Mapping[str, int]] = {
    "B": 1,
    "KiB": KIB,
    "MiB": MIB,
    "GiB": 1024 * MIB,
    "kB": 1000,
    "MB": 10**6,
    "GB": 10**9,
}
SECOND_UNITS: Final[Mapping[str, float]] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

BYTES_PATTERN: Final = rf"^[0-9]{{1,15}} ?({'|'.join(BYTE_UNITS)})$"
SECONDS_PATTERN: Final = rf"^[0-9]{{1,12}}(\.[0-9]{{1,6}})? ?({'|'.join(SECOND_UNITS)})$"

# No underscore: the first `__` of `{server}__{tool}` must end the id.
ID_PATTERN: Final = r"^[a-z][a-z0-9-]{0,23}$"
VARIABLE_PATTERN: Final = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"
HEADER_PATTERN: Final = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$"  # RFC 9110 section 5.6.2, token
TOOL_PATTERN: Final = r"^[\x21-\x7e]{1,128}$"
TAG_PATTERN: Final = r"^[a-z0-9][a-z0-9-]{0,31}$"

# What `data_dir` is when the file says nothing: the same text that the shipped file has.
DATA_DIR: Final = "${env:MCPMUX_DATA_DIR:-./data}"

Isolation = Literal["shared", "pooled", "tenant", "user", "session"]
ISOLATIONS_BUILT: Final[frozenset[str]] = frozenset({"shared", "pooled", "session"})
_OWN: Final = ("tenant", "user", "session")
ISOLATIONS_OF_FIELD: Final[Mapping[str, tuple[str, ...]]] = {"links": ("pooled",), "max_links": _OWN, "idle": _OWN}
"""The fields of a server that only some isolations have."""

# `unit` tells check.py how to read the text; the numbers themselves are plain bytes and seconds. `form` names the
# function of forms.py that a text must satisfy.
Bytes = Annotated[int, Meta(extra={"unit": "bytes"})]
Seconds = Annotated[float, Meta(extra={"unit": "seconds"})]
ToolPattern = Annotated[str, Meta(pattern=TOOL_PATTERN)]
Tag = Annotated[str, Meta(pattern=TAG_PATTERN)]


def _said(text: str) -> Meta:
    """The description of a field, for editors and for `check`."""
    return Meta(description=text)


def _form(name: str) -> Meta:
    return Meta(extra={"form": name})


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One mapping of the file with a closed set of keys."""


class Listen(Section, frozen=True, kw_only=True):
    """Where mcpmux listens."""

    host: Annotated[
        str,
        _form("host"),
        _said("Address to listen on. Loopback unless you run your own identity provider."),
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535), _said("TCP port; 0 takes a free one, which the log names.")] = 8090


class DatabaseSection(Section, frozen=True, kw_only=True):
    """Where grants and state are kept."""

    url: Annotated[
        Secret | None,
        _form("postgres_url"),
        _said("postgresql:// URL of your PostgreSQL. null runs an embedded one in data_dir."),
    ] = None


class Issuer(Section, frozen=True, kw_only=True):
    """One identity provider whose access tokens are accepted."""

    issuer: Annotated[
        str, _form("issuer_url"), _said("Exactly the `iss` of its tokens. https, or plain http on loopback.")
    ]
    audiences: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=512), _form("line")], ...],
        Meta(min_length=1),
        _said("Accepted `aud` values; one of them must be in the token."),
    ]
    metadata: Annotated[
        str | None,
        _form("metadata_url"),
        _said("URL of its OpenID metadata. Default: issuer + /.well-known/openid-configuration."),
    ] = None
    kind: Annotated[
        Literal["oidc", "entra"] | None, _said("Default: entra for Microsoft's hosts, oidc for all others.")
    ] = None
    groups: Annotated[
        Literal["names", "ids"] | None, _said("What the `groups` claim holds. Default: names for oidc, ids for entra.")
    ] = None
    trust_email: Annotated[bool, _said("Whether grants to an e-mail address count for this issuer's users.")] = False
    algorithms: Annotated[
        tuple[Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"], ...],
        Meta(min_length=1),
        _said("Accepted signature algorithms. Symmetric ones and `none` never are."),
    ] = ("RS256",)


class Identity(Section, frozen=True, kw_only=True):
    """Who may say who is calling."""

    issuers: Annotated[tuple[Issuer, ...], _said("Empty: a local development issuer, for loopback only.")] = ()


class Cors(Section, frozen=True, kw_only=True):
    """Which web pages may call mcpmux."""

    origins: Annotated[
        tuple[Annotated[str, _form("origin")], ...],
        _said("Origins such as https://chat.example.com. Never `*`: requests carry credentials."),
    ] = ()


class MetricsSection(Section, frozen=True, kw_only=True):
    """Prometheus."""

    public: Annotated[bool, _said("Whether /metrics answers without a token.")] = True


class Limits(Section, frozen=True, kw_only=True):
    """What one caller, one message or one start may cost."""

    body: Annotated[Bytes, Meta(ge=KIB, le=256 * MIB), _said("Largest request body, such as 4MiB.")] = 4 * MIB
    upstream_message: Annotated[
        Bytes, Meta(ge=64 * KIB, le=1024 * MIB), _said("Largest single message from a server.")
    ] = 16 * MIB
    sessions_per_user: Annotated[
        int, Meta(ge=1, le=1_000_000), _said("Open sessions per user. Open WebUI with one key for all is one user.")
    ] = 1024
    session_idle: Annotated[Seconds, Meta(ge=1, le=7 * 86400), _said("A session unused for this long ends.")] = 1800.0
    drain: Annotated[Seconds, Meta(ge=0, le=3600), _said("How long calls in flight may take to finish at the end.")] = (
        20.0
    )
    starts: Annotated[int, Meta(ge=1, le=256), _said("How many servers may be starting at the same time.")] = 4


class Names(Section, frozen=True, kw_only=True):
    """How tools are called on an aggregate."""

    max_length: Annotated[
        int,
        Meta(ge=40, le=128),
        _said("Longest tool name. LLM APIs take 64, and clients put a prefix of their own before."),
    ] = 56


class Gateway(Section, frozen=True, kw_only=True):
    """mcpmux itself. Changes here need a restart."""

    listen: Annotated[Listen, _said("Where mcpmux listens.")] = field(default_factory=Listen)
    data_dir: Annotated[Path, _said("Folder of the embedded database, keys and the servers' own folders.")]
    public_url: Annotated[
        str | None,
        _form("public_url"),
        _said("How clients reach mcpmux, such as https://mcp.example.com. Default: the bound address."),
    ] = None
    keys: Annotated[
        tuple[Annotated[Secret, _form("key")], ...],
        _said("Sealing keys: the first seals, all open. Default: made once in data_dir."),
    ] = ()
    database: Annotated[DatabaseSection, _said("Where grants and state are kept.")] = field(
        default_factory=DatabaseSection
    )
    identity: Annotated[Identity, _said("Who may say who is calling.")] = field(default_factory=Identity)
    cors: Annotated[Cors, _said("Which web pages may call mcpmux.")] = field(default_factory=Cors)
    metrics: Annotated[MetricsSection, _said("Prometheus.")] = field(default_factory=MetricsSection)
    limits: Annotated[Limits, _said("What one caller, one message or one start may cost.")] = field(
        default_factory=Limits
    )
    names: Annotated[Names, _said("How tools are called on an aggregate.")] = field(default_factory=Names)


class ToolRules(Section, frozen=True, kw_only=True):
    """Which of a server's tools exist at all, for everybody. Glob patterns, matched as `fnmatch.fnmatchcase` does.

    A tool is there when an `allow` pattern matches its native name and no `deny` pattern does. `access/decision.py`
    decides; this is only the value.
    """

    allow: Annotated[tuple[ToolPattern, ...], _said("Tools to show, as glob patterns on their own names.")] = ("*",)
    deny: Annotated[tuple[ToolPattern, ...], _said("Tools to hide; wins over allow.")] = ()


class ServerSection(Section, frozen=True, kw_only=True):
    """One entry of `servers:`, as it stands in the file after expansion."""

    title: Annotated[str, Meta(max_length=80), _form("line"), _said("Name for people. Default: the id.")] = ""
    enabled: Annotated[bool, _said("false: invisible to everyone, administrators included.")] = True
    transport: Annotated[
        Literal["stdio", "http", "sse"],
        _said("stdio: a child process. http: Streamable HTTP. sse: HTTP+SSE of 2024-11-05."),
    ] = "stdio"
    command: Annotated[
        tuple[Annotated[str, Meta(max_length=32_768)], ...],
        _said("Program and arguments, never through a shell (stdio)."),
    ] = ()
    url: Annotated[str | None, _form("url"), _said("Address of the MCP endpoint (http, sse).")] = None
    headers: Annotated[
        Mapping[Annotated[str, Meta(pattern=HEADER_PATTERN)], Annotated[Secret, _form("header")]],
        _said("Headers of every request (http, sse)."),
    ] = field(default_factory=dict)
    env: Annotated[
        Mapping[Annotated[str, Meta(pattern=VARIABLE_PATTERN)], Secret],
        _said("Variables of the child process; nothing else of ours is passed on (stdio)."),
    ] = field(default_factory=dict)
    cwd: Annotated[Path | None, _said("Working directory of the child. Default: <data_dir>/servers/<id>/ (stdio).")] = (
        None
    )
    isolation: Annotated[
        Isolation,
        _said("Who may share a connection: shared: everybody; pooled: one call at a time; session: one session."),
    ] = "shared"
    links: Annotated[
        int, Meta(ge=1, le=256), _said("How many warm connections there are, each for one call at a time (pooled).")
    ] = 4
    max_links: Annotated[
        int, Meta(ge=1, le=10_000), _said("Most connections at a time; one that is not in use gives way (session).")
    ] = 64
    idle: Annotated[Seconds, Meta(ge=1, le=7 * 86400), _said("A connection unused for this long ends (session).")] = (
        600.0
    )
    timeout: Annotated[Seconds, Meta(gt=0, le=86400), _said("A call that takes longer is cancelled, such as 60s.")] = (
        60.0
    )
    concurrency: Annotated[
        int, Meta(ge=1, le=10_000), _said("Calls in flight at once on one connection (shared, session).")
    ] = 32
    tools: Annotated[ToolRules, _said("Which of its tools exist at all.")] = field(default_factory=ToolRules)
    tags: Annotated[tuple[Tag, ...], _said("Words to find it by.")] = ()


class Server(ServerSection, frozen=True, kw_only=True):
    """One server, ready to be started, or `unconfigured` with what it lacks.

    Two Servers are equal when nothing at all changed. `section` is equal when the *link* may stay: it is the
    canonical bytes of what the connection is made of (transport, command, url, headers, env, cwd, isolation, links),
    secrets included, so it goes into keyed digests and never into a log. A new title, timeout, concurrency, max_links,
    idle, tag or tool rule leaves it as it was.
    """

    id: str
    missing: tuple[str, ...] = ()  # names of unset variables, paths of missing files, in the order of the file
    reason: str | None = None  # why it cannot be started although nothing is missing; safe for clients
    section: bytes = b""

    @property
    def unconfigured(self) -> bool:
        """Whether it cannot be started as configured; costs nothing until mended."""
        return bool(self.missing) or self.reason is not None

    @property
    def why_unconfigured(self) -> str | None:
        """One line for people: what is missing or not built, None if it can be started."""
        if self.missing:
            return "not set: " + ", ".join(self.missing)
        return self.reason

    def __repr__(self) -> str:
        # The default one would print `section`, where the secrets are in clear.
        return f"Server(id={self.id!r}, transport={self.transport!r}, enabled={self.enabled})"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One whole, valid reading of `servers.yaml`; replaced whole, never changed."""

    gateway: Gateway
    servers: Mapping[str, Server]
    path: Path
    restart_digest: bytes  # of the gateway section: differs from the running one = `restart needed`


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says over the file; None leaves the file's value."""

    host: str | None = None
    port: int | None = None
    data_dir: Path | None = None


def read_bytes(text: str) -> int | None:
    """Bytes of a text such as `4MiB`, None if it is none."""
    if re.fullmatch(BYTES_PATTERN[1:-1], text) is None:
        return None
    number = text.rstrip("BKMGTikb ").strip()
    return int(number) * BYTE_UNITS[text[len(number) :].strip()]


def read_seconds(text: str) -> float | None:
    """Seconds of a text such as `30m`, None if it is none."""
    found = re.fullmatch(SECONDS_PATTERN[1:-1], text)
    if found is None:
        return None
    unit = found.group(2)
    return round(float(text[: -len(unit)].strip()) * SECOND_UNITS[unit], 6)
