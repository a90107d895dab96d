"""Messages to a session that belong to no call, until an event stream of that session takes them.

A session may have several event streams open (a client that reconnects before we notice that it was gone); each
message goes to exactly one of them, the newest. What repeats a message that still waits is not kept twice:
`list_changed` says no more the second time. Bounded: past the bound the oldest is dropped.
Source: MCP 2025-11-25 basic/transports, "Multiple Connections".
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

MAX_WAITING: Final = 256


class Listener:
    """One open event stream of a session; `expires` is when its token does (unix seconds)."""

    __slots__ = ("_inbox", "_waiter", "closed", "expires")

    def __init__(self, inbox: Inbox, expires: float) -> None:
        self._inbox = inbox
        self._waiter: asyncio.Future[None] | None = None
        self.closed = False
        self.expires = expires

    async def next(self) -> bytes | None:
        """The next message for this stream; None when the stream must end."""
        while not self.closed:
            message = self._inbox.take(self)
            if message is not None:
                return message
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return None

    def wake(self) -> None:
        """Something has changed: look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """End the stream properly."""
        self.closed = True
        self.wake()


class Inbox:
    """The messages that wait, and the streams that may take them."""

    __slots__ = ("_listeners", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)
        self._listeners: list[Listener] = []

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """The open streams, oldest first."""
        return tuple(self._listeners)

    def put(self, wire: bytes) -> None:
        """Leave a message; the same one twice waits once."""
        if wire in self._waiting:
            return
        self._waiting.append(wire)
        if self._listeners:
            self._listeners[-1].wake()

    def take(self, listener: Listener) -> bytes | None:
        """The oldest message, if this is the stream whose turn it is."""
        if self._waiting and self._listeners and self._listeners[-1] is listener:
            return self._waiting.popleft()
        return None

    def listen(self, expires: float) -> Listener:
        """Open a stream; from now on messages go to it."""
        listener = Listener(self, expires)
        self._listeners.append(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        """The stream is gone; the one before it takes over."""
        self._listeners.remove(listener)
        if self._listeners and self._waiting:
            self._listeners[-1].wake()

    def close(self) -> None:
        """End every stream."""
        for listener in self._listeners:
            listener.close()
