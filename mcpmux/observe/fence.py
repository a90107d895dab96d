"""The fence around every long-lived loop: one failure is logged with its trace, counted, and the loop goes on.

Without it, one unforeseen exception in one loop would end the task group that it lives in, and with it the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from mcpmux.observe.log import logger
from mcpmux.observe.metrics import Metrics

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 30.0
STEADY_AFTER: Final = 60.0


async def fenced(name: str, loop: Callable[[], Awaitable[None]], metrics: Metrics) -> None:
    """Run `loop()` until it returns; after a failure run it again, each time after a longer pause (seconds)."""
    log = logger("fence")
    clock = asyncio.get_running_loop()
    pause = FIRST_PAUSE
    while True:
        started = clock.time()
        try:
            await loop()
        except Exception:
            log.exception("loop_failed", loop=name)
            metrics.fence_failed(name)
        else:
            return
        pause = FIRST_PAUSE if clock.time() - started > STEADY_AFTER else min(pause * 2, LONGEST_PAUSE)
        await asyncio.sleep(pause)
