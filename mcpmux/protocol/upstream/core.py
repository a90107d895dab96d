"""The door that every era's core has towards its link: `legacy.LinkCore` and what comes beside it.

A core gives wire bytes for what goes up, and says of every message that comes down whose it is. It does no I/O, knows
no clock, and has one owner, the link.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Final, Protocol, TypeVar

from msgspec import Raw

from mcpmux.protocol import envelope, methods
from mcpmux.protocol.envelope import Reply
from mcpmux.protocol.events import End, Failure, Offered, Opening, Result
from mcpmux.protocol.upstream.received import Broken, Deliver, Headers, Received

T = TypeVar("T")

_OBJECT: Final = ord("{")

Sent = tuple[int, bytes, Headers | None]
"""A request to be sent: its id, its wire bytes, and the HTTP headers that go with it."""


class Core(Protocol[T]):
    """One link's half of the protocol; `T` is what the link wants to be told whose a message is."""

    @property
    def asks(self) -> Sized:
        """What the server waits for an answer to."""

    @property
    def in_flight(self) -> int:
        """How many calls wait for their answer."""

    @property
    def ghosts(self) -> int:
        """How many cancelled calls are remembered, because the server may be at work on them still."""

    def greet(self) -> Sent:
        """The request that makes the connection ready; also to greet anew after a lost session."""

    def serves(self, method: str) -> bool:
        """Whether the server announced what `method` needs; if not, it is not asked."""

    def announces(self, capability: str) -> bool:
        """Whether the greeting told the server of this capability of a client."""

    def ages(self, what: Offered) -> bool:
        """Whether a list grows old by itself: its server says for how long it is good, and not when it changes."""

    def passed_over(self, request: int) -> None:
        """This was a greeting in another era: an answer to it may still come, and means nothing."""

    def open(self, opening: Opening, owner: T) -> Sent:
        """Begin a call; without wire bytes there is nothing to send for it, and `due()` says what to do instead."""

    def cancel(self, request: int, reason: str, now: float) -> bytes | None:
        """Give up a call: the notification to send, or None if it is not in flight (any more)."""

    def drop(self, request: int, now: float) -> T | None:
        """Take a call out whose answer cannot come any more, without telling the server; None if it is not there."""

    def answer(self, call: int, ask: int, answer: End) -> list[Received[T]]:
        """Take a client's answer to what the server asked in this call; nothing if nobody waits for it (any more)."""

    def due(self) -> list[Received[T]]:
        """What else is to be done after a request without wire bytes, or a `drop()`."""

    def resume(self) -> list[Received[T]]:
        """The time of a `Later` has come."""

    def hurry(self) -> list[Received[T]]:
        """The greeting has not been answered for long: what else can be tried."""

    def settled(self) -> Core[T]:
        """The core that goes on from the greeting."""

    def orphaned(self) -> list[bytes]:
        """Errors to be sent for what was asked in calls that have left the table."""

    def waits_for(self, request: int) -> bool:
        """Whether the answer to `request` is still awaited."""

    def is_greeting(self, request: int) -> bool:
        """Whether `request` is the greeting that is not answered yet."""

    def outlasts(self, task: str, caller: str, until: float) -> None:
        """A task of this caller is at work until then (0: no more): what has no address may be about it."""

    def lose(self) -> list[T]:
        """The link has ended: everybody who waited, and empty tables."""

    def receive(self, data: bytes, stream: int | None, now: float) -> list[Received[T]]:
        """Say whose every message in `data` is, in order. `stream`: the request whose response it came in."""

    def oversized(self, head: bytes, tail: bytes, stream: int | None, now: float) -> list[Received[T]]:
        """A message over the limit came by and was thrown away; only its ends are known."""


def cancelled(request: int, reason: str) -> bytes:
    """The notification that nobody waits for the answer to `request` any more."""
    said = {"requestId": Raw(b"%d" % request), "reason": Raw(envelope.encode(reason))}
    return envelope.notification(methods.CANCELLED, said)


def ending(owner: T, reply: Reply) -> Received[T]:
    """What this answer means for its call, as it is."""
    if reply.result is None:
        return Deliver(owner, Failure(reply.code, reply.message, reply.data))
    if memoryview(reply.result)[0] != _OBJECT:
        return Broken(owner, "its result is not an object")
    return Deliver(owner, Result(reply.result))
