"""How a job's record looks to its users."""

from sendense.jobs.ledger import Ledger
from sendense.jobs.throttle import Throttles, held_text
from sendense.models import Progress, verification_id
from sendense.requests import BackupRequest, DiskWork, JobView, MigrateRequest
from sendense.views import Job, JobDisk, Problem

_COUNTS = ("size", "data", "zero", "done", "already_done", "copied", "again", "batches", "batches_done", "waiting")


def describe(ledger: Ledger, view: JobView) -> Job:
    """The job with its progress as the ledger has it now; of one that ended, as it was in the end."""
    disks = [_disk(ledger, view, disk) for disk in view.work.disks]
    verifying = view.step == "verify" and view.request.kind != "verify"
    error = view.error
    return Job(
        id=view.id,
        kind=view.request.kind,
        name=view.name,
        request=view.request,
        state=view.state,
        step=view.step,
        paused=view.paused,
        waiting=view.waiting or _held(ledger, view, disks),
        cancelled=view.cancelled,
        created=view.created,
        started=view.started,
        ended=view.ended,
        point=_point(view),
        vm_off=view.work.off,
        disks=disks,
        left_out=view.work.left_out,
        progress=_together([disk.verification if verifying else disk.progress for disk in disks]),
        error=Problem(message=error.message, hint=error.hint, usage=error.usage) if error else None,
        leftover=view.leftover.splitlines(),
    )


def _point(view: JobView) -> str:
    """A backup's is there once it is committed, which ends it well."""
    made = not isinstance(view.request, BackupRequest) or view.state == "succeeded"
    return view.work.point if made else ""


def _disk(ledger: Ledger, view: JobView, disk: DiskWork) -> JobDisk:
    progress, verification = disk.progress, None
    if disk.copy_id and not view.ended:
        progress = ledger.progress(disk.copy_id) or progress
        verification = ledger.progress(verification_id(disk.copy_id))
    return JobDisk(
        key=disk.key,
        label=disk.label,
        size=disk.size,
        mode=disk.mode,
        reason=disk.reason,
        parent=disk.parent,
        changed=disk.changed,
        progress=progress,
        verification=verification,
        seconds=disk.seconds,
        digest=disk.digest,
        verified=disk.verified,
        differences=disk.differences,
    )


def _held(ledger: Ledger, view: JobView, disks: list[JobDisk]) -> str:
    """That the throttle of its site holds back what a job has under way; empty when nothing does."""
    request = view.request
    if view.ended or view.step != "copy" or not isinstance(request, BackupRequest | MigrateRequest):
        return ""
    if not any(disk.progress.active for disk in disks if disk.progress):
        return ""
    limit = Throttles(ledger.client).look(request.vm.site)
    return held_text(limit.rate, request.vm.site) if limit.holds else ""


def _together(each: list[Progress | None]) -> Progress | None:
    """All disks' counters together; None before there is a plan."""
    found = [progress for progress in each if progress]
    if not any(progress.batches for progress in found):
        return None
    counts = {
        name: sum(getattr(progress, name) for progress in found) for name in (*_COUNTS, "failed", "retries", "stalls")
    }
    by_worker: dict[str, int] = {}
    for progress in found:
        for worker, copied in progress.by_worker.items():
            by_worker[worker] = by_worker.get(worker, 0) + copied
    active = [activity for progress in found for activity in progress.active]
    return Progress(state="copying", active=active, by_worker=by_worker, **counts)
