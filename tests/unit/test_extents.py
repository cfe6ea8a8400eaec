"""The algebra of extents: nothing that has to be copied is lost, and the same disk is always cut the same way."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense.extents import Extent, coarsen, pack, split, total, unpack
from tests.drawing import drawing_of, extents_of

CLUSTER = 4

drawings = st.text("A0-", max_size=40)
"""Disks of up to ten clusters, a character a byte."""

cut_drawings = st.text("A0- ", max_size=60)
"""The same, with extents that are cut in two anywhere, as a server's answers may be."""

extent_lists = st.lists(
    st.builds(Extent, st.integers(0, 2**63 - 1), st.integers(1, 2**63 - 1), st.booleans()), max_size=20
)


def coarse(drawing: str) -> str:
    """What `coarsen` makes of a drawing."""
    size = len(drawing.replace(" ", ""))
    return drawing_of(coarsen(extents_of(drawing), CLUSTER, size), size)


@pytest.mark.parametrize(
    ("drawing", "expected"),
    [
        ("", ""),
        ("----", "----"),
        ("AAAA0000", "AAAA0000"),
        # A cluster that holds any data is data.
        ("A000", "AAAA"),
        ("0A000000", "AAAA0000"),
        ("AAAAA000", "AAAAAAAA"),
        # The last cluster ends with the disk.
        ("0000A", "0000A"),
        ("A0000", "AAAA0"),
        ("AAAA0A", "AAAAAA"),
        # A cluster is zero though its server says so in parts.
        ("0 000", "0000"),
        ("000 00000", "00000000"),
        ("00 00 0", "00000"),
        # Of a cluster that is zero only in part, the rest is not known: it has to be read.
        ("00--", "AAAA"),
        ("--00", "AAAA"),
        ("-0-0", "AAAA"),
        ("--000000--", "AAAA0000--"),
        # A gap is left alone as far as no extent shares a cluster with it.
        ("A-----------A---", "AAAA--------AAAA"),
        ("----0000----", "----0000----"),
        ("A------A", "AAAAAAAA"),
    ],
)
def test_coarsen(drawing: str, expected: str) -> None:
    """Extents grow and shrink to whole clusters, so that no byte of data is lost and no gap is touched."""
    assert coarse(drawing) == expected


@given(drawings)
def test_coarsen_decides_cluster_by_cluster(drawing: str) -> None:
    """A cluster is zero when all of it is, left alone when nothing of it is in an extent, and data otherwise."""
    result = coarse(drawing)
    for start in range(0, len(drawing), CLUSTER):
        kinds = set(drawing[start : start + CLUSTER])
        expected = kinds.pop() if len(kinds) == 1 else "A"
        assert set(result[start : start + CLUSTER]) == {expected}


@given(cut_drawings)
def test_coarsen_ignores_cuts(drawing: str) -> None:
    """How a server cut its extents makes no difference."""
    size = len(drawing.replace(" ", ""))
    assert list(coarsen(extents_of(drawing), CLUSTER, size)) == list(
        coarsen(extents_of(drawing.replace(" ", "")), CLUSTER, size)
    )


@given(cut_drawings)
def test_coarsen_keeps_everything_covered(drawing: str) -> None:
    """Data stays data, and what was zero is still covered, as zero or as data."""
    plain = drawing.replace(" ", "")
    for before, after in zip(plain, coarse(drawing), strict=True):
        assert after in {"A": "A", "0": "A0", "-": "A-"}[before]


@given(cut_drawings)
def test_coarsen_aligns_and_merges(drawing: str) -> None:
    """Every border lies on a cluster's, the end of the disk excepted, and neighbours are of different kinds."""
    size = len(drawing.replace(" ", ""))
    result = list(coarsen(extents_of(drawing), CLUSTER, size))
    assert all(extent.offset % CLUSTER == 0 for extent in result)
    assert all(extent.end % CLUSTER == 0 or extent.end == size for extent in result)
    for first, second in pairwise(result):
        assert first.end < second.offset or first.zero != second.zero


@given(cut_drawings)
def test_coarsen_twice(drawing: str) -> None:
    """What is coarse already stays as it is."""
    size = len(drawing.replace(" ", ""))
    once = list(coarsen(extents_of(drawing), CLUSTER, size))
    assert list(coarsen(once, CLUSTER, size)) == once


@pytest.mark.parametrize(
    ("drawing", "expected"),
    [
        ("AAAA", "AAAA"),
        ("AAAAAA", "AAAA AA"),
        ("--AAAAAA", "--AA AAAA"),
        ("-000000000", "-000 0000 00"),
        ("AA00AA", "AA00 AA"),
        ("AAA000", "AAA0 00"),
    ],
)
def test_split(drawing: str, expected: str) -> None:
    """Cuts fall on multiples of the limit, counted from the start of the disk."""
    assert list(split(extents_of(drawing), 4)) == extents_of(expected)


@given(cut_drawings, st.integers(1, 12))
def test_split_keeps_every_byte(drawing: str, limit: int) -> None:
    """Nothing is lost or changed by cutting."""
    plain = drawing.replace(" ", "")
    assert drawing_of(split(extents_of(drawing), limit), len(plain)) == plain


@given(drawings, st.integers(1, 12))
def test_split_cuts_where_it_must(drawing: str, limit: int) -> None:
    """No extent crosses a multiple of the limit, and none is cut anywhere else."""
    extents = extents_of(drawing)
    borders = {border for extent in extents for border in (extent.offset, extent.end)}
    for extent in split(extents, limit):
        assert extent.offset // limit == (extent.end - 1) // limit
        assert extent.offset in borders or extent.offset % limit == 0
        assert extent.end in borders or extent.end % limit == 0


@given(cut_drawings)
def test_total(drawing: str) -> None:
    """Each kind is counted by itself, in bytes."""
    extents = extents_of(drawing)
    assert total(extents, zero=False) == drawing.count("A")
    assert total(extents, zero=True) == drawing.count("0")


@given(extent_lists)
def test_pack(extents: list[Extent]) -> None:
    """Extents of any size come out as they went in, 16 bytes each."""
    packed = pack(extents)
    assert len(packed) == 16 * len(extents)
    assert unpack(packed) == extents


def test_pack_is_the_same_on_every_machine() -> None:
    """Packed extents are little-endian, with the top bit of the length for zero."""
    packed = pack([Extent(1, 2), Extent(3, 4, zero=True)])
    assert packed.hex(" ", 8) == "0100000000000000 0200000000000000 0300000000000000 0400000000000080"


def test_unpack_of_half_an_extent() -> None:
    """A truncated record is refused, not read as something else."""
    with pytest.raises(ValueError, match="shorter"):
        unpack(bytes(8))
