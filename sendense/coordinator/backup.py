"""Steps of a backup at the hub: choose what each disk builds on, make the images, commit the restore point."""

from sendense.beat import beating
from sendense.coordinator import copying
from sendense.coordinator.context import Answer, Context, Done, Run
from sendense.coordinator.serving import export_name, serve
from sendense.errors import InputError, JobFailed
from sendense.models import JobSpec
from sendense.repository import merge
from sendense.repository.batches import StoredBatch
from sendense.repository.points import Point, PointDisk, mode_of
from sendense.repository.writing import Draft
from sendense.requests import BackupRequest, DiskWork, JobView

ASKED_FOR = "a full was asked for"


def choose(context: Context, run: Run) -> Answer:
    """Which disk is an incremental on what, and which is a full and why; names the restore point."""
    request = _request(run.view)
    repository = context.repository
    _finish_deletions(context, run, request.vm.uuid)
    if run.work.info:
        repository.remember(run.work.info)
    point = f"{run.view.created:%Y%m%dT%H%M%SZ}-{run.view.id[:4]}"  # the same one when this step runs again
    draft = repository.draft(request.vm.uuid, point)
    parent = repository.latest(request.vm.uuid)
    disks = []
    for disk in run.work.disks:
        if _goes_on(context, draft, disk, parent):
            chosen = disk
        else:
            context.ledger.delete(disk.copy_id)  # a later run must not take it for what this one stored
            chosen = choose_parent(disk.model_copy(update={"resumed_from": ""}), parent, request.mode)
        export = export_name(run.view.id, disk.key)
        disks.append(chosen.model_copy(update={"export": export, "image": str(draft.image(disk.key))}))
    if request.mode == "incremental" and (full := [disk for disk in disks if disk.mode == "full"]):
        raise InputError(
            f"disk {full[0].key}: no incremental is possible: {full[0].reason}", "Use --mode auto, or --mode full."
        )
    return Done(run.work.model_copy(update={"disks": disks, "point": point}))


def _goes_on(context: Context, draft: Draft, disk: DiskWork, parent: Point | None) -> bool:
    """Whether what an earlier run stored of a disk is of use: not without tracking, or another point to build on."""
    if not (disk.resumed_from and draft.image(disk.key).exists() and context.ledger.survey(disk.copy_id)):
        return False
    return not disk.parent or bool(parent and parent.id == disk.parent and not parent.damaged)


def _finish_deletions(context: Context, run: Run, vm: str) -> None:
    """What is in the way, say somebody who reads the chain, does not keep a backup from building on what stays."""
    try:
        merge.recover(context.repository, vm, run.beat)
    except JobFailed as exc:
        context.jobs.event(run.view.id, f"an interrupted deletion is left for later: {exc}")


def choose_parent(disk: DiskWork, parent: Point | None, mode: str) -> DiskWork:
    """The disk as an incremental on `parent` where that can be, else as a full with the reason."""
    reason = _why_full(disk, parent, mode)
    if reason or not parent:
        return disk.model_copy(update={"mode": "full", "parent": "", "since": "", "reason": reason})
    since = parent.disk(disk.key).change_id
    return disk.model_copy(update={"mode": "incremental", "parent": parent.id, "since": since, "reason": ""})


def _why_full(disk: DiskWork, parent: Point | None, mode: str) -> str:
    if mode == "full":
        return ASKED_FOR
    if not parent:
        return "the VM has no restore point yet"
    before = next((each for each in parent.disks if each.key == disk.key), None)
    if not before:
        return f"restore point {parent.id} does not have this disk"
    if parent.damaged:
        return f"restore point {parent.id} is damaged"
    if before.size != disk.size:
        return f"its size changed from {before.size} to {disk.size} bytes"
    if not before.change_id:
        return f"restore point {parent.id} was made without change tracking"
    return ""


