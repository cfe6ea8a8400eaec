"""Whether a restore point's images hold what was copied, as far as their own metadata tells."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from sendense.extents import Extent
from sendense.nbd import images
from sendense.nbd.connect import Beat, no_beat
from sendense.repository.batches import StoredBatch
from sendense.repository.coverage import Coverage


def check(image: Path, beat: Beat = no_beat) -> str:
    """What `qemu-img check` finds wrong with an image, in a line; '' for nothing."""
    return images.problems(image, beat)


def strangers(image: Path, batches: Iterable[StoredBatch], beat: Beat = no_beat) -> list[Extent]:
    """
    What an image itself has, its backing files aside, and no batch ever wrote: a sign of damage.

    Such content hides the parent's, and no digest covers it.
    """
    copied = Coverage(chain.from_iterable(batch.extents for batch in batches))
    return list(copied.rest_of(images.own_extents(image, beat)))
