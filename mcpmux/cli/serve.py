"""`serve`: run mcpmux in the foreground, and tell people how the start goes.

On a terminal there is a progress line below the log until every server has settled, then a summary. Off a terminal
both are log events (`servers_settled`). Nothing waits for either: requests are answered from `ready` on.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TextIO, cast

from mcpmux.cli.command import GOOD, spelled, table
from mcpmux.cli.display import Display
from mcpmux.config.load import environment
from mcpmux.config.schema import Gateway as Section
from mcpmux.config.schema import Snapshot
from mcpmux.errors import StartRefused
from mcpmux.observe import log
from mcpmux.outbound import is_loopback

if TYPE_CHECKING:
    from mcpmux.faces.control import Json
    from mcpmux.gateway import Gateway

ALLOW_DEV_ISSUER: Final = "MCPMUX_ALLOW_DEV_ISSUER"
FILES: Final = 65_536  # descriptors that we ask for
SETTLE_WAIT: Final = 60.0  # seconds until the summary, whether every server has settled or not
_LOOK: Final = 0.2  # seconds between two looks at the servers' states

_SHORT: Final = 10  # unconfigured servers that are listed with what they miss; more would hide the rest
_WIDTH: Final = 100  # columns
_ORDER: Final = ("ready", "starting", "degraded", "failed", "draining", "unconfigured", "disabled")

_log = log.logger("cli")


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command."""
    command = subparsers.add_parser("serve", help="run mcpmux in the foreground")
    command.add_argument("--host", metavar="H", help="address to listen on, instead of the config file's")
    command.add_argument("--port", metavar="P", type=int, help="port, instead of the config file's; 0 takes a free one")
    command.add_argument(
        "--allow-dev-issuer",
        action="store_true",
        help=f"let the development issuer work on an address that others can reach (or {ALLOW_DEV_ISSUER}=1)",
    )
    command.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="default: info"
    )
    command.set_defaults(run=serve)


async def serve(arguments: argparse.Namespace, snapshot: Snapshot) -> int:
    """Run until SIGTERM or SIGINT, then drain; a second one ends at once.

    Raises: StartRefused, DataDirBusy, StoreUnavailable, MigrationFailed.
    """
    # Here, so that no other command waits until the whole house is imported.
    from mcpmux.gateway import Stop, running

    environ = environment()
    allowed = arguments.allow_dev_issuer or environ.get(ALLOW_DEV_ISSUER) == "1"
    check_issuer(snapshot.gateway, allowed=allowed)
    _raise_file_limit()
    display = Display(sys.stderr)
    if sys.stderr.isatty():
        log.configure(console=True, level=arguments.log_level, stream=cast(TextIO, display))
    elif arguments.log_level != "info":
        log.configure(console=False, level=arguments.log_level)
    stop = Stop(sys.stderr)
    try:
        async with running(snapshot, environ, arguments.overrides, stop) as gateway, asyncio.TaskGroup() as tasks:
            start = tasks.create_task(_tell_start(gateway, display), name="start display")
            await gateway.until_stopped()
            start.cancel()
    except asyncio.CancelledError:
        if not stop.wanted.is_set():
            raise
    return GOOD


def check_issuer(gateway: Section, *, allowed: bool) -> None:
    """Refuse the development issuer where others could reach it: whoever reads the data directory can be anybody.

    Raises: StartRefused.
    """
    if gateway.identity.issuers or is_loopback(gateway.listen.host):
        return
    if not allowed:
        raise StartRefused(
            f"No identity provider is configured, and the development issuer is for loopback only, not for "
            f"{gateway.listen.host}: set gateway.identity.issuers, listen on 127.0.0.1, or allow it with "
            f"--allow-dev-issuer or {ALLOW_DEV_ISSUER}=1"
        )
    _log.warning("dev_issuer_exposed", host=gateway.listen.host)


