"""The `sendense jobs` commands."""

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from sendense.cli.ending import EXIT_FAILED
from sendense.cli.running import describe_result, follow_job
from sendense.errors import InputError
from sendense.units import show_bytes, show_seconds

if TYPE_CHECKING:
    from sendense.hub.seat import Seat
    from sendense.requests import JobView
    from sendense.settings import Settings

jobs_app = typer.Typer(help="What was done, is being done, and how to go on with it.", no_args_is_help=False)

EVENTS_SECONDS = 0.5
"""Between two looks for new lines of a job's history."""

_Job = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or the beginning of it.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@jobs_app.callback(invoke_without_command=True)
def list_jobs(
    context: typer.Context,
    last: Annotated[int, typer.Option(min=1, help="Show so many of the latest.")] = 20,
    as_json: _Json = False,
) -> None:
    """Jobs, the latest first."""
    if context.invoked_subcommand:
        return
    from sendense.cli.tables import print_table

    with _look() as seat:
        views = seat.call(seat.jobs.views)[:last]
    if as_json:
        print(json.dumps([_plain(view) for view in views]))
        return
    rows = [
        [view.id, view.name, _standing(view), f"{view.created.astimezone():%Y-%m-%d %H:%M}", _took(view)]
        for view in views
    ]
    print_table(["job", "what", "state", "submitted", "took"], rows)


@jobs_app.command()
def show(job: _Job, as_json: _Json = False) -> None:
    """All that is known of a job."""
    from sendense.hub.following import progress_of

    with _look() as seat:
        view = seat.call(lambda: seat.jobs.find(job))
        progress = seat.call(lambda: progress_of(seat.context.ledger, view))
    if as_json:
        print(json.dumps(_plain(view) | {"progress": progress.model_dump() if progress else None}))
        return
    print(f"job {view.id}: {view.name}, {_standing(view)}, {_took(view) or 'not begun'}")
    if view.waiting:
        print(f"  waits: {view.waiting}")
    if progress and not view.ended:
        batches = f"batch {progress.batches_done}/{progress.batches}"
        print(f"  {show_bytes(progress.done)} of {show_bytes(progress.data)}, {batches}")
    if view.error:
        print(f"  {view.error.message}")
        if view.error.hint:
            print(f"  {view.error.hint}")
    for line in describe_result(view)[1:]:
        print(line)


@jobs_app.command()
def watch(job: _Job, as_json: _Json = False) -> None:
    """Follow a job to its end; if nobody is at work on it, this command is."""

    def find(seat: "Seat") -> tuple[str, str]:
        return seat.call(lambda: seat.jobs.find(job)).id, "-"

    follow_job(_settings(), find, as_json=as_json, cancels=False)


@jobs_app.command()
def resume(job: _Job, as_json: _Json = False) -> None:
    """Go on with a job that failed or was cancelled: what is stored is not copied again."""
    from sendense.coordinator import submission

    def start(seat: "Seat") -> tuple[str, str]:
        view = seat.call(lambda: seat.jobs.find(job))
        told = [event.id for event in seat.call(lambda: seat.jobs.events(view.id))]
        seat.call(lambda: submission.resume(seat.context, view.id))
        return view.id, told[-1] if told else "-"

    follow_job(_settings(), start, as_json=as_json)


@jobs_app.command()
def cancel(job: _Job) -> None:
    """End a job: what it made is cleaned, and it can be resumed."""
    from sendense.cli.running import make_noting_seat
    from sendense.hub import following

    with make_noting_seat(_settings()) as seat:
        view = seat.call(lambda: seat.jobs.find(job))
        if view.ended:
            raise InputError(f"job {view.id}: {view.state} already", "There is nothing to cancel.")
        ended = following.cancel(seat, view.id)
    if not ended:
        print(f"job {view.id} is being cancelled; it is still cleaning up")
    else:
        print(f"job {view.id}: {ended.state}")


@jobs_app.command()
def events(
    job: _Job,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job has ended.")] = False,
    as_json: _Json = False,
) -> None:
    """The job's history; with --json one object a line."""
    told = "-"
    # Whoever follows for long also does the work: others would wait for it.
    with _look(work=follow) as seat:
        name = seat.call(lambda: seat.jobs.find(job)).id
        while True:
            seat.go_on()
            view = seat.call(lambda: seat.jobs.find(name))
            for event in seat.call(lambda after=told: seat.jobs.events(name, after)):  # type: ignore[misc]
                told = event.id
                line = (
                    event.model_dump_json() if as_json else f"{event.time.astimezone():%Y-%m-%d %H:%M:%S}  {event.text}"
                )
                print(line, flush=True)
            if view.ended or not follow:
                return
            time.sleep(EVENTS_SECONDS)


@jobs_app.command()
def clean(
    foreign: Annotated[
        bool, typer.Option("--foreign", help="Also remove snapshots of jobs that are not known here.")
    ] = False,
) -> None:
    """Remove whatever ended or abandoned jobs left: snapshots, unfinished images, and their place in the ledger."""
    from sendense.cli.running import make_noting_seat
    from sendense.coordinator.cleaning import clean as clean_up
    from sendense.hub import following

    with make_noting_seat(_settings()) as seat:
        abandoned = seat.call(seat.jobs.active) if seat.hosts else []
        for job in abandoned:
            print(f"job {job}: nobody follows it: cancelled", flush=True)
            if not following.cancel(seat, job):
                print(f"sendense: job {job} still cleans up\n  See sendense jobs show {job}", file=sys.stderr)
        cleaned = seat.call(lambda: clean_up(seat.context, foreign=foreign))
    for each in cleaned:
        print(each.text, file=sys.stderr if each.failed else sys.stdout)
    if not cleaned and not abandoned:
        print("nothing was left")
    if any(each.failed for each in cleaned):
        raise typer.Exit(EXIT_FAILED)


def _look(*, work: bool = False) -> "Seat":
    from sendense.hub.seat import Seat

    return Seat(_settings(), lambda text: None, work=work)


def _settings() -> "Settings":
    from sendense.settings import load_settings

    return load_settings()


def _standing(view: "JobView") -> str:
    if view.ended:
        return view.state
    return f"{view.step}, cancelled" if view.cancelled else view.step if view.started else "queued"


def _took(view: "JobView") -> str:
    from datetime import UTC, datetime

    if not view.started:
        return ""
    return show_seconds(((view.ended or datetime.now(UTC)) - view.started).total_seconds())


def _plain(view: "JobView") -> dict[str, object]:
    """A job as JSON, without what belongs to its steps alone."""
    plain: dict[str, object] = json.loads(view.model_dump_json(exclude={"work": {"info"}}))
    return plain
