"""`check`, `migrate`, `token`, `status`: what people ask about a config, a database and a running mcpmux."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from mcpmux.cli.command import GOOD, NEGATIVE, say, say_json, seconds, table
from mcpmux.config.load import data_dir_in, environment
from mcpmux.config.schema import Server, Snapshot
from mcpmux.errors import ConfigInvalid, NotRunning, UsageWrong
from mcpmux.identity.development import development_issuer
from mcpmux.store import Database, opened
from mcpmux.store import migrate as apply_migrations

_LOCK_WAIT: Final = 10.0  # seconds to wait for a command or a start that holds the data directory


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The four commands."""
    command = subparsers.add_parser("check", help="check the config file, list its servers")
    command.add_argument("--json", action="store_true", help="answer for machines")
    command.set_defaults(run_anyway=check)

    command = subparsers.add_parser("migrate", help="bring the database to this version")
    command.set_defaults(run=migrate)

    command = subparsers.add_parser("token", help="print a token of the development issuer")
    command.add_argument("--email", metavar="E", required=True, help="e-mail address of the person")
    command.add_argument("--group", metavar="G", action="append", default=[], help="a group of the person; repeatable")
    command.add_argument("--ttl", metavar="T", type=seconds, default=3600.0, help="how long it is good (default: 1h)")
    command.set_defaults(run=token)

    command = subparsers.add_parser("status", help="what the running mcpmux says of itself and its servers")
    command.add_argument("--json", action="store_true", help="answer for machines")
    command.set_defaults(run_anyway=status)


async def check(arguments: argparse.Namespace, outcome: Snapshot | ConfigInvalid) -> int:
    """Whether the config file can be used, and what each server lacks; nothing is started.

    An unconfigured server is no error: exit 0.
    """
    invalid = isinstance(outcome, ConfigInvalid)
    problems = outcome.problems if isinstance(outcome, ConfigInvalid) else ()
    servers = [] if isinstance(outcome, ConfigInvalid) else list(outcome.servers.values())
    if arguments.json:
        config = {"ok": not invalid, "path": str(arguments.config), "errors": problems}
        say_json({"config": config, "servers": [_checked(server) for server in servers]})
    elif invalid:
        say(*problems, f"{arguments.config}: {len(problems)} problem{'s' * (len(problems) != 1)}")
    else:
        rows = [_checked(server) for server in servers]
        if rows:
            say(*table((str(row["id"]), str(row["state"]), str(row["reason"] or "")) for row in rows))
        say(f"{arguments.config}: good, {_counted([str(row['state']) for row in rows])}")
    return NEGATIVE if invalid else GOOD


def _checked(server: Server) -> dict[str, object]:
    """One server as `check` tells it; `configured` where `status` would have a live state."""
    state = "disabled" if not server.enabled else "unconfigured" if server.unconfigured else "configured"
    return {
        "id": server.id,
        "title": server.title,
        "state": state,
        "reason": server.why_unconfigured,
        "missing": server.missing,
        "transport": server.transport,
        "tags": server.tags,
    }


def _counted(states: Sequence[str]) -> str:
    """`3 servers: 1 disabled, 2 ready`."""
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    return f"{len(states)} server{'s' * (len(states) != 1)}" + (f": {counts}" if counts else "")


async def migrate(arguments: argparse.Namespace, snapshot: Snapshot) -> int:
    """Apply what the database lacks and name it.

    Raises: StoreUnavailable, MigrationFailed, DataDirBusy.
    """
    gateway = snapshot.gateway
    if gateway.database.url is not None:
        async with Database.open(gateway.database.url.reveal(), size=1) as db:
            names = await apply_migrations(db)
    else:
        names = await _migrate_embedded(gateway.data_dir)
    say(*(f"applied {name}" for name in names), "the database is up to date")
    return GOOD


APPLIED_SINCE = "SELECT name FROM schema_migrations WHERE applied_at >= to_timestamp($1) ORDER BY version"


