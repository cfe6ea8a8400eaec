"""Change tracking without a site: areas, change numbers, and pages of answers."""

from hypothesis import given
from hypothesis import strategies as st

from sendense.lab.tracking import BLOCK, merge, new_tracker, page

SIZE = 1000 * BLOCK + 512
"""Of the disk: not a whole number of blocks."""

writes = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 5 * BLOCK)), max_size=40)


def blocks(areas: list[tuple[int, int]]) -> set[int]:
    """Numbers of the blocks that areas touch."""
    return {block for start, length in areas for block in range(start // BLOCK, -(-(start + length) // BLOCK))}


@given(writes)
def test_merge_keeps_every_block(areas: list[tuple[int, int]]) -> None:
    """Merged areas touch the same blocks, are in order, apart from each other, and end with the disk."""
    areas = [(start, min(length, SIZE - start)) for start, length in areas]
    merged = merge(areas, SIZE)
    assert blocks(merged) == blocks(areas)
    ends = [start + length for start, length in merged]
    assert all(end < start for end, (start, _) in zip(ends, merged[1:], strict=False))
    assert all(end <= SIZE for end in ends)


@given(st.lists(writes, max_size=5), st.integers(0, 5), st.integers(0, 5))
def test_between_finds_what_was_written_between(rounds: list[list[tuple[int, int]]], first: int, last: int) -> None:
    """The changes between two snapshots are the writes after the first and before the last, block by block."""
    tracker = new_tracker()
    tracker.freeze()
    for areas in rounds:
        for start, length in areas:
            tracker.mark(start, min(length, SIZE - start), SIZE)
        tracker.freeze()
    expected: set[int] = set()
    for number, areas in enumerate(rounds, 2):  # the snapshot after the first round has number 2
        if first < number <= last:
            expected |= blocks([(start, min(length, SIZE - start)) for start, length in areas])
    assert blocks(tracker.between(first, last, SIZE)) == expected


@given(writes, st.integers(1, 300), st.integers(1, 5))
def test_pages_add_up(areas: list[tuple[int, int]], window: int, limit: int) -> None:
    """Page after page from the first to the last byte gives every block; no page exceeds its limits or stands still."""
    merged = merge(((start, min(length, SIZE - start)) for start, length in areas), SIZE)
    offset, found = 0, []
    while offset < SIZE:
        length, part = page(merged, offset, SIZE, window * BLOCK, limit)
        assert 0 < length <= window * BLOCK
        assert len(part) <= limit
        assert all(offset <= start and start + size <= offset + length for start, size in part)
        found += part
        offset += length
    assert blocks(found) == blocks(merged)
    assert sum(size for _, size in found) == sum(size for _, size in merged)


def test_a_new_tracker_has_another_uuid() -> None:
    """Change IDs look like VMware's, and those of two logs never match."""
    one, two = new_tracker(), new_tracker()
    own, _, number = one.change_id.rpartition("/")
    assert [len(half.split()) for half in own.split("-")] == [8, 8]
    assert number == "1"
    assert two.uuid != own
