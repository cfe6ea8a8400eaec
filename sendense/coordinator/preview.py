"""What a backup would do, found out without doing it: nothing is turned on, stored or kept."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from sendense.coordinator.backup import choose_parent
from sendense.coordinator.site import NO_TRACKING, SNAPSHOT_PREFIX, choose_disks
from sendense.errors import ChangesUnknown, InputError
from sendense.extents import coarsen, total
from sendense.jobs.plan import ALIGN
from sendense.models import SnapshotDisk, VmInfo
from sendense.nbd.connect import Beat, no_beat
from sendense.repository.points import Point
from sendense.requests import BackupRequest, DiskWork
from sendense.views import DiskPreview, Preview
from sendense.vsphere import changes, snapshot
from sendense.vsphere.session import Session

SNAPSHOT_NAME = f"{SNAPSHOT_PREFIX}dryrun-"
"""Begins the name of the snapshot of a dry run; a random word follows."""

_TRACKING_OFF = "change tracking is off"


def preview(
    session: Session, info: VmInfo, request: BackupRequest, parent: Point | None, *, with_snapshot: bool, beat: Beat
) -> Preview:
    """
    What this backup would do now; `parent` is the VM's newest restore point. InputError where the backup would refuse.

    A snapshot is made only `with_snapshot`, and is removed whatever happens: `beat` may raise to end it early. Without
    one, only a VM that is off can tell what changed.
    """
    chosen, left_out = choose_disks(info, request.disks)
    disks = [_chosen(info, disk, parent, request) for disk in chosen]
    if with_snapshot:
        with _frozen(session, info.ref.moref) as moref:
            frozen = {disk.key: disk for disk in snapshot.snapshot_disks(session, moref)}
            disks = [_as_frozen(disk, frozen, request) for disk in disks]
            found = [_exact(session, info, request, disk, moref, beat) for disk in disks]
    elif info.power == "off":
        found = [_exact(session, info, request, disk, None, beat) for disk in disks]
    else:
        found = [_estimate(info, disk) for disk in disks]
    parents = [disk.parent for disk in disks if disk.parent]
    turns_tracking_on = info.tracking_possible and not info.tracking and not info.snapshots
    return Preview(
        vm=info.ref,
        mode="full" if all(disk.mode == "full" for disk in found) else "incremental",
        parent=parents[0] if parents else "",
        disks=found,
        left_out=left_out,
        turns_tracking_on=turns_tracking_on,
        tracking=info.tracking,
        no_tracking="" if info.tracking or turns_tracking_on else _no_tracking(info),
        runs=info.power == "on",
        snapshot=with_snapshot,
    )


def _no_tracking(info: VmInfo) -> str:
    return f"the VM has {info.snapshots} snapshots" if info.tracking_possible else "its hardware is too old for it"


def _chosen(info: VmInfo, disk: DiskWork, parent: Point | None, request: BackupRequest) -> DiskWork:
    work = choose_parent(disk, parent, request.mode)
    if work.mode == "incremental" and not info.tracking:
        work = _as_full(work, _TRACKING_OFF)
    return _checked(work, request)


def _as_frozen(disk: DiskWork, frozen: dict[int, SnapshotDisk], request: BackupRequest) -> DiskWork:
    """The disk as the snapshot has it: it may be another one than a moment ago."""
    now = frozen.get(disk.key)
    if not now:
        raise InputError(f"disk {disk.key}: was removed from the VM meanwhile", "Start again.")
    if disk.mode == "incremental" and now.size != disk.size:
        disk = _as_full(disk, f"its size changed from {disk.size} to {now.size} bytes")
    if disk.mode == "incremental" and not now.change_id:
        disk = _as_full(disk, NO_TRACKING)
    return _checked(disk.model_copy(update={"size": now.size}), request)


def _exact(
    session: Session, info: VmInfo, request: BackupRequest, disk: DiskWork, snapshot_moref: str | None, beat: Beat
) -> DiskPreview:
    """As the site tells what changed, or is allocated."""

    def measure(since: str) -> tuple[int, int]:
        areas = list(changes.changed_areas(session, info.ref.moref, snapshot_moref, disk.key, disk.size, since, beat))
        return total(areas, zero=False), total(coarsen(areas, ALIGN, disk.size), zero=False)

    if disk.mode == "incremental":
        try:
            changed, copied = measure(disk.since)
        except ChangesUnknown as exc:
            disk = _checked(_as_full(disk, exc.detail), request)
        else:
            return _disk(info, disk, changed, copied, exact=True)
    try:
        changed, copied = measure(changes.ALL)
    except ChangesUnknown:
        return _estimate(info, disk)
    return _disk(info, disk, changed, copied, exact=True)


def _estimate(info: VmInfo, disk: DiskWork) -> DiskPreview:
    return _disk(info, disk, None, min(info.allocated.get(disk.key, disk.size), disk.size), exact=False)


def _disk(info: VmInfo, disk: DiskWork, changed: int | None, copied: int, *, exact: bool) -> DiskPreview:
    return DiskPreview(
        key=disk.key,
        label=disk.label,
        size=disk.size,
        allocated=info.allocated.get(disk.key),
        mode=disk.mode,
        reason=disk.reason,
        changed=changed,
        copied=copied,
        exact=exact,
    )


def _as_full(disk: DiskWork, reason: str) -> DiskWork:
    return disk.model_copy(update={"mode": "full", "parent": "", "since": "", "reason": reason})


def _checked(disk: DiskWork, request: BackupRequest) -> DiskWork:
    if request.mode == "incremental" and disk.mode == "full":
        raise InputError(
            f"disk {disk.key}: no incremental is possible: {disk.reason}", "Use --mode auto, or --mode full."
        )
    return disk


@contextmanager
def _frozen(session: Session, moref: str) -> Iterator[str]:
    """Moref of a snapshot that ends with the block. Nothing interrupts its making: a vim_task goes on regardless."""
    name = f"{SNAPSHOT_NAME}{secrets.token_hex(4)}"
    try:
        yield snapshot.create_snapshot(session, moref, name, False, no_beat)
    finally:
        snapshot.remove_snapshots(session, moref, name, no_beat)
