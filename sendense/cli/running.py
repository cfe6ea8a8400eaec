"""Running a job from the command line: submitted or taken up, followed to its end, and told how it ended."""

import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import typer

from sendense.cli.ending import EXIT_DIFFERENT, EXIT_INTERRUPTED, Interrupted, interrupt
from sendense.errors import InputError, JobFailed, SendenseError
from sendense.units import show_bytes, show_seconds

if TYPE_CHECKING:
    from sendense.hub.seat import Seat
    from sendense.requests import JobRequest, JobView
    from sendense.settings import Settings


def run_job(settings: "Settings", request: "JobRequest", name: str, *, as_json: bool) -> None:
    """Submit a job and follow it to its end."""
    from sendense.coordinator import submission

    job = submission.new_id()

    def start(seat: "Seat") -> tuple[str, str]:
        seat.call(lambda: submission.submit(seat.context, job, request, name))
        return job, "-"

    follow_job(settings, start, as_json=as_json)


def follow_job(
    settings: "Settings", start: Callable[["Seat"], tuple[str, str]], *, as_json: bool, cancels: bool = True
) -> None:
    """
    Follow the job that `start` names to its end, print how it ended, and exit with a status that says so.

    `start` also names the last event of the job that is not news. Ctrl-C cancels it, unless the command only watches.
    """
    from sendense.cli.progress import make_watcher
    from sendense.hub.following import cancel, follow, stay
    from sendense.hub.seat import Seat

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    with make_watcher(quiet=as_json) as watcher, Seat(settings, watcher.note, work=True) as seat:
        job, told = start(seat)
        try:
            view = follow(seat, job, watcher, told)
        except Interrupted:
            if not cancels:
                hint = "" if not seat.hosts else " (it goes on with the next command that runs a job or watches one)"
                print(f"sendense: no longer watching job {job}{hint}", file=sys.stderr)
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
                raise typer.Exit(EXIT_INTERRUPTED) from None
            view = cancelled
        if as_json:
            print(view.model_dump_json(exclude={"work": {"info"}}), flush=True)
        elif view.state == "succeeded":
            print("\n".join(describe_result(view)), flush=True)
        with suppress(Interrupted):  # then another command takes the hub over
            stay(seat, watcher)
    _exit_as(view)


def follow_jobs(
    settings: "Settings", requests: "Sequence[tuple[JobRequest, str]]", *, as_json: bool
) -> tuple[int, int]:
    """Run jobs one after the other, each to its end; the exit status of the worst, and how many did not succeed."""
    worst = failed = 0
    for request, name in requests:
        try:
            run_job(settings, request, name, as_json=as_json)
        except typer.Exit as exc:
            if exc.exit_code == EXIT_INTERRUPTED:
                raise
            worst, failed = max(worst, exc.exit_code), failed + 1
        except SendenseError as exc:
            print(f"sendense: {exc}\n  {exc.hint}", file=sys.stderr)
            worst, failed = max(worst, 1), failed + 1
    return worst, failed


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
    if view.state == "cancelled":
        print(f"sendense: cancelled\n  Go on with: sendense jobs resume {view.id}", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED)
    message = view.error.message if view.error else "it ended without saying why"
    hint = (view.error.hint if view.error else "") or f"Its history: sendense jobs events {view.id}"
    if not (view.error and view.error.usage):
        hint += f" Then go on: sendense jobs resume {view.id}"
    if view.request.kind == "migrate" and view.work.off:
        hint += f" The VM is off; turn it on again: sendense vms start {view.request.vm.moref}"
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
