"""Following a job to its end, from whichever command: the hub is kept up meanwhile, and taken over if need be."""

import time

from sendense.coordinator import submission
from sendense.errors import InputError
from sendense.hub.seat import Seat
from sendense.jobs.ledger import Ledger
from sendense.jobs.watch import Watcher
from sendense.models import Progress, verification_id
from sendense.requests import JobView

LOOK_SECONDS = 0.1
"""Between two looks at the job."""

NUDGE_SECONDS = 5.0
"""Between two reminders by a command that does not run the hub itself."""

CANCEL_SECONDS = 60.0
"""For a cancelled job to clean up after itself, while the user waits for the prompt."""


def follow(seat: Seat, job: str, watcher: Watcher, told: str = "-") -> JobView:
    """Wait for the job's end, telling its history after the event `told`, and its progress; returns how it ended."""
    ledger, nudged = seat.context.ledger, time.monotonic()
    while True:
        seat.go_on()
        if not seat.hosts and time.monotonic() - nudged > NUDGE_SECONDS:  # whoever hosts may be stopped
            nudged = time.monotonic()
            if not seat.call(lambda: seat.jobs.is_leased(job)):
                seat.call(lambda: submission.send(seat.context, job))
        for event in seat.call(lambda after=told: seat.jobs.events(job, after)):  # type: ignore[misc]
            told = event.id
            watcher.note(event.text)
        view = seat.call(lambda: seat.jobs.get(job))
        if not view:
            raise InputError(f"job {job}: is not remembered any more", "'sendense jobs' lists those that are.")
        if view.ended:
            return view
        if progress := seat.call(lambda view=view: progress_of(ledger, view)):  # type: ignore[misc]
            watcher.show(view.waiting or view.step, progress)
        time.sleep(LOOK_SECONDS)


def cancel(seat: Seat, job: str) -> JobView | None:
    """Cancel the job and follow its cleaning, for a minute; None when that takes longer."""
    seat.call(lambda: seat.jobs.cancel(job))
    seat.call(lambda: submission.send(seat.context, job))
    deadline = time.monotonic() + CANCEL_SECONDS
    while time.monotonic() < deadline:
        seat.go_on()
        view = seat.call(lambda: seat.jobs.get(job))
        if view and view.ended:
            return view
        time.sleep(LOOK_SECONDS)
    return None


def stay(seat: Seat, watcher: Watcher) -> None:
    """Keep the hub up for jobs of other commands; they would take it over, and lose some seconds."""
    told = False
    while seat.hosts and (others := seat.call(seat.jobs.active)):
        if not told:
            watcher.note(f"done; staying for {', '.join(others)}, which other commands follow")
            told = True
        seat.go_on()
        time.sleep(LOOK_SECONDS)


def progress_of(ledger: Ledger, view: JobView) -> Progress | None:
    """All disks' counters together, of the copying or of the verification under way; None before there is a plan."""
    name = verification_id if view.step == "verify" else str
    found = [progress for disk in view.work.disks if disk.copy_id and (progress := ledger.progress(name(disk.copy_id)))]
    if not any(progress.batches for progress in found):
        return None
    names = ("size", "data", "zero", "done", "already_done", "copied", "batches", "batches_done", "waiting")
    counts = {name: sum(getattr(each, name) for each in found) for name in (*names, "failed", "retries", "stalls")}
    return Progress(state="copying", active=[activity for each in found for activity in each.active], **counts)
