"""Pages: how long a list is good is the least that its pages say."""

from __future__ import annotations

from math import inf

import pytest
from msgspec import Raw

from mcpmux.catalog.pages import Bounds, Pages, Reading
from mcpmux.protocol.events import Failure, Offered, Result


def read(*pages: bytes) -> Pages:
    reading = Reading(Offered.TOOLS, Bounds())
    for page in pages:
        reading.take(Result(Raw(page)))
    assert reading.outcome is not None
    return reading.outcome


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (b'"ttlMs":2500', 2.5),
        (b'"ttlMs":0', 0.0),
        (b'"ttlMs":-5', 0.0),
        (b'"ttlMs":1e400', 0.0),
        (b'"ttlMs":"60000"', 0.0),
        (b'"ttlMs":null', 0.0),
        (b'"other":1', 0.0),
    ],
)
def test_how_long_a_list_is_good(said: bytes, seconds: float) -> None:
    assert read(b'{"tools":[],%b}' % said).ttl == seconds


def test_a_number_beyond_all_measure_is_a_long_time() -> None:
    assert read(b'{"tools":[],"ttlMs":%b}' % (b"9" * 5000)).ttl > 1e9


def test_the_least_of_the_pages_counts() -> None:
    assert read(b'{"tools":[],"ttlMs":9000,"nextCursor":"2"}', b'{"tools":[],"ttlMs":3000}').ttl == 3.0


def test_a_list_that_a_server_does_not_have_is_not_asked_for_again() -> None:
    reading = Reading(Offered.TOOLS, Bounds())
    reading.take(Failure(-32601, "Method not found"))
    assert reading.outcome == Pages((), ttl=inf)
