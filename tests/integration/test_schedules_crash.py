"""A look at a schedule that ends at any instant, and is made again, begins each backup once."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sendense.coordinator.context import Context
from sendense.schedules import Run, Schedule
from sendense.service.attendance import Attendance
from sendense.service.runs import Runs
from sendense.settings import load_settings
from tests.hub import Hub, context_of
from tests.site import LabSite, MiB, open_site

NAME = "nightly"


class Crash(Exception):
    """The end of a process."""


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """Small VMs."""
    with open_site(vms=1, disks=1, disk_size=16 * MiB) as site:
        yield site


@pytest.fixture
def context(site: LabSite, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A hub's parts over these, with nothing in them."""
    for name, value in {"config": site.config, "state_dir": tmp_path, "repository": tmp_path / "points"}.items():
        monkeypatch.setenv(f"SENDENSE_{name.upper()}", str(value))
    return context_of(hub, load_settings())


def crashing(number: int) -> Callable[[], None]:
    """A beat that ends the process when it is called for the so many-th time."""
    count = 0

    def beat() -> None:
        nonlocal count
        count += 1
        if count == number:
            raise Crash

    return beat


def ends(context: Context, job: str, state: str) -> None:
    """Have a job end."""
    lease, _ = context.jobs.lease(job, "somebody/1/1", 60, 60)
    assert lease
    lease.write({"state": state})
    assert context.jobs.finish(job, lease.owner, state)


def look(context: Context, schedule: Schedule, beat: Callable[[], None]) -> Run:
    """One look; the run afterwards."""
    runs = Runs(context.ledger.client)
    Attendance(context, runs, schedule, beat).look()
    run = runs.get(schedule.name)[0].run
    assert run
    return run


def test_a_crash_at_every_beat(context: Context) -> None:
    """Whenever the process ends, the next look goes on: one job for each VM, and what was cut is resumed once."""
    now = datetime.fromtimestamp(context.jobs.clock(), UTC)
    due = now - timedelta(minutes=1)
    schedule = Schedule(name=NAME, at=f"{due:%H:%M}", at_once=100, site="lab", since=now - timedelta(days=2))
    crashes, begun = 0, True
    while begun:
        context.ledger.client.flushall()
        crashes += 1
        try:
            look(context, schedule, crashing(crashes))
            begun = False
        except Crash:
            pass
        run = look(context, schedule, lambda: None)
        jobs = {turn.job for turn in run.turns if turn.state == "begun"}
        assert len(jobs) == len(run.turns) == len(context.jobs.ids())
        assert jobs == set(context.jobs.ids())
    assert crashes > 3 * len(run.turns)


def test_a_crash_while_a_window_ends(context: Context) -> None:
    """What a window cuts is resumed by the next run, once; what a user cancelled or what succeeded is not."""
    now = datetime.fromtimestamp(context.jobs.clock(), UTC)
    schedule = Schedule(name=NAME, at=f"{now:%H:%M}", at_once=100, site="lab", since=now - timedelta(days=2))
    runs = Runs(context.ledger.client)
    run = look(context, schedule, lambda: None)
    cut, stopped, *others = [turn.job for turn in run.turns]
    for job in others:
        ends(context, job, "succeeded")
    context.jobs.cancel(stopped)
    standing, text = runs.get(NAME)
    runs.put(NAME, text, standing.model_copy(update={"run": run.model_copy(update={"end": now})}))
    for number in range(1, 40):
        try:
            look(context, schedule, crashing(number))
        except Crash:
            pass
    assert [event.text for event in context.jobs.events(cut)].count("to be cancelled") == 1
    ends(context, cut, "cancelled")
    ends(context, stopped, "cancelled")
    run = look(context, schedule, lambda: None)
    states = {turn.job: turn.state for turn in run.turns}
    assert (states[cut], states[stopped], run.ended is not None) == ("cut", "cancelled", True)

    standing, text = runs.get(NAME)
    runs.put(NAME, text, standing.model_copy(update={"asked": datetime.fromtimestamp(context.jobs.clock(), UTC)}))
    for number in range(1, 200):
        try:
            run = look(context, schedule, crashing(number))
            break
        except Crash:
            pass
    assert [event.text for event in context.jobs.events(cut)].count("resumed") == 1
    assert len(context.jobs.ids()) == 2 * len(run.turns) - 1
    ends(context, cut, "cancelled")
    run = look(context, schedule, lambda: None)
    assert next(turn.state for turn in run.turns if turn.job == cut) == "cancelled"
