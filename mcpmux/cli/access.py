"""`access`: who may use what, and why.

The commands of design section 8, and two more for tenants that hold several servers, or a part of one: `tenant-add`
and `tenant-remove`. They edit the database and nothing else; a running mcpmux hears of it by itself. What cannot work
as it was probably meant (a tenant that nobody made, a server that is disabled) is done all the same and warned of on
stderr: a grant may come before its tenant.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from mcpmux.access import rows
from mcpmux.access.decision import ADMIN_GROUP, RANK, Decision, Target, decide, whole
from mcpmux.access.grants import read_grants
from mcpmux.catalog.items import read_items
from mcpmux.catalog.kept import fetch_kept, read_kept, section_digest
from mcpmux.cli.command import GOOD, NEGATIVE, say, say_json, table
from mcpmux.config.schema import Server, Snapshot
from mcpmux.errors import UsageWrong
from mcpmux.identity.principal import normal_email
from mcpmux.observe.redaction import visible
from mcpmux.protocol.events import Offered
from mcpmux.seal import keyring
from mcpmux.store import Database, opened

_LOCK_WAIT: Final = 10.0  # seconds to wait for a command or a start that holds the data directory
_LONGEST: Final = 256  # characters of a group, a tenant or a pattern


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`access` and its commands."""
    access = subparsers.add_parser("access", help="who may use what: grant, revoke, list, explain")
    commands = access.add_subparsers(dest="access_command", metavar="COMMAND", required=True)
    for kind, metavar in (("user", "E"), ("group", "G")):
        command = commands.add_parser(f"grant-{kind}", help=f"give a {kind} a tenant; replaces the level")
        command.add_argument("holder", metavar=metavar)
        command.add_argument("tenant", metavar="TENANT", help="a server's id, or a tenant of several servers")
        command.add_argument("--level", choices=list(RANK), default="write", help="default: write")
        command.set_defaults(run=grant, kind=kind)
        command = commands.add_parser(f"revoke-{kind}", help=f"take a tenant from a {kind}")
        command.add_argument("holder", metavar=metavar)
        command.add_argument("tenant", metavar="TENANT")
        command.set_defaults(run=revoke, kind=kind)
    _add_tenants(commands)

    command = commands.add_parser("list", help="all grants, and what the tenants hold")
    command.add_argument("--json", action="store_true", help="answer for machines")
    command.set_defaults(run=list_all)

    command = commands.add_parser("explain", help="whether a person may use a server or one of its tools, and why")
    command.add_argument("email", metavar="E", help="taken as an e-mail address that is trusted")
    command.add_argument("server", metavar="SERVER")
    command.add_argument("tool", metavar="TOOL", nargs="?", help="the server's own name of a tool")
    command.add_argument("--group", metavar="G", action="append", default=[], help="a group of the person; repeatable")
    command.add_argument("--json", action="store_true", help="answer for machines")
    command.set_defaults(run=explain)


