"""`stdio`: what a desktop client starts and speaks to over pipes; a bridge to a running mcpmux.

stdout belongs to the client: it is put aside before anything else, and what anybody prints from then on goes to
stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mcpmux.cli.command import GOOD, seconds
from mcpmux.config.bearer import VARIABLE, Bearer
from mcpmux.config.load import data_dir_in, environment
from mcpmux.config.schema import Limits, Snapshot
from mcpmux.errors import ConfigInvalid, NotRunning, UsageWrong
from mcpmux.outbound import Outbound, is_secure

if TYPE_CHECKING:
    from mcpmux.faces.endpoint import Where

PATIENCE: Final = 10.0  # seconds; the usual client gives its first request no more


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command."""
    command = subparsers.add_parser("stdio", help="speak MCP on stdin and stdout, for clients that start their servers")
    command.add_argument(
        "--url", metavar="URL", help="an MCP endpoint, such as https://mcp.example.com/mcp (default: the mcpmux here)"
    )
    command.add_argument(
        "--token-file", metavar="F", type=Path, help=f"file with the access token, instead of {VARIABLE}"
    )
    command.add_argument(
        "--allow-http", action="store_true", help="let the token go over plain http, also off loopback"
    )
    command.add_argument(
        "--wait", metavar="T", type=seconds, default=PATIENCE, help="how long to wait for a connection (default: 10s)"
    )
    command.set_defaults(run_anyway=stdio)


async def stdio(arguments: argparse.Namespace, outcome: Snapshot | ConfigInvalid) -> int:
    """Speak for the client until it leaves; a config file is only needed to find the mcpmux that runs here.

    Raises: UsageWrong.
    """
    # Here, so that no other command waits until they are imported.
    from mcpmux.faces.endpoint import Endpoint
    from mcpmux.faces.stdio import bridged

    environ = environment()
    bearer = Bearer.of(environ, arguments.token_file)
    where = _given(arguments) if arguments.url is not None else _local(arguments, outcome)
    limits = Limits() if isinstance(outcome, ConfigInvalid) else outcome.gateway.limits
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(one, stop.set)
    pipes = (sys.stdin.fileno(), _put_aside_stdout())
    async with Outbound(environ) as outbound:
        await bridged(Endpoint(outbound, where, bearer, arguments.wait), pipes, limits.body, stop)
    return GOOD


def _given(arguments: argparse.Namespace) -> Where:
    """The address that `--url` gives. Raises: UsageWrong."""
    url: str = arguments.url
    if not is_secure(url) and not (arguments.allow_http and is_secure(url.replace("http://", "https://", 1))):
        raise UsageWrong(
            "--url must be https://…, or http://… on loopback (elsewhere only with --allow-http), without a user name"
        )

    async def where() -> str:
        return url

    return where


def _local(arguments: argparse.Namespace, outcome: Snapshot | ConfigInvalid) -> Where:
    """The address of the mcpmux that runs on this data directory, asked anew each time: its port may change."""
    from mcpmux.faces.control import ask

    if isinstance(outcome, ConfigInvalid):
        data_dir = arguments.data_dir or data_dir_in(arguments.config, environment())
    else:
        data_dir = outcome.gateway.data_dir

    async def where() -> str:
        told = await ask(data_dir.absolute(), "status")
        url = told.get("url") if isinstance(told, dict) else None
        if not isinstance(url, str) or not url:
            raise NotRunning("The running mcpmux is of another version: restart it")
        return f"{reachable(url)}/mcp"

    return where


def reachable(url: str) -> str:
    """The address with which to connect to one that is listened on: for all addresses, the one of loopback."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:", 1).replace("//[::]:", "//[::1]:", 1)


def _put_aside_stdout() -> int:
    """The client's pipe under another number; stdout is stderr from now on."""
    kept = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return kept
