"""`protocol/downstream/replay.py`: what a client that comes back can have again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmux.protocol.downstream import replay
from mcpmux.protocol.downstream.replay import Replay


def test_a_client_gets_what_its_stream_sent_after_its_last_event_and_no_other_streams() -> None:
    memory = Replay()
    start = memory.prime(1)
    first = memory.add(1, b"a", 0.0)
    memory.add(2, b"other", 0.0)
    last = memory.add(1, b"b", 0.0)
    assert [wire for _, wire in memory.after(*(replay.place(start) or (0, 0)))] == [b"a", b"b"]
    assert memory.after(*(replay.place(first) or (0, 0))) == [(last, b"b")]
    assert memory.after(*(replay.place(last) or (0, 0))) == []


@given(st.lists(st.tuples(st.integers(1, 4), st.binary(max_size=50_000)), max_size=60))
def test_whatever_is_sent_the_memory_stays_bounded_and_in_order(sent: list[tuple[int, bytes]]) -> None:
    memory = Replay()
    ids = [memory.add(stream, wire, 0.0) for stream, wire in sent]
    assert len(set(ids)) == len(ids)
    kept = [event for stream in range(1, 5) for event in memory.after(stream, 0)]
    assert len(kept) <= replay.MAX_EVENTS
    assert sum(len(wire) for _, wire in kept) <= max(replay.MAX_BYTES, len(sent[-1][1]) if sent else 0)
    for stream in range(1, 5):
        of_it = [wire for number, wire in sent if number == stream]
        got = [wire for _, wire in memory.after(stream, 0)]
        assert got == of_it[len(of_it) - len(got) :]


def test_the_oldest_gives_way_past_the_bound() -> None:
    memory = Replay()
    for number in range(replay.MAX_EVENTS + 10):
        memory.add(1, b"%d" % number, 0.0)
    assert len(memory) == replay.MAX_EVENTS
    assert memory.after(1, 0)[0][1] == b"10"


def test_what_is_too_old_is_forgotten() -> None:
    memory = Replay()
    memory.add(1, b"old", 0.0)
    memory.add(1, b"new", replay.MAX_AGE)
    memory.expire(replay.MAX_AGE + 1)
    assert [wire for _, wire in memory.after(1, 0)] == [b"new"]


@pytest.mark.parametrize(
    "text", ["", "x", "1", "1-", "-1", "1-2-3", "1.0-2", "1-2\n", "٣-٤", "9" * 13 + "-1", "1" * 9999]
)
def test_an_event_id_that_is_none_of_ours_names_no_place(text: str) -> None:
    assert replay.place(text) is None
