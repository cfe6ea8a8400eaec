"""Handing in a job, and having one that failed go on."""

import uuid

from sendense.coordinator import run
from sendense.coordinator.context import Context
from sendense.coordinator.copying import copies_of
from sendense.coordinator.pipelines import pipeline
from sendense.errors import InputError
from sendense.models import verification_id
from sendense.requests import BackupRequest, DeleteRequest, JobRequest, MigrateRequest, RestoreRequest


def new_id() -> str:
    """The id of a job that is to be submitted: handing it in again under the same id makes no second one."""
    return uuid.uuid4().hex[:12]


def submit(context: Context, job: str, request: JobRequest, name: str) -> None:
    """Enter a job, and have its first step run; InputError names the job that is at work on the same VM or target."""
    context.jobs.submit(job, request, name, pipeline(request)[0].name, _locks(request))
    send(context, job)
    for old in context.jobs.forget_oldest():
        for copy in copies_of(old):
            context.ledger.delete(copy)


def resume(context: Context, job: str) -> None:
    """Have an ended job go on: what is stored of it, and was not found to be wrong, is not copied again."""
    view, disks = context.jobs.find_resumable(job), []
    for disk in view.work.disks:
        if disk.copy_id:
            wrong = {found.offset for found in disk.differences}
            records = context.ledger.records(disk.copy_id) if wrong else []
            context.ledger.reopen(disk.copy_id, (each for each in records if each.extents[0].offset in wrong))
            context.ledger.delete(verification_id(disk.copy_id))
            if view.request.kind == "verify":
                context.ledger.delete(disk.copy_id)
            elif context.ledger.state(disk.copy_id):
                context.ledger.stop(disk.copy_id)
        disks.append(disk.model_copy(update={"surveys": 0, "beats": -1, "progress": None, "differences": []}))
    work = view.work.model_copy(update={"disks": disks, "snapshot": ""})
    context.jobs.resume(view.id, pipeline(view.request)[0].name, work)
    send(context, view.id)


def send(context: Context, job: str) -> None:
    """Have a job's next step run without waiting for the tick."""
    if view := context.jobs.get(job):
        run.send(context.app, view)


def _locks(request: JobRequest) -> list[str]:
    """What only one job at a time may work on."""
    locks = []
    if isinstance(request, BackupRequest | MigrateRequest | DeleteRequest):
        locks.append(f"vm:{request.vm.uuid}")
    if isinstance(request, RestoreRequest | MigrateRequest):
        targets = list(request.targets.values())
        if len(set(targets)) < len(targets):
            raise InputError("two disks cannot go onto one target", "Name a target for each.")
        locks += [f"target:{target}" for target in targets]
    return locks
