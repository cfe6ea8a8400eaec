"""
What changed on a disk since a change ID (vSphere API, VirtualMachine.QueryChangedDiskAreas).

vCenter answers about a window of the disk at a time. Reading only the first, or stopping at an empty one, loses data.
"""

from collections.abc import Iterator
from functools import partial

from pyVmomi import vim, vmodl

from sendense.errors import ChangesUnknown, SiteError, SiteFault
from sendense.extents import Extent
from sendense.vsphere.faults import words
from sendense.vsphere.session import Beat, Session
from sendense.vsphere.snapshot import snapshot_disks

ALL = "*"
"""In place of a change ID: whatever the disk has allocated."""

_REFUSALS = (
    vim.fault.FileFault,
    vim.fault.NotFound,
    vmodl.fault.InvalidArgument,
    vmodl.fault.NotSupported,
    vmodl.fault.SystemError,
)
"""How hosts refuse a change ID, depending on their version; where one meant something else, a full is right too."""


def same_tracking(change_id_a: str, change_id_b: str) -> bool:
    """Whether both are of one unbroken tracking: then, and only then, what changed between them can be known."""
    tracking = _parts(change_id_a)[0]
    return bool(tracking) and tracking == _parts(change_id_b)[0]


def changed_areas(
    session: Session, vm_moref: str, snapshot_moref: str | None, key: int, size: int, change_id: str, beat: Beat
) -> Iterator[Extent]:
    """
    The areas of disk `key`, of `size` bytes, that changed between `change_id` and the snapshot.

    With ALL, those that are allocated. Without a snapshot: until now, of a VM that is off. In disk order, neighbours
    merged, within the disk. An area need not really differ; what is in none does not. Raises ChangesUnknown where the
    site cannot say, VmGone, SnapshotGone, or SiteFault for an answer that makes no sense.
    """
    what = f"ask what changed on disk {key} of {vm_moref}"
    pending_start = pending_end = 0
    for start, end in _areas(session, what, vm_moref, snapshot_moref, key, size, change_id, beat):
        if start <= pending_end:
            pending_end = max(pending_end, end)
            continue
        if pending_end > pending_start:
            yield Extent(pending_start, pending_end - pending_start)
        pending_start, pending_end = start, end
    if pending_end > pending_start:
        yield Extent(pending_start, pending_end - pending_start)


def _areas(
    session: Session,
    what: str,
    vm_moref: str,
    snapshot_moref: str | None,
    key: int,
    size: int,
    change_id: str,
    beat: Beat,
) -> Iterator[tuple[int, int]]:
    """Start and end of all areas in the order of their starts, clipped to the disk and to what each window adds."""
    vm = session.vm(vm_moref)
    snapshot = session.snapshot(snapshot_moref) if snapshot_moref else None
    offset = 0
    ahead: list[tuple[int, int]] = []  # told of before their window's turn
    while offset < size:  # at the very end vCenter would fault
        try:
            with session.beating(beat):
                window = session.call(
                    what, partial(vm.QueryChangedDiskAreas, snapshot, key, offset, change_id), passing=_REFUSALS
                )
        except _REFUSALS as exc:
            raise _unknown(session, what, snapshot_moref, key, change_id, exc) from exc
        until = int(window.startOffset) + int(window.length)
        if int(window.startOffset) > offset or until <= offset:
            detail = f"{what}: asked from offset {offset}, the answer is about {window.startOffset} to {until}"
            raise SiteFault(session.name, detail)
        told = ((int(area.start), int(area.start) + int(area.length)) for area in window.changedArea or [])
        areas = sorted([*ahead, *told])
        ahead = [area for area in areas if area[0] >= until]
        for start, end in areas[: len(areas) - len(ahead)]:
            if max(start, offset) < min(end, size):
                yield max(start, offset), min(end, size)
        offset = until


def _unknown(
    session: Session, what: str, snapshot_moref: str | None, key: int, change_id: str, fault: vmodl.MethodFault
) -> ChangesUnknown:
    """Why a change ID was refused, as far as the snapshot's own tells."""
    now = _change_id(session, snapshot_moref, key) if change_id != ALL else ""
    if change_id == ALL:
        reason, more = "vCenter does not say what is allocated", ""
    elif now and not same_tracking(now, change_id):
        reason = "its change tracking was reset"
        more = f" ({_parts(change_id)[0]} before, {_parts(now)[0]} now)"
    elif now and _parts(now)[1] < _parts(change_id)[1]:
        reason, more = "the VM was reverted to before the last copy", f" (change {change_id} is ahead of {now})"
    else:
        reason, more = "vCenter does not take its change ID", f" {change_id}"
    return ChangesUnknown(session.name, f"{what}: {reason}{more}: {words(fault)}", reason)


def _change_id(session: Session, snapshot_moref: str | None, key: int) -> str:
    if not snapshot_moref:
        return ""
    try:
        return next((disk.change_id for disk in snapshot_disks(session, snapshot_moref) if disk.key == key), "")
    except SiteError:
        return ""  # the fault alone has to do


def _parts(change_id: str) -> tuple[str, int]:
    """Tracking's UUID, in one spelling, and number; ('', 0) for what is no change ID."""
    uuid, _, number = change_id.partition("/")
    if not number.isdigit():
        return "", 0
    return " ".join(uuid.lower().split()), int(number)