def _raise_file_limit() -> None:
    """As many descriptors as we may have: a waiting stream is one, and the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


# How the start goes ------------------------------------------------------------------------------------------------


async def _tell_start(gateway: Gateway, display: Display) -> None:
    """Show which servers are still starting until none is, then say how mcpmux is used."""
    begun = time.monotonic()
    waiting = _to_start(gateway.servers())
    whole = len(waiting)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_WAIT):
                while waiting := waiting & _to_start(gateway.servers()):
                    seconds = int(time.monotonic() - begun)
                    names = ", ".join(sorted(waiting))
                    display.show(f"{whole - len(waiting)} of {whole} servers started, {seconds} s, waiting for {names}")
                    await asyncio.sleep(_LOOK)
    finally:
        display.clear()
    servers = gateway.servers()
    if sys.stderr.isatty():
        display.write("\n".join(_summary(gateway, servers)) + "\n")
    else:
        _log.info("servers_settled", **_summary_fields(gateway, servers))


def _to_start(servers: Sequence[Mapping[str, Json]]) -> set[str]:
    """Whose first start is not over yet; one that failed and is tried again is not waited for."""
    return {str(one["id"]) for one in servers if one["state"] == "starting" and not one["restarts"]}


def token_command(snapshot: Snapshot) -> str:
    """The command that prints a token with which everything can be seen."""
    words = ["token", "--email", "you@example.com", "--group", "MCP-Admin"]
    return spelled(words, config=snapshot.path, data_dir=snapshot.gateway.data_dir)


def _endpoints(gateway: Gateway) -> dict[str, str]:
    return {"all": f"{gateway.base}/mcp", "one server": f"{gateway.base}/servers/ID/mcp", "sse": f"{gateway.base}/sse"}


def _by_state(servers: Sequence[Mapping[str, Json]]) -> dict[str, dict[str, str]]:
    """State -> server -> why."""
    found: dict[str, dict[str, str]] = {}
    for server in servers:
        found.setdefault(str(server["state"]), {})[str(server["id"])] = str(server["reason"] or "")
    return found


def _state_lines(state: str, found: Mapping[str, str]) -> list[str]:
    """The servers in one state: with their reasons where somebody should read them, else only their ids."""
    lines = [f"{len(found)} {state}"]
    if state in ("ready", "disabled") or (state == "unconfigured" and len(found) > _SHORT):
        return lines + textwrap.wrap(
            ", ".join(found), _WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
        )
    return lines + [f"  {row}" for row in table(found.items())]


def _summary_fields(gateway: Gateway, servers: Sequence[Mapping[str, Json]]) -> dict[str, object]:
    states = _by_state(servers)
    key = "a token of your identity provider"
    fields: dict[str, object] = {
        "endpoints": _endpoints(gateway),
        "ready": sorted(states.pop("ready", {})),
        "disabled": sorted(states.pop("disabled", {})),
        **states,
    }
    if not gateway.snapshot.gateway.identity.issuers:
        key = "what the token command prints"
        fields["token_command"] = token_command(gateway.snapshot)
    fields["open_webui"] = {"type": "MCP (Streamable HTTP)", "url": f"{gateway.base}/mcp", "auth": "Bearer", "key": key}
    return fields


def _summary(gateway: Gateway, servers: Sequence[Mapping[str, Json]]) -> list[str]:
    """The same for a person."""
    states = _by_state(servers)
    lines = [""]
    for state in sorted(states, key=_ORDER.index):
        lines += _state_lines(state, states[state])
    if len(states.get("unconfigured", ())) > _SHORT:
        status = spelled(["status"], config=gateway.snapshot.path, data_dir=gateway.snapshot.gateway.data_dir)
        lines += ["", "What each unconfigured server misses", f"  {status}"]
    lines += ["", "Endpoints"]
    lines += (f"  {row}" for row in table(_endpoints(gateway).items()))
    if gateway.snapshot.gateway.identity.issuers:
        key = "none, choose Auth: OAuth (the person's own token)"
    else:
        key = "what the command above prints"
        lines += ["", "A token for a first look, as a member of MCP-Admin", f"  {token_command(gateway.snapshot)}"]
    lines += ["", "Open WebUI: Admin Settings > External Tools > Add Connection"]
    rows = (("Type", "MCP (Streamable HTTP)"), ("URL", f"{gateway.base}/mcp"), ("Auth", "Bearer"), ("Key", key))
    lines += (f"  {row}" for row in table(rows))
    return [*lines, ""]
