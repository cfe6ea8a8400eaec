"""Steps of a restore: a point's images and the targets are served, copied, and a new image gets its own name."""

from pathlib import Path

from sendense.coordinator import copying, synced
from sendense.coordinator.context import Answer, Context, Done, Run
from sendense.coordinator.serving import export_name, serve
from sendense.errors import Conflict, InputError, JobFailed, NotFound
from sendense.exports import hub_export
from sendense.files import rename, storing, sync
from sendense.models import HUB_SITE, JobSpec
from sendense.nbd import images
from sendense.nbd.images import PARTIAL
from sendense.nbd.uri import is_uri
from sendense.repository.catalogue import Repository
from sendense.requests import DiskWork, JobView, RestoreRequest


def choose(context: Context, run: Run) -> Answer:
    """Which disk goes where; what an earlier run of the job stored is kept."""
    request, job = _request(run.view), run.view.id
    point = context.repository.find(request.point)
    before = {disk.key: disk for disk in run.work.disks}
    disks = []
    for key, target in request.targets.items():
        stored, uri = point.disk(key), is_uri(target)
        must_be_outside(context.repository, target)
        synced.forget(context.settings, target)
        if not uri:
            check_new_image(Path(target), force=request.force, resumed=key in before)
        disks.append(
            DiskWork(
                key=key,
                label=stored.label,
                size=stored.size,
                copy_id=f"{job}-{key}",
                image="" if uri else f"{target}{PARTIAL}",
                export="" if uri else export_name(job, key),
                inode=before[key].inode if key in before else 0,
                failures=before[key].failures if key in before else 0,
                source_export=export_name(job, key),
                target=target if uri else "",
            )
        )
    return Done(run.work.model_copy(update={"disks": disks, "point": point.id}))


def must_be_outside(repository: Repository | None, target: str) -> None:
    """InputError for an image within the repository: nothing but backups is written there."""
    if repository and not is_uri(target) and Path(target).resolve().is_relative_to(repository.layout.root.resolve()):
        raise InputError(f"{target}: lies in the repository", "Name another folder.")


def check_new_image(name: str | Path, *, force: bool, resumed: bool) -> None:
    """InputError unless an image of that name can be made."""
    path = Path(name)
    if path.suffix.lower() not in images.TARGET_FORMATS:
        raise InputError(f"{path}: the name says no format that can be written", "Name it .qcow2 or .raw.")
    if not path.parent.is_dir():
        raise NotFound(f"{path.parent}: no such folder", "Make it first.")
    if path.exists() and not force:
        raise Conflict(f"{path}: exists", "Name another target, or give --force to replace it.")
    if path.with_name(f"{path.name}{PARTIAL}").exists() and not (force or resumed):
        raise Conflict(f"{path}{PARTIAL}: exists", "Another job is, or was, at work there: delete it, or give --force.")


def prepare(context: Context, run: Run) -> Answer:
    """Serve the stored images, and make and serve the new ones."""
    disks = []
    for disk in run.work.disks:
        fresh = context.ledger.survey(disk.copy_id) is None
        if disk.image:
            if fresh:
                context.exports(run.beat).remove(disk.export)
            disk = disk.model_copy(update={"inode": make_image(disk, keep=not fresh)})
        served = _serve(context, run, disk)
        disks.append(served.model_copy(update={"blank": fresh and bool(disk.image)}))
    return Done(run.work.model_copy(update={"disks": disks}))


def make_image(disk: DiskWork, *, keep: bool) -> int:
    """A new image under its unfinished name, or `keep` the one that this job made; returns its inode."""
    partial = Path(disk.image)
    if keep:
        if not partial.exists() or partial.stat().st_ino != disk.inode:
            raise JobFailed(f"{partial}: is gone, and with it what was copied", "Start the job anew, not with resume.")
        return disk.inode
    partial.unlink(missing_ok=True)
    images.create(partial, images.TARGET_FORMATS[partial.with_suffix("").suffix.lower()], disk.size)
    return partial.stat().st_ino


def copy(context: Context, run: Run) -> Answer:
    """Copy, with everything served all the while."""
    for disk in run.work.disks:
        _serve(context, run, disk)
    return copying.copy(lambda disk: _spec(run.view, disk), context, run)


def verify(context: Context, run: Run) -> Answer:
    """Read the targets back."""
    for disk in run.work.disks:
        _serve(context, run, disk)
    return copying.verify(lambda disk: _spec(run.view, disk), context, run)


def deliver(context: Context, run: Run) -> Answer:
    """Close the new images, and give them their names."""
    for disk in run.work.disks:
        if disk.export:
            context.exports(run.beat).remove(disk.export)
            give_name(disk)
    return Done(run.work)


def give_name(disk: DiskWork) -> None:
    """Make the image that the job made durable under its own name; done already is fine. JobFailed where it is gone."""
    partial = Path(disk.image)
    final = partial.with_suffix("")
    with storing(partial):
        if _inode(partial) == disk.inode:
            sync(partial)
            rename(partial, final)
        elif _inode(final) != disk.inode:
            raise JobFailed(f"{partial}: is gone, or is another image by now", "Find out by whom; start the job anew.")


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def _serve(context: Context, run: Run, disk: DiskWork) -> DiskWork:
    point = context.repository.find(run.work.point)
    stored = context.repository.levels(point, disk.key)[0].image
    context.exports(run.beat).add(disk.source_export, stored, writable=False)
    served = serve(context, disk, run.beat) if disk.export else disk
    return served.model_copy(update={"source": hub_export(disk.source_export)})


def _spec(view: JobView, disk: DiskWork) -> JobSpec:
    return JobSpec(
        id=disk.copy_id,
        kind="copy",
        site=HUB_SITE,
        name=f"{view.name} · disk {disk.key}",
        source=disk.source,
        target=disk.target,
        target_is_zero=disk.blank,
        part_of=view.id,
        solo=not disk.export,
    )


def _request(view: JobView) -> RestoreRequest:
    assert isinstance(view.request, RestoreRequest)
    return view.request
