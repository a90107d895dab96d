"""The config file and everything it refers to -> one Snapshot, or every problem at once.

Owns the rules between fields (what fits which transport, what is not built yet) and, alone in this program, the
reading of the environment. Syntax is `document.py`'s, single values are `check.py`'s. Rules of the file: a problem is
a line `file:line:column: key.path: what is wrong, expected what`; no message ever holds a value that may be a secret.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from mcpmux.config.check import Walk, meant
from mcpmux.config.document import MAX_FILE, TOP, Entry, Leaf, Node, Problems, Table, join, read_document
from mcpmux.config.expand import Expander, ReferenceMalformed
from mcpmux.config.forms import FORMS, RESERVED_HEADERS
from mcpmux.config.schema import (
    DATA_DIR,
    ID_PATTERN,
    ISOLATIONS_BUILT,
    ISOLATIONS_OF_FIELD,
    Gateway,
    Overrides,
    Section,
    Server,
    ServerSection,
    Snapshot,
)
from mcpmux.errors import ConfigInvalid
from mcpmux.seal import Secret

T = TypeVar("T", bound=Section)

DEFAULT_PATH: Final = Path("config/servers.yaml")
_DATA_DIR_LINE: Final = re.compile(
    r"""^[ \t]+data_dir:[ \t]*(?:"([^"\n]+)"|'([^'\n]+)'|([^#\n]+?))[ \t]*(?:#.*)?\r?$""", re.MULTILINE
)
NO_OVERRIDES: Final = Overrides()
SECTIONS: Final = ("gateway", "servers")

# What a connection is made of: a change of anything else leaves the link in place.
LINK_FIELDS: Final = ("transport", "command", "url", "headers", "env", "cwd", "isolation", "links")
FIELDS_OF_STDIO: Final[tuple[str, ...]] = ("command", "env", "cwd")
FIELDS_OF_HTTP: Final[tuple[str, ...]] = ("url", "headers")


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the file: what came of it, and the secret files that it named, which are to be watched too."""

    outcome: Snapshot | ConfigInvalid
    files: frozenset[Path]


def environment() -> Mapping[str, str]:
    """The environment of this process, as it is now. Nobody else reads it."""
    return MappingProxyType(dict(os.environ))


def config_path(chosen: str | None, environ: Mapping[str, str]) -> Path:
    """The config file: what `--config` says, else `MCPMUX_CONFIG`, else `config/servers.yaml`."""
    return Path(chosen or environ.get("MCPMUX_CONFIG") or DEFAULT_PATH)


def data_dir_in(path: Path, environ: Mapping[str, str]) -> Path:
    """The data directory that a file names, also one that cannot be used as a whole, or not even be parsed.

    For commands that ask a running mcpmux: it goes on with what it read before the file was broken.
    """
    try:
        found = _DATA_DIR_LINE.search(path.read_bytes()[:MAX_FILE].decode(errors="replace"))
        written = next(filter(None, found.groups())) if found else DATA_DIR
        expanded = Expander(environ).expand(written)
    except (OSError, ReferenceMalformed):
        expanded = Expander(environ).expand(DATA_DIR)
    return Path(expanded.text).absolute()


def load(path: Path, environ: Mapping[str, str], *, overrides: Overrides = NO_OVERRIDES) -> Snapshot:
    """The Snapshot of one config file. Reads files, so a loop calls it in a thread.

    Raises: ConfigInvalid with every problem.
    """
    outcome = read(path, environ, overrides=overrides).outcome
    if isinstance(outcome, ConfigInvalid):
        raise outcome
    return outcome


def read(path: Path, environ: Mapping[str, str], *, overrides: Overrides) -> Reading:
    """The same as `load`, for who also wants to know which files to watch; raises nothing for a bad file."""
    problems = Problems(str(path))
    expander = Expander(environ)
    data = _contents(path, problems)
    tree = None if data is None else read_document(data, problems)
    snapshot = None if tree is None else _snapshot(path, tree, problems, expander, overrides)
    if problems or snapshot is None:
        return Reading(ConfigInvalid(problems.lines()), expander.files)
    return Reading(snapshot, expander.files)


def _contents(path: Path, problems: Problems) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE + 1)
    except FileNotFoundError:
        problems.add(TOP, "", "the file does not exist, expected a config file there (--config or MCPMUX_CONFIG)")
    except OSError as refused:
        problems.add(TOP, "", f"the file cannot be read ({refused.strerror}), expected a readable text file")
    return None


def _snapshot(path: Path, tree: Node, problems: Problems, expander: Expander, overrides: Overrides) -> Snapshot | None:
    if not isinstance(tree, Table):
        problems.add(tree.mark, "", "not a mapping, expected `gateway:` and `servers:`")
        return None
    for name, entry in tree.entries.items():
        if name not in SECTIONS:
            problems.add(entry.mark, join("", name), f"unknown key, {meant(name, SECTIONS)}")
    nothing = Entry(TOP, Leaf(TOP, None, ""))
    gateway = _gateway(tree.entries.get("gateway", nothing), problems, expander, overrides)
    servers = _servers(tree.entries.get("servers", nothing), problems, expander)
    if gateway is None or servers is None:
        return None
    return Snapshot(
        gateway=gateway,
        servers=MappingProxyType(servers),
        path=path.absolute(),
        restart_digest=hashlib.sha256(_canonical(msgspec.structs.asdict(gateway))).digest(),
    )


# The gateway --------------------------------------------------------------------------------


def _gateway(entry: Entry, problems: Problems, expander: Expander, overrides: Overrides) -> Gateway | None:
    node = _with_data_dir(entry.node)
    walk = Walk(problems, expander, forgiving=False)
    values = walk.section(Gateway, node, "gateway", entry.mark)
    if values is UNSET:
        return None
    gateway = _overridden(_built(values, Gateway), overrides)
    seen: set[str] = set()
    for at, issuer in enumerate(gateway.identity.issuers):
        if issuer.issuer in seen:
            walk.complain(
                f"gateway.identity.issuers[{at}]", "the same issuer again, expected one entry with all audiences"
            )
        seen.add(issuer.issuer)
    if overrides.host is not None and FORMS["host"](overrides.host) is not None:
        problems.add(TOP, "--host", "not a host, expected a name or an address")
    if overrides.port is not None and not 0 <= overrides.port <= 65535:
        problems.add(TOP, "--port", "not a port, expected 0 to 65535")
    return gateway


def _with_data_dir(node: Node) -> Node:
    """The gateway's section in which the default of `data_dir`, a reference itself, stands as if it were written."""
    if isinstance(node, Leaf) and node.value is None:
        node = Table(node.mark, {})
    if not isinstance(node, Table) or "data_dir" in node.entries:
        return node
    default = Entry(node.mark, Leaf(node.mark, DATA_DIR, DATA_DIR))
    return Table(node.mark, {**node.entries, "data_dir": default})


