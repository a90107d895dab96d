"""Hold: what a cancelled call leaves behind on a lent link, so that the next one meets nothing of it.

A server may work on a call that was given up, and say things about it: the next call on that link would get them. So
its seat stays taken until the server has answered all the same. A server need not answer a cancelled call (2025-11-25
basic/utilities/cancellation), and nothing else says that it has stopped: after `SETTLE` seconds the link is replaced,
and whatever worked on the call ends with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from mcpmux.links.exchange import Exchange

SETTLE: Final = 3.0  # seconds


class Hold:
    """One given-up call's hold on its link."""

    __slots__ = ("_timer", "exchange")

    def __init__(self, exchange: Exchange, overdue: Callable[[], None]) -> None:
        self.exchange = exchange
        self._timer: asyncio.TimerHandle = exchange.link.loop.call_later(SETTLE, overdue)

    def end(self) -> Exchange:
        """Nothing is awaited any more; the call that held."""
        self._timer.cancel()
        return self.exchange
