"""Who is told that something changed: a mailbox for each listener, in which the same news stands once.

A listener that is slow, or has stopped reading, costs one entry for each thing that can change, and never delays who
tells. A mailbox that nobody holds any more is forgotten by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Generic, TypeVar
from weakref import WeakSet

Key = TypeVar("Key", bound=Hashable)


class Mailbox(Generic[Key]):
    """News for one listener, oldest first."""

    __slots__ = ("__weakref__", "_filled", "_kept")

    def __init__(self) -> None:
        self._kept: dict[Key, None] = {}
        self._filled = asyncio.Event()

    def put(self, key: Key) -> None:
        """`key` changed; nothing new if that is not read yet."""
        self._kept[key] = None
        self._filled.set()

    async def take(self) -> Key:
        """The oldest news, waiting for some."""
        await self._filled.wait()
        key = next(iter(self._kept))
        del self._kept[key]
        if not self._kept:
            self._filled.clear()
        return key

    async def take_all(self) -> tuple[Key, ...]:
        """All news there are, waiting for some."""
        await self._filled.wait()
        keys = tuple(self._kept)
        self._kept.clear()
        self._filled.clear()
        return keys


class Broadcast(Generic[Key]):
    """Tells every mailbox that follows it."""

    __slots__ = ("_followers",)

    def __init__(self) -> None:
        self._followers: WeakSet[Mailbox[Key]] = WeakSet()

    def follow(self, mailbox: Mailbox[Key]) -> None:
        """From now on `mailbox` is told, as long as somebody holds it."""
        self._followers.add(mailbox)

    def tell(self, key: Key) -> None:
        """Tell everybody that `key` changed."""
        for mailbox in self._followers:
            mailbox.put(key)
