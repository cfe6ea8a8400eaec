"""Schedules carried out by a real hub: each VM once a run, whatever is killed, cancelled, away or in the way."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from sendense import Client
from sendense.beat import no_beat
from sendense.coordinator.context import Context
from sendense.coordinator.outbox import Outbox
from sendense.coordinator.record import Jobs
from sendense.errors import ClaimLost, Conflict, NotFound
from sendense.jobs.broker import make_app
from sendense.jobs.ledger import Ledger
from sendense.jobs.queues import ROUTINE, ROUTINE_QUEUE
from sendense.orders import KeepOrder, ScheduleOrder
from sendense.repository.points import Point
from sendense.repository.settings import change_settings
from sendense.requests import BackupRequest, JobView
from sendense.schedules import Run, Schedule, Turn
from sendense.service.runs import Runs
from sendense.service.scheduling import attend, overdue
from sendense.settings import Settings
from sendense.supervise.redis import url_of
from sendense.views import ScheduleView
from tests.backup import COMMAND_SECONDS, QUICK, Backups, open_backups, patiently
from tests.machines import Service, environment
from tests.servers import free_port
from tests.site import LabSite, MiB, open_site

COMMAND = [str(Path(".venv/bin/sendense").absolute()), "hub", "--log-json"]

LOOK_SECONDS = 0.5
"""Between two looks that a test has a hub make: less than its own five seconds."""

MOST_KILLS = 15
"""A hub gives up after 20 starts of a part within ten minutes."""

SLOW = MiB // 2
"""Bytes a second of a VM whose backup must not end meanwhile."""


class ScheduledHub:
    """A hub with its API, and its schedules."""

    def __init__(self, backups: Backups) -> None:
        self.backups = backups
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._settings: dict[str, object] = {
            "config": backups.site.config,
            "state_dir": backups.state,
            "repository": backups.root,
            **QUICK,
            "api_listen": f"127.0.0.1:{port}",
            "flower_listen": "",
        }
        self.app = make_app(url_of(backups.state / "hub"))
        self.service: Service | None = None

    def start(self) -> Service:
        """Start it, and wait until it is ready."""
        self.service = Service(COMMAND, environment(self._settings), self.backups.folder / "hub.out")
        self.service.wait_for("is ready", COMMAND_SECONDS)
        return self.service

    def kill(self) -> None:
        """End it at once, with all its children (SIGKILL)."""
        assert self.service
        self.service.kill()

    def stop(self) -> None:
        """End it in good order."""
        if self.service:
            self.service.stop()

    def command(self, *arguments: str) -> str:
        """A command on its machine, which has to succeed; its stdout."""
        result = self.backups.run("schedule", *arguments)
        assert result.status == 0, result.stderr
        return result.stdout

    def refused(self, *arguments: str) -> str:
        """The error of a command that has to be refused."""
        result = self.backups.run("schedule", *arguments)
        assert result.status == 2, result
        return "\n".join(result.error)

    def client(self) -> Client:
        """A program's client of its API."""
        result = self.backups.run("token", "create", "--role", "operator")
        assert result.status == 0, result.stderr
        return Client(self.url, result.stdout.strip())

    def context(self) -> Context:
        """A context over its Redis and its repository."""
        client = self.backups.client()
        settings = Settings(repository=self.backups.root, state_dir=self.backups.state)
        return Context(settings, Ledger(client), Jobs(client), self.app)

    def view(self, name: str) -> ScheduleView:
        """How a schedule stands."""
        return ScheduleView.model_validate_json(self.command("show", name, "--json"))

    def run(self, name: str) -> Run | None:
        """Its latest run, as the record has it."""
        with self.backups.client() as client:
            return Runs(client).get(name)[0].run

    def turn(self, name: str, vm: str) -> Turn | None:
        """A VM's turn in its latest run."""
        run = self.run(name)
        return next((turn for turn in run.turns if turn.vm.name == vm), None) if run else None

    def look(self) -> None:
        """Have it look at its schedules now, as beat has it every few seconds."""
        self.app.send_task(ROUTINE, ("schedules",), queue=ROUTINE_QUEUE, expires=LOOK_SECONDS)

    def wait_for(self, done: Callable[[], object], seconds: float = COMMAND_SECONDS) -> None:
        """Have it look again and again until it is so."""

        def is_done() -> bool:
            if done():
                return True
            self.look()
            return False

        assert patiently(is_done, seconds, LOOK_SECONDS), self.service and self.service.text()

    def wait_for_state(self, name: str, vm: str, state: str) -> Turn:
        """Wait until a VM's turn is in this state."""
        self.wait_for(lambda: (turn := self.turn(name, vm)) and turn.state == state)
        found = self.turn(name, vm)
        assert found
        return found

    def wait_until_copying(self, name: str, vm: str) -> Turn:
        """Wait until a VM's backup has stored something."""
        turn = self.wait_for_state(name, vm, "begun")
        self.wait_for(lambda: (view := self.job(turn.job)) and view.step == "copy")
        self.backups.wait_until_reading()
        return turn

    def wait_for_end(self, name: str, before: Run | None = None) -> Run:
        """Wait until its latest run, which is later than `before`, has ended."""

        def has_ended() -> bool:
            run = self.run(name)
            return bool(run and run.ended and (not before or run.start > before.start))

        self.wait_for(has_ended)
        found = self.run(name)
        assert found
        return found

    def job(self, job: str) -> JobView | None:
        """A job."""
        with self.backups.client() as client:
            return Jobs(client).get(job)

    def has_stored(self, job: str, key: int) -> bool:
        """Whether the job has stored a batch of this disk."""
        view = self.job(job)
        copies = [disk.copy_id for disk in view.work.disks if disk.key == key and disk.copy_id] if view else []
        with self.backups.client() as client:
            progress = Ledger(client).progress(copies[0]) if copies else None
        return bool(progress and progress.batches_done)

    def change(self, name: str, change: Callable[[Run], Run]) -> None:
        """Change the record of a run, between two looks of the hub."""
        with self.backups.client() as client:
            for _ in range(100):
                standing, text = Runs(client).get(name)
                assert standing.run
                try:
                    Runs(client).put(name, text, standing.model_copy(update={"run": change(standing.run)}))
                    return
                except ClaimLost:
                    time.sleep(0.05)
        raise AssertionError(name)

    def date_back(self, name: str, **fields: object) -> datetime:
        """Have a schedule be one of yesterday that was due a minute ago; when that was."""
        due = (datetime.now(UTC) - timedelta(minutes=1)).replace(second=0, microsecond=0)
        update = {"at": f"{due:%H:%M}", "timezone": "UTC", "since": due - timedelta(days=1), **fields}

        def changed(schedule: Schedule) -> Schedule:
            return schedule.model_copy(update=update) if schedule.name == name else schedule

        change_settings(
            self.backups.repository.layout,
            lambda known: known.model_copy(update={"schedules": [changed(each) for each in known.schedules]}),
        )
        return due


