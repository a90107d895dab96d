"""When to try again: soon at first, then ever later, and at last slowly; pure, randomness comes in.

A link that lasted a minute has shown that the server works, so the count begins anew. After 5 ends in a row without
that (8, over three quarters of a minute, if it was ready before: it may be being replaced by a newer version), after
half as many starts that took all the time they were given, or when the server says that it does not want us, the
server has failed, and is tried once in 1 to 5 minutes, each try a single one: a server that refuses us is not hammered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FIRST: Final = 0.25  # seconds
FACTOR: Final = 3.0
LONGEST: Final = 15.0
TRIES: Final = 5.0
TRIES_PROVEN: Final = 8.0  # of a server that was ready before
SLOW_START_WEIGHT: Final = 2.0  # a start that hit its time limit counts for two
STEADY_AFTER: Final = 60.0
SLOW_FIRST: Final = 60.0
SLOW_LONGEST: Final = 300.0
SLOW_FACTOR: Final = 2.0
JITTER: Final = 0.2  # of the pause, up or down


@dataclass(frozen=True, slots=True)
class Retry:
    """What follows the end of a link: a pause in seconds, and whether the server counts as failed meanwhile."""

    pause: float
    failed: bool


class Backoff:
    """The memory of one server's ends."""

    __slots__ = ("_count", "_proven", "_slow")

    def __init__(self) -> None:
        self._count = 0.0
        self._proven = False
        self._slow = 0

    @property
    def failed(self) -> bool:
        """Whether the server has failed, and has not been steady since."""
        return self._slow > 0

    def after(self, lasted: float, *, refused: bool, slow_start: bool, chance: float) -> Retry:
        """The next try after a link that was ready for `lasted` seconds (0: it never was). `chance`: 0 to 1."""
        if lasted >= STEADY_AFTER:
            self._count, self._slow = 0.0, 0
        self._proven = self._proven or lasted > 0
        self._count += SLOW_START_WEIGHT if slow_start else 1.0
        if refused or self._slow or self._count >= (TRIES_PROVEN if self._proven else TRIES):
            pause = min(SLOW_FIRST * SLOW_FACTOR**self._slow, SLOW_LONGEST)
            self._slow = min(self._slow + 1, 8)  # far past the longest pause, far below what a float holds
            return Retry(_jittered(pause, chance), failed=True)
        return Retry(_jittered(min(FIRST * FACTOR ** (self._count - 1), LONGEST), chance), failed=False)


def _jittered(pause: float, chance: float) -> float:
    return pause * (1 - JITTER + 2 * JITTER * chance)
