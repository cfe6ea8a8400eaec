"""Deleting restore points from the command line: looked at first, then done by one job for each VM."""

import os
import sys
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

import typer

from sendense.cli.catalogue import all_vms, find_point, find_vm, open_repository
from sendense.cli.running import run_job, run_jobs
from sendense.cli.tables import Note, print_json, print_table, say
from sendense.errors import InputError
from sendense.repository import merge as merging
from sendense.repository.catalogue import Broken, KnownVm, Repository
from sendense.repository.points import Point
from sendense.repository.retention import Policy, keep
from sendense.requests import DeleteRequest
from sendense.settings import load_settings


def delete_points(names: Sequence[str], *, merge: bool, as_json: bool) -> None:
    """Delete the named points of one VM; InputError when others are built on them and may not take over."""
    settings = load_settings()
    repository = open_repository(settings)
    found = [find_point(repository, name) for name in names]
    uuids = {point.vm if isinstance(point, Broken) else point.vm.uuid for point in found}
    if len(uuids) > 1:
        raise InputError("the restore points are those of several VMs", "Delete those of one VM at a time.")
    sound = list({point.id: point for point in found if isinstance(point, Point)}.values())
    if not merge:
        _must_be_free(repository, sound)
    broken = {point.id: point for point in found if isinstance(point, Broken)}
    for id in sorted(broken, reverse=True):  # what is built on another is newer
        merging.delete_broken(repository, broken[id])
        if not as_json:
            say(f"deleted {id}, which was broken")
    ordered = in_order(sound, repository.points(uuids.pop()))
    if ordered:
        vm = sound[0].vm
        request = DeleteRequest(vm=vm, points=ordered, merge=merge)
        with _results_elsewhere(as_json):
            run_job(settings, request, f"deletion of {_points(ordered)} of {vm.name}", as_json=False)
    if as_json:
        print_json({"deleted": [*broken, *ordered]})


def prune_points(vm: str, policy: Policy, *, every: bool, dry_run: bool, as_json: bool) -> None:
    """Delete the points of a VM, or of every one, that no rule of the policy keeps; the newest stays."""
    if bool(vm) == every:
        raise InputError("name a VM, or give --all", "'sendense points' lists the VMs that have restore points.")
    settings, zone = load_settings(), local_zone()
    repository = open_repository(settings)
    requests, decisions = [], []
    for known in all_vms(repository) if every else [find_vm(repository, vm)]:
        points = repository.points(known.ref.uuid)
        if not points:
            continue
        kept = keep([(point.id, point.created) for point in points], policy, zone)
        going = [point for point in points if point.id not in kept]
        if not as_json:
            _show(known, points, kept, repository.broken(known.ref.uuid))
        ordered = in_order(going, points)
        decisions.append({"vm": known.ref.model_dump(), "kept": kept, "deleted": ordered})
        if ordered:
            name = f"deletion of {_points(ordered)} of {known.ref.name}"
            requests.append((DeleteRequest(vm=points[-1].vm, points=ordered, merge=True), name))
    if as_json:
        print_json(decisions)
    elif not requests:
        say("nothing is to be deleted")
    if dry_run or not requests:
        return
    with _results_elsewhere(as_json):
        worst, _ = run_jobs(settings, requests, as_json=False)
    if worst:
        raise typer.Exit(worst)


def in_order(going: Collection[Point], points: Collection[Point]) -> list[str]:
    """
    The ids in the order in which they cost least.

    First those that nothing else is built on any more, newest first: their data just goes. Then the others, oldest
    first, so that what is merged into the next point is merged once.
    """
    left = {point.id for point in points}
    free: list[str] = []
    newest_first = sorted(going, key=lambda point: (point.created, point.id), reverse=True)
    built_on = {point.id: {disk.parent for disk in point.disks} for point in points}
    for point in newest_first:
        if not any(point.id in built_on[other] for other in left):
            free.append(point.id)
            left.discard(point.id)
    return free + [point.id for point in reversed(newest_first) if point.id not in free]


def local_zone() -> tzinfo:
    """This machine's time zone with its rules: a day begins at midnight in summer as in winter."""
    name = os.environ.get("TZ", "").removeprefix(":")
    try:
        if name:
            return ZoneInfo(name)
        with open("/etc/localtime", "rb") as file:
            return ZoneInfo.from_file(file, "localtime")
    except (OSError, ValueError, LookupError):
        return datetime.now().astimezone().tzinfo or UTC


def _must_be_free(repository: Repository, going: list[Point]) -> None:
    """Refuse at once what the job would refuse."""
    ids = {point.id for point in going}
    for point in going:
        if others := [child.id for child in repository.children(point) if child.id not in ids]:
            raise InputError(
                f"{', '.join(others)} is built on {point.id}",
                "Delete that first, or use --merge: it then takes over what it needs.",
            )


def _show(known: KnownVm, points: list[Point], kept: dict[str, list[str]], broken: list[Broken]) -> None:
    say(known.ref.name)
    rows: list[list[str] | Note] = []
    for point in points:
        rules = kept.get(point.id)
        why = f"stays: {', '.join(rules)}" if rules else "goes"
        rows.append([point.id, f"{point.created.astimezone():%Y-%m-%d %H:%M}", why])
    rows += [[point.id, "", "broken: is left alone"] for point in broken]
    print_table(["point", "time", "what becomes of it"], rows)
    print()


def _points(ids: list[str]) -> str:
    return f"{len(ids)} restore point{'s' * (len(ids) > 1)}"


def _results_elsewhere(as_json: bool) -> AbstractContextManager[object]:
    """What jobs print of their own goes to stderr where stdout is for JSON."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()
