"""`doctor`: whether this machine has what mcpmux and the configured servers need.

Each check looks at one thing and gives one finding: `ok`, `warn` (something works less well than it could) or `fail`
(something will not work). A check changes nothing but what a first start would make as well.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import socket
import stat
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from mcpmux.cli.command import GOOD, NEGATIVE, say, say_json, table
from mcpmux.config.load import environment
from mcpmux.config.schema import Gateway, Issuer, Server, Snapshot
from mcpmux.errors import ConfigInvalid, MuxError, NotRunning, OutboundFailed
from mcpmux.identity.issuers import metadata_url
from mcpmux.outbound import Outbound
from mcpmux.store import Database, opened

LEAST_PYTHON: Final = (3, 11)
LEAST_NODE: Final = 20

_PATIENCE: Final = 10.0  # seconds for each question to another program or machine
_METADATA_LIMIT: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; `detail` says what to do when it is not ok."""

    name: str
    result: Literal["ok", "warn", "fail"]
    detail: str


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command."""
    command = subparsers.add_parser("doctor", help="examine this machine")
    command.add_argument("--json", action="store_true", help="answer for machines")
    command.set_defaults(run_anyway=doctor)


async def doctor(arguments: argparse.Namespace, outcome: Snapshot | ConfigInvalid) -> int:
    """Every finding; exit 1 when one of them is `fail`."""
    findings = [finding async for finding in _findings(arguments, outcome)]
    good = all(finding.result != "fail" for finding in findings)
    if arguments.json:
        checks = [{"name": one.name, "result": one.result, "detail": one.detail} for one in findings]
        say_json({"ok": good, "checks": checks})
    else:
        say(*table((one.result, one.name, one.detail) for one in findings))
    return GOOD if good else NEGATIVE


async def _findings(arguments: argparse.Namespace, outcome: Snapshot | ConfigInvalid) -> AsyncIterator[Finding]:
    yield _python(sys.version_info[:3])
    if isinstance(outcome, ConfigInvalid):
        yield Finding("config", "fail", f"{len(outcome.problems)} problems, the first: {outcome.problems[0]}")
        return
    gateway, servers = outcome.gateway, [one for one in outcome.servers.values() if one.enabled]
    yield Finding("config", "ok", f"{arguments.config}, {len(servers)} servers enabled")
    environ = environment()
    path = _search_path(environ)
    yield await _node(_programs(servers), path)
    yield _uvx(_programs(servers), path)
    for finding in _absent_programs(servers, path):
        yield finding
    yield _data_dir(gateway.data_dir)
    running = await _running(gateway.data_dir)
    yield _port(gateway, running)
    yield await _database(gateway, running)
    if not gateway.identity.issuers:
        yield Finding("issuers", "ok", "local development issuer: for a first look, on loopback only")
        return
    async with Outbound(environ) as outbound:
        for issuer in gateway.identity.issuers:
            yield await _issuer(issuer, outbound)


def _python(version: tuple[int, ...]) -> Finding:
    spelled = ".".join(map(str, version))
    if version < LEAST_PYTHON:
        return Finding("python", "fail", f"{spelled}, expected {'.'.join(map(str, LEAST_PYTHON))} or newer")
    return Finding("python", "ok", spelled)


# Programs that servers are started with ------------------------------------------------------------------------


def _search_path(environ: Mapping[str, str]) -> str:
    """Where a server's program is looked for: our own environment's folder first, which has `uvx`."""
    return os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])


def _programs(servers: Iterable[Server]) -> Mapping[str, list[str]]:
    """Program -> ids of the servers that are started with it."""
    found: dict[str, list[str]] = {}
    for server in servers:
        if server.command:
            found.setdefault(server.command[0], []).append(server.id)
    return found


async def _node(programs: Mapping[str, list[str]], path: str) -> Finding:
    wanted = [id_ for name in ("npx", "node") for id_ in programs.get(name, [])]
    worst: Literal["warn", "fail"] = "fail" if wanted else "warn"
    needs = f"; {len(wanted)} enabled servers need it" if wanted else "; no enabled server needs it"
    program = shutil.which("node", path=path)
    if program is None or shutil.which("npx", path=path) is None:
        return Finding("node", worst, f"node or npx not found, install Node.js {LEAST_NODE} or newer{needs}")
    version = await _version(program)
    found = re.match(r"v(\d+)\.", version)
    if found is None:
        return Finding("node", worst, f"{program} does not say its version ({version!r}){needs}")
    if int(found[1]) < LEAST_NODE:
        return Finding("node", worst, f"{version}, expected {LEAST_NODE} or newer{needs}")
    return Finding("node", "ok", f"{version} at {program}")


async def _version(program: str) -> str:
    """The first line of `program --version`, "" when there is none in time."""
    try:
        process = await asyncio.create_subprocess_exec(
            program, "--version", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    except OSError:
        return ""
    try:
        async with asyncio.timeout(_PATIENCE):
            told, _ = await process.communicate()
    except TimeoutError:
        return ""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return told.decode(errors="replace").strip().partition("\n")[0]


def _uvx(programs: Mapping[str, list[str]], path: str) -> Finding:
    wanted = programs.get("uvx", [])
    program = shutil.which("uvx", path=path)
    if program is not None:
        return Finding("uvx", "ok", program)
    needs = f"; {len(wanted)} enabled servers need it" if wanted else ""
    return Finding("uvx", "fail" if wanted else "warn", f"not found, install the Python package `uv`{needs}")


def _absent_programs(servers: Iterable[Server], path: str) -> Iterable[Finding]:
    for name, ids in _programs(server for server in servers if not server.unconfigured).items():
        if name not in ("npx", "node", "uvx") and shutil.which(name, path=path) is None:
            yield Finding("program", "fail", f"{name} not found; needed by {', '.join(ids)}")


# What mcpmux itself needs --------------------------------------------------------------------------------------


def _data_dir(data_dir: Path) -> Finding:
    there = next(folder for folder in (data_dir, *data_dir.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding("data_dir", "fail", f"{data_dir} cannot be written: {there} is no folder of ours")
    if there != data_dir:
        return Finding("data_dir", "ok", f"{data_dir} will be made")
    if (mode := stat.S_IMODE(data_dir.stat().st_mode)) & 0o066:
        return Finding("data_dir", "warn", f"{data_dir} is open to others (mode {mode:04o}): chmod 700")
    return Finding("data_dir", "ok", str(data_dir))


async def _running(data_dir: Path) -> Mapping[str, object] | None:
    """The status of the mcpmux that runs on this data directory, None when there is none."""
    # Here, because it brings the whole house along, which the other commands need not wait for.
    from mcpmux.faces.control import ask

    with suppress(NotRunning):
        told = await ask(data_dir, "status")
        if isinstance(told, dict):
            return told
    return None


def _port(gateway: Gateway, running: Mapping[str, object] | None) -> Finding:
    host, port = gateway.listen.host, gateway.listen.port
    if running is not None:
        return Finding("port", "ok", f"mcpmux runs already, at {running.get('url')}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
    except OSError as error:
        return Finding("port", "fail", f"cannot listen on {host}:{port}: {error.strerror}")
    return Finding("port", "ok", f"{host}:{port} is free")


async def _database(gateway: Gateway, running: Mapping[str, object] | None) -> Finding:
    if running is not None:
        lost = not running.get("store")
        return Finding("database", "fail" if lost else "ok", "lost by the running mcpmux" if lost else "reached")
    try:
        if gateway.database.url is not None:
            async with asyncio.timeout(_PATIENCE), Database.open(gateway.database.url.reveal(), size=1) as db:
                return Finding("database", "ok", str(await db.fetchval("SELECT version()")))
        async with opened(None, gateway.data_dir, None, wait=_PATIENCE) as db:
            return Finding("database", "ok", f"embedded: {await db.fetchval('SELECT version()')}")
    except TimeoutError:
        return Finding("database", "fail", f"no answer within {_PATIENCE:g} s")
    except MuxError as error:
        return Finding("database", "fail", str(error))


async def _issuer(issuer: Issuer, outbound: Outbound) -> Finding:
    url = metadata_url(issuer)
    try:
        fetched = await outbound.get_json_bytes(url, limit=_METADATA_LIMIT, timeout=_PATIENCE)
    except OutboundFailed as error:
        return Finding("issuer", "fail", f"{url}: {error.problem}")
    if fetched.status != 200:
        return Finding("issuer", "fail", f"{url}: HTTP {fetched.status}")
    return Finding("issuer", "ok", url)
