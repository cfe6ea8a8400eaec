"""Removing what ended jobs left, because their cleaning failed or they were never resumed."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sendense.coordinator.context import Context, open_repository
from sendense.coordinator.copying import copies_of
from sendense.coordinator.site import SNAPSHOT_PREFIX
from sendense.errors import SendenseError
from sendense.nbd.images import PARTIAL
from sendense.repository import merge
from sendense.requests import JobView
from sendense.vsphere import snapshot
from sendense.vsphere.session import no_beat, open_session


class Cleaned(NamedTuple):
    """One thing that was removed, or that could not be."""

    text: str
    failed: bool = False


def clean(context: Context, *, foreign: bool) -> list[Cleaned]:
    """Clean everything that no active job needs."""
    return [*_snapshots(context, foreign=foreign), *_repository(context), *_jobs(context)]


def _snapshots(context: Context, *, foreign: bool) -> Iterator[Cleaned]:
    for name, site in context.settings.sites.items():
        try:
            with open_session(name, site) as session:
                for vm, _, title in snapshot.find_snapshots(session, SNAPSHOT_PREFIX):
                    job = title.removeprefix(SNAPSHOT_PREFIX)
                    if context.jobs.is_active(job):
                        continue
                    if not (foreign or context.jobs.get(job)):
                        yield Cleaned(f"{vm.name}: snapshot {title} is of no known job: left (--foreign removes it)")
                        continue
                    snapshot.remove_snapshots(session, vm.moref, title, no_beat)
                    yield Cleaned(f"{vm.name}: removed snapshot {title}")
        except SendenseError as exc:
            yield Cleaned(f"site {name}: not cleaned: {exc}", failed=True)


def _repository(context: Context) -> Iterator[Cleaned]:
    if not context.settings.repository or not context.settings.repository.exists():
        return
    repository = open_repository(context.settings)
    for vm in repository.layout.vm_uuids():
        for point in merge.recover(repository, vm):
            yield Cleaned(f"finished deleting {point}")
    drafts = repository.unfinished()
    kept = {view.work.point for job in context.jobs.active() if (view := context.jobs.get(job))}  # after the folders
    for draft in drafts:
        if draft.id not in kept:
            repository.draft(draft.vm, draft.id).discard()
            yield Cleaned(f"deleted the unfinished restore point {draft.id}")


def _jobs(context: Context) -> Iterator[Cleaned]:
    for view in context.jobs.views():
        if not view.ended:
            continue
        for path in _partials(view):
            path.unlink(missing_ok=True)
            yield Cleaned(f"deleted {path}")
        for copy in copies_of(view):
            context.ledger.delete(copy)
        if view.leftover:
            context.jobs.note_leftover(view.id, "")


def _partials(view: JobView) -> Iterator[Path]:
    """Images that the job did not finish."""
    for disk in view.work.disks:
        if disk.image.endswith(PARTIAL) and Path(disk.image).exists():
            yield Path(disk.image)
