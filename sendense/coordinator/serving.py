"""The hub's exports of a job's images."""

import secrets
from pathlib import Path

from sendense.coordinator.context import Context
from sendense.errors import JobFailed
from sendense.exports import Exports
from sendense.nbd import images
from sendense.nbd.connect import Beat
from sendense.requests import DiskWork

PARTIAL = ".partial"
"""What ends the name of an image that is not whole."""


def export_name(job: str, key: int) -> str:
    """A name that no process of another job, or of an earlier run of this one, knows."""
    return f"job-{job}-{key}-{secrets.token_hex(8)}"


def serve(context: Context, disk: DiskWork, beat: Beat) -> DiskWork:
    """Have the disk's image served, and repaired before if a killed daemon left leaks in it; its target is the URI."""
    image, exports = Path(disk.image), context.exports(beat)
    kind = images.TARGET_FORMATS[Path(disk.image.removesuffix(PARTIAL)).suffix.lower()]
    for export in exports.list():
        if export.image == image and export.name != disk.export:  # left by an earlier run of the job
            exports.remove(export.name)
    if kind == "qcow2" and not _is_served(exports, disk):
        try:
            images.repair_leaks(image, beat)
        except JobFailed:
            if not _is_served(exports, disk):  # by an earlier run of this step, which waited for the daemon until now
                raise
    return disk.model_copy(update={"target": exports.add(disk.export, image, kind, writable=True)})


def _is_served(exports: Exports, disk: DiskWork) -> bool:
    return any(export.name == disk.export and not export.closing for export in exports.list())
