"""Throttle: what servers write goes into our log line by line, but no server may flood it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

BURST: Final = 100  # lines
WINDOW: Final = 5.0  # seconds


class Throttle:
    """Lets `BURST` lines through in each window, and says at its end how many were held back."""

    __slots__ = ("_held", "_left", "_loop", "_say", "_timer", "_until")

    def __init__(self, loop: asyncio.AbstractEventLoop, say: Callable[[int], None]) -> None:
        self._loop = loop
        self._say = say
        self._until = 0.0
        self._left = 0
        self._held = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def shut(self) -> bool:
        """Whether nothing passes until the window ends."""
        return self._left <= 0 and self._loop.time() < self._until

    def passes(self, lines: int = 1) -> bool:
        """Whether this may be logged; if not, `lines` are counted as held back."""
        now = self._loop.time()
        if now >= self._until:
            self._until, self._left = now + WINDOW, BURST
        if self._left > 0:
            self._left -= 1
            return True
        self._held += lines
        if self._timer is None:
            self._timer = self._loop.call_at(self._until, self._tell)
        return False

    def close(self) -> None:
        """Say now what there is to say."""
        if self._timer is not None:
            self._timer.cancel()
            self._tell()

    def _tell(self) -> None:
        self._timer = None
        if self._held:
            held, self._held = self._held, 0
            self._say(held)
