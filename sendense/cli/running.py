"""Running a job from the command line: submitted or taken up, followed to its end, and told how it ended."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import typer

from sendense.cli.ending import EXIT_DIFFERENT, EXIT_FAILED, EXIT_INTERRUPTED, Interrupted, interrupt
from sendense.errors import InputError, JobFailed, SendenseError
from sendense.units import show_bytes, show_seconds

if TYPE_CHECKING:
    from sendense.hub.seat import Seat
    from sendense.jobs.watch import Watcher
    from sendense.requests import JobRequest, JobView
    from sendense.settings import Settings


Start = Callable[["Seat"], tuple[str, str]]
"""Names the job to follow, and the last event of it that is not news."""


def run_job(settings: "Settings", request: "JobRequest", name: str, *, as_json: bool) -> None:
    """Submit a job and follow it to its end; exits with a status that says how it ended."""
    with _seated(settings, as_json=as_json) as (seat, watcher):
        _follow(seat, watcher, _submitting(request, name), as_json=as_json)


def follow_job(settings: "Settings", start: Start, *, as_json: bool, cancels: bool = True) -> None:
    """Follow a job to its end in the same way. Ctrl-C cancels it, unless the command only watches."""
    with _seated(settings, as_json=as_json) as (seat, watcher):
        _follow(seat, watcher, start, as_json=as_json, cancels=cancels)


def run_jobs(settings: "Settings", requests: "Sequence[tuple[JobRequest, str]]", *, as_json: bool) -> tuple[int, int]:
    """Run jobs one after the other, each to its end; the exit status of the worst, and how many did not succeed."""
    worst = failed = 0
    with _seated(settings, as_json=as_json) as (seat, watcher):
        for request, name in requests:
            try:
                _follow(seat, watcher, _submitting(request, name), as_json=as_json)
            except typer.Exit as exc:
                if exc.exit_code == EXIT_INTERRUPTED:
                    raise
                worst, failed = max(worst, exc.exit_code), failed + 1
            except SendenseError as exc:
                print(f"sendense: {exc}\n  {exc.hint}", file=sys.stderr)
                worst, failed = max(worst, EXIT_FAILED), failed + 1
    return worst, failed


def _submitting(request: "JobRequest", name: str) -> Start:
    from sendense.coordinator import submission

    job = submission.new_id()

    def start(seat: "Seat") -> tuple[str, str]:
        seat.call(lambda: submission.submit(seat.context, job, request, name))
        return job, "-"

    return start


@contextmanager
def _seated(settings: "Settings", *, as_json: bool) -> "Iterator[tuple[Seat, Watcher]]":
    """A seat at the hub, which is left only when no other command's job needs it."""
    from sendense.cli.progress import make_watcher
    from sendense.hub.following import stay
    from sendense.hub.seat import Seat

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    with make_watcher(quiet=as_json) as watcher, Seat(settings, watcher.note, work=True) as seat:
        try:
            yield seat, watcher
        finally:
            if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
                with suppress(Interrupted):  # then another command takes the hub over
                    stay(seat, watcher)


def _follow(seat: "Seat", watcher: "Watcher", start: Start, *, as_json: bool, cancels: bool = True) -> None:
    from sendense.hub.following import cancel, follow

    job, told = start(seat)
    try:
        view = follow(seat, job, watcher, told)
    except Interrupted:
        if not cancels:
            hint = " (it goes on with the next command that runs a job or watches one)" if seat.hosts else ""
            print(f"sendense: no longer watching job {job}{hint}", file=sys.stderr)
            seat.leave()
            raise typer.Exit(EXIT_INTERRUPTED) from None
        watcher.note("cancelling, and cleaning up; again Ctrl-C leaves that for later")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            cancelled = cancel(seat, job)
        except KeyboardInterrupt:
            cancelled = None
        if not cancelled:
            print(f"sendense: job {job} is not cleaned yet\n  Do that with: sendense jobs clean", file=sys.stderr)
            seat.leave()
            raise typer.Exit(EXIT_INTERRUPTED) from None
        view = cancelled
    if as_json:
        print(view.model_dump_json(exclude={"work": {"info"}}), flush=True)
    elif view.state == "succeeded":
        print("\n".join(describe_result(view)), flush=True)
    _exit_as(view)


def make_noting_seat(settings: "Settings") -> "Seat":
    """A seat at the hub whose notes go to stderr."""
    from sendense.hub.seat import Seat

    return Seat(settings, lambda text: print(f"sendense: {text}", file=sys.stderr), work=True)


def _exit_as(view: "JobView") -> None:
    """A job that did not succeed ends its command with an error on stderr and an exit status."""
    if view.state == "succeeded":
        return
    for line in _leftover(view):
        print(f"sendense:{line}", file=sys.stderr)
    off = ""
    if view.work.off:
        off = f" The VM is off; turn it on again: sendense vms start {_vm_of(view)}"
    if view.state == "cancelled":
        print(f"sendense: cancelled\n  Go on with: sendense jobs resume {view.id}{off}", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED)
    message = view.error.message if view.error else "it ended without saying why"
    hint = (view.error.hint if view.error else "") or f"Its history: sendense jobs events {view.id}"
    if not (view.error and view.error.usage):
        hint += f" Then go on: sendense jobs resume {view.id}"
    hint += off
    if view.state == "different":
        print(f"sendense: {message}\n  {hint}", file=sys.stderr)
        raise typer.Exit(EXIT_DIFFERENT)
    raise InputError(message, hint) if view.error and view.error.usage else JobFailed(message, hint)


def describe_result(view: "JobView") -> list[str]:
    """What a job that succeeded did, a line for the job and one for each disk."""
    work = view.work
    copied = sum(disk.progress.copied for disk in work.disks if disk.progress)
    seconds = max((disk.seconds for disk in work.disks), default=0.0)
    rate = f" in {show_seconds(seconds)}, {show_bytes(copied / seconds)}/s" if seconds and copied else ""
    verb = "read" if view.request.kind == "verify" else "copied"
    total = f": {show_bytes(copied)} {verb}{rate}" if any(disk.progress for disk in work.disks) else ""
    point = f", restore point {work.point}" if view.request.kind == "backup" else ""
    lines = [f"{view.name}: done{point}{total}"]
    for disk in work.disks:
        words = [disk.mode if view.request.kind in ("backup", "migrate") else "", disk.label]
        if disk.progress:
            words.append(f"{show_bytes(disk.progress.copied)} of {show_bytes(disk.size)}")
        if disk.verified:
            words.append("verified")
        because = f" ({disk.reason})" if disk.reason else ""
        lines.append(f"  disk {disk.key}: {', '.join(word for word in words if word)}{because}")
    lines += [f"  disk {key}: left out, {reason}" for key, reason in work.left_out.items()]
    if work.off:
        lines.append("  the VM is off; to turn it on again: sendense vms start " + _vm_of(view))
    return lines + _leftover(view)


def _leftover(view: "JobView") -> list[str]:
    lines = [f"  not cleaned: {line}" for line in view.leftover.splitlines()]
    return [*lines, "  Try again with: sendense jobs clean"] if lines else []


def _vm_of(view: "JobView") -> str:
    return view.request.vm.moref if view.request.kind == "migrate" else ""
