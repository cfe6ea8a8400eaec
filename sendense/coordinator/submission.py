"""Handing in a job, and having one that failed go on."""

from pathlib import Path

from sendense.coordinator import run
from sendense.coordinator.context import Context
from sendense.coordinator.copying import copies_of
from sendense.coordinator.pipelines import pipeline
from sendense.errors import InputError
from sendense.nbd.uri import is_uri, parse
from sendense.requests import BackupRequest, DeleteRequest, JobRequest, MigrateRequest, RestoreRequest


def submit(context: Context, job: str, request: JobRequest, name: str) -> None:
    """Enter a job, and have its first step run; InputError names the job that is at work on the same VM or target."""
    context.jobs.submit(job, request, name, pipeline(request)[0].name, _locks(request))
    send(context, job)
    for old in context.jobs.forget_oldest():
        for copy in copies_of(old):
            context.ledger.delete(copy)


def resume(context: Context, job: str) -> None:
    """Have an ended job go on: what is stored of it, and was not found to be wrong, is not copied again."""
    view = context.jobs.find_resumable(job)
    work = view.work.model_copy(update={"resumed": True, "snapshot": ""})
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
        targets = [_place_of(target) for target in request.targets.values()]
        if len(set(targets)) < len(targets):
            raise InputError("two disks cannot go onto one target", "Name a target for each.")
        locks += [f"target:{target}" for target in targets]
    return locks


def _place_of(target: str) -> str:
    """The target, however it is spelled."""
    if not is_uri(target):
        return str(Path(target).resolve())
    endpoint = parse(target)
    where = str(Path(endpoint.socket).resolve()) if endpoint.socket else endpoint.address.lower()
    return f"{where}/{endpoint.export}"
