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
    drafts = repository.unfinished()
    kept = {view.work.point for job in context.jobs.active() if (view := context.jobs.get(job))}  # after the folders
    for draft in drafts:
        if draft.id not in kept:
            repository.draft(draft.vm, draft.id).discard()
            yield Cleaned(text=f"deleted the unfinished restore point {draft.id}")


def _jobs(context: Context) -> Iterator[Cleaned]:
    for view in context.jobs.views():
        if not view.ended:
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
