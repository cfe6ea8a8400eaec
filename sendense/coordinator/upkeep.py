"""What whoever supervises workers does for the jobs that those work on."""

from collections.abc import Iterable, Iterator
from functools import partial

from sendense.coordinator.copying import copies_of
from sendense.coordinator.record import Jobs
from sendense.jobs.ledger import Ledger
from sendense.jobs.reading import readable
from sendense.models import HUB_SITE
from sendense.nbd.uri import is_uri
from sendense.requests import JobView, MigrateRequest, RestoreRequest


def active(jobs: Jobs) -> Iterator[JobView]:
    """The jobs that have not ended, but for those that only another version can read."""
    return (view for job in jobs.active() if (view := find(jobs, job)))


def find(jobs: Jobs, job: str) -> JobView | None:
    """A job; None when there is none of this id, or its record cannot be read here."""
    return readable(f"job {job}", partial(jobs.get, job))


def solo_site(view: JobView) -> str:
    """The site whose one process alone copies for the job, as an endpoint may take one client only; empty for none."""
    request = view.request
    if isinstance(request, RestoreRequest | MigrateRequest) and any(map(is_uri, request.targets.values())):
        return request.vm.site if isinstance(request, MigrateRequest) else HUB_SITE
    return ""


def under_way(ledger: Ledger, views: Iterable[JobView], workers: Iterable[str]) -> int:
    """How many batches these workers have under way."""
    starts = tuple(f"{worker}/" for worker in workers)
    found = [progress for view in views for copy in copies_of(view) if (progress := ledger.progress(copy))]
    return sum(activity.worker.startswith(starts) for progress in found for activity in progress.active)


def hand_back(ledger: Ledger, jobs: Jobs, workers: Iterable[str]) -> int:
    """
    Give back what these workers, all of whose processes are dead, had under way: others have it in a moment.

    Nothing of it counts as a failure. Returns how many batches and steps it was.
    """
    names, count = list(workers), 0
    for view in active(jobs):
        for worker in names:
            count += sum(ledger.disown(copy, worker) for copy in copies_of(view))
            count += jobs.disown(view.id, worker)
    return count