async def _migrate_embedded(data_dir: Path) -> list[str]:
    """What was applied; the embedded database never opens unmigrated, so it is asked afterwards (same clock)."""
    begun = time.time()
    async with opened(None, data_dir, None, wait=_LOCK_WAIT) as db:
        return [str(row["name"]) for row in await db.fetch(APPLIED_SINCE, begun)]


async def token(arguments: argparse.Namespace, snapshot: Snapshot) -> int:
    """Print a token that `serve` on the same data directory accepts, alone on stdout.

    Raises: UsageWrong where issuers are configured, SigningRefused.
    """
    gateway = snapshot.gateway
    if gateway.identity.issuers:
        raise UsageWrong(
            f"token is for the development issuer only: {snapshot.path} configures gateway.identity.issuers, "
            "so get a token from one of them"
        )
    say(development_issuer(gateway.data_dir).sign(arguments.email, arguments.group, arguments.ttl))
    return GOOD


async def status(arguments: argparse.Namespace, outcome: Snapshot | ConfigInvalid) -> int:
    """What the mcpmux that runs on this data directory says; a config file broken meanwhile does not matter.

    Raises: NotRunning.
    """
    if isinstance(outcome, ConfigInvalid):
        data_dir = arguments.data_dir or data_dir_in(arguments.config, environment())
    else:
        data_dir = outcome.gateway.data_dir
    # Here, because it brings the whole house along, which the other commands need not wait for.
    from mcpmux.faces.control import ask

    told = await ask(data_dir.absolute(), "status")
    if arguments.json:
        say_json(told)
        return GOOD
    try:
        say(*_status_lines(msgspec.convert(told, _Status)))
    except msgspec.ValidationError as error:
        raise NotRunning("The running mcpmux is of another version: restart it, or ask with --json") from error
    return GOOD


class _Config(msgspec.Struct, frozen=True):
    ok: bool
    errors: list[str]
    restart_needed: bool


class _Link(msgspec.Struct, frozen=True):
    state: str


class _Server(msgspec.Struct, frozen=True):
    id: str
    state: str
    isolation: str
    reason: str | None
    tools: int | None
    links: list[_Link]


class _Status(msgspec.Struct, frozen=True):
    """Of the answer on the socket, what a person is shown."""

    version: str
    url: str
    phase: str
    uptime: float
    config: _Config
    store: bool
    sessions: int
    calls: int
    servers: list[_Server]


def _status_lines(told: _Status) -> list[str]:
    lines = [
        f"mcpmux {told.version} at {told.url}, {told.phase}, up {_span(told.uptime)}",
        f"{told.sessions} sessions, {told.calls} calls in flight",
        *table(
            (server.id, server.state, _tools(server), _links(server), server.reason or "") for server in told.servers
        ),
        _counted([server.state for server in told.servers]),
    ]
    if not told.config.ok:
        lines.append("config: the file has errors, so what was read before goes on:")
        lines += (f"  {problem}" for problem in told.config.errors)
    if told.config.restart_needed:
        lines.append("config: restart needed, `gateway:` has changed")
    if not told.store:
        lines.append("database: lost, trying to reach it again")
    return lines


def _tools(server: _Server) -> str:
    return "" if server.tools is None else f"{server.tools} tools"


def _links(server: _Server) -> str:
    """`4 links` of a server that does not have just one for everybody."""
    return "" if server.isolation == "shared" or not server.links else f"{len(server.links)} links"


def _span(length: float) -> str:
    """Seconds as a person says them: `12s`, `3m`, `5h 2m`, `4d 1h`."""
    minutes, hours, days = int(length // 60), int(length // 3600), int(length // 86400)
    if days:
        return f"{days}d {hours % 24}h"
    if hours:
        return f"{hours}h {minutes % 60}m"
    return f"{minutes}m" if minutes else f"{int(length)}s"
