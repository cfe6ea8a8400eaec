"""Steps at the site, run by its control worker: look at the VM, make and read its snapshot, remove it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sendense.coordinator.context import Answer, Context, Done, Run, Waiting
from sendense.errors import ChangesUnknown, Conflict, InputError, JobFailed, NotFound
from sendense.extents import Extent, coarsen, total
from sendense.jobs.patch import patch
from sendense.jobs.plan import ALIGN
from sendense.models import VmInfo, VmRef
from sendense.requests import BackupRequest, DiskWork, MigrateRequest
from sendense.vsphere import changes, inventory, power, snapshot
from sendense.vsphere.session import Beat, Session, open_session

SNAPSHOT_PREFIX = "sendense-"
"""Begins the names of our snapshots; the job's id follows, so nobody else's is ever touched."""

NO_TRACKING = "the disk has no change tracking"


@contextmanager
def session_at(context: Context, vm: VmRef, beat: Beat) -> Iterator[Session]:
    """A login at the VM's site, whose every wait beats."""
    with open_session(vm.site, context.settings.site(vm.site), beat) as session, session.beating(beat):
        yield session


def inspect(context: Context, run: Run) -> Answer:
    """Look at the VM as it is now: which disks it has, which of them are to be copied; turn change tracking on."""
    request = _vm_request(run)
    with session_at(context, request.vm, run.beat) as session:
        info = inventory.vm_info(session, request.vm.moref)
        if info.ref.uuid != request.vm.uuid:
            raise InputError(
                f"{request.vm.moref} of site {request.vm.site} is another VM by now: {info.ref.name}",
                "Look for the VM with 'sendense vms', then start again.",
            )
        wanted = request.disks if isinstance(request, BackupRequest) else list(request.targets)
        chosen, left_out = choose_disks(info, wanted)
        if snapshot.enable_tracking(session, request.vm.moref, run.beat):
            context.jobs.event(run.view.id, "change tracking was turned on")
    before = {disk.key: disk for disk in run.work.disks}
    disks = [_keep(before.get(disk.key), disk, run.view.id) for disk in chosen]
    for key, reason in left_out.items():
        context.jobs.event(run.view.id, f"disk {key} is left out: {reason}")
    return Done(run.work.model_copy(update={"disks": disks, "left_out": left_out, "info": info}))


def choose_disks(info: VmInfo, wanted: Iterable[int]) -> tuple[list[DiskWork], dict[int, str]]:
    """The disks to copy, and those left out with the reasons; InputError when one was asked for, or none remains."""
    known, asked = {disk.key: disk for disk in info.disks}, list(wanted)
    for key in asked:
        if key not in known:
            keys = ", ".join(f"{disk.key} ({disk.label})" for disk in info.disks)
            raise NotFound(f"{info.ref.name} has no disk {key}", f"It has: {keys}.")
        if known[key].refusal:
            raise Conflict(f"disk {key} of {info.ref.name}: {known[key].refusal}", "Leave it out.")
    disks = [known[key] for key in dict.fromkeys(asked)] or info.disks
    left_out = {disk.key: disk.refusal for disk in disks if disk.refusal}
    chosen = [
        DiskWork(key=disk.key, label=disk.label, file=disk.file, size=disk.size) for disk in disks if not disk.refusal
    ]
    if not chosen:
        reasons = "; ".join(f"disk {key}: {reason}" for key, reason in left_out.items()) or "it has none"
        raise Conflict(f"{info.ref.name}: no disk can be backed up: {reasons}", "Back it up from within its guest.")
    return chosen, left_out


def make_snapshot(context: Context, run: Run) -> Answer:
    """Freeze the disks, and learn up to where their changes are known."""
    request = _vm_request(run)
    with session_at(context, request.vm, run.beat) as session:
        info = inventory.vm_info(session, request.vm.moref)
        if isinstance(request, MigrateRequest) and request.cutover and info.power != "off":
            raise JobFailed(f"{info.ref.name} was turned on again", "Find out by whom, then start the cutover again.")
        quiesce = request.quiesce and info.power == "on" and info.tools
        if request.quiesce and info.power == "on" and not info.tools:
            context.jobs.event(run.view.id, "VMware Tools do not run: the snapshot is not quiesced")
        name = f"{SNAPSHOT_PREFIX}{run.view.id}"
        moref = snapshot.create_snapshot(session, request.vm.moref, name, quiesce, run.beat)
        frozen = {disk.key: disk for disk in snapshot.snapshot_disks(session, moref)}
        thumbprint = session.thumbprint
    disks = []
    for disk in run.work.disks:
        now = frozen.get(disk.key)
        if not now:
            raise InputError(f"disk {disk.key}: was removed from the VM meanwhile", "Start the job again.")
        update: dict[str, Any] = {"file": now.file, "change_id": now.change_id, "size": now.size}
        if now.size != disk.size and disk.mode == "incremental":
            update |= {"mode": "full", "parent": "", "since": "", "reason": _grown(disk.size, now.size)}
        disks.append(disk.model_copy(update=update))
    fields: dict[str, Any] = {"disks": disks, "snapshot": moref, "thumbprint": thumbprint, "quiesced": quiesce}
    fields["created"] = (
        run.work.created if run.work.snapshot == moref else datetime.fromtimestamp(context.jobs.clock(), UTC)
    )
    return Done(run.work.model_copy(update=fields))


