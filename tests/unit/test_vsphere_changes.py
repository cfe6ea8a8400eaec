"""Windows of changed areas as no lab gives them: out of order, overlapping, without an end."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pyVmomi
from hypothesis import given
from hypothesis import strategies as st

from sendense.errors import SiteFault
from sendense.extents import Extent
from sendense.settings import Site
from sendense.vsphere.changes import changed_areas
from sendense.vsphere.session import Session, no_beat

vim: Any = pyVmomi.vim

SIZE = 64

Area = tuple[int, int]
"""Offset and length."""


class Answers(Session):
    """Answers each question about changed areas, by its offset, with a window that a test made up."""

    def __init__(self, windows: dict[int, tuple[int, int, list[Area]]]) -> None:
        super().__init__("berlin", Site(vcenter="vcenter", user="operator", password_file=Path("password")))
        self.windows = windows

    def call(self, what: str, act: Callable[[], Any], **_: Any) -> Any:
        """The window, by the offset in the call that was to be made."""
        start, length, areas = self.windows[act.args[2]]  # type: ignore[attr-defined]
        kind = vim.VirtualMachine.DiskChangeInfo
        extents = [kind.DiskChangeExtent(start=offset, length=size) for offset, size in areas]
        return kind(startOffset=start, length=length, changedArea=extents)


def _read(windows: dict[int, tuple[int, int, list[Area]]]) -> list[Extent]:
    return list(changed_areas(Answers(windows), "vm-1", "snapshot-1", 2000, SIZE, "x/1", no_beat))


@pytest.mark.parametrize("window", [(0, 0, []), (0, 0, [(0, 64)]), (16, 48, []), (0, -8, []), (64, 64, [])], ids=str)
def test_an_answer_that_leads_nowhere(window: tuple[int, int, list[Area]]) -> None:
    """A window without a length, or about another part of the disk, ends in an error, not in a loop or a gap."""
    with pytest.raises(SiteFault, match="asked from offset 0"):
        _read({0: window})


@pytest.mark.parametrize(
    ("windows", "areas"),
    [
        ({0: (0, 64, [])}, []),
        ({0: (0, 8, []), 8: (8, 56, [(8, 8)])}, [Extent(8, 8)]),
        ({0: (0, 64, [(32, 8), (0, 8), (8, 8)])}, [Extent(0, 16), Extent(32, 8)]),
        ({0: (0, 64, [(0, 16), (8, 4)])}, [Extent(0, 16)]),
        ({0: (0, 100, [(56, 44), (80, 8)])}, [Extent(56, 8)]),
        ({0: (0, 32, [(24, 8)]), 32: (32, 32, [(32, 8)])}, [Extent(24, 16)]),
        ({0: (0, 32, [(24, 24)]), 32: (32, 32, [(40, 16)])}, [Extent(24, 32)]),
        ({0: (0, 32, [(24, 8)]), 32: (16, 48, [(24, 16)])}, [Extent(24, 16)]),
        ({0: (0, 64, [(8, 0)])}, []),
        ({0: (0, 32, [(48, 8)]), 32: (32, 32, [(36, 16)])}, [Extent(36, 20)]),
        ({0: (0, 16, [(48, 8)]), 16: (16, 16, [(16, 4)]), 32: (32, 32, [])}, [Extent(16, 4), Extent(48, 8)]),
    ],
)
def test_odd_windows(windows: dict[int, tuple[int, int, list[Area]]], areas: list[Extent]) -> None:
    """Areas come out in order, merged, within the disk and without a byte twice, however they went in."""
    assert _read(windows) == areas


@given(st.sets(st.integers(0, SIZE - 1)), st.sets(st.integers(1, SIZE - 1)), st.randoms())
def test_no_byte_is_missed(changed: set[int], cuts: set[int], rng: Any) -> None:
    """Wherever windows end, and however areas are cut and shuffled in them, exactly the changed bytes come out."""
    borders = [0, *sorted(cuts), SIZE]
    windows = {}
    for start, end in pairwise(borders):
        areas = [(offset, 1) for offset in changed if start <= offset < end]
        rng.shuffle(areas)
        windows[start] = (start, end - start, areas)
    found = _read(windows)
    assert {byte for area in found for byte in range(area.offset, area.end)} == changed
    assert all(before.end < after.offset for before, after in pairwise(found))