@contextmanager
def open_scheduled(site: LabSite) -> Iterator[ScheduledHub]:
    """A hub that is not started yet; nothing is left of it."""
    with open_backups(site) as backups:
        hub = ScheduledHub(backups)
        try:
            yield hub
        finally:
            for name in names(site):
                site.client.set(name, read_rate=0)
            hub.app.pool.force_close_all()
            hub.stop()
        assert backups.run("jobs", "clean").status == 0
        assert backups.leftovers() == []


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """Small VMs."""
    with open_site(vms=1, disks=1, disk_size=48 * MiB) as site:
        yield site


@pytest.fixture(scope="module")
def up(site: LabSite) -> Iterator[ScheduledHub]:
    """A hub that stays up."""
    with open_scheduled(site) as hub:
        hub.start()
        yield hub


@pytest.fixture
def scheduled(site: LabSite) -> Iterator[ScheduledHub]:
    """A hub of the test's own, which is not up."""
    with open_scheduled(site) as hub:
        yield hub


def names(site: LabSite) -> list[str]:
    """The VMs, without those that have their name in common."""
    known = [vm.name for vm in site.client.vms()]
    return sorted(name for name in known if known.count(name) == 1)


def by_vm(points: list[Point]) -> dict[str, int]:
    """How many points each VM has, by UUID."""
    found: dict[str, int] = {}
    for point in points:
        found[point.vm.uuid] = found.get(point.vm.uuid, 0) + 1
    return found


