"""Steps that all kinds of jobs share: have every disk's batches copied, or read back, and close what was opened."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from blake3 import blake3

from sendense.beat import Beat
from sendense.coordinator.context import Answer, Context, Done, Failed, Run, Waiting
from sendense.errors import Different, InputError, JobFailed, TargetFull
from sendense.jobs import broker, driver, presence
from sendense.jobs.driver import SURVEY_SILENCE_SECONDS
from sendense.jobs.ledger import Ledger, Record
from sendense.jobs.plan import batch_of
from sendense.jobs.queues import site_queue
from sendense.jobs.reading import readable
from sendense.models import Difference, DiskSource, Failure, JobSpec, VmRef, verification_id
from sendense.requests import DiskWork, JobView, Work

MOST_SURVEYS = 6
"""Times that a survey is sent before its loss, or its failure, is the job's."""

CLOSE_SECONDS = 15.0
"""Workers that still have a disk of an ended job open are waited for: two looks of theirs, and nbdkit's end."""

Specify = Callable[[DiskWork], JobSpec]


def copy(specify: Specify, context: Context, run: Run) -> Answer:
    """Have every disk copied; what each is to read and write, `specify` says. Done when all of them are stored."""
    return _all(context, run, specify)


def verify(specify: Specify, context: Context, run: Run) -> Answer:
    """Have what was copied read back, and compared with the digests that were taken on the way."""
    for disk in run.work.disks:
        spec = specify(disk).verification()
        if context.ledger.survey(spec.id) is None:
            _plan_verification(context.ledger, disk.copy_id, spec, run.beat)
    answer = _all(context, run, lambda disk: specify(disk).verification())
    if not isinstance(answer, Done):
        return answer
    disks = [_compare(context.ledger, disk, run.beat) for disk in answer.work.disks]
    return judge(answer.work.model_copy(update={"disks": disks}))


def judge(work: Work) -> Answer:
    """Done, unless a disk's stored content differs from what was copied."""
    disk = next((disk for disk in work.disks if disk.differences), None)
    if not disk:
        return Done(work)
    first = disk.differences[0]
    more = f" and {len(disk.differences) - 1} more" if len(disk.differences) > 1 else ""
    where = f"disk {disk.key}" if disk.export or disk.target else f"disk {disk.key} of {disk.label}"
    return Failed(
        work,
        Different(
            f"{where}: what is stored differs from what was copied: offset={first.offset} length={first.length}{more}"
        ),
    )


def close(context: Context, run: Run) -> Answer:
    """Stop what still runs, cut its connections to the exports, and wait until the processes let the disks go."""
    ids = copies_of(run.view)
    for name in ids:
        if context.ledger.state(name) in ("preparing", "ready", "copying"):
            context.ledger.stop(name)
        if context.ledger.state(name):
            context.ledger.close(name)
    for disk in run.work.disks:
        for export in filter(None, (disk.export, disk.source_export)):
            context.exports(run.beat).remove(export)
    deadline = time.monotonic() + CLOSE_SECONDS
    while any(_holders(context.ledger, name) for name in ids) and time.monotonic() < deadline:
        run.beat()
        time.sleep(0.1)
    late = {holder for name in ids for holder in _holders(context.ledger, name)}
    others = _at_other_jobs(context, run) if late else set()
    for holder in late - others:
        context.jobs.event(run.view.id, f"{holder} does not let its disk go: it is killed")
        presence.condemn(context.ledger.client, holder)
    if busy := sorted(late & others):
        return Waiting(run.work, f"{busy[0]}, which is at work on another job, has a disk of this one open")
    if run.view.outcome == "succeeded":
        for name in ids:
            context.ledger.delete(name)
    return Done(run.work)


def reopen(context: Context, run: Run) -> Work:
    """Have what the job's earlier run stored stand, but for what was found to be wrong; safe to do again."""
    ledger, disks = context.ledger, []
    for disk in run.work.disks:
        run.beat()
        if disk.copy_id:
            wrong = {found.offset for found in disk.differences}
            records = ledger.records(disk.copy_id, run.beat) if wrong else []
            ledger.reopen(disk.copy_id, (each for each in records if each.extents[0].offset in wrong))
            ledger.delete(verification_id(disk.copy_id))
            if run.view.request.kind == "verify":
                ledger.delete(disk.copy_id)
            elif ledger.state(disk.copy_id):
                ledger.stop(disk.copy_id)
        disks.append(disk.model_copy(update={"surveys": 0, "beats": -1, "progress": None, "differences": []}))
    return run.work.model_copy(update={"disks": disks, "resumed": False})


def hold(context: Context, view: JobView) -> None:
    """Have no more batches of a paused job handed out; those under way end."""
    for name in copies_of(view):
        if context.ledger.state(name) == "copying":
            context.ledger.pause(name, True)


def copies_of(view: JobView) -> list[str]:
    """The ledger's names of all that was copied and read back for a job."""
    return [name for disk in view.work.disks if disk.copy_id for name in (disk.copy_id, verification_id(disk.copy_id))]