def _overridden(gateway: Gateway, overrides: Overrides) -> Gateway:
    listen = gateway.listen
    if overrides.host is not None:
        listen = replace(listen, host=overrides.host)
    if overrides.port is not None:
        listen = replace(listen, port=overrides.port)
    data_dir = gateway.data_dir if overrides.data_dir is None else overrides.data_dir.absolute()
    return replace(gateway, listen=listen, data_dir=data_dir)


# Servers --------------------------------------------------------------------------------


def _servers(entry: Entry, problems: Problems, expander: Expander) -> dict[str, Server] | None:
    if isinstance(entry.node, Leaf) and entry.node.value is None:
        return {}
    if not isinstance(entry.node, Table):
        problems.add(entry.mark, "servers", "not a section, expected server ids with their fields")
        return None
    servers: dict[str, Server] = {}
    for id_, section in entry.node.entries.items():
        walk = Walk(problems, expander, forgiving=True)
        where = join("servers", id_)
        if walk.good_key(ID_PATTERN, id_, where, section):
            server = _server(id_, section, where, walk)
            if server is not None:
                servers[id_] = server
    return servers


def _server(id_: str, entry: Entry, where: str, walk: Walk) -> Server | None:
    values = walk.section(ServerSection, entry.node, where, entry.mark)
    if not isinstance(values, dict):
        return None
    section = _built(values, ServerSection)
    _check_transport(section, where, walk)
    _check_headers(section, where, walk)
    _check_isolation(section, where, walk)
    reasons = [reason.removeprefix(f"{where}.") for reason in walk.reasons]
    if section.isolation not in ISOLATIONS_BUILT:
        reasons.insert(0, f"isolation '{section.isolation}' is not built yet")
    fields = msgspec.structs.asdict(section)
    return Server(
        **(fields | {"title": section.title or id_}),
        id=id_,
        missing=tuple(walk.missing),
        reason="; ".join(reasons) or None,
        section=_canonical({name: fields[name] for name in LINK_FIELDS}),
    )


def _check_transport(section: ServerSection, where: str, walk: Walk) -> None:
    """What this transport must have, and what only the other one has."""
    if f"{where}.transport" in walk.unusable:
        return
    stdio = section.transport == "stdio"
    needed, foreign = ("command", FIELDS_OF_HTTP) if stdio else ("url", FIELDS_OF_STDIO)
    if not getattr(section, needed) and not _said(f"{where}.{needed}", walk):
        walk.complain(f"{where}.{needed}", f"missing, expected it for transport {section.transport}")
    if section.command and not section.command[0] and not _said(f"{where}.command", walk):
        walk.complain(f"{where}.command[0]", "an empty program, expected a name or path")
    for name in foreign:
        if walk.given(f"{where}.{name}"):
            others = "http or sse" if stdio else "stdio"
            walk.complain(f"{where}.{name}", f"not for transport {section.transport}, expected only with {others}")


def _check_isolation(section: ServerSection, where: str, walk: Walk) -> None:
    """What only some isolations have."""
    if f"{where}.isolation" in walk.unusable:
        return
    for name, isolations in ISOLATIONS_OF_FIELD.items():
        if section.isolation not in isolations and walk.given(f"{where}.{name}"):
            others = " or ".join(isolations)
            walk.complain(f"{where}.{name}", f"not for isolation {section.isolation}, expected only with {others}")


def _said(where: str, walk: Walk) -> bool:
    """Whether a place, or something in it, already has its problem."""
    return any(place == where or place.startswith((f"{where}.", f"{where}[")) for place in walk.unusable)


def _check_headers(section: ServerSection, where: str, walk: Walk) -> None:
    seen: set[str] = set()
    for name in section.headers:
        place = join(f"{where}.headers", name)
        if name.lower() in RESERVED_HEADERS:
            walk.complain(place, "a header that mcpmux sets itself, expected headers of the server's own")
        if name.lower() in seen:
            walk.complain(place, "given twice (case does not count in header names), expected once")
        seen.add(name.lower())


# Values --------------------------------------------------------------------------------


def _built(values: object, kind: type[T]) -> T:
    return msgspec.convert(values, kind, dec_hook=lambda _type, value: value)


def _canonical(values: object) -> bytes:
    """One spelling of a tree of values, secrets in clear: for digests, never for a log."""
    return msgspec.json.encode(values, enc_hook=_plain, order="deterministic")


def _plain(value: object) -> str:
    match value:
        case Secret():
            return value.reveal()
        case Path():
            return str(value)
    raise TypeError(f"cannot be put into canonical bytes: {type(value).__name__}")
