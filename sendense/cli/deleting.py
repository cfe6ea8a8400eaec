"""Deleting restore points from the command line: by one job for each VM, each followed to its end."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import typer

from sendense.cli.opening import new_key, open_hub
from sendense.cli.running import conclude, follow_all, follow_job, show_result, working_hub
from sendense.cli.tables import Note, print_json, print_table, say
from sendense.errors import Conflict
from sendense.orders import DeleteOrder, PruneOrder, make_order
from sendense.views import Job, Pruning

if TYPE_CHECKING:
    from sendense.jobs.watch import Watcher
    from sendense.service.hub import Hub


def delete_points(names: Sequence[str], *, merge: bool, as_json: bool) -> None:
    """Delete the named points of one VM; InputError when others are built on them and may not take over."""
    order = make_order(DeleteOrder, points=list(names), merge=merge)
    with working_hub(as_json=as_json) as (hub, watcher):
        deletion = hub.delete(order, new_key())
        if not as_json:
            for id in deletion.deleted:
                say(f"deleted {id}, which was broken")
        if deletion.job:
            ended = follow_job(hub, watcher, deletion.job)
            deletion = deletion.model_copy(update={"job": ended})
        if as_json:
            print_json(deletion)
        if deletion.job:
            conclude(deletion.job, _nothing if as_json else show_result(as_json=False))


def prune_points(order: PruneOrder, *, as_json: bool) -> None:
    """Delete the points of a VM, or of every one, that no rule keeps; the newest stays."""
    if order.dry_run:
        with open_hub() as hub:
            _show(hub.prune(order, new_key()), as_json=as_json)
        return
    with working_hub(as_json=as_json) as (hub, watcher):
        found = hub.prune(order, new_key())
        if not as_json:
            _show(found, as_json=False)
        begun, ended = [each.job for each in found if each.job], dict[str, Job]()

        def show(job: Job) -> None:
            ended[job.id] = job
            if not as_json:
                show_result(as_json=False)(job)

        try:
            worst, _ = follow_all([_following(hub, watcher, job) for job in begun], show)
        except (typer.Exit, KeyboardInterrupt):
            for job in begun:
                if job.id not in ended:
                    with suppress(Conflict):  # it has ended
                        hub.cancel(job.id)
            raise
        if as_json:
            _show([each.model_copy(update={"job": _ended(each, ended)}) for each in found], as_json=True)
    if worst:
        raise typer.Exit(worst)


def _following(hub: "Hub", watcher: "Watcher", job: Job) -> Callable[[], Job]:
    return lambda: follow_job(hub, watcher, job)


def _ended(pruning: Pruning, ended: dict[str, Job]) -> Job | None:
    return ended.get(pruning.job.id) if pruning.job else None


def _nothing(job: Job) -> None:
    """It is shown elsewhere."""


def _show(found: Sequence[Pruning], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    for each in found:
        say(each.vm.name)
        rows: list[list[str] | Note] = []
        for point in each.points:
            rules = each.kept.get(point.id)
            why = f"stays: {', '.join(rules)}" if rules else "goes"
            rows.append([point.id, f"{point.created.astimezone():%Y-%m-%d %H:%M}", why])
        rows += [[broken.id, "", "broken: is left alone"] for broken in each.broken]
        print_table(["point", "time", "what becomes of it"], rows)
        print()
    if not any(each.going for each in found):
        say("nothing is to be deleted")
    sys.stdout.flush()