def named(vm: str, name: str, **fields: object) -> list[str]:
    """The arguments of a schedule that is not due soon by itself."""
    later = datetime.now(UTC) + timedelta(hours=3)
    return [vm, "--name", name, "--daily", f"{later:%H:%M}", "--timezone", "UTC"]


@pytest.mark.timeout(300)
def test_a_missed_run_is_made_up_for_once(scheduled: ScheduledHub, site: LabSite) -> None:
    """
    Each VM gets one restore point, though the hub is killed in the middle, and Redis is lost afterwards.

    With the next backup of each VM that one goes: as many stay as the schedule keeps.
    """
    scheduled.command("add", "--all", "--daily", "02:00", "--keep-last", "1", "--at-once", "8", "--name", "nightly")
    assert "no hub is up here" in scheduled.backups.run("schedule", "list").stderr
    first, *_ = names(site)
    due = scheduled.date_back("nightly")
    site.client.set(first, read_rate=SLOW)
    scheduled.start()
    scheduled.wait_until_copying("nightly", first)
    scheduled.kill()
    site.client.set(first, read_rate=0)
    scheduled.start()
    run = scheduled.wait_for_end("nightly")
    assert run.start == due
    assert {turn.state for turn in run.turns} == {"succeeded"}
    count = by_vm(scheduled.backups.points())
    assert count == {turn.vm.uuid: 1 for turn in run.turns}
    assert len(count) == len(site.client.vms())
    jobs = [turn.job for turn in run.turns]
    assert all((view := scheduled.job(job)) and view.request.schedule == "nightly" for job in jobs)  # type: ignore[union-attr]

    scheduled.stop()
    for path in (scheduled.backups.state / "hub").rglob("appendonly*"):
        if path.is_file():
            path.unlink()
    scheduled.start()
    again = scheduled.wait_for_end("nightly")
    assert (again.start, by_vm(scheduled.backups.points())) == (due, count)
    assert all("already" in turn.note for turn in again.turns)

    old = {point.id for point in scheduled.backups.points()}
    scheduled.command("run", "nightly")
    assert {turn.state for turn in scheduled.wait_for_end("nightly", again).turns} == {"succeeded"}
    points = scheduled.backups.points()
    assert by_vm(points) == count
    assert not old & {point.id for point in points}


