"""Which bytes of a disk a set of extents covers: a million of them in 16 MB, asked by bisection."""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator

from sendense.extents import Extent


class Coverage:
    """What the extents cover, data and zeroes alike. They may come in any order, and overlap."""

    def __init__(self, extents: Iterable[Extent]) -> None:
        self._starts, self._ends = array("Q"), array("Q")
        for extent in extents:
            self._add(extent.offset, extent.end)
        if any(later < earlier for earlier, later in zip(self._ends, self._starts[1:], strict=False)):
            self._sort()

    def _add(self, start: int, end: int) -> None:
        if self._ends and self._ends[-1] == start:
            self._ends[-1] = end
        elif end > start:
            self._starts.append(start)
            self._ends.append(end)

    def _sort(self) -> None:
        pairs = sorted(zip(self._starts, self._ends, strict=True))
        self._starts, self._ends = array("Q"), array("Q")
        for start, end in pairs:
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(end, self._ends[-1])
            else:
                self._add(start, end)

    def rest_of(self, extents: Iterable[Extent]) -> Iterator[Extent]:
        """The parts of extents that are not covered, each of its extent's kind."""
        for extent in extents:
            offset = extent.offset
            index = max(0, bisect_right(self._starts, offset) - 1)
            while index < len(self._starts) and self._starts[index] < extent.end:
                if self._ends[index] > offset:
                    if self._starts[index] > offset:
                        yield Extent(offset, self._starts[index] - offset, extent.zero)
                    offset = self._ends[index]
                index += 1
            if offset < extent.end:
                yield Extent(offset, extent.end - offset, extent.zero)
