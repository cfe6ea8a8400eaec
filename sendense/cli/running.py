"""Running jobs from the command line: begun or taken up, followed to their end, and told how they ended."""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from sendense.cli.ending import EXIT_DIFFERENT, EXIT_FAILED, EXIT_INTERRUPTED, Interrupted, interrupt
from sendense.cli.opening import is_remote, new_key, open_hub, pace
from sendense.errors import Conflict, InputError, JobFailed, SendenseError
from sendense.units import show_bytes, show_seconds

if TYPE_CHECKING:
    from sendense.jobs.watch import Watcher
    from sendense.orders import Order
    from sendense.service.hub import Hub
    from sendense.views import Job


@contextmanager
def working_hub(*, as_json: bool) -> "Iterator[tuple[Hub, Watcher]]":
    """The hub, kept up for jobs, and who is told how they go. Ctrl-C and SIGTERM raise Interrupted."""
    from sendense.cli.progress import make_watcher

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    with make_watcher(quiet=as_json) as watcher, open_hub(watcher.note, work=True) as hub:
        yield hub, watcher


def run_order(hub: "Hub", watcher: "Watcher", order: "Order", *, as_json: bool) -> None:
    """Begin a job and follow it to its end; exits with a status that says how it ended."""
    try:
        job = hub.submit(order, new_key())
    except Interrupted:
        print("sendense: interrupted\n  Look whether the job has begun: sendense jobs", file=sys.stderr)
        raise
    conclude(follow_job(hub, watcher, job), show_result(as_json=as_json))


def follow_job(hub: "Hub", watcher: "Watcher", job: "Job", told: str = "-", *, cancels: bool = True) -> "Job":
    """
    Follow a job to its end; `told` is the last event of it that is not news.

    Ctrl-C cancels it, unless the command only watches.
    """
    from sendense.hub.following import cancel, follow

    try:
        return follow(hub, job.id, watcher, told, pace())
    except Interrupted:
        if not cancels:
            hint = "" if is_remote() else " (it goes on while a hub or a command that runs a job is there)"
            print(f"sendense: no longer watching job {job.id}{hint}", file=sys.stderr)
            raise
        watcher.note("cancelling, and cleaning up; again Ctrl-C leaves that for later")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            ended = cancel(hub, job.id, pace(), watcher.note)
        except Conflict:
            ended = hub.job(job.id)
        except KeyboardInterrupt:
            ended = job
        if not ended.has_ended:
            print(f"sendense: job {job.id} is not cleaned yet\n  Do that with: sendense jobs clean", file=sys.stderr)
            raise Interrupted from None
        return ended


def follow_all(jobs: "Iterable[Callable[[], Job]]", show: "Callable[[Job], None]") -> tuple[int, int]:
    """
    Jobs one after the other, each followed to its end by its call, and shown.

    Returns the exit status of the worst, and how many did not succeed.
    """
    worst = failed = 0
    for follow in jobs:
        try:
            conclude(follow(), show)
        except typer.Exit as exc:
            if exc.exit_code == EXIT_INTERRUPTED:
                raise
            worst, failed = max(worst, exc.exit_code), failed + 1
        except SendenseError as exc:
            print(f"sendense: {exc}\n  {exc.hint}", file=sys.stderr)
            worst, failed = max(worst, EXIT_FAILED), failed + 1
    return worst, failed


def show_result(*, as_json: bool) -> "Callable[[Job], None]":
    """Prints how a job ended: one that failed also as the error that its command ends with."""

    def show(job: "Job") -> None:
        if as_json:
            print(job.model_dump_json(), flush=True)
        elif job.state == "succeeded":
            print("\n".join(describe_result(job)), flush=True)

    return show


def conclude(job: "Job", show: "Callable[[Job], None]") -> None:
    """A job that did not succeed ends its command with an error on stderr and an exit status."""
    show(job)
    if job.state == "succeeded":
        return
    for line in _leftover(job):
        print(f"sendense:{line}", file=sys.stderr)
    off = f" The VM is off; turn it on again: sendense vms start {_vm_of(job)}" if job.vm_off else ""
    if job.state == "cancelled":
        print(f"sendense: cancelled\n  Go on with: sendense jobs resume {job.id}{off}", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED)
    message = job.error.message if job.error else "it ended without saying why"
    hint = (job.error.hint if job.error else "") or f"Its history: sendense jobs events {job.id}"
    if not (job.error and job.error.usage):
        hint += f" Then go on: sendense jobs resume {job.id}"
    hint += off
    if job.state == "different":
        print(f"sendense: {message}\n  {hint}", file=sys.stderr)
        raise typer.Exit(EXIT_DIFFERENT)
    raise InputError(message, hint) if job.error and job.error.usage else JobFailed(message, hint)


def describe_result(job: "Job") -> list[str]:
    """What a job that succeeded did, a line for the job and one for each disk."""
    counts = [disk.progress for disk in job.disks if disk.progress]
    before, again = (sum(getattr(each, name) for each in counts) for name in ("already_done", "again"))
    moved = sum(each.moved for each in counts) - before
    seconds = max((disk.seconds for disk in job.disks), default=0.0)
    rate = f" in {show_seconds(seconds)}, {show_bytes(moved / seconds)}/s" if seconds and moved else ""
    verb = "compared" if job.kind == "verify" else "copied"
    more = f", {show_bytes(before)} before" * bool(before) + f", {show_bytes(again)} again" * bool(again)
    total = f": {show_bytes(moved)} {verb}{rate}{more}" if counts else ""
    point = f", restore point {job.point}" if job.kind == "backup" else ""
    lines = [f"{job.name}: done{point}{total}"]
    for disk in job.disks:
        words = [disk.mode if job.kind in ("backup", "migrate") else "", disk.label]
        if disk.progress:
            words.append(f"{show_bytes(disk.progress.moved)} of {show_bytes(disk.size)}")
        if disk.verified:
            words.append("verified")
        because = f" ({disk.reason})" if disk.reason else ""
        lines.append(f"  disk {disk.key}: {', '.join(word for word in words if word)}{because}")
    lines += [f"  disk {key}: left out, {reason}" for key, reason in job.left_out.items()]
    if job.vm_off:
        lines.append("  the VM is off; to turn it on again: sendense vms start " + _vm_of(job))
    return lines + _leftover(job)


def _leftover(job: "Job") -> list[str]:
    lines = [f"  not cleaned: {line}" for line in job.leftover]
    return [*lines, "  Try again with: sendense jobs clean"] if lines else []


def _vm_of(job: "Job") -> str:
    return job.request.vm.moref if job.request.kind == "migrate" else ""
