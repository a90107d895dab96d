"""`faces/inbox.py`: each message goes to exactly one stream, the newest, and none is lost while a stream is open."""

from __future__ import annotations

import asyncio

from mcpmux.faces.inbox import MAX_WAITING, Inbox

FOREVER = float("inf")


async def test_what_was_left_before_a_stream_opened_is_there_when_it_does() -> None:
    inbox = Inbox()
    inbox.put(b"a")
    inbox.put(b"b")
    listener = inbox.listen(FOREVER)
    assert [await listener.next(), await listener.next()] == [b"a", b"b"]


async def test_a_message_wakes_the_stream_that_waits() -> None:
    inbox = Inbox()
    listener = inbox.listen(FOREVER)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(listener.next())
        await asyncio.sleep(0)
        inbox.put(b"a")
    assert waiting.result() == b"a"


async def test_only_the_newest_stream_gets_a_message_and_the_older_one_takes_over() -> None:
    inbox = Inbox()
    older, newer = inbox.listen(FOREVER), inbox.listen(FOREVER)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        left_out = tasks.create_task(older.next())
        got = tasks.create_task(newer.next())
        await asyncio.sleep(0)
        inbox.put(b"a")
        await got
        assert not left_out.done()
        inbox.put(b"b")
        inbox.leave(newer)
    assert (got.result(), left_out.result()) == (b"a", b"b")


async def test_the_same_message_waits_once() -> None:
    inbox = Inbox()
    for _ in range(3):
        inbox.put(b"changed")
    inbox.put(b"other")
    listener = inbox.listen(FOREVER)
    assert [await listener.next(), await listener.next()] == [b"changed", b"other"]
    inbox.put(b"changed")
    assert await listener.next() == b"changed"


async def test_past_the_bound_the_oldest_is_dropped() -> None:
    inbox = Inbox()
    for number in range(MAX_WAITING + 5):
        inbox.put(b"%d" % number)
    listener = inbox.listen(FOREVER)
    assert await listener.next() == b"5"


async def test_a_closed_stream_ends_and_its_message_stays_for_the_next_one() -> None:
    inbox = Inbox()
    first = inbox.listen(FOREVER)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(first.next())
        await asyncio.sleep(0)
        first.close()
    assert waiting.result() is None
    inbox.leave(first)
    inbox.put(b"a")
    assert await inbox.listen(FOREVER).next() == b"a"


async def test_a_cancelled_reader_takes_nothing_with_it() -> None:
    inbox = Inbox()
    listener = inbox.listen(FOREVER)
    waiting = asyncio.ensure_future(listener.next())  # noqa: TID251
    await asyncio.sleep(0)
    inbox.put(b"a")
    waiting.cancel()
    await asyncio.wait({waiting})
    inbox.leave(listener)
    again = inbox.listen(FOREVER)
    async with asyncio.timeout(5):
        assert await again.next() == b"a"
