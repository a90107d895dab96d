"""Pages: what is around them changes from answer to answer, and what comes out is always one gzip member."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmux.protocol.page import LARGEST_STORED, Packed

AROUND = st.binary(max_size=200)


@given(plain=st.binary(max_size=2000), before=AROUND, after=AROUND)
def test_what_is_unpacked_is_what_was_packed(plain: bytes, before: bytes, after: bytes) -> None:
    squeezed = Packed(plain).gzip(before, after)
    assert gzip.decompress(squeezed) == before + plain + after


@given(answers=st.lists(st.tuples(AROUND, AROUND), min_size=2, max_size=5))
def test_a_page_is_packed_once_for_many_answers(answers: list[tuple[bytes, bytes]]) -> None:
    plain = b'{"name":"a tool"},' * 100
    packed = Packed(plain)
    for before, after in answers:
        # One member, as HTTP clients expect that stop after the first.
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
        assert unpacker.decompress(packed.gzip(before, after)) == before + plain + after
        assert unpacker.eof
        assert not unpacker.unused_data


@pytest.mark.parametrize("size", [0, 1, LARGEST_STORED])
def test_as_much_as_is_allowed_fits_around_it(size: int) -> None:
    squeezed = Packed(b"page").gzip(b"b" * size, b"a" * size)
    assert gzip.decompress(squeezed) == b"b" * size + b"page" + b"a" * size


def test_a_page_of_many_like_entries_gets_small() -> None:
    plain = b'{"name":"a tool","inputSchema":{"type":"object"}},' * 10_000
    assert len(Packed(plain).gzip(b"", b"")) < len(plain) / 50
