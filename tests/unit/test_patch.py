"""The extents of a plan whose source moved on, drawn as strings."""

from hypothesis import given
from hypothesis import strategies as st

from sendense.coordinator.site import with_gaps
from sendense.extents import Extent
from sendense.jobs.patch import overlay, subtract, within
from tests.drawing import drawing_of, extents_of

LENGTH = 24

drawings = st.text("A0-", min_size=LENGTH, max_size=LENGTH)
areas = st.text("A-", min_size=LENGTH, max_size=LENGTH)
"""What a site says of a disk: no zeroes."""


@given(drawings, areas)
def test_what_changed_is_data(base: str, changed: str) -> None:
    """A zero extent is data where it changed; nothing else is other than before."""
    expected = "".join("A" if (old, new) == ("0", "A") else old for old, new in zip(base, changed, strict=True))
    assert drawing_of(overlay(extents_of(base), extents_of(changed)), LENGTH) == expected


@given(drawings, drawings)
def test_what_is_in_no_batch(changed: str, covered: str) -> None:
    """The parts that no batch has are what is left, and only those."""
    expected = "".join(new if old == "-" else "-" for new, old in zip(changed, covered, strict=True))
    assert drawing_of(subtract(extents_of(changed), extents_of(covered)), LENGTH) == expected


@given(drawings, st.integers(0, LENGTH - 1), st.integers(1, LENGTH))
def test_within_bounds(drawing: str, start: int, length: int) -> None:
    """Extents are cut to the bounds."""
    bounds = Extent(start, min(length, LENGTH - start))
    expected = "".join(kind if bounds.offset <= at < bounds.end else "-" for at, kind in enumerate(drawing))
    assert drawing_of(within(extents_of(drawing), bounds), LENGTH) == expected


@given(areas)
def test_gaps_are_zero(drawing: str) -> None:
    """What a full knows nothing of is zero: its plan covers the disk once."""
    assert drawing_of(with_gaps(extents_of(drawing), LENGTH), LENGTH) == drawing.replace("-", "0")
