"""Edits of the grant tables, for the command line and the API.

Owns all writing to `user_tenant_access`, `group_tenant_mapping`, `tenants` and `tenant_servers`. Each edit is one
transaction, and the triggers tell every running mcpmux. Texts are stored as given: whoever calls has made an e-mail
address normal (`identity.principal.normal_email`) and refused what no token can hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from mcpmux.access.decision import Level
from mcpmux.store.database import Database


@dataclass(frozen=True, slots=True)
class Held:
    """One row of who has which tenant; `holder` is an e-mail address or a group."""

    holder: str
    tenant: str
    level: Level


@dataclass(frozen=True, slots=True)
class TenantServer:
    """One server that a tenant has, with the patterns of its tools."""

    tenant: str
    server: str
    tools: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """All that the tables hold, in order."""

    users: tuple[Held, ...]
    groups: tuple[Held, ...]
    tenants: tuple[TenantServer, ...]


GRANT_USER = """
INSERT INTO user_tenant_access (user_email, tenant_id, access_level) VALUES ($1, $2, $3)
ON CONFLICT (user_email, tenant_id) DO UPDATE SET access_level = excluded.access_level
"""


async def grant_user(db: Database, email: str, tenant: str, level: Level) -> None:
    """Give a person the tenant at this level; a level that was there is replaced.

    Raises: StoreUnavailable, ValueRefused.
    """
    await db.execute(GRANT_USER, email, tenant, level)


GRANT_GROUP = """
INSERT INTO group_tenant_mapping (group_name, tenant_id, access_level) VALUES ($1, $2, $3)
ON CONFLICT (group_name, tenant_id) DO UPDATE SET access_level = excluded.access_level
"""


async def grant_group(db: Database, group: str, tenant: str, level: Level) -> None:
    """Give a group the tenant at this level; a level that was there is replaced.

    Raises: StoreUnavailable, ValueRefused.
    """
    await db.execute(GRANT_GROUP, group, tenant, level)


REVOKE_USER = "DELETE FROM user_tenant_access WHERE user_email = ANY($1::text[]) AND tenant_id = $2"


async def revoke_user(db: Database, emails: Sequence[str], tenant: str) -> bool:
    """Take the tenant from a person, under every form of the address that is given; whether there was a grant.

    Raises: StoreUnavailable, ValueRefused.
    """
    return _any(await db.execute(REVOKE_USER, list(emails), tenant))


REVOKE_GROUP = "DELETE FROM group_tenant_mapping WHERE group_name = $1 AND tenant_id = $2"


async def revoke_group(db: Database, group: str, tenant: str) -> bool:
    """Take the tenant from a group; whether there was a grant.

    Raises: StoreUnavailable, ValueRefused.
    """
    return _any(await db.execute(REVOKE_GROUP, group, tenant))


ADD_TENANT = "INSERT INTO tenants (id) VALUES ($1) ON CONFLICT (id) DO NOTHING"
ADD_SERVER = """
INSERT INTO tenant_servers (tenant_id, server_id, tools) VALUES ($1, $2, $3)
ON CONFLICT (tenant_id, server_id) DO UPDATE SET tools = excluded.tools
"""


async def add_to_tenant(db: Database, tenant: str, server: str, tools: Sequence[str]) -> None:
    """Put a server with these tool patterns into a tenant, which is made if need be; patterns there are replaced.

    Raises: StoreUnavailable, ValueRefused.
    """
    async with db.transaction() as transaction:
        await transaction.execute(ADD_TENANT, tenant)
        await transaction.execute(ADD_SERVER, tenant, server, list(tools))


REMOVE_SERVER = "DELETE FROM tenant_servers WHERE tenant_id = $1 AND server_id = $2"
REMOVE_EMPTY_TENANT = """
DELETE FROM tenants WHERE id = $1 AND title = '' AND NOT EXISTS (SELECT FROM tenant_servers WHERE tenant_id = $1)
"""


async def remove_from_tenant(db: Database, tenant: str, server: str) -> bool:
    """Take a server out of a tenant, and the tenant away if it is empty and has no title; whether it was in it.

    Raises: StoreUnavailable, ValueRefused.
    """
    async with db.transaction() as transaction:
        removed = _any(await transaction.execute(REMOVE_SERVER, tenant, server))
        await transaction.execute(REMOVE_EMPTY_TENANT, tenant)
    return removed


TENANT_KNOWN = """
SELECT EXISTS (SELECT FROM tenants WHERE id = $1) OR EXISTS (SELECT FROM tenant_servers WHERE tenant_id = $1)
"""


async def tenant_known(db: Database, tenant: str) -> bool:
    """Whether somebody made a tenant of this id; that every server has one of its own is not looked at.

    Raises: StoreUnavailable, ValueRefused.
    """
    return bool(await db.fetchval(TENANT_KNOWN, tenant))


USERS = """
SELECT user_email AS holder, tenant_id, access_level FROM user_tenant_access
ORDER BY user_email COLLATE "C", tenant_id COLLATE "C"
"""
GROUPS = """
SELECT group_name AS holder, tenant_id, access_level FROM group_tenant_mapping
ORDER BY group_name COLLATE "C", tenant_id COLLATE "C"
"""
TENANTS = """
SELECT tenant_id, server_id, tools FROM tenant_servers ORDER BY tenant_id COLLATE "C", server_id COLLATE "C"
"""


async def listing(db: Database) -> Listing:
    """Every row of the tables, as of one moment.

    Raises: StoreUnavailable.
    """
    async with db.transaction() as transaction:
        users, groups = await transaction.fetch(USERS), await transaction.fetch(GROUPS)
        tenants = await transaction.fetch(TENANTS)
    return Listing(
        tuple(Held(row["holder"], row["tenant_id"], cast(Level, row["access_level"])) for row in users),
        tuple(Held(row["holder"], row["tenant_id"], cast(Level, row["access_level"])) for row in groups),
        tuple(TenantServer(row["tenant_id"], row["server_id"], tuple(filter(None, row["tools"]))) for row in tenants),
    )


def _any(tag: str) -> bool:
    """Whether a command tag such as `DELETE 3` tells of any row."""
    return not tag.endswith(" 0")