def test_a_window(up: ScheduledHub, site: LabSite) -> None:
    """At its end what runs is cancelled, to be resumed by the next run; what waits is not begun, which is told."""
    first, second, *_ = names(site)
    small = site.client.add_disk(first, 4 * MiB)
    site.client.write(first, 0, os.urandom(MiB // 2), small)
    up.command("add", *named(first, "cut"))
    site.client.set(first, read_rate=SLOW)
    up.command("run", "cut")
    turn = up.wait_until_copying("cut", first)
    up.wait_for(lambda: up.has_stored(turn.job, small))
    other = up.backups.site.client.vm(second)
    ref = turn.vm.model_copy(update={"uuid": other.instance_uuid, "name": second, "moref": "vm-0"})

    def end(run: Run) -> Run:
        waiting = Turn(vm=ref, note="has to wait")
        return run.model_copy(update={"end": run.began, "turns": [*run.turns, waiting]})

    up.change("cut", end)
    run = up.wait_for_end("cut")
    assert [(each.state, each.vm.name) for each in run.turns] == [("cut", first), ("not begun", second)]
    view = up.job(turn.job)
    assert view
    assert view.state == "cancelled"
    assert any("window of schedule cut is over" in event.text for event in up.backups.events(turn.job))
    with up.backups.client() as client:
        (entry,) = [entry for entry in Outbox(client).behind("0-0") if entry.kind == "schedule.failed"]
    assert f"{second}: has to wait" in entry.body

    site.client.set(first, read_rate=0)
    up.command("run", "cut")
    again = up.wait_for_end("cut", run)
    assert [(each.state, each.job) for each in again.turns] == [("succeeded", turn.job)]
    texts = [event.text for event in up.backups.events(turn.job)]
    assert "resumed" in texts
    (point,) = [point for point in up.backups.points(first) if point.job == turn.job]
    up.backups.check(point, up.backups.keep(first))
    assert up.view("cut").before


def test_a_user_cancels(up: ScheduledHub, site: LabSite) -> None:
    """What a user cancels is not begun again in that run."""
    first, *_ = names(site)
    up.command("add", *named(first, "stopped"))
    site.client.set(first, read_rate=SLOW)
    up.command("run", "stopped")
    turn = up.wait_until_copying("stopped", first)
    assert up.backups.run("jobs", "cancel", turn.job).status == 0
    run = up.wait_for_end("stopped")
    site.client.set(first, read_rate=0)
    assert [(each.state, each.note) for each in run.turns] == [("cancelled", "by a user")]
    for _ in range(2):
        attend(up.context(), no_beat)
    assert up.run("stopped") == run


def test_a_failed_backup_goes_on(up: ScheduledHub, site: LabSite) -> None:
    """What fails in one run is gone on with by the next."""
    first, *_ = names(site)
    up.command("add", *named(first, "failing"))
    site.client.fail_next("CreateSnapshot", "NoPermission")
    up.command("run", "failing")
    run = up.wait_for_end("failing")
    (turn,) = run.turns
    assert turn.state == "failed"
    assert turn.note
    up.command("run", "failing")
    (again,) = up.wait_for_end("failing", run).turns
    assert (again.state, again.job, again.failed_before) == ("succeeded", turn.job, True)


def test_another_job_is_at_work(up: ScheduledHub, site: LabSite) -> None:
    """A VM that another job has waits for that, then has its turn."""
    first, *_ = names(site)
    site.client.set(first, read_rate=SLOW)
    with up.client() as client:
        other = client.backup(first)
        up.command("add", *named(first, "behind"))
        up.command("run", "behind")
        up.wait_for(lambda: (turn := up.turn("behind", first)) and other.id in turn.note)
        assert "under way" in up.refused("run", "behind")
        client.cancel(other.id)
    site.client.set(first, read_rate=0)
    run = up.wait_for_end("behind")
    assert [turn.state for turn in run.turns] == ["succeeded"]
    assert run.turns[0].job != other.id


def test_a_site_that_is_away(up: ScheduledHub, site: LabSite) -> None:
    """Its VMs are asked for again and again, and what keeps them from being known is shown."""
    assert "in common" not in up.command("add", *named(names(site)[0], "alone"))
    more = ["--at-once", "8", "--keep-last", "99"]
    said = up.command("add", "--all", "--site", "lab", *named("", "everything")[1:], *more)
    assert re.search("VMs in common with .*alone.*: a restore point stays as long as", said)
    site.stop()
    try:
        up.command("run", "everything")
        up.wait_for(lambda: (run := up.run("everything")) and "not asked" not in run.sites["lab"])
        assert "VMs not known yet" in up.command("show", "everything")
    finally:
        site.start()
    run = up.wait_for_end("everything")
    assert {(turn.state, "all its restore points stay: schedule" in turn.note) for turn in run.turns} == {
        ("succeeded", turn.vm.name == names(site)[0]) for turn in run.turns
    }
    assert len(run.turns) == len(site.client.vms())
    assert overdue(up.context()) == []
    up.date_back("everything", since=datetime.now(UTC) - timedelta(days=9), at="00:00")
    with up.backups.client() as client:
        ago = datetime.now(UTC) - timedelta(days=9)
        gone = run.turns[0].vm.model_copy(update={"uuid": "00000000-0000-0000-0000-000000000000", "name": "gone"})
        seen = Runs(client).seen("everything")
        assert seen
        assert {turn.vm.uuid for turn in run.turns} == set(seen)
        Runs(client).put_seen(
            "everything", {**seen, gone.uuid: next(iter(seen.values())).model_copy(update={"vm": gone, "since": ago})}
        )
    assert [each.vm.name for each in overdue(up.context())] == ["gone"]
    up.command("remove", "everything")


def test_over_the_api(up: ScheduledHub, site: LabSite) -> None:
    """The same from elsewhere: made once, replaced only when told to, paused, resumed, removed."""
    first, *_ = names(site)
    with up.client() as client:
        order = ScheduleOrder(vm=first, at="02:00", timezone="Europe/Oslo", keep=KeepOrder(daily=7))
        made = client.add_schedule(order)
        assert (made.schedule.name, made.schedule.vm and made.schedule.vm.name, made.is_served) == (first, first, True)
        assert client.add_schedule(order) == made
        other = order.model_copy(update={"verify": True})
        with pytest.raises(Conflict, match="orders something else"):
            client.add_schedule(other)
        replaced = client.add_schedule(other.model_copy(update={"replace": True}))
        assert replaced.schedule.verify
        assert replaced.schedule.since > made.schedule.since
        assert client.pause_schedule(first).following is None
        with pytest.raises(Conflict, match="is paused"):
            client.run_schedule(first)
        resumed = client.resume_schedule(first)
        assert resumed.following == made.following
        assert resumed.schedule.since > replaced.schedule.since
        assert first in [each.schedule.name for each in client.schedules()]
        client.remove_schedule(first)
        with pytest.raises(NotFound, match="no such schedule"):
            client.schedule(first)
        with pytest.raises(NotFound, match="time zone"):
            client.add_schedule(order.model_copy(update={"timezone": "Mars/Olympus"}))
        with pytest.raises(NotFound, match="site nowhere"):
            client.add_schedule(order.model_copy(update={"vm": "", "site": "nowhere"}))
    lines = (up.backups.state / "audit.log").read_text()
    assert '"POST /api/v1/schedules"' in lines
    assert f'"DELETE /api/v1/schedules/{first}"' in lines


@pytest.mark.timeout(300)
def test_killed_again_and_again(up: ScheduledHub, site: LabSite) -> None:
    """The worker of the routine, its processes and beat are killed all through a run: each VM has one new point."""
    up.command("add", "--all", *named("", "shaken")[1:], "--at-once", "3")
    for name in names(site):
        site.client.set(name, read_rate=16 * MiB)
    before = by_vm(up.backups.points())
    up.command("run", "shaken")
    start = datetime.now(UTC) - timedelta(minutes=1)
    turns = 0

    def disturb() -> bool:
        nonlocal turns
        turns += 1
        victims = [*up.backups.pool("routine"), *up.backups.family("workers.beat"), *up.backups.main("routine")]
        if victims and turns < MOST_KILLS:
            victim = victims[turns % len(victims)]
            with suppress(psutil.NoSuchProcess):
                victim.kill()
            time.sleep(1.0)
        run = up.run("shaken")
        return bool(run and run.ended and run.start > start)

    assert patiently(disturb, 200)
    run = up.run("shaken")
    assert run
    assert {turn.state for turn in run.turns} == {"succeeded"}
    after = by_vm(up.backups.points())
    assert {uuid: after[uuid] - before.get(uuid, 0) for uuid in after} == dict.fromkeys(after, 1)
    with up.backups.client() as client:
        began = [
            view
            for view in Jobs(client).views()
            if isinstance(view.request, BackupRequest) and view.request.schedule == "shaken"
        ]
    assert len(began) == len(run.turns)
