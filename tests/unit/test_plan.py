"""The plan: batches within their limits, that together are the disk."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense.extents import Extent, coarsen, total, unpack
from sendense.jobs import plan as plan_module
from sendense.jobs.plan import (
    ALIGN,
    BATCH_DATA,
    BATCH_EXTENTS,
    BATCH_ZERO,
    Batch,
    batch_of,
    plan,
)
from sendense.units import GiB, KiB, MiB
from tests.drawing import drawing_of, extents_of

SMALL_DATA, SMALL_ZERO, SMALL_EXTENTS = 4 * ALIGN, 16 * ALIGN, 5
"""4 clusters of data, 16 of zeroes."""

cut_drawings = st.text("A0- ", max_size=120)


def extents_in(batches: list[Batch]) -> list[Extent]:
    """All extents of the batches."""
    return [extent for batch in batches for extent in unpack(batch.packed)]


def planned(drawing: str, unit: int) -> list[Batch]:
    """The plan of a drawn disk, within limits that a drawing reaches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "BATCH_DATA", SMALL_DATA)
        patch.setattr(plan_module, "BATCH_ZERO", SMALL_ZERO)
        patch.setattr(plan_module, "BATCH_EXTENTS", SMALL_EXTENTS)
        return list(plan(extents_of(drawing, unit), unit * len(drawing.replace(" ", ""))))


@pytest.mark.parametrize(
    ("drawing", "expected"),
    [
        ("", []),
        ("------", []),
        ("AAAA", ["AAAA"]),
        ("AAAAAA", ["AAAA", "----AA"]),
        ("--AAAAAA", ["--AA", "----AAAA"]),
        ("A-A-A-A-A", ["A-A-A-A", "--------A"]),
        ("0000000000000000", ["0000000000000000"]),
        ("A0A0A0A0", ["A0A0A", "-----0A0"]),
        ("00000000000000000", ["0000000000000000", "----------------0"]),
    ],
)
def test_batches(drawing: str, expected: list[str]) -> None:
    """A batch is full of data, of zeroes or of extents, whatever comes first."""
    size = ALIGN * len(drawing)
    found = [drawing_of(unpack(batch.packed), size, ALIGN).rstrip("-") for batch in planned(drawing, ALIGN)]
    assert found == expected


@pytest.mark.parametrize(("batches", "expected"), [(15, [4] * 15), (16, [4] * 8 + [1] * 32), (18, [4] * 10 + [1] * 32)])
def test_the_end_of_a_large_disk(batches: int, expected: list[int]) -> None:
    """The last batches are small, so that no node is idle for long while another has the last one."""
    found = planned("A" * (batches * SMALL_DATA // ALIGN), ALIGN)
    assert [batch.data // ALIGN for batch in found] == expected


@given(cut_drawings, st.sampled_from([ALIGN, ALIGN // 4]))
def test_batches_are_the_disk(drawing: str, unit: int) -> None:
    """Together, in their order, the batches are the coarsened disk."""
    size = unit * len(drawing.replace(" ", ""))
    coarse = coarsen(extents_of(drawing, unit), ALIGN, size)
    found = extents_in(planned(drawing, unit))
    assert drawing_of(found, size, unit) == drawing_of(coarse, size, unit)


@given(cut_drawings, st.sampled_from([ALIGN, ALIGN // 4]))
def test_batches_keep_their_limits(drawing: str, unit: int) -> None:
    """No batch is empty or exceeds a limit, its counts are right, and two never share a cluster."""
    batches = planned(drawing, unit)
    for batch in batches:
        extents = unpack(batch.packed)
        assert 0 < len(extents) <= SMALL_EXTENTS
        assert batch.data == total(extents, zero=False) <= SMALL_DATA
        assert batch.zero == total(extents, zero=True) <= SMALL_ZERO
    for first, second in pairwise(batches):
        assert unpack(first.packed)[-1].end <= unpack(second.packed)[0].offset
        assert unpack(second.packed)[0].offset % ALIGN == 0


@given(cut_drawings, st.sampled_from([ALIGN, ALIGN // 4]))
def test_same_disk_same_cut(drawing: str, unit: int) -> None:
    """However a server reports a disk, in few extents or in many, its plan is the same."""
    assert planned(drawing, unit) == planned(drawing.replace(" ", ""), unit)


@given(cut_drawings)
def test_data_is_cut_at_fixed_offsets(drawing: str) -> None:
    """No extent of data crosses a multiple of a batch's most data, wherever it begins."""
    for extent in extents_in(planned(drawing, ALIGN)):
        if not extent.zero:
            assert extent.offset // SMALL_DATA == (extent.end - 1) // SMALL_DATA


def test_real_limits_of_data() -> None:
    """A disk full of data is cut into batches of 128 MiB, the last one smaller."""
    size = 1 * GiB + 5 * MiB + 512
    batches = list(plan([Extent(0, size)], size))
    assert [batch.data for batch in batches] == [BATCH_DATA] * 8 + [5 * MiB + 512]
    assert drawing_of(extents_in(batches), size, MiB) == drawing_of([Extent(0, size)], size, MiB)


def test_real_limits_of_zeroes() -> None:
    """An empty disk of a tebibyte is 64 batches of one extent each."""
    size = 1024 * GiB
    batches = list(plan([Extent(0, size, zero=True)], size))
    assert [unpack(batch.packed) for batch in batches] == [
        [Extent(offset, BATCH_ZERO, zero=True)] for offset in range(0, size, BATCH_ZERO)
    ]


def test_real_limits_of_extents() -> None:
    """Scattered data fills a batch with 1024 extents, 16 KiB in the ledger."""
    count = 2 * BATCH_EXTENTS + 1
    batches = list(plan((Extent(2 * ALIGN * i, 4 * KiB) for i in range(count)), 2 * ALIGN * count))
    assert [len(batch.packed) for batch in batches] == [16 * KiB, 16 * KiB, 16]


def test_batch_of() -> None:
    """Data and zeroes of a batch are counted from its extents."""
    extents = extents_of("A00-AA", 512)
    assert batch_of(extents) == Batch(batch_of(extents).packed, data=3 * 512, zero=2 * 512)
    assert unpack(batch_of(extents).packed) == extents
