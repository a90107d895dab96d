"""Page: a part of many answers that is encoded once, and its compressed form, which is made once too.

An answer is a few bytes of its own around a long part that hundreds of others have as well. gzip allows to compress
the long part alone: the bytes before and after it go as stored blocks of the same DEFLATE stream. The checksum needs
no second look at the long part either: for bytes that don't change, CRC-32 is an affine function of the checksum of
what stands before them, so 33 values say it for every beginning.

Pure; `packed()` takes some 20 ms for a megabyte, so whoever has an event loop calls it in a thread.
Source: RFC 1951 section 3.2, RFC 1952 section 2.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

LEVEL: Final = 6
LARGEST_STORED: Final = 0xFFFF  # bytes of one stored block

_GZIP: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # no name, no time, no system
_BITS: Final = 32


class Packed:
    """A page, compressed, ready to be put between other bytes."""

    __slots__ = ("_crc_of_bit", "_crc_of_none", "_deflated", "_size")

    def __init__(self, plain: bytes) -> None:
        deflater = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        # A flushed stream ends at a byte, and no later block refers to what stands before it.
        self._deflated = deflater.compress(plain) + deflater.flush(zlib.Z_FULL_FLUSH)
        self._size = len(plain)
        self._crc_of_none = zlib.crc32(plain, 0)
        self._crc_of_bit = tuple(zlib.crc32(plain, 1 << bit) ^ self._crc_of_none for bit in range(_BITS))

    def gzip(self, before: bytes, after: bytes) -> bytes:
        """`before`, the page and `after` as one gzip member; each of the two at most `LARGEST_STORED` bytes."""
        crc = zlib.crc32(after, self._continued(zlib.crc32(before)))
        size = (len(before) + self._size + len(after)) & 0xFFFFFFFF
        head, tail = _stored(before, final=False), _stored(after, final=True)
        return b"".join((_GZIP, head, self._deflated, tail, struct.pack("<II", crc, size)))

    def _continued(self, crc: int) -> int:
        """The checksum of something and then the page, from that of the something."""
        found = self._crc_of_none
        for bit, value in enumerate(self._crc_of_bit):
            if crc >> bit & 1:
                found ^= value
        return found


class Page:
    """The part; `taken` says that somebody is about to set `packed`."""

    __slots__ = ("packed", "plain", "taken")

    def __init__(self, plain: bytes) -> None:
        self.plain = plain
        self.packed: Packed | None = None
        self.taken = False


def _stored(data: bytes, *, final: bool) -> bytes:
    size = len(data)
    return struct.pack("<BHH", final, size, size ^ 0xFFFF) + data
