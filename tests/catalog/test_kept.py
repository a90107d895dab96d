"""Kept offers: what was kept comes back from PostgreSQL, whatever cannot be read is none, and old rows go."""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw

from mcpmux.catalog import kept
from mcpmux.catalog.items import Offer, read_items
from mcpmux.protocol.events import Offered
from mcpmux.store import Database

ROWS = "SELECT server_id, digest FROM kept_offers ORDER BY server_id, kept_at DESC"
AGE = "UPDATE kept_offers SET kept_at = kept_at - make_interval(days => $2) WHERE digest = $1"


@pytest.fixture
def offer() -> Offer:
    entries = [b'{"name":"a.b","inputSchema":{ },"x":"\\u00e9"}', '{"name":"é","inputSchema":{}}'.encode()]
    items = {
        Offered.TOOLS: read_items(Offered.TOOLS, "s", entries, 56).items,
        Offered.TEMPLATES: read_items(Offered.TEMPLATES, "s", [b'{"uriTemplate":"a://{b}","name":"b"}'], 56).items,
        Offered.PROMPTS: (),
    }
    return Offer("s", items, {"tools": Raw(b'{"listChanged":true}')}, "Count.", Raw(b'{"name":"n"}'), 7)


def test_an_offer_comes_back_as_it_was_kept(offer: Offer) -> None:
    back = kept.read_kept(kept.kept_bytes(offer))
    assert back is not None
    items = {what: read_items(what, "s", entries, 56).items for what, entries in back.lists.items()}
    again = Offer("s", items, back.capabilities, back.instructions, back.server_info, 8)
    assert again.same_as(offer)
    assert again.items == offer.items
    assert Offered.RESOURCES not in again.items


@given(data=st.binary(max_size=200))
@example(data=b"")
@example(data=b"null")
@example(data=b'{"form":2,"lists":{},"capabilities":{},"instructions":null,"server_info":null}')
@example(data=b'{"form":1,"lists":{"spells":[]},"capabilities":{},"instructions":null,"server_info":null}')
@example(data=b'{"form":1,"lists":{"tools":{}},"capabilities":{},"instructions":null,"server_info":null}')
@example(data=b'{"form":1,"lists":' + b"[" * 100_000)
def test_what_cannot_be_read_is_none(data: bytes) -> None:
    assert kept.read_kept(data) is None


def test_a_row_cut_short_is_none(offer: Offer) -> None:
    whole = kept.kept_bytes(offer)
    assert all(kept.read_kept(whole[:end]) is None for end in range(len(whole)))


async def test_each_section_of_a_server_has_its_own_offer(database: Database) -> None:
    for server, digest in (("a", b"1"), ("a", b"2"), ("b", b"1")):
        await kept.keep(database, server, digest, server.encode() + digest)
    assert await kept.fetch_kept(database, {"a": b"2", "b": b"1", "c": b"1"}) == {"a": b"a2", "b": b"b1"}
    assert await kept.fetch_kept(database, {"a": b"3"}) == {}
    assert await kept.fetch_kept(database, {}) == {}


async def test_keeping_again_replaces(database: Database) -> None:
    await kept.keep(database, "a", b"1", b"old")
    await kept.keep(database, "a", b"1", b"new")
    assert await kept.fetch_kept(database, {"a": b"1"}) == {"a": b"new"}


async def test_a_large_offer_is_kept_whole(database: Database) -> None:
    large = os.urandom(3_000_000)
    await kept.keep(database, "a", b"1", large)
    assert await kept.fetch_kept(database, {"a": b"1"}) == {"a": large}


async def test_sections_that_are_gone_are_forgotten_after_a_while(database: Database) -> None:
    for server, digest, days in (("now", b"now", 400), ("new", b"gone", 1), ("old", b"past", kept.KEPT_DAYS + 1)):
        await kept.keep(database, server, digest, b"x")
        await database.execute(AGE, digest, days)
    await kept.prune(database, [b"now"])
    assert [row["server_id"] for row in await database.fetch(ROWS)] == ["new", "now"]


async def test_a_server_that_changes_often_keeps_few_rows(database: Database) -> None:
    for number in range(20):
        await kept.keep(database, "a", b"%d" % number, b"x")
        await database.execute(AGE, b"%d" % number, 1)
    await kept.keep(database, "a", b"now", b"x")
    await kept.prune(database, [b"now", b"19"])
    rows = [row["digest"] for row in await database.fetch(ROWS)]
    assert len(rows) == kept.KEPT_PER_SERVER + 2
    assert {b"now", b"19"} < set(rows)