def prepare(context: Context, run: Run) -> Answer:
    """
    Make the images, overlays on their parents' or empty ones, and serve them.

    An image of which the ledger knows nothing is made anew: what an earlier run left in it is of another snapshot.
    """
    vm = _request(run.view).vm
    draft, points, disks = context.repository.begin(vm, run.work.point), context.repository.points(vm.uuid), []
    for disk in run.work.disks:
        fresh = context.ledger.survey(disk.copy_id) is None
        if fresh:
            context.exports(run.beat).remove(disk.export)
            draft.drop_image(disk.key, run.beat)
        parent = next((each for each in points if each.id == disk.parent), None)
        if disk.parent and not parent:
            raise JobFailed(f"disk {disk.key}: its parent {disk.parent} is gone", "Start the backup again.")
        image = draft.make_image(disk.key, disk.size, parent, run.beat)
        update = {"blank": fresh and not disk.parent, "image": str(image)}
        disks.append(serve(context, disk.model_copy(update=update), run.beat))
    return Done(run.work.model_copy(update={"disks": disks}))


def copy(context: Context, run: Run) -> Answer:
    """Copy, with the images served all the while, also when the daemon had to be started again."""
    for disk in run.work.disks:
        serve(context, disk, run.beat)
    return copying.copy(lambda disk: _spec(run.view, disk), context, run)


def verify(context: Context, run: Run) -> Answer:
    """Read the images back."""
    for disk in run.work.disks:
        serve(context, disk, run.beat)
    return copying.verify(lambda disk: _spec(run.view, disk), context, run)


def commit(context: Context, run: Run) -> Answer:
    """Close the images, and make the restore point one."""
    draft, view = _draft(context, run), run.view
    if draft.committed():
        return Done(run.work)
    for disk in run.work.disks:
        context.exports(run.beat).remove(disk.export)
    disks = [_commit_disk(context, draft, disk, run) for disk in run.work.disks]
    created = run.work.created or view.created
    full = next((disk for disk in disks if disk.mode == "full"), None)
    point = Point(
        id=run.work.point,
        vm=run.work.info.ref if run.work.info else _request(view).vm,
        created=created,
        job=view.id,
        quiesced=run.work.quiesced,
        mode=mode_of(disks),
        reason=full.reason if full else "",
        disks=disks,
        left_out=run.work.left_out,
        seconds=max(disk.seconds for disk in run.work.disks),
        verified=created if all(disk.verified for disk in run.work.disks) else None,
    )
    draft.commit(point, run.beat)
    context.jobs.event(view.id, f"restore point {point.id}")
    return Done(run.work)


def _commit_disk(context: Context, draft: Draft, disk: DiskWork, run: Run) -> PointDisk:
    run.beat()
    records = beating(copying.records_of(context, disk, run.beat), run.beat)
    totals = draft.write_batches(disk.key, (StoredBatch(each.extents, each.data, each.digest) for each in records))
    return PointDisk(
        key=disk.key,
        label=disk.label,
        file=disk.file,
        size=disk.size,
        mode=disk.mode,
        reason=disk.reason,
        parent=disk.parent,
        change_id=disk.change_id,
        data=totals.data,
        changed=totals.changed,
        digest=totals.digest,
    )


def tidy(context: Context, run: Run) -> Answer:
    """Of a job that stored nothing, nothing is kept."""
    if run.view.outcome == "succeeded" or not run.work.point:
        return Done(run.work)
    if any(copying.has_stored(context.ledger, disk) for disk in run.work.disks):
        return Done(run.work)
    draft = _draft(context, run)
    if not draft.committed():  # it is a point where the record is of before that: a hub brought back from a copy
        draft.discard()
    for disk in run.work.disks:
        context.ledger.delete(disk.copy_id)
    return Done(run.work)


def _spec(view: JobView, disk: DiskWork) -> JobSpec:
    return copying.vm_disk_spec(view, disk, _request(view).vm)


def _draft(context: Context, run: Run) -> Draft:
    return context.repository.draft(_request(run.view).vm.uuid, run.work.point)


def _request(view: JobView) -> BackupRequest:
    assert isinstance(view.request, BackupRequest)
    return view.request
