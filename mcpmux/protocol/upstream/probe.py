"""ProbeCore: the greeting of a server whose era is not known; what it answers decides which core goes on.

`server/discover` goes first. An answer to it makes the link modern, an error of any other kind than the modern era's
own makes it legacy: then `initialize` follows on the same connection. A server that is silent for a while gets
`initialize` beside it (`hurry()`); it may be one that ignores what it does not know, or one that still starts. Then
whichever is answered well first decides: a server of both eras that was only slow reads `server/discover` first.

The ids of both cores are apart, so that no answer can be taken for the other's. What the greeting of the era that was
not chosen is answered later, if ever, the other core knows for what it is.

Source: MCP 2026-07-28 basic/versioning and basic/transports, "Backward Compatibility".
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Generic

from mcpmux.protocol.events import End, Offered, Opening
from mcpmux.protocol.upstream.core import Core, Sent
from mcpmux.protocol.upstream.received import Greeted, Outdated, Received, Send, T, Unwelcome


class ProbeCore(Generic[T]):
    """See the module. It only greets: with `Greeted` the link goes on with `settled()`."""

    __slots__ = ("_chosen", "_discover", "_initialize", "_legacy", "_modern", "_outdated", "_unwelcome")

    def __init__(self, modern: Core[T], legacy: Core[T]) -> None:
        self._modern = modern
        self._legacy = legacy
        self._chosen: Core[T] | None = None
        self._discover = 0
        self._initialize = 0  # the newest legacy greeting
        self._outdated = False  # the server is not modern
        self._unwelcome: Unwelcome | None = None  # what the legacy greeting came to, while the modern one is open

    @property
    def asks(self) -> Sized:
        """Nobody is asked yet."""
        return ()

    @property
    def in_flight(self) -> int:
        """No calls yet."""
        return 0

    @property
    def ghosts(self) -> int:
        """No calls yet."""
        return 0

    def greet(self) -> Sent:
        """`server/discover`."""
        sent = self._modern.greet()
        self._discover = sent[0]
        return sent

    def hurry(self) -> list[Received[T]]:
        """The server has been silent for long: greet it in the older way as well."""
        if self._initialize or self._chosen is not None:
            return []
        self._initialize, wire, headers = self._legacy.greet()
        return [Send(wire, self._initialize, headers)]

    def settled(self) -> Core[T]:
        """The core that was chosen."""
        return self._chosen or self._modern

    def serves(self, method: str) -> bool:
        """Nothing is known yet."""
        return False

    def announces(self, capability: str) -> bool:
        """Nothing is announced yet."""
        return False

    def ages(self, what: Offered) -> bool:
        """There are no lists yet."""
        return False

    def passed_over(self, request: int) -> None:
        """Both greetings are known here."""

    def open(self, opening: Opening, owner: T) -> Sent:
        """Calls come after the greeting."""
        return self.settled().open(opening, owner)

    def cancel(self, request: int, reason: str, now: float) -> bytes | None:
        """No calls yet."""
        return None

    def drop(self, request: int, now: float) -> T | None:
        """No calls yet."""
        return None

    def outlasts(self, task: str, caller: str, until: float) -> None:
        """No calls yet."""

    def answer(self, call: int, ask: int, answer: End) -> list[Received[T]]:
        """Nobody is asked yet."""
        return []

    def due(self) -> list[Received[T]]:
        """Nothing is left to be done."""
        return []

    resume = due

    def orphaned(self) -> list[bytes]:
        """Nobody is asked yet."""
        return []

    def waits_for(self, request: int) -> bool:
        """Whether the answer to `request` is still awaited."""
        return self.is_greeting(request)

    def is_greeting(self, request: int) -> bool:
        """Whether `request` is a greeting that is not answered yet."""
        return self._modern.is_greeting(request) or self._legacy.is_greeting(request)

    def lose(self) -> list[T]:
        """The link has ended."""
        return self._modern.lose() + self._legacy.lose()

    def receive(self, data: bytes, stream: int | None, now: float) -> list[Received[T]]:
        """What an answer to either greeting means for the link; everything else waits for nobody."""
        if self._outdated:
            return self._chosen_of(self._legacy.receive(data, stream, now))
        found = self._chosen_of(self._modern.receive(data, stream, now))
        if self._chosen is None and not self._outdated and self._initialize:
            # It was not the answer to `server/discover`.
            found = self._chosen_of(self._legacy.receive(data, stream, now))
        return found

    def oversized(self, head: bytes, tail: bytes, stream: int | None, now: float) -> list[Received[T]]:
        """A message over the limit came by."""
        return (self._legacy if self._outdated else self._modern).oversized(head, tail, stream, now)

    def _chosen_of(self, found: list[Received[T]]) -> list[Received[T]]:
        """What follows from what one of the cores says."""
        passed: list[Received[T]] = []
        for one in found:
            if isinstance(one, Outdated):
                self._outdated = True
                passed += self.hurry() if self._unwelcome is None else [self._unwelcome]
            elif isinstance(one, Unwelcome) and self._waits_for_modern():
                self._unwelcome = one
            else:
                passed.append(one)
                if isinstance(one, Greeted):
                    self._choose(one)
                elif isinstance(one, Send) and one.request is not None and self._chosen is None:
                    self._initialize = one.request  # for an older revision
        return passed

    def _choose(self, greeted: Greeted) -> None:
        """Go on with the era that was answered in; the other greeting may be answered too."""
        is_modern = greeted.wire == b""
        self._chosen, other = (self._modern, self._legacy) if is_modern else (self._legacy, self._modern)
        unanswered = self._initialize if is_modern else self._discover
        if other.is_greeting(unanswered):
            self._chosen.passed_over(unanswered)

    def _waits_for_modern(self) -> bool:
        """Whether `server/discover` may still be answered; a legacy greeting that is refused decides nothing then."""
        return not self._outdated and self._modern.is_greeting(self._discover)
