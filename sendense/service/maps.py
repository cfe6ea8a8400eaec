"""The maps of a job's disks."""

from sendense.errors import NotFound
from sendense.jobs.ledger import Ledger
from sendense.jobs.map import read_map
from sendense.maps import CopyMap, Part
from sendense.models import verification_id
from sendense.requests import JobView


def disk_map(ledger: Ledger, view: JobView, disk: int, part: Part, after: str) -> CopyMap:
    """The map of a disk, by its place among the job's; one without batches before there is a plan."""
    disks = view.work.disks
    if not 0 <= disk < len(disks):
        has = f"It has {len(disks)}, counted from 0." if disks else "It has none yet: ask again later."
        raise NotFound(f"job {view.id}: has no disk number {disk}", has)
    copy = disks[disk].copy_id
    found = read_map(ledger, verification_id(copy) if part == "verification" else copy, after) if copy else None
    if not found and view.ended:
        hint = "It is kept until the job succeeds or is cleaned; GET /jobs/{job} has how it ended."
        raise NotFound(f"job {view.id}: the map of disk number {disk} is not kept any more", hint)
    return found or CopyMap(cursor="", batches=0)
