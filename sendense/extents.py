"""
Extents: contiguous bytes of a disk, data or zero. Pure values and the algebra on them.

An iterable of extents is in disk order and without overlaps; what lies in a gap is left alone.
"""

import sys
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_ZERO_BIT = 1 << 63


class Extent(NamedTuple):
    """`length` bytes from `offset`; `zero` when they are known to read as zeroes."""

    offset: int
    length: int
    zero: bool = False

    @property
    def end(self) -> int:
        """Offset of the first byte behind the extent."""
        return self.offset + self.length


def coarsen(extents: Iterable[Extent], align: int, size: int) -> Iterator[Extent]:
    """
    Extents of whole clusters of `align` bytes (the last one ends with the disk), neighbours of one kind merged.

    A cluster is zero when all of it is, otherwise data when anything of it is in an extent, otherwise left alone: the
    image allocates whole clusters, and 4000 scattered 4 KiB writes cost it 276 MB. How the extents were cut, say by a
    server that answers in parts, makes no difference.
    """
    done = 0  # everything before is emitted or pending
    pending_start, pending_zero = 0, True
    for offset, length, zero in _clusters(_joined_zeroes(extents), align, size):
        end = offset + length
        start = offset if offset > done else done
        if end <= start:
            continue
        if zero != pending_zero or start > done:
            if done > pending_start:
                yield Extent(pending_start, done - pending_start, pending_zero)
            pending_start, pending_zero = start, zero
        done = end
    if done > pending_start:
        yield Extent(pending_start, done - pending_start, pending_zero)


def _joined_zeroes(extents: Iterable[Extent]) -> Iterator[tuple[int, int, bool]]:
    """The extents, neighbouring zeroes as one: a cluster may be zero in several parts."""
    start = end = 0  # of zeroes that may go on
    for extent in extents:
        offset, length, zero = extent
        if zero and offset == end:
            end += length
            continue
        if end > start:
            yield start, end - start, True
        if zero:
            start, end = offset, offset + length
        else:
            yield extent
            start = end = offset + length
    if end > start:
        yield start, end - start, True


def _clusters(extents: Iterable[tuple[int, int, bool]], align: int, size: int) -> Iterator[tuple[int, int, bool]]:
    """Offset, length and zero of the clusters that the extents touch; one may come twice, then as data."""
    for extent in extents:
        offset, length, zero = extent
        end = offset + length
        if not offset % align and (not end % align or end == size):  # as most servers have it
            yield extent
            continue
        first = offset // align * align
        last = min(-(-end // align) * align, size)
        if not zero:
            yield first, last - first, False
            continue
        whole = first if first == offset else first + align
        rest = last if last == end else end // align * align
        if whole >= rest:
            yield first, last - first, False
            continue
        if first < whole:
            yield first, align, False
        yield whole, rest - whole, True
        if rest < last:
            yield rest, last - rest, False


def split(extents: Iterable[Extent], limit: int) -> Iterator[Extent]:
    """
    Cut extents so that none is longer than limit bytes.

    Cuts fall on multiples of limit counted from the start of the disk, so the same disk is always cut the same way.
    """
    for extent in extents:
        offset, length, zero = extent
        end = offset + length
        while (cut := (offset // limit + 1) * limit) < end:
            yield Extent(offset, cut - offset, zero)
            offset = cut
        if end > offset:
            yield extent if offset == extent.offset else Extent(offset, end - offset, zero)


def total(extents: Iterable[Extent], *, zero: bool) -> int:
    """Bytes in the extents of one kind."""
    return sum(extent.length for extent in extents if extent.zero == zero)


def pack(extents: Iterable[Extent]) -> bytes:
    """16 bytes an extent, little-endian: offset, then length with the top bit set for zero."""
    words = array("Q")
    for offset, length, zero in extents:
        words.append(offset)
        words.append(length | _ZERO_BIT if zero else length)
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()


def unpack(packed: bytes) -> list[Extent]:
    """The extents of `pack`."""
    words = array("Q", packed)
    if sys.byteorder == "big":
        words.byteswap()
    return [
        Extent(offset, length & ~_ZERO_BIT, length >= _ZERO_BIT)
        for offset, length in zip(words[::2], words[1::2], strict=True)
    ]
