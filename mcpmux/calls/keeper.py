"""Keeper: the one `tasks/result` that waits at a server of 2025-11-25, for a client that only ever looks at its task.

What the server asks for the task comes on it, and at last the result. Both stay here until the client has looked and
answered. Nobody reads it meanwhile: it is looked at when its client looks.
Source: MCP 2025-11-25 basic/utilities/tasks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Raw

from mcpmux.calls.inputs import EXHAUSTED, PATIENCE, Inputs, answered
from mcpmux.errors import InvalidParams
from mcpmux.links.exchange import Exchange
from mcpmux.protocol import abilities, faults, rounds, tasks
from mcpmux.protocol.abilities import Capabilities
from mcpmux.protocol.events import Ask, End, Event, Failure, Result, Withdrawn
from mcpmux.protocol.revisions import MODERN

UNLOOKED: Final = "its client has not looked at the task any more"


class Keeper:
    """One task's; `asks` are by the names that the client knows them by, `end` is what the task has come to."""

    __slots__ = ("_exchange", "_inputs", "_looking", "_principal", "_task", "asks", "deadline", "end")

    def __init__(self, exchange: Exchange, task: str, principal: str, inputs: Inputs) -> None:
        self._exchange = exchange
        self._task = task
        self._principal = principal
        self._inputs = inputs
        self._looking = asyncio.Lock()  # an exchange has one reader
        self.asks: dict[str, Ask] = {}
        self.end: End | None = None
        self.deadline = time.monotonic() + PATIENCE

    async def look(self, able: Capabilities, wait: float, enough: Callable[[Keeper], bool]) -> None:
        """Take in what the server has said, and wait until that is `enough`, or for `wait` seconds at most.

        `able`: what the client that looks can be asked; what it cannot is answered at once.
        Raises: LinkLost, ServerEnded, UpstreamBroken.
        """
        self.deadline = time.monotonic() + PATIENCE
        try:
            async with asyncio.timeout(wait), self._looking:
                for event in self._exchange.asks():
                    self._take(event, able)
                while self.end is None and (self._exchange.ended or not enough(self)):
                    self._take(await self._exchange.next(), able)
        except TimeoutError:
            return

    def answer(self, responses: Mapping[str, Raw]) -> None:
        """Give the server what its client has answered; names that are not open mean nothing.

        Raises: InvalidParams.
        """
        found = [(key, self.asks[key], raw) for key, raw in responses.items() if key in self.asks]
        for key, ask, raw in found:
            if not rounds.answers(ask.method, raw):
                raise InvalidParams(f"{rounds.RESPONSES} has no answer to {ask.method} under {key}")
        for key, ask, raw in found:
            self._settle(key, answered(ask, Result(raw)))
            self._exchange.answer(ask.id, Result(tasks.marked(raw, self._task) or raw))

    def close(self, reason: str) -> None:
        """Nobody looks any more: what is open is the server's to live without."""
        for key in tuple(self.asks):
            self._settle(key, "expired" if reason == UNLOOKED else "void")
        self._exchange.cancel(reason)

    def _take(self, event: Event, able: Capabilities) -> None:
        match event:
            case Ask():
                self._asked(event, able)
            case Withdrawn(number):
                for key in [key for key, ask in self.asks.items() if ask.id == number]:
                    self._settle(key, "withdrawn")
            case Result(raw):
                self._ended(tasks.payload(raw))
            case Failure():
                self._ended(event)

    def _asked(self, ask: Ask, able: Capabilities) -> None:
        problem = abilities.inability(ask.method, ask.params, able, MODERN)
        if problem is not None or not self._inputs.take(self._principal):
            self._exchange.link.metrics.asked(ask.method, "refused")
            refusal = EXHAUSTED if problem is None else Failure(faults.METHOD_NOT_FOUND, problem)
            self._exchange.answer(ask.id, refusal)
            return
        # No name stands for two questions of one task, whatever link they came on.
        key = f"{self._exchange.link.life}-{ask.id}"
        self.asks[key] = Ask(ask.id, ask.method, None if ask.params is None else tasks.unmarked(ask.params), key)

    def _settle(self, key: str, outcome: str) -> None:
        ask = self.asks.pop(key)
        self._inputs.give_back(self._principal)
        self._exchange.link.metrics.asked(ask.method, outcome)

    def _ended(self, end: End) -> None:
        for key in tuple(self.asks):
            self._settle(key, "void")
        self.end = end
