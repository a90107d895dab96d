"""Ticket: the way back to a task, and the sealed id of ours that says it.

Sealed for one principal at one endpoint, in one era, expiring with the task: a foreign, forged or expired id looks like
one that never existed. So there is no table to look a task up in, and an id works after a restart of mcpmux.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from mcpmux.errors import SealBroken, TaskUnknown
from mcpmux.protocol import envelope
from mcpmux.seal import Keyring

if TYPE_CHECKING:
    from mcpmux.calls.call import Caller

_PURPOSE: Final = "task"


class Ticket(Struct, frozen=True, array_like=True):
    """What a sealed id says: where the task is, which tool it runs, and the server's own id.

    `life` is the link's, where the task ends with it; empty where the server outlives our links.
    """

    server: str
    scope: str
    life: str
    tool: str
    task: str


_TICKET: Final = msgspec.json.Decoder(Ticket)


def sealed(ticket: Ticket, caller: Caller, keyring: Keyring, until: float) -> str:
    """The id that this caller gets; `until` are unix seconds."""
    return keyring.seal(_PURPOSE, envelope.encode(ticket), bound=_bound(caller), expires=until)


def opened(task_id: str, caller: Caller, keyring: Keyring) -> Ticket:
    """What an id says.

    Raises: TaskUnknown (it is no id of this caller's, or not any more).
    """
    try:
        return _TICKET.decode(keyring.open(_PURPOSE, task_id, bound=_bound(caller), now=time.time()))
    except (SealBroken, msgspec.DecodeError) as exc:
        raise TaskUnknown from exc


def _bound(caller: Caller) -> bytes:
    era = "legacy" if caller.revision else "modern"
    return f"{caller.principal.key} {caller.view} {era}".encode()
