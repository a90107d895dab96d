"""Inputs: what servers ask of clients in the middle of calls: how much of it there may be, and for how long.

Theory. A server's question comes out of `Call.next()` as `Ask`. The face puts it to its client in the client's own
way, and whatever comes back goes to `Call.reply()`; what the client cannot answer is replied to at once. A legacy
client is asked by a request on the stream of that very call. A modern one gets the question as the result of its
request, while the server's call waits with `parked.py`; a modern server's question to a legacy client is an `Ask` too.

Who waits for whom: a server that has asked waits for us, so its own timeout stands still. A person may need minutes:
an ask is open for `PATIENCE` at most, then its server gets an error, its client is told that nobody waits any more,
and the call has its server's timeout again. Whatever is asked, no call outlives `call.LONGEST`. Asks are bounded per
principal and in total: beyond, a server is told so at once. A call keeps its seat at the server while it asks.

The end of what a person does at a URL may be told after the call (`notifications/elicitation/complete`): it goes to
the session in whose call that was begun, to nobody else, and only within an hour.
Source: MCP client/elicitation, client/sampling; basic/lifecycle ("Timeouts"); design section 3.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

from msgspec import Raw

from mcpmux.credentials.scope import LinkKey
from mcpmux.links.changes import ElicitationCompleted
from mcpmux.links.pool import Pool
from mcpmux.protocol import rounds
from mcpmux.protocol.events import Ask, End, Failure

PATIENCE: Final = 600.0  # seconds
PER_PRINCIPAL: Final = 256  # Open WebUI with one key for all is one principal
IN_TOTAL: Final = 4096

MOST_ELICITATIONS: Final = 4096
ELICITATION_LIFE: Final = 3600.0  # seconds

EXHAUSTED: Final = Failure(-32000, "Too many requests wait for clients: try again later")
UNANSWERED: Final = Failure(-32000, f"The client has not answered within {PATIENCE:g} s")


def answered(ask: Ask, answer: End) -> str:
    """How an ask has ended that has this answer, as a word for the metrics."""
    if isinstance(answer, Failure) or rounds.declines(ask.method, answer.result):
        return "declined"
    return "answered"


class Inputs:
    """How many asks are open, and which sessions wait for the end of an elicitation."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._open: Counter[str] = Counter()  # by principal
        self._total = 0
        self._elicited: dict[tuple[LinkKey, str], tuple[str, float]] = {}  # session, until when; oldest first

    @property
    def open(self) -> int:
        """How many asks wait for their answer."""
        return self._total

    @property
    def elicitations(self) -> int:
        """How many elicitations may still be told to be complete."""
        return len(self._elicited)

    def take(self, principal: str) -> bool:
        """Count one more ask of this principal's calls; False if there are too many."""
        if self._total >= IN_TOTAL or self._open[principal] >= PER_PRINCIPAL:
            return False
        self._open[principal] += 1
        self._total += 1
        return True

    def give_back(self, principal: str, count: int = 1) -> None:
        """So many are not open any more."""
        self._total -= count
        self._open[principal] -= count
        if not self._open[principal]:
            del self._open[principal]

    def elicited(self, link: LinkKey, elicitation: str, session: str) -> None:
        """A person of this session was sent to a URL."""
        now = time.monotonic()
        self._elicited.pop((link, elicitation), None)
        self._elicited[link, elicitation] = (session, now + ELICITATION_LIFE)
        while len(self._elicited) > MOST_ELICITATIONS or next(iter(self._elicited.values()))[1] <= now:
            del self._elicited[next(iter(self._elicited))]

    async def completions(self) -> AsyncIterator[tuple[str, dict[str, Raw]]]:
        """(session, params) of every elicitation that is complete after its call, once."""
        async for change in self._pool.changes():
            if isinstance(change, ElicitationCompleted):
                session, until = self._elicited.pop((change.key, change.elicitation), ("", 0.0))
                if until > time.monotonic():
                    yield session, change.params
