"""Extents drawn as strings: 'A' is data, '0' zero, '-' nothing."""

from collections.abc import Iterable
from itertools import groupby

from sendense.extents import Extent


def extents_of(drawing: str, unit: int = 1) -> list[Extent]:
    """The extents of a drawing, a character for each `unit` bytes; a space cuts an extent in two."""
    extents, offset = [], 0
    for part in drawing.split():
        for kind, run in groupby(part):
            length = unit * len(list(run))
            if kind != "-":
                extents.append(Extent(offset, length, zero=kind == "0"))
            offset += length
    return extents


def drawing_of(extents: Iterable[Extent], size: int, unit: int = 1) -> str:
    """A character for each `unit` bytes of a disk of `size` bytes; extents have to be in order, without overlaps."""
    drawing, offset = "", 0
    for extent in extents:
        assert extent.offset >= offset, f"{extent} begins before {offset}, where the one before it ends"
        assert extent.length > 0, f"{extent} is empty"
        assert (extent.offset % unit, extent.length % unit) == (0, 0) or extent.end == size, f"{extent} is not in units"
        drawing += "-" * ((extent.offset - offset) // unit)
        drawing += ("0" if extent.zero else "A") * -(-extent.length // unit)
        offset = extent.end
    assert offset <= size, f"the extents end at {offset}, behind the disk"
    return drawing + "-" * -(-(size - offset) // unit)
