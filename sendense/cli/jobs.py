"""The `sendense jobs` commands."""

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sendense.cli.ending import EXIT_FAILED
from sendense.cli.opening import open_hub, pace, to_stderr, warn_if_alone
from sendense.cli.running import conclude, describe_result, follow_job, show_result, working_hub
from sendense.units import show_bytes, show_seconds

if TYPE_CHECKING:
    from sendense.views import Job

jobs_app = typer.Typer(help="What was done, is being done, and how to go on with it.", no_args_is_help=False)

PAGE = 50
"""Jobs that are asked for at once."""

_State = Literal["queued", "running", "succeeded", "failed", "cancelled", "different"]
_Kind = Literal["backup", "restore", "verify", "migrate", "delete"]

_Job = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or the beginning of it.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@jobs_app.callback(invoke_without_command=True)
def list_jobs(
    context: typer.Context,
    last: Annotated[int, typer.Option(min=1, help="Show so many of the latest.")] = 20,
    state: Annotated[_State | None, typer.Option(help="Only those in this state.")] = None,
    kind: Annotated[_Kind | None, typer.Option(help="Only those of this kind.")] = None,
    vm: Annotated[str, typer.Option(help="Only those of this VM, by its name or UUID.")] = "",
    as_json: _Json = False,
) -> None:
    """Jobs, those that were begun or resumed last first."""
    if context.invoked_subcommand:
        return
    from sendense.cli.tables import print_json, print_table

    found: list[Job] = []
    with open_hub(_quietly) as hub:
        page = hub.jobs(state=state, kind=kind, vm=vm, limit=min(last, PAGE))
        found += page.jobs
        while page.following and len(found) < last:
            page = hub.jobs(state=state, kind=kind, vm=vm, limit=min(last - len(found), PAGE), before=page.following)
            found += page.jobs
    if as_json:
        print_json(found)
        return
    rows = [
        [job.id, job.name, _standing(job), f"{job.created.astimezone():%Y-%m-%d %H:%M}", _took(job)] for job in found
    ]
    print_table(["job", "what", "state", "submitted", "took"], rows)
    if not all(job.has_ended for job in found):
        warn_if_alone()


@jobs_app.command()
def show(job: _Job, as_json: _Json = False) -> None:
    """All that is known of a job."""
    with open_hub(_quietly) as hub:
        found = hub.job(job)
    if as_json:
        print(found.model_dump_json())
        return
    print(f"job {found.id}: {found.name}, {_standing(found)}, {_took(found) or 'not begun'}")
    if found.waiting:
        print(f"  waits: {found.waiting}")
    if found.progress and not found.has_ended:
        from sendense.cli.progress import show_moved

        print(f"  {show_moved(found.progress)}, batch {found.progress.batches_done}/{found.progress.batches}")
        for worker, copied in found.progress.by_worker.items():
            print(f"  {worker}: {show_bytes(copied)} in this run")
    if found.error:
        print(f"  {found.error.message}")
        if found.error.hint:
            print(f"  {found.error.hint}")
    for line in describe_result(found)[1:]:
        print(line)
    if not found.has_ended:
        warn_if_alone()


@jobs_app.command()
def watch(job: _Job, as_json: _Json = False) -> None:
    """Follow a job to its end; if nobody is at work on it, this command is."""
    with working_hub(as_json=as_json) as (hub, watcher):
        ended = follow_job(hub, watcher, hub.job(job), cancels=False)
        conclude(ended, show_result(as_json=as_json))


@jobs_app.command()
def resume(job: _Job, as_json: _Json = False) -> None:
    """Go on with a job that failed, was cancelled or rests: what is stored is not copied again."""
    with working_hub(as_json=as_json) as (hub, watcher):
        before = hub.job(job)
        told = [event.id for event in hub.events(before.id)]
        begun = hub.resume(before.id)
        ended = follow_job(hub, watcher, begun, told[-1] if told else "-", cancels=before.has_ended)
        conclude(ended, show_result(as_json=as_json))


@jobs_app.command()
def pause(job: _Job, as_json: _Json = False) -> None:
    """Have a job rest: what it has under way ends, nothing more begins, until 'sendense jobs resume'."""
    with open_hub(_quietly) as hub:
        found = hub.pause(job)
    print(found.model_dump_json() if as_json else f"job {found.id} rests; go on with: sendense jobs resume {found.id}")


@jobs_app.command()
def cancel(job: _Job, as_json: _Json = False) -> None:
    """End a job: what it made is cleaned, and it can be resumed."""
    from sendense.hub import following

    with open_hub() as hub:
        found = following.cancel(hub, job, pace(), to_stderr)
    if as_json:
        print(found.model_dump_json())
    elif found.has_ended:
        print(f"job {found.id}: {found.state}")
    else:
        print(f"job {found.id} is being cancelled; how far that is: sendense jobs show {found.id}")


@jobs_app.command()
def events(
    job: _Job,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job has ended.")] = False,
    as_json: _Json = False,
) -> None:
    """The job's history; with --json one object a line."""
    from sendense.hub.following import news
    from sendense.requests import Event

    # Whoever follows for long also does the work: others would wait for it.
    with open_hub(_quietly, work=follow) as hub:
        id = hub.job(job).id
        for found in news(hub, id, "-", pace(), to_stderr) if follow else hub.events(id):
            if isinstance(found, Event):
                time = f"{found.time.astimezone():%Y-%m-%d %H:%M:%S}"
                print(found.model_dump_json() if as_json else f"{time}  {found.text}", flush=True)


@jobs_app.command()
def clean(
    foreign: Annotated[
        bool, typer.Option("--foreign", help="Also remove snapshots of jobs that are not known here.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Remove whatever ended or abandoned jobs left: snapshots, unfinished images, and their place in the ledger."""
    from sendense.cli.tables import print_json

    with open_hub() as hub:
        cleaned = hub.clean(foreign)
    if as_json:
        print_json(cleaned)
    else:
        for each in cleaned:
            print(
                f"sendense: {each.text}" if each.failed else each.text, file=sys.stderr if each.failed else sys.stdout
            )
        if not cleaned:
            print("nothing was left")
    if any(each.failed for each in cleaned):
        raise typer.Exit(EXIT_FAILED)


def _quietly(text: str) -> None:
    """Whoever only looks is told nothing else."""


def _standing(job: "Job") -> str:
    if job.has_ended:
        return job.state
    if job.cancelled:
        return f"{job.step}, cancelled"
    return "paused" if job.paused else job.step if job.started else "queued"


def _took(job: "Job") -> str:
    from datetime import UTC, datetime

    if not job.started:
        return ""
    return show_seconds(((job.ended or datetime.now(UTC)) - job.started).total_seconds())
