"""Maps of copies as values: how many batches fit into how few bytes."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sendense.maps import UNSTORED, CopyMap, Pending, cells_of, runs_of

BATCHES, WORKERS = 50_000, 60

MOST_BYTES = 200_000
"""Of the first answer about a disk of 6 TiB."""


@given(st.dictionaries(st.integers(0, 300), st.sampled_from([f"n{number}-copy" for number in range(90)])))
def test_cells_say_who_stored_what(stored: dict[int, str]) -> None:
    """Read back as documented, the cells name the worker of each stored batch, and no others."""
    whole = cells_of(stored)
    found = {
        batch: whole.workers[ord(cell) - ord(UNSTORED) - 1]
        for batch, cell in enumerate(whole.cells)
        if cell != UNSTORED
    }
    assert found == stored


@given(st.sets(st.integers(0, 300)))
def test_runs_hold_every_batch_once(batches: set[int]) -> None:
    """Runs are in order, apart from each other, and hold what they were made of."""
    runs = runs_of(list(batches))
    assert [batch for first, last in runs for batch in range(first, last + 1)] == sorted(batches)
    assert all(one[1] + 1 < other[0] for one, other in pairwise(runs))


def test_the_whole_of_a_large_disk_is_small() -> None:
    """Every batch of 6 TiB stored by one of 60 nodes in turn, in less than 200 kB of JSON."""
    whole = cells_of({batch: f"oslo-{batch % WORKERS}-copy" for batch in range(BATCHES)})
    pending = Pending(sent=[], running=[], waiting=[], failed=runs_of(list(range(0, 1000, 2))))
    text = CopyMap(cursor="1795413135230-2.0a94068a", batches=BATCHES, whole=whole, pending=pending).model_dump_json()
    assert len(text.encode()) < MOST_BYTES
