"""Lasting: progress tokens of calls that have become tasks; they stay good for as long as the task is at work.

A call that waits for its task gets its progress itself; what a client does with a task of its own is another call, so
there it belongs to none.
Source: MCP 2025-11-25 basic/utilities/tasks, "Task Progress Notifications".
"""

from __future__ import annotations

from typing import Final, Generic

from msgspec import Raw

from mcpmux.protocol import tasks
from mcpmux.protocol.events import Progress, TaskProgressed
from mcpmux.protocol.upstream.received import Deliver, Received, T

MOST: Final = 4096  # beyond, the oldest is forgotten


class Lasting(Generic[T]):
    """The table, by token."""

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: dict[int, tuple[str, T | None]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def begin(self, token: int, result: Raw | None, owner: T | None) -> None:
        """A call was answered, maybe by a task; `owner`: who waits for what comes of it."""
        made = None if result is None else tasks.made(result)
        if made is None or made.ended:
            return
        if len(self._tasks) >= MOST:
            del self._tasks[next(iter(self._tasks))]
        self._tasks[token] = (made.id, owner)

    def progressed(self, token: int | str | None, params: dict[str, Raw]) -> Received[T] | None:
        """Whose progress with this token is; None if nobody's. `params` are without it."""
        task, owner = self._tasks.get(token, ("", None)) if isinstance(token, int) else ("", None)
        if not task:
            return None
        return TaskProgressed(task, params) if owner is None else Deliver(owner, Progress(params))

    def over(self, task: str) -> None:
        """A task has ended."""
        for token in [token for token, (of, _) in self._tasks.items() if of == task]:
            del self._tasks[token]

    def clear(self) -> None:
        """The link has ended."""
        self._tasks.clear()
