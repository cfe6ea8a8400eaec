"""The plan: a disk's extents cut into batches, each what one task copies."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sendense.extents import Extent, coarsen, pack, split, total, unpack
from sendense.units import GiB, KiB, MiB

ALIGN = 64 * KiB
"""Batches and extents meet at qcow2 clusters, so that no two tasks ever write the same one."""

BATCH_DATA = 128 * MiB
"""Most data in a batch: a few seconds of copying, and what a lost worker costs."""

LAST, LAST_PARTS = 8, 4
"""So many batches at the end of a disk of twice as many or more are cut into so many parts each: while the last one is
copied, all other nodes are idle (four nodes on 22 batches were 3.6 times as fast as one before this: `make bench`)."""

BATCH_ZERO = 16 * GiB
"""Most zeroes in a batch, where the target has to be told of them: 512 requests."""

BATCH_EXTENTS = 1024
"""Most extents in a batch: 16 KiB in the ledger."""


class Batch(NamedTuple):
    """A batch as it goes into the ledger: its extents packed, its data and zero bytes counted."""

    packed: bytes
    data: int
    zero: int


class PlanSize:
    """What the batches of a plan add up to, counted as they pass."""

    def __init__(self) -> None:
        self.batches = self.data = self.zero = 0

    def add(self, batch: Batch) -> None:
        """One more."""
        self.batches += 1
        self.data += batch.data
        self.zero += batch.zero

    def counting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches as they are, counted."""
        for batch in batches:
            self.add(batch)
            yield batch

    def fields(self) -> tuple[str | int, ...]:
        """Names and values for the job's record."""
        return "batches", self.batches, "data", self.data, "zero", self.zero


def plan(extents: Iterable[Extent], size: int) -> Iterator[Batch]:
    """
    Cut a disk of `size` bytes into batches, in disk order, holding LAST + 1 of them in memory.

    Extents are first coarsened to ALIGN. Data is cut at multiples of BATCH_DATA counted from the start of the disk, and
    towards the end of a large disk at a part of that.
    """
    count, held = 0, deque[Batch]()
    for batch in _cut(coarsen(extents, ALIGN, size), BATCH_DATA):
        held.append(batch)
        count += 1
        if len(held) > LAST:
            yield held.popleft()
    for batch in held:
        if count < 2 * LAST:
            yield batch
        else:
            yield from _cut(unpack(batch.packed), BATCH_DATA // LAST_PARTS)


def _cut(extents: Iterable[Extent], most: int) -> Iterator[Batch]:
    """Batches of `most` bytes of data each."""
    current: list[Extent] = []
    data = zero = 0
    for extent in split(extents, most):
        length = extent.length
        more_data, more_zero = (0, length) if extent.zero else (length, 0)
        full = data + more_data > most or zero + more_zero > BATCH_ZERO or len(current) >= BATCH_EXTENTS
        if current and full:
            yield Batch(pack(current), data, zero)
            current, data, zero = [], 0, 0
        if extent.zero and current and current[-1].zero and current[-1].end == extent.offset:
            last = current.pop()
            extent = Extent(last.offset, last.length + length, True)
        current.append(extent)
        data += more_data
        zero += more_zero
    if current:
        yield Batch(pack(current), data, zero)


def batch_of(extents: list[Extent]) -> Batch:
    """These extents as one batch."""
    return Batch(pack(extents), total(extents, zero=False), total(extents, zero=True))
