"""Offers kept in PostgreSQL, so that lists are there before the servers are (design section 5, cold start).

Owns the table `kept_offers` and the form of its rows. A row belongs to one server with one exact config section: its
key is a keyed digest of that section, secrets included, so another token or argument is another offer, and nobody can
guess a secret from the table. What a row holds is read back as mistrustfully as a server's own answer; one that cannot
be read is as good as none. Rows of sections that are no longer configured stay for a while, for a config that is
taken back or a variable that is set again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import Raw, Struct

from mcpmux.catalog.items import Offer
from mcpmux.config.schema import Server
from mcpmux.protocol.events import Offered
from mcpmux.seal import Keyring
from mcpmux.store.database import Database

_NULL: Final = b"null"
_FORM: Final = 1  # of the bytes in a row; another number is not read

KEPT_PER_SERVER: Final = 4
KEPT_DAYS: Final = 7


@dataclass(frozen=True, slots=True)
class KeptOffer:
    """An offer as it was kept: lists of raw entries, still to be read as items."""

    lists: Mapping[Offered, tuple[bytes, ...]]
    capabilities: Mapping[str, Raw]
    instructions: str | None
    server_info: Raw | None


class _Form(Struct, frozen=True, forbid_unknown_fields=True):
    form: int
    lists: dict[Offered, list[Raw]]
    capabilities: dict[str, Raw]
    instructions: str | None
    server_info: Raw  # `Raw | None` would be read as null alone


_READER: Final = msgspec.json.Decoder(_Form)


def section_digest(keyring: Keyring, server: Server) -> bytes:
    """The key of what is kept for a server as it is configured now."""
    return keyring.digest("offer", server.section)


def kept_bytes(offer: Offer) -> bytes:
    """What is kept of `offer`: the server's own bytes; public names are made anew when it is read."""
    lists = {what: [Raw(item.raw) for item in items] for what, items in offer.items.items()}
    form = _Form(_FORM, lists, dict(offer.capabilities), offer.instructions, offer.server_info or Raw(_NULL))
    return msgspec.json.encode(form)


def read_kept(data: bytes) -> KeptOffer | None:
    """What `kept_bytes` kept, None if it is not (any more) what this release can read."""
    try:
        form = _READER.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    if form.form != _FORM:
        return None
    # Copied: a `Raw` would keep the whole row in memory.
    return KeptOffer(
        {what: tuple(bytes(entry) for entry in entries) for what, entries in form.lists.items()},
        {name: Raw(bytes(value)) for name, value in form.capabilities.items()},
        form.instructions,
        None if bytes(form.server_info) == _NULL else Raw(bytes(form.server_info)),
    )


KEPT = """
SELECT k.server_id, k.offer FROM kept_offers k
JOIN unnest($1::text[], $2::bytea[]) AS wanted (server_id, digest)
  ON k.server_id = wanted.server_id AND k.digest = wanted.digest
"""


async def fetch_kept(db: Database, digests: Mapping[str, bytes]) -> dict[str, bytes]:
    """The kept bytes of these servers (id → digest of the section), as far as there are any.

    Raises: StoreUnavailable.
    """
    rows = await db.fetch(KEPT, list(digests), list(digests.values()))
    return {str(row["server_id"]): bytes(row["offer"]) for row in rows}


KEEP = """
INSERT INTO kept_offers (server_id, digest, offer) VALUES ($1, $2, $3)
ON CONFLICT (server_id, digest) DO UPDATE SET offer = excluded.offer, kept_at = now()
"""


async def keep(db: Database, server: str, digest: bytes, data: bytes) -> None:
    """Keep what a server offers.

    Raises: StoreUnavailable.
    """
    await db.execute(KEEP, server, digest, data)


PRUNE = """
DELETE FROM kept_offers k
USING (
    SELECT server_id, digest, row_number() OVER (PARTITION BY server_id ORDER BY kept_at DESC, digest) AS place
    FROM kept_offers WHERE NOT (digest = ANY($1::bytea[]))
) AS old
WHERE k.server_id = old.server_id AND k.digest = old.digest
  AND (old.place > $2 OR k.kept_at < now() - make_interval(days => $3))
"""


async def prune(db: Database, current: Collection[bytes]) -> None:
    """Forget what no configured section (by digest) needs: all that is old, and all but the newest of a server.

    Raises: StoreUnavailable.
    """
    await db.execute(PRUNE, list(current), KEPT_PER_SERVER, KEPT_DAYS)
