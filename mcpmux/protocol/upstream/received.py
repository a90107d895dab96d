"""What a link's core says of what it received: whose it is, what to send back, what the server said of itself.

The words of both eras; `Changed`, `Updated` and `Completed`, which belong to no call, come as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from msgspec import Raw, Struct

from mcpmux.protocol.events import Event, News

T = TypeVar("T")

Headers = Mapping[str, str]
"""What a message says of itself in HTTP headers too, as the modern era has it."""


class Greeting(Struct, frozen=True):
    """What a server said of itself when it was greeted."""

    protocol_version: str
    capabilities: dict[str, Raw]
    server_info: Raw
    instructions: str | None


class Deliver(Struct, Generic[T], frozen=True):
    """`event` belongs to the call of `owner`; after a `Result` or `Failure` that call is out of the table."""

    owner: T
    event: Event


class Broken(Struct, Generic[T], frozen=True):
    """The answer to the call of `owner` cannot be used; the call is out of the table."""

    owner: T
    problem: str


class Send(Struct, frozen=True):
    """Bytes to send to the server; `request` is their id if they want an answer."""

    wire: bytes
    request: int | None = None
    headers: Headers | None = None


class Greeted(Struct, frozen=True):
    """The server is ready once `wire` is sent."""

    greeting: Greeting
    wire: bytes


class Unwelcome(Struct, frozen=True):
    """The server cannot be used; `problem` says why."""

    problem: str


class Resend(Struct, Generic[T], frozen=True):
    """The call of `owner` goes up once more, as `request`: that is its id from now on."""

    owner: T
    wire: bytes
    request: int
    headers: Headers | None = None


class Unread(Struct, frozen=True):
    """Nobody waits for the answer to `request` any more: its stream, where it has one, can be closed."""

    request: int


class Later(Struct, frozen=True):
    """The core wants to be asked by `resume()` in so many seconds."""

    seconds: float


class Outdated(Struct, frozen=True):
    """The server does not speak the era that it was greeted in."""


class Stray(Struct, frozen=True):
    """A message that is nobody's; `reason` is a closed word, `text` a bounded part of it for the log."""

    reason: str
    text: str = ""


Received = Deliver[T] | Broken[T] | Send | Resend[T] | Unread | Later | Greeted | Unwelcome | Outdated | Stray | News