def _add_tenants(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("tenant-add", help="put a server, or some of its tools, into a tenant")
    command.add_argument("tenant", metavar="TENANT")
    command.add_argument("server", metavar="SERVER")
    command.add_argument(
        "--tool", metavar="PATTERN", action="append", default=[], help="only tools like this (glob); repeatable"
    )
    command.set_defaults(run=tenant_add)
    command = commands.add_parser("tenant-remove", help="take a server out of a tenant")
    command.add_argument("tenant", metavar="TENANT")
    command.add_argument("server", metavar="SERVER")
    command.set_defaults(run=tenant_remove)


# Edits ---------------------------------------------------------------------------------------------------------


async def grant(arguments: argparse.Namespace, config: Snapshot) -> int:
    """Give a person or a group a tenant.

    Raises: UsageWrong, StoreUnavailable, DataDirBusy.
    """
    holder, tenant, level = _holder(arguments), _id(arguments.tenant, "tenant"), arguments.level
    async with _database(config) as db:
        if arguments.kind == "user":
            await rows.grant_user(db, holder, tenant, level)
        else:
            await rows.grant_group(db, holder, tenant, level)
        known = tenant in config.servers or await rows.tenant_known(db, tenant)
    if arguments.kind == "group" and holder == ADMIN_GROUP:
        _warn(f"group {ADMIN_GROUP} has level admin on every enabled server anyway")
    if not known:
        _warn(f"there is no server or tenant {tenant} (yet): the grant is kept, and means nothing until there is")
    elif tenant in config.servers and not config.servers[tenant].enabled:
        _warn(f"server {tenant} is disabled: nobody may use it until it is enabled")
    say(f"{arguments.kind} {holder} has tenant {tenant} at level {level}")
    return GOOD


async def revoke(arguments: argparse.Namespace, config: Snapshot) -> int:
    """Take a tenant from a person or a group; exit 1 when it had none.

    Raises: UsageWrong, StoreUnavailable, DataDirBusy.
    """
    holder, tenant = _holder(arguments), _id(arguments.tenant, "tenant")
    async with _database(config) as db:
        if arguments.kind == "user":
            # As typed, too: an old row may hold a form of the address that no token ever matches.
            there = await rows.revoke_user(db, sorted({holder, arguments.holder}), tenant)
        else:
            there = await rows.revoke_group(db, holder, tenant)
    if not there:
        say(f"{arguments.kind} {holder} has no grant of tenant {tenant}")
        return NEGATIVE
    say(f"{arguments.kind} {holder} has tenant {tenant} no more")
    return GOOD


async def tenant_add(arguments: argparse.Namespace, config: Snapshot) -> int:
    """Put a server into a tenant, with all its tools or those like the patterns.

    Raises: UsageWrong, StoreUnavailable, DataDirBusy.
    """
    tenant, server = _id(arguments.tenant, "tenant"), _id(arguments.server, "server")
    tools = [_id(pattern, "tool pattern") for pattern in arguments.tool] or ["*"]
    async with _database(config) as db:
        await rows.add_to_tenant(db, tenant, server, tools)
    if server not in config.servers:
        _warn(f"there is no server {server} (yet)")
    if tenant in config.servers and tenant != server:
        _warn(f"{tenant} is also a server, so this tenant has that server as well")
    say(f"tenant {tenant} has server {server}, tools: {', '.join(tools)}")
    return GOOD


async def tenant_remove(arguments: argparse.Namespace, config: Snapshot) -> int:
    """Take a server out of a tenant; exit 1 when it was not in it.

    Raises: UsageWrong, StoreUnavailable, DataDirBusy.
    """
    tenant, server = _id(arguments.tenant, "tenant"), _id(arguments.server, "server")
    async with _database(config) as db:
        there = await rows.remove_from_tenant(db, tenant, server)
    if there and tenant == server:
        _warn(f"server {server} has a tenant of its own id without a row: it is whole again")
    say(f"tenant {tenant} {'has server ' + server + ' no more' if there else 'has no row for server ' + server}")
    return GOOD if there else NEGATIVE


# Questions -----------------------------------------------------------------------------------------------------


async def list_all(arguments: argparse.Namespace, config: Snapshot) -> int:
    """Every row of the grant tables.

    Raises: StoreUnavailable, DataDirBusy.
    """
    async with _database(config) as db:
        found = await rows.listing(db)
    if arguments.json:
        say_json(_listed(found))
    else:
        lines: list[tuple[str, ...]] = [("user", held.holder, held.tenant, held.level) for held in found.users]
        lines += [("group", held.holder, held.tenant, held.level) for held in found.groups]
        lines += [("tenant", held.tenant, held.server, ", ".join(held.tools) or "no tools") for held in found.tenants]
        said = table([tuple(map(visible, line)) for line in lines]) if lines else [f"no grants: only {ADMIN_GROUP}"]
        say(*said)
    _warn(*_doubts(found, config))
    return GOOD


def _listed(found: rows.Listing) -> dict[str, object]:
    return {
        "users": [{"email": held.holder, "tenant": held.tenant, "level": held.level} for held in found.users],
        "groups": [{"group": held.holder, "tenant": held.tenant, "level": held.level} for held in found.groups],
        "tenants": [{"tenant": held.tenant, "server": held.server, "tools": held.tools} for held in found.tenants],
    }


def _doubts(found: rows.Listing, config: Snapshot) -> Iterable[str]:
    """What in the tables does nothing, though somebody meant it to."""
    tenants = {held.tenant for held in found.tenants}
    for held in (*found.users, *found.groups):
        if held.tenant not in tenants and held.tenant not in config.servers:
            yield f"there is no server or tenant {held.tenant}, which {held.holder} has"
    for held in found.users:
        if normal_email(held.holder) != held.holder:
            yield f"no token matches {held.holder}: grant it anew, then revoke this spelling"
    for row in found.tenants:
        if row.server not in config.servers:
            yield f"there is no server {row.server}, which tenant {row.tenant} has"


@dataclass(frozen=True, slots=True)
class _Question:
    email: str
    groups: tuple[str, ...]
    server: Server
    tool: str | None


@dataclass(frozen=True, slots=True)
class _Answer:
    """What `explain` says; `decision` is None where there is nothing to decide on."""

    allowed: bool
    decision: Decision | None
    chain: tuple[str, ...]


async def explain(arguments: argparse.Namespace, config: Snapshot) -> int:
    """Say whether a person may use a server or a tool, and every step of why; exit 1 when not, or unknown.

    Raises: UsageWrong, StoreUnavailable, DataDirBusy.
    """
    email, groups = _email(arguments.email), tuple(_id(group, "group") for group in arguments.group)
    server, tool = config.servers.get(arguments.server), arguments.tool
    if server is None:
        answer = _Answer(False, None, (f"The config has no server {arguments.server}.",))
    else:
        async with _database(config) as db:
            answer = await _answered(db, config, _Question(email, groups, server, tool))
    taken = f"The groups are taken to be: {', '.join(groups)}." if groups else ""
    who = (f"{email} counts as a trusted e-mail address.", taken or "The groups are unknown: name each with --group.")
    decision, chain = answer.decision, (*who, *answer.chain)
    level, tenant = (decision.level, decision.tenant) if decision is not None else (None, None)
    if arguments.json:
        reason = "unknown" if decision is None else decision.reason
        say_json({"allowed": answer.allowed, "level": level, "tenant": tenant, "reason": reason, "chain": chain})
    else:
        verdict = f"allowed at level {level}" if answer.allowed else "denied"
        say(*chain, f"{verdict}: {email}, server {arguments.server}" + (f", tool {tool}" if tool is not None else ""))
    return GOOD if answer.allowed else NEGATIVE


async def _answered(db: Database, config: Snapshot, question: _Question) -> _Answer:
    server, tool = question.server, question.tool
    tools = await _kept_tools(db, config, server) if tool is not None else None
    if tool is None:
        target = whole(server)
    else:
        target = Target(server.id, server.enabled, "tool", tool, (tools or {}).get(tool), server.tools)
    (grants,) = await read_grants(db, [(question.email, question.groups)])
    decision = decide(grants, target)
    chain = decision.chain
    if decision.allowed and tools is not None and tool not in tools:
        return _Answer(False, None, (*chain, f"But server {server.id} had no tool {tool} when it was last seen."))
    if decision.allowed and server.unconfigured:
        chain += (f"But server {server.id} cannot be started as configured: {server.why_unconfigured}.",)
    return _Answer(decision.allowed, decision, chain)


async def _kept_tools(db: Database, config: Snapshot, server: Server) -> dict[str, bool] | None:
    """The server's tools as last seen, and whether each says `readOnlyHint: true`; None if it was never seen."""
    gateway = config.gateway
    digest = section_digest(keyring(gateway.data_dir, gateway.keys), server)
    data = (await fetch_kept(db, {server.id: digest})).get(server.id)
    kept = read_kept(data) if data is not None else None
    if kept is None or Offered.TOOLS not in kept.lists:
        return None
    reading = read_items(Offered.TOOLS, server.id, kept.lists[Offered.TOOLS], gateway.names.max_length)
    return {item.native: item.read_only for item in reading.items}


# What all of them need -----------------------------------------------------------------------------------------


@asynccontextmanager
async def _database(config: Snapshot) -> AsyncIterator[Database]:
    gateway = config.gateway
    async with opened(gateway.database.url, gateway.data_dir, None, wait=_LOCK_WAIT) as db:
        yield db


def _holder(arguments: argparse.Namespace) -> str:
    return _email(arguments.holder) if arguments.kind == "user" else _id(arguments.holder, "group")


def _email(text: str) -> str:
    """The address in the form in which a token's is compared.

    Raises: UsageWrong.
    """
    if (email := normal_email(text)) is None:
        raise UsageWrong(f"{visible(text)!r} is no e-mail address that a token could have")
    return email


def _id(text: str, what: str) -> str:
    """The text as it is, if a table and a person can read it.

    Raises: UsageWrong.
    """
    if not text or len(text) > _LONGEST or text != text.strip() or visible(text) != text:
        raise UsageWrong(
            f"{visible(text)!r} is no {what}: 1 to {_LONGEST} visible characters, without spaces around them"
        )
    return text


def _warn(*lines: str) -> None:
    sys.stderr.write("".join(f"mcpmux: warning: {visible(line)}\n" for line in lines))