def _holders(ledger: Ledger, copy: str) -> set[str]:
    """The processes, WORKER/PID, that have connections open for a copy, or are at work on it."""
    return {*_at_work(ledger, copy), *ledger.holders(copy)}


def _at_work(ledger: Ledger, copy: str) -> set[str]:
    """The processes, WORKER/PID, that have batches of a copy under way."""
    progress = ledger.progress(copy)
    return {activity.worker.rpartition("/")[0] for activity in progress.active} if progress else set()


def _at_other_jobs(context: Context, run: Run) -> set[str]:
    """The processes that have batches under way of other jobs than this one."""
    found: set[str] = set()
    for job in context.jobs.active():
        run.beat()
        if job != run.view.id and (view := readable(f"job {job}", partial(context.jobs.get, job))):
            for name in copies_of(view):
                found |= _at_work(context.ledger, name)
    return found


def has_stored(ledger: Ledger, disk: DiskWork) -> bool:
    """Whether anything of the disk is stored that a resumed job would not copy again."""
    progress = ledger.progress(disk.copy_id) if disk.copy_id else None
    return bool(progress and progress.batches_done)


def vm_disk_spec(view: JobView, disk: DiskWork, vm: VmRef) -> JobSpec:
    """The copying of a VM's disk, as it was at the job's snapshot."""
    work = view.work
    return JobSpec(
        id=disk.copy_id,
        kind="copy",
        site=vm.site,
        name=f"{view.name} · disk {disk.key}",
        source="",
        disk=DiskSource(
            site=vm.site,
            vm=vm.moref,
            snapshot=work.snapshot,
            file=disk.file,
            thumbprint=work.thumbprint,
            host=work.info.host if work.info else "",
        ),
        target=disk.target,
        target_is_zero=disk.blank,
        part_of=view.id,
        solo=not disk.export,
    )


def records_of(context: Context, disk: DiskWork, beat: Beat) -> list[Record]:
    """What is stored of a disk, in disk order; JobFailed when that is not all that was planned."""
    records, progress = context.ledger.records(disk.copy_id, beat), context.ledger.progress(disk.copy_id)
    planned = progress.batches if progress else 0
    if len(records) != planned:
        raise JobFailed(
            f"disk {disk.key}: {len(records)} of {planned} batches are stored", "Resume the job: the rest is copied."
        )
    return records


def _all(context: Context, run: Run, specify: Specify) -> Answer:
    disks, reasons, complete = [], [], True
    for disk in run.work.disks:
        run.beat()
        found, done, reason = _Copying(context, run, disk, specify(disk)).go_on()
        disks.append(found)
        complete = complete and done
        reasons += [reason] if reason else []
    work = run.work.model_copy(update={"disks": disks})
    return Done(work) if complete else Waiting(work, reasons[0] if reasons else "")


