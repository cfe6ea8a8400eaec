"""Removing what ended jobs left at the hub, because their cleaning failed or they were never resumed."""

from collections.abc import Iterator
from pathlib import Path

from sendense.coordinator.context import Context, open_repository
from sendense.coordinator.copying import copies_of
from sendense.nbd.images import PARTIAL
from sendense.repository import merge
from sendense.requests import JobView
from sendense.views import Cleaned


def clean(context: Context) -> list[Cleaned]:
    """Clean everything in the repository and the ledger that no active job needs."""
    return [*_repository(context), *_jobs(context)]


def _repository(context: Context) -> Iterator[Cleaned]:
    if not context.settings.repository or not context.settings.repository.exists():
        return
    repository = open_repository(context.settings, create=False)
    for vm in repository.layout.vm_uuids():
        for point in merge.recover(repository, vm):
            yield Cleaned(text=f"finished deleting {point}")
    for draft in repository.unfinished():
        active = (view for job in context.jobs.active() if (view := context.jobs.get(job)))
        if draft.id not in {view.work.point for view in active}:
            repository.draft(draft.vm, draft.id).discard()
            yield Cleaned(text=f"deleted the unfinished restore point {draft.id}")


def _jobs(context: Context) -> Iterator[Cleaned]:
    for job in context.jobs.ids():
        view = context.jobs.get(job)  # as it is just now: somebody may resume it any time
        if not view or not view.ended:
            continue
        for path in _partials(view):
            path.unlink(missing_ok=True)
            yield Cleaned(text=f"deleted {path}")
        for copy in copies_of(view):
            context.ledger.delete(copy)
        if view.leftover:
            context.jobs.note_leftover(view.id, "")


def _partials(view: JobView) -> Iterator[Path]:
    """Images that the job did not finish."""
    for disk in view.work.disks:
        if disk.image.endswith(PARTIAL) and Path(disk.image).exists():
            yield Path(disk.image)
