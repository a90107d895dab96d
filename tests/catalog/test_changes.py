"""Mailboxes: the same news once, oldest first, for each listener, and nothing is left of one that went away."""

from __future__ import annotations

import asyncio
import gc

from mcpmux.catalog.changes import Broadcast, Mailbox


async def test_the_same_news_stands_once_and_the_oldest_comes_first() -> None:
    box: Mailbox[str] = Mailbox()
    for key in "abcab":
        box.put(key)
    assert [await box.take(), await box.take()] == ["a", "b"]
    box.put("a")
    assert await box.take_all() == ("c", "a")


async def test_a_listener_waits_until_there_are_news() -> None:
    box: Mailbox[str] = Mailbox()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        one = tasks.create_task(box.take())
        await asyncio.sleep(0)
        assert not one.done()
        box.put("a")
        assert await one == "a"
        several = tasks.create_task(box.take_all())
        await asyncio.sleep(0)
        assert not several.done()
        box.put("b")
        assert await several == ("b",)


async def test_a_listener_that_was_cancelled_loses_nothing() -> None:
    box: Mailbox[str] = Mailbox()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(box.take())
        await asyncio.sleep(0)
        box.put("a")
        waiting.cancel()
    assert await box.take() == "a"


async def test_every_follower_is_told_and_a_forgotten_one_costs_nothing() -> None:
    tell: Broadcast[str] = Broadcast()
    boxes: list[Mailbox[str]] = [Mailbox() for _ in range(3)]
    for box in boxes:
        tell.follow(box)
    tell.tell("a")
    assert [await box.take() for box in boxes] == ["a"] * 3
    boxes.clear()
    del box
    gc.collect()
    assert len(tell._followers) == 0
    tell.tell("b")
