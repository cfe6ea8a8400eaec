"""Steps of a migration at the hub: disks onto targets that the user names, again and again only what changed."""

from datetime import UTC, datetime
from pathlib import Path

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, ValidationError

from sendense.coordinator import copying
from sendense.coordinator.context import Answer, Context, Done, Run
from sendense.coordinator.restore import check_new_image, give_name, make_image
from sendense.coordinator.serving import export_name, serve
from sendense.errors import InputError
from sendense.files import make_folder, storing, write_atomically
from sendense.models import JobSpec
from sendense.nbd.uri import is_uri
from sendense.requests import DiskWork, JobView, MigrateRequest
from sendense.settings import Settings


class Synced(BaseModel):
    """Up to which change of its disk a target is complete; `change_id` is empty without change tracking."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vm: str
    key: int
    target: str
    size: int
    change_id: str
    time: datetime
    job: str
    cutover: bool = False


def synced(settings: Settings, vm: str, key: int, target: str) -> Synced | None:
    """The last complete sync of a disk onto a target."""
    path = _file(settings, vm, key, target)
    try:
        return Synced.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as exc:
        raise InputError(f"{path}: not readable by this version", "Migrate the disk anew, onto a new target.") from exc


def _file(settings: Settings, vm: str, key: int, target: str) -> Path:
    name = blake3(f"{vm}\0{key}\0{target}".encode()).hexdigest()[:24]
    return settings.migrations_dir / f"{name}.json"


def choose(context: Context, run: Run) -> Answer:
    """Which disk only needs what changed since its last sync, and which has to be copied whole."""
    request, job = _request(run.view), run.view.id
    disks = []
    for disk in run.work.disks:
        target = request.targets[disk.key]
        last = synced(context.settings, request.vm.uuid, disk.key, target)
        resumed = bool(disk.resumed_from and context.ledger.survey(disk.copy_id))
        if not resumed:
            disk = _choose(disk.model_copy(update={"resumed_from": ""}), target, last, request)
        update = {"target": target} if is_uri(target) else {"export": export_name(job, disk.key)}
        if not is_uri(target) and not disk.image:
            update["image"] = target if disk.mode == "incremental" else f"{target}.partial"
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
            check_new_image(path, force=False, resumed=False)
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
        new = disk.image.endswith(".partial")
        if new:
            if fresh:
                context.exports.remove(disk.export)
            make_image(Path(disk.image), disk.size, keep=not fresh)
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
            context.exports.remove(disk.export)
            if disk.image.endswith(".partial"):
                give_name(Path(disk.image))
        target = request.targets[disk.key]
        done = Synced(
            vm=request.vm.uuid,
            key=disk.key,
            target=target,
            size=disk.size,
            change_id=disk.change_id,
            time=datetime.now(UTC),
            job=run.view.id,
            cutover=request.cutover,
        )
        path = _file(context.settings, request.vm.uuid, disk.key, target)
        with storing(path):
            make_folder(path.parent)
            write_atomically(path, done.model_dump_json().encode())
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
