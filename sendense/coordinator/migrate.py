"""Steps of a migration at the hub: disks onto targets that the user names, again and again only what changed."""

from datetime import UTC, datetime
from pathlib import Path

from sendense.coordinator import copying, synced
from sendense.coordinator.context import Answer, Context, Done, Run
from sendense.coordinator.restore import check_new_image, give_name, make_image, must_be_outside
from sendense.coordinator.serving import export_name, serve
from sendense.coordinator.synced import Synced
from sendense.errors import InputError
from sendense.models import JobSpec
from sendense.nbd.images import PARTIAL
from sendense.nbd.uri import is_uri
from sendense.requests import DiskWork, JobView, MigrateRequest


def choose(context: Context, run: Run) -> Answer:
    """Which disk only needs what changed since its last sync, and which has to be copied whole."""
    request, job = _request(run.view), run.view.id
    disks = []
    for disk in run.work.disks:
        target = request.targets[disk.key]
        must_be_outside(context.repository if context.settings.repository else None, target)
        last = synced.read(context.settings, request.vm.uuid, disk.key, target)
        if not (disk.resumed_from and context.ledger.survey(disk.copy_id)):
            context.ledger.delete(disk.copy_id)  # a later run must not take it for what this one stored
            disk = _choose(disk.model_copy(update={"resumed_from": ""}), target, last, request)
            if disk.mode == "full" and not last:
                synced.forget(context.settings, target)
        elif disk.image.endswith(PARTIAL) and not Path(disk.image).exists() and Path(target).exists():
            disk = disk.model_copy(update={"image": target})  # it had got its name already
        update = {"target": target} if is_uri(target) else {"export": export_name(job, disk.key)}
        if not is_uri(target) and not disk.image:
            update["image"] = target if disk.mode == "incremental" else f"{target}{PARTIAL}"
        disks.append(disk.model_copy(update=update))
    return Done(run.work.model_copy(update={"disks": disks}))


def _choose(disk: DiskWork, target: str, last: Synced | None, request: MigrateRequest) -> DiskWork:
    path = None if is_uri(target) else Path(target)
    if not (request.sync or request.cutover) or not last:
        if request.sync:
            raise InputError(
                f"disk {disk.key}: {target} has no complete copy to sync", "Run the migration once without --sync."
            )
        if path:
            check_new_image(path, force=False, resumed=disk.image == f"{path}{PARTIAL}")
        return disk.model_copy(update={"mode": "full", "reason": "first copy onto this target"})
    if path and not path.exists():
        raise InputError(f"{path}: no such file, and it was synced before", "Migrate the disk anew, onto a new target.")
    reason = ""
    if not last.change_id:
        reason = "the last sync was made without change tracking"
    elif last.size != disk.size:
        raise InputError(
            f"disk {disk.key}: its size changed from {last.size} to {disk.size} bytes",
            "Migrate the disk anew, onto a new target.",
        )
    mode = "full" if reason else "incremental"
    image = str(path) if path else ""
    return disk.model_copy(update={"mode": mode, "since": last.change_id, "reason": reason, "image": image})


def prepare(context: Context, run: Run) -> Answer:
    """Make the images that are new, and serve the images."""
    disks = []
    for disk in run.work.disks:
        fresh = context.ledger.survey(disk.copy_id) is None
        new = disk.image.endswith(PARTIAL)
        if new:
            if fresh:
                context.exports(run.beat).remove(disk.export)
            disk = disk.model_copy(update={"inode": make_image(disk, keep=not fresh)})
        served = serve(context, disk, run.beat) if disk.export else disk
        disks.append(served.model_copy(update={"blank": fresh and new}))
    return Done(run.work.model_copy(update={"disks": disks}))


def copy(context: Context, run: Run) -> Answer:
    """Copy, with the images served all the while."""
    _serve(context, run)
    return copying.copy(lambda disk: _spec(run.view, disk), context, run)


def verify(context: Context, run: Run) -> Answer:
    """Read the targets back."""
    _serve(context, run)
    return copying.verify(lambda disk: _spec(run.view, disk), context, run)


def deliver(context: Context, run: Run) -> Answer:
    """Close the images, give new ones their names; only then remember up to which change each target is complete."""
    request = _request(run.view)
    for disk in run.work.disks:
        if disk.export:
            context.exports(run.beat).remove(disk.export)
            if disk.image.endswith(PARTIAL):
                give_name(disk)
        target = request.targets[disk.key]
        done = Synced(
            vm=request.vm.uuid,
            key=disk.key,
            target=target,
            size=disk.size,
            change_id=disk.change_id,
            time=datetime.now(UTC),
            job=run.view.id,
        )
        synced.write(context.settings, done)
    return Done(run.work)


def _serve(context: Context, run: Run) -> None:
    for disk in run.work.disks:
        if disk.export:
            serve(context, disk, run.beat)


def _spec(view: JobView, disk: DiskWork) -> JobSpec:
    return copying.vm_disk_spec(view, disk, _request(view).vm)


def _request(view: JobView) -> MigrateRequest:
    assert isinstance(view.request, MigrateRequest)
    return view.request