class _Copying:
    """One look at the copying of one disk, and whatever it needs to go on."""

    def __init__(self, context: Context, run: Run, disk: DiskWork, spec: JobSpec) -> None:
        self._context, self._ledger, self._view, self._beat = context, context.ledger, run.view, run.beat
        self._disk, self._spec = disk, spec

    def go_on(self) -> tuple[DiskWork, bool, str]:
        """The disk as it is now, whether its copying is complete, and what it waits for."""
        ledger, spec = self._ledger, self._spec
        queue = site_queue(spec.site, solo=spec.solo)
        state, reason = ledger.state(spec.id), ""
        workers = presence.processes(ledger.client, queue)
        if not workers and not self._is_under_way():
            reason = _unread(ledger, spec.site, queue)
        if state is None or state == "stopped":
            ledger.prepare(spec)
            state = "preparing"
        if state == "failed" and self._may_survey_again():
            ledger.prepare(spec)
            state, reason = "preparing", ledger.failures(spec.id)[-1].message
            self._update(heard=0.0, beats=ledger.beats(spec.id), surveys=self._disk.surveys + 1)
        if state == "preparing":
            self._survey()
        if state == "ready":
            self._begin()
        if state in ("ready", "copying"):
            if ledger.is_paused(spec.id):
                ledger.pause(spec.id, False)
            if workers:
                self._drive(workers)
            state = ledger.state(spec.id)
        self._tell()
        reason = reason or ledger.shortage(spec.id)
        if state == "failed":
            raise self._error()
        if state == "copied":
            return self._result(), True, ""
        return self._disk, False, reason

    def _is_under_way(self) -> bool:
        """Whether workers that take no more still end what they have."""
        progress = self._ledger.progress(self._spec.id)
        return bool(progress and progress.active)

    def _may_survey_again(self) -> bool:
        """A server that could not be opened may be there a moment later."""
        last = self._ledger.failures(self._spec.id)[-1:]
        return bool(last) and last[0].batch is None and last[0].retryable and self._disk.surveys + 1 < MOST_SURVEYS

    def _survey(self) -> None:
        beats, now = self._ledger.beats(self._spec.id), time.time()
        if beats != self._disk.beats:
            self._update(beats=beats, heard=now)
        if self._disk.surveys and now - self._disk.heard < SURVEY_SILENCE_SECONDS:
            return
        if self._disk.surveys >= MOST_SURVEYS:
            raise JobFailed(
                f"the survey of {self._spec.source_label} was lost {MOST_SURVEYS} times", "Look at the worker's log."
            )
        silent = self._ledger.take_surveyor(self._spec.id)
        if silent:
            presence.condemn(self._ledger.client, silent)
        broker.send_survey(self._context.app, self._spec)
        if silent or not self._disk.surveys:  # nobody took the one before: the queue is long, and that is no failure
            self._update(surveys=self._disk.surveys + 1)
        self._update(heard=now)

    def _begin(self) -> None:
        survey = self._ledger.survey(self._spec.id)
        assert survey
        if self._disk.size and survey.size != self._disk.size:
            raise JobFailed(
                f"disk {self._disk.key}: {self._spec.source_label} has {survey.size} bytes, and should have "
                f"{self._disk.size}",
                "Start the job again: the disk was changed meanwhile.",
            )
        if self._spec.solo and survey.multi_conn:
            self._spec = self._spec.model_copy(update={"solo": False})
        self._ledger.begin(self._spec)

    def _drive(self, workers: int) -> None:
        ledger, spec = self._ledger, self._ledger.spec(self._spec.id) or self._spec
        progress = ledger.progress(spec.id)
        total = progress.batches if progress else 0
        window = driver.WINDOW_PER_PROCESS * workers
        dispatch = broker.chord_dispatch(self._context.app, ledger, spec, total, window)
        _, lapsed = driver.tick(ledger, spec.id, ledger.epoch(spec.id), window, dispatch)
        for _, owner in lapsed:
            presence.condemn(ledger.client, owner)

    def _tell(self) -> None:
        """Enter new failed attempts in the job's history."""
        failures = self._ledger.failures(self._spec.id, self._disk.failures)
        for failure in failures:
            self._context.jobs.event(self._view.id, f"disk {self._disk.key}: {failure.message}")
        self._update(failures=self._disk.failures + len(failures))

    def _error(self) -> InputError | JobFailed:
        failures: list[Failure] = self._ledger.given_up(self._spec.id) or self._ledger.failures(self._spec.id)[-1:]
        if not failures:
            return JobFailed(
                f"disk {self._disk.key}: the copying ended without saying why", "Look at the workers' logs."
            )
        first = failures[0]
        message = f"disk {self._disk.key}: {first.message}"
        if first.usage:
            return InputError(message, first.hint)
        more = f" (and {len(failures) - 1} more batches)" if len(failures) > 1 else ""
        hint = first.hint
        if first.error == TargetFull.__name__ and self._disk.image:  # the worker knows the export alone
            message = f"the file system of {self._place()} is full: {message}"
            hint = f"Make room there (df -h {self._place()}), then resume: what is stored stays stored."
        return JobFailed(message + more, hint)

    def _place(self) -> Path:
        """The repository, or the folder that the disk is restored to."""
        image, repository = Path(self._disk.image), self._context.settings.repository
        return repository if repository and image.is_relative_to(repository) else image.parent

    def _result(self) -> DiskWork:
        if self._spec.of or self._disk.progress:  # a disk that is complete waits for the others
            return self._disk
        records = self._ledger.records(self._spec.id, self._beat)
        self._update(
            progress=self._ledger.progress(self._spec.id),
            seconds=round(self._ledger.seconds(self._spec.id), 3),
            digest=blake3(b"".join(record.digest for record in records)).hexdigest(),
        )
        return self._disk

    def _update(self, **fields: object) -> None:
        self._disk = self._disk.model_copy(update=fields)


def _unread(ledger: Ledger, site: str, queue: str) -> str:
    """Why nobody copies for a site."""
    nodes = {node.name for node in presence.nodes(ledger.client) if node.site == site}
    if nodes and nodes <= presence.drained(ledger.client):
        names = ", ".join(sorted(nodes))
        return f"all nodes of {site} are drained: {names} (sendense nodes resume NAME)"
    return f"no worker reads the queue {queue}"


def _plan_verification(ledger: Ledger, copied: str, spec: JobSpec, beat: Beat) -> None:
    survey = ledger.survey(copied)
    assert survey
    records = ledger.records(copied, beat)
    ledger.prepare(spec)
    ledger.write_plan(spec.id, survey, (batch_of(record.extents) for record in records), beat)


def _compare(ledger: Ledger, disk: DiskWork, beat: Beat) -> DiskWork:
    """The disk with what was found wrong."""
    found = {record.batch: record.digest for record in ledger.records(verification_id(disk.copy_id), beat)}
    records = ledger.records(disk.copy_id, beat)
    wrong = [record for number, record in enumerate(records) if found.get(number) != record.digest]
    differences = [difference_of(record.extents[0].offset, record.extents[-1].end) for record in wrong]
    return disk.model_copy(update={"verified": not wrong, "differences": differences})


def difference_of(start: int, end: int) -> Difference:
    """The range of a batch."""
    return Difference(offset=start, length=end - start)