def read_changes(context: Context, run: Run) -> Answer:
    """Learn which parts of each disk are to be copied, and enter them in the ledger."""
    request = _vm_request(run)
    with session_at(context, request.vm, run.beat) as session:
        disks = [_read_disk(context, run, session, request, disk) for disk in run.work.disks]
    return Done(run.work.model_copy(update={"disks": disks}))


def _read_disk(
    context: Context, run: Run, session: Session, request: BackupRequest | MigrateRequest, disk: DiskWork
) -> DiskWork:
    def areas(since: str) -> Iterator[Extent]:
        return changes.changed_areas(session, request.vm.moref, run.work.snapshot, disk.key, disk.size, since, run.beat)

    ledger = context.ledger
    if disk.resumed_from and ledger.survey(disk.copy_id):
        try:
            changed = list(coarsen(areas(disk.resumed_from), ALIGN, disk.size))
        except ChangesUnknown as exc:
            context.jobs.event(run.view.id, f"disk {disk.key}: copied anew: {exc.detail}")
        else:
            patch(ledger, disk.copy_id, changed, disk.size, run.beat)
            return disk.model_copy(update={"resumed_from": ""})
    ledger.delete(disk.copy_id)
    disk = disk.model_copy(update={"resumed_from": "", "surveys": 0, "failures": 0, "beats": -1})
    if disk.mode == "incremental":
        try:
            if not disk.change_id:
                raise ChangesUnknown(request.vm.site, NO_TRACKING, NO_TRACKING)
            changed = list(coarsen(areas(disk.since), ALIGN, disk.size))
        except ChangesUnknown as exc:
            if isinstance(request, BackupRequest) and request.mode == "incremental":
                raise InputError(f"disk {disk.key}: no incremental is possible: {exc.reason}", exc.hint) from exc
            context.jobs.event(run.view.id, f"disk {disk.key}: a full: {exc.detail}")
            disk = disk.model_copy(update={"mode": "full", "parent": "", "since": "", "reason": exc.reason})
        else:
            ledger.write_areas(disk.copy_id, changed, run.beat)
            return disk.model_copy(update={"changed": total(changed, zero=False)})
    try:
        allocated = list(coarsen(areas(changes.ALL), ALIGN, disk.size))
    except ChangesUnknown as exc:
        context.jobs.event(run.view.id, f"disk {disk.key}: all of it is read: {exc.detail}")
        return disk.model_copy(update={"changed": disk.size})
    ledger.write_areas(disk.copy_id, with_gaps(allocated, disk.size), run.beat)
    return disk.model_copy(update={"changed": total(allocated, zero=False)})


def with_gaps(extents: Iterable[Extent], size: int) -> Iterator[Extent]:
    """The extents, and what lies between them, up to `size`, as zero."""
    at = 0
    for extent in extents:
        if extent.offset > at:
            yield Extent(at, extent.offset - at, True)
        yield extent
        at = extent.end
    if at < size:
        yield Extent(at, size - at, True)


def remove_snapshot(context: Context, run: Run) -> Answer:
    """Remove the job's snapshot, however it ended."""
    request = _vm_request(run)
    with session_at(context, request.vm, run.beat) as session:
        snapshot.remove_snapshots(session, request.vm.moref, f"{SNAPSHOT_PREFIX}{run.view.id}", run.beat)
    return Done(run.work.model_copy(update={"snapshot": ""}))


def shut_down(context: Context, run: Run) -> Answer:
    """Turn the VM off for its last sync."""
    request = _vm_request(run)
    if not run.work.off:  # remembered before: from here on it may be off, whatever happens
        return Waiting(run.work.model_copy(update={"off": True}), "the VM is about to be shut down")
    with session_at(context, request.vm, run.beat) as session:
        power.shutdown(session, request.vm.moref, session.site.shutdown_seconds, run.beat)
    context.jobs.event(run.view.id, "the VM is off")
    return Done(run.work)


def _keep(before: DiskWork | None, now: DiskWork, job: str) -> DiskWork:
    """The disk as an earlier run of the job left it, if that was the same disk."""
    fresh = now.model_copy(update={"copy_id": f"{job}-{now.key}"})
    if not before:
        return fresh
    if before.size != now.size:
        return fresh
    # An earlier resumption that came no further than to its snapshot did not bring the plan up to that.
    stored_at = before.resumed_from or before.change_id
    return before.model_copy(update={"file": now.file, "label": now.label, "resumed_from": stored_at})


def _grown(before: int, now: int) -> str:
    return f"its size changed from {before} to {now} bytes"


def _vm_request(run: Run) -> BackupRequest | MigrateRequest:
    request = run.view.request
    assert isinstance(request, BackupRequest | MigrateRequest)
    return request
