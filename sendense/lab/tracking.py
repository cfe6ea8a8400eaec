"""Changed block tracking of one disk: which 64 KiB blocks were written between which two snapshots."""

import uuid
from collections.abc import Iterable

from pydantic import BaseModel

from sendense.units import KiB

BLOCK = 64 * KiB

Area = tuple[int, int]
"""Offset and length in bytes."""


class Changes(BaseModel):
    """What was written while the disk's change number was `number`: block-aligned, sorted, merged."""

    number: int
    areas: list[Area]


class Tracker(BaseModel):
    """
    The change log of one disk.

    A snapshot takes the present change ID and raises the number, so that what is written later counts for the next one.
    """

    uuid: str
    number: int = 1
    log: list[Changes] = []

    @property
    def change_id(self) -> str:
        """As VMware writes it: `UUID/number`."""
        return f"{self.uuid}/{self.number}"

    def mark(self, offset: int, length: int, capacity: int) -> None:
        """Note a write; whole blocks, as far as the disk goes."""
        if not self.log or self.log[-1].number != self.number:
            self.log.append(Changes(number=self.number, areas=[]))
        latest = self.log[-1]
        latest.areas = merge([*latest.areas, (offset, length)], capacity)

    def freeze(self) -> str:
        """The change ID for a snapshot taken now."""
        change_id = self.change_id
        self.number += 1
        return change_id

    def between(self, first: int, last: int, capacity: int) -> list[Area]:
        """What was written after the snapshot with number `first` and before that with number `last`."""
        return merge((area for part in self.log if first < part.number <= last for area in part.areas), capacity)


def new_tracker() -> Tracker:
    """A change log that begins now, with a UUID nobody has seen."""
    # VMware writes its UUIDs in this way.
    digits = uuid.uuid4().hex
    pairs = [digits[start : start + 2] for start in range(0, 32, 2)]
    return Tracker(uuid=f"{' '.join(pairs[:8])}-{' '.join(pairs[8:])}")


def merge(areas: Iterable[Area], capacity: int) -> list[Area]:
    """Areas widened to whole blocks, in order, joined where they touch, cut at the disk's end."""
    joined: list[list[int]] = []
    for offset, length in sorted(areas):
        if not length:
            continue
        start, end = offset // BLOCK * BLOCK, min(-(-(offset + length) // BLOCK) * BLOCK, capacity)
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([start, end])
    return [(start, end - start) for start, end in joined]


def page(areas: list[Area], start: int, capacity: int, window: int, limit: int) -> tuple[int, list[Area]]:
    """
    One answer of QueryChangedDiskAreas: how many bytes from `start` it covers, and the areas in them.

    It covers at most `window` bytes (0: the rest of the disk), and ends before the area that would exceed `limit`.
    """
    end = min(capacity, start + window) if window else capacity
    found: list[Area] = []
    for offset, length in areas:
        first, last = max(offset, start), min(offset + length, end)
        if first >= last:
            continue
        if len(found) == limit:
            end = first
            break
        found.append((first, last - first))
    return end - start, found
