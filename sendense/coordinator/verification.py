"""Steps of a verification: each image that a restore point builds on is read back, against its own batches' digests."""

from datetime import UTC, datetime
from pathlib import Path

from sendense.beat import Beat, beating
from sendense.coordinator import copying
from sendense.coordinator.context import Answer, Context, Done, Failed, Run
from sendense.coordinator.serving import export_name
from sendense.errors import Different
from sendense.exports import hub_export
from sendense.jobs.plan import batch_of
from sendense.models import HUB_SITE, Difference, JobSpec, Survey
from sendense.repository import batches, checking, merge
from sendense.requests import DiskWork, JobView, VerifyRequest, Work


def choose(context: Context, run: Run) -> Answer:
    """The images to read: those of the point, and those below them."""
    request, job = _request(run.view), run.view.id
    point = context.repository.find(request.point)
    merge.recover(context.repository, point.vm.uuid, run.beat)  # in a half-merged image a batch's digest may not hold
    disks: list[DiskWork] = []
    for disk in point.disks:
        for level in context.repository.levels(point, disk.key)[: 1 if request.own else None]:
            number = len(disks)
            disks.append(
                DiskWork(
                    key=disk.key,
                    label=level.point,
                    size=level.disk.size,
                    mode=level.disk.mode,
                    copy_id=f"{job}-{number}",
                    image=str(level.image),
                    source_export=export_name(job, number),
                )
            )
    return Done(run.work.model_copy(update={"disks": disks, "point": point.id}))


def prepare(context: Context, run: Run) -> Answer:
    """Look at the images' own structure, serve them, and plan to read what their batches name."""
    disks = []
    for disk in run.work.disks:
        run.beat()
        image, file = Path(disk.image), _batches(disk)
        if damage := checking.check(image, run.beat):
            words = f"disk {disk.key} of {disk.label}: {damage}"
            _mark(context, run, disk, words)
            raise Different(words)
        if found := checking.strangers(image, beating(batches.read(file), run.beat), run.beat):
            differences = [Difference(offset=each.offset, length=each.length) for each in found]
            wrong = disk.model_copy(update={"differences": differences})
            _mark(context, run, wrong, _first_of(wrong))
            return copying.judge(Work(disks=[wrong]))
        served = _serve(context, run, disk)
        _plan(context, served, _spec(run.view, served), run.beat)
        disks.append(served)
    return Done(run.work.model_copy(update={"disks": disks}))


def _plan(context: Context, disk: DiskWork, spec: JobSpec, beat: Beat) -> None:
    ledger = context.ledger
    if ledger.survey(spec.id):
        return
    ledger.prepare(spec)
    survey = Survey(size=disk.size, multi_conn=True, allocation=True, flush=True)
    ledger.write_plan(spec.id, survey, (batch_of(batch.extents) for batch in batches.read(_batches(disk))), beat)


def read(context: Context, run: Run) -> Answer:
    """Have everything read, with the images served all the while."""
    for disk in run.work.disks:
        _serve(context, run, disk)
    return copying.copy(lambda disk: _spec(run.view, disk), context, run)


def compare(context: Context, run: Run) -> Answer:
    """Compare the digests; the point remembers when it was last found sound."""
    disks = [_compare(context, disk, run.beat) for disk in run.work.disks]
    repository = context.repository
    point = repository.find(run.work.point)
    for disk in disks:
        if disk.differences:
            _mark(context, run, disk, _first_of(disk))
    answer = copying.judge(run.work.model_copy(update={"disks": disks}))
    if isinstance(answer, Done):
        below = [level for disk in point.disks for level in repository.chain(point, disk.key)[1:]]
        if damaged := next((level for level in below if level.damaged), None):
            error = Different(f"{point.id} is built on {damaged.id}: {damaged.damaged}")
            return Failed(answer.work, error)
        repository.mark_verified(point, datetime.now(UTC))
    return answer


def _mark(context: Context, run: Run, disk: DiskWork, words: str) -> None:
    vm = context.repository.find(run.work.point).vm.uuid
    context.repository.mark_damaged(vm, disk.label, disk.key, words)


def _first_of(disk: DiskWork) -> str:
    first = disk.differences[0]
    return f"disk {disk.key} of {disk.label}: offset={first.offset} length={first.length}"


def _compare(context: Context, disk: DiskWork, beat: Beat) -> DiskWork:
    found = {record.batch: record.digest for record in context.ledger.records(disk.copy_id, beat)}
    differences = []
    for number, batch in enumerate(beating(batches.read(_batches(disk)), beat)):
        if found.get(number) != batch.digest:
            start, end = batch.extents[0].offset, batch.extents[-1].end
            differences.append(Difference(offset=start, length=end - start))
    return disk.model_copy(update={"verified": not differences, "differences": differences})


def _serve(context: Context, run: Run, disk: DiskWork) -> DiskWork:
    context.exports(run.beat).add(disk.source_export, Path(disk.image), writable=False)
    return disk.model_copy(update={"source": hub_export(disk.source_export)})


def _batches(disk: DiskWork) -> Path:
    return Path(disk.image).with_suffix(".batches")


def _spec(view: JobView, disk: DiskWork) -> JobSpec:
    return JobSpec(
        id=disk.copy_id,
        kind="verify",
        site=HUB_SITE,
        name=f"{view.name} · disk {disk.key} of {disk.label}",
        source=disk.source,
        part_of=view.id,
    )


def _request(view: JobView) -> VerifyRequest:
    assert isinstance(view.request, VerifyRequest)
    return view.request
