"""The hub's exports of a job's images."""

import secrets
from collections.abc import Iterable
from pathlib import Path

from sendense.coordinator.context import Context
from sendense.errors import JobFailed
from sendense.exports import Export, hub_export
from sendense.nbd import images
from sendense.nbd.connect import Beat
from sendense.requests import DiskWork


def export_name(job: str, key: int) -> str:
    """A name that no process of another job, or of an earlier run of this one, knows."""
    return f"job-{job}-{key}-{secrets.token_hex(8)}"


def serve(context: Context, disk: DiskWork, beat: Beat) -> DiskWork:
    """Have the disk's image served, and repaired before if a killed daemon left leaks in it; its target is that."""
    image, exports = Path(disk.image), context.exports(beat)
    kind = images.TARGET_FORMATS[Path(disk.image.removesuffix(images.PARTIAL)).suffix.lower()]
    there = exports.list()
    for export in there:
        if export.image == image and export.name != disk.export:  # left by an earlier run of the job
            exports.remove(export.name)
    if not _is_among(there, disk):
        try:
            if kind == "qcow2":
                images.repair_leaks(image, beat)
        except JobFailed:
            # An earlier run of this step, which waited for the daemon until now, may have served it meanwhile.
            if not _is_among(exports.list(), disk):
                raise
        exports.add(disk.export, image, kind, writable=True)
    return disk.model_copy(update={"target": hub_export(disk.export)})


def _is_among(there: Iterable[Export], disk: DiskWork) -> bool:
    return any(export.name == disk.export and not export.closing for export in there)
