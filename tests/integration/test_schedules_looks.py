"""A hub's look at its schedules, when sites are silent or go away, and users change things in the middle of it."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sendense.coordinator import asking
from sendense.coordinator.context import Context
from sendense.coordinator.outbox import Outbox
from sendense.errors import ClaimLost
from sendense.hub.host import ROUTINE_PROCESSES
from sendense.jobs import presence
from sendense.jobs.presence import Worker
from sendense.jobs.queues import control_queue
from sendense.models import VmRef
from sendense.nbd.connect import Beat, no_beat
from sendense.repository.settings import change_settings
from sendense.requests import DeleteRequest
from sendense.schedules import Kept, Run, Schedule, Seen, Standing, Turn
from sendense.service import attendance, routine
from sendense.service.figures import read_overdue
from sendense.service.routine import DUTIES, Duty
from sendense.service.runs import Runs
from sendense.service.schedules import Schedules
from sendense.service.scheduling import attend
from sendense.settings import Settings, load_settings
from sendense.supervise.beat import SILENCE_SECONDS
from tests.hub import Hub, context_of
from tests.repository import VM, Story
from tests.site import LabSite, MiB, open_site

NAME = "nights"


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """Small VMs."""
    with open_site(vms=1, disks=1, disk_size=16 * MiB) as site:
        yield site


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """The hub's repository."""
    return Story(tmp_path / "points")


@pytest.fixture
def context(hub: Hub, story: Story, tmp_path: Path) -> Context:
    """A hub that knows no site itself."""
    return context_of(hub, Settings(state_dir=tmp_path, repository=story.repository.layout.root))


@pytest.fixture
def beside(context: Context, hub: Hub, site: LabSite, monkeypatch: pytest.MonkeyPatch) -> Context:
    """The same hub with the site in its settings."""
    monkeypatch.setenv("SENDENSE_CONFIG", str(site.config))
    sites = load_settings().sites
    return context_of(hub, context.settings.model_copy(update={"sites": sites}))


def now_of(context: Context) -> datetime:
    """The time, by Redis."""
    return datetime.fromtimestamp(context.jobs.clock(), UTC)


def schedule_of(context: Context, site: str, name: str = NAME, vm: VmRef | None = None, **fields: object) -> Schedule:
    """One of which a run was due a minute ago."""
    now = now_of(context)
    due = f"{now - timedelta(minutes=1):%H:%M}"
    schedule = Schedule(name=name, site=site, vm=vm, at=due, at_once=100, since=now - timedelta(days=3))
    return schedule.model_copy(update=fields)


def enter(context: Context, *schedules: Schedule) -> None:
    """These are the hub's schedules."""
    layout = context.repository.layout
    change_settings(layout, lambda known: known.model_copy(update={"schedules": list(schedules)}))


def under_way(context: Context, schedule: Schedule, *vms: VmRef, **fields: object) -> None:
    """A run of it has begun, in which these VMs wait."""
    enter(context, schedule)
    now = now_of(context)
    run = Run(schedule=schedule, start=now - timedelta(minutes=1), began=now, turns=[Turn(vm=vm) for vm in vms])
    run = run.model_copy(update=fields)
    Runs(context.ledger.client).put(schedule.name, "", Standing(run=run))


def look(context: Context, name: str = NAME, beat: Beat = no_beat) -> Run:
    """One look at all schedules; the run of this one afterwards."""
    attend(context, beat)
    run = Runs(context.ledger.client).get(name)[0].run
    assert run
    return run


def vm_of(number: int, site: str = "oslo") -> VmRef:
    """A VM that no site has."""
    uuid = f"00000000-0000-0000-0000-{number:012}"
    return VmRef(site=site, moref=f"vm-{number}", uuid=uuid, name=f"web{number:02}")


def refs(site: LabSite) -> list[VmRef]:
    """The site's VMs."""
    return [VmRef(site="lab", moref=vm.id, uuid=vm.instance_uuid, name=vm.name) for vm in site.client.vms()]


def announce(hub: Hub, site: str) -> None:
    """A control worker of that site lives."""
    presence.announce(hub.client, Worker(name=f"{site}-control", queues=[control_queue(site)], processes=1))


def told(hub: Hub) -> list[str]:
    """The notices so far."""
    return [entry.body for entry in Outbox(hub.client).behind("0-0")]


def test_a_vm_without_its_configuration(beside: Context, site: LabSite) -> None:
    """It is left out, the others have their turns, and once its datastore is away it is still missed."""
    lost, *others = refs(site)
    enter(beside, schedule := schedule_of(beside, "lab"))
    runs = Runs(beside.ledger.client)
    seen = Seen(vm=lost, since=schedule.since)
    runs.put_seen(NAME, {lost.uuid: seen})
    site.client.set(lost.name, inaccessible=True)
    try:
        run = look(beside)
    finally:
        site.client.set(lost.name, inaccessible=False)
    assert {turn.vm.moref: turn.state for turn in run.turns} == {lost.moref: "left out"} | {
        vm.moref: "begun" for vm in others
    }
    found = runs.seen(NAME)
    assert found
    assert found[lost.uuid] == seen
    assert found.keys() == {vm.uuid for vm in (lost, *others)}


def test_what_is_backed_up_no_more(beside: Context, site: LabSite, story: Story, hub: Hub) -> None:
    """A VM that is gone, and one of which no disk can be backed up: each is told of once, and is no schedule's."""
    bare = next(vm for vm in refs(site) if vm.name == "mixed01")
    others = [vm for vm in refs(site) if vm != bare]
    gone, never, away = vm_of(1, "lab"), vm_of(2, "lab"), vm_of(3)
    now = now_of(beside)
    for vm in (bare, *others, gone, away):
        point = Story(story.folder, vm=vm).backup(d2000="A")
        path = story.repository.layout.root / "vms" / vm.uuid / "points" / point.id / "point.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"created": now.isoformat()}))
    enter(beside, schedule := schedule_of(beside, "lab"))
    assert {vm.uuid for vm, _ in read_overdue(beside)} == {vm.uuid for vm in (bare, *others, gone)}

    first = look(beside)
    assert {turn.vm.uuid: turn.state for turn in first.turns if turn.state == "left out"} == {gone.uuid: "left out"}
    assert first.ended
    (text,) = told(hub)
    assert f"{gone.name}: is backed up no more: site lab does not have it now" in text
    assert {vm.uuid for vm, _ in read_overdue(beside)} == {vm.uuid for vm in (bare, *others)}

    runs = Runs(beside.ledger.client)
    seen = runs.seen(NAME)
    assert seen
    runs.put_seen(NAME, {**seen, never.uuid: Seen(vm=never, since=schedule.since)})
    disk, *_ = site.client.vm(bare.name).disks  # the others are in no snapshot
    site.client.remove_disk(bare.name, disk.key)
    try:
        second = again(beside, first, now)
    finally:
        site.client.add_disk(bare.name, 16 * MiB)
    assert [turn.vm.uuid for turn in second.turns if turn.dropped] == [bare.uuid]
    assert [f"{bare.name}: is backed up no more: {bare.name}: no disk" in text for text in told(hub)] == [False, True]
    assert {vm.uuid for vm, _ in read_overdue(beside)} == {vm.uuid for vm in others}
    assert again(beside, second, now).troubles() == []
    assert len(told(hub)) == 2


def again(context: Context, before: Run, asked: datetime) -> Run:
    """One more run, which was asked for at that time."""
    runs = Runs(context.ledger.client)
    standing, text = runs.get(NAME)
    runs.put(NAME, text, standing.model_copy(update={"asked": asked}))
    run = look(context)
    assert run.ended
    assert run.began > before.began
    return run


def test_a_vm_that_moved_to_another_site(beside: Context, hub: Hub, site: LabSite) -> None:
    """It is backed up there, and not told of as gone."""
    vm, *_ = refs(site)
    sites = {name: beside.settings.sites["lab"] for name in ("here", "there")}
    moved = context_of(hub, beside.settings.model_copy(update={"sites": sites}))
    old = vm.model_copy(update={"site": "a"})
    enter(moved, schedule := schedule_of(moved, ""))
    Story(moved.repository.layout.root.parent, vm=old).backup(d2000="A")
    turn = Turn(vm=old, state="left out", dropped=True)
    under_way(moved, schedule, sites={"there": "not asked yet"}, turns=[turn])
    (found,) = [turn for turn in look(moved).turns if turn.vm.uuid == vm.uuid]
    assert (found.vm.site, found.state, found.dropped) == ("there", "begun", False)


@pytest.mark.parametrize(
    ("beside_it", "stay"),
    [
        ([], 2),
        ([{"keep": Kept(last=5), "vm": None}], 5),
        ([{"keep": Kept(last=5), "paused": True}, {"keep": Kept(last=4)}], 5),
        ([{"keep": Kept(last=5), "site": "bergen", "vm": None}], 2),
        ([{"vm": None}], 7),
    ],
)
def test_schedules_that_share_a_vm(context: Context, story: Story, beside_it: list[dict[str, Any]], stay: int) -> None:
    """A restore point goes only when none of them keeps it; one without a rule keeps all."""
    points = [story.backup(d2000="A") for _ in range(7)]
    own = schedule_of(context, "oslo", vm=VM, keep=Kept(last=2))
    under_way(context, own, turns=[Turn(vm=VM, state="pruning", job="aa")])
    enter(
        context,
        own,
        *(
            schedule_of(context, "oslo", f"b{n}", VM, since=now_of(context)).model_copy(update=each)
            for n, each in enumerate(beside_it)
        ),
    )
    (turn,) = look(context).turns
    if stay == 7:
        assert (turn.state, turn.note) == ("succeeded", "all its restore points stay: schedule b0 keeps them")
        return
    view = context.jobs.get(turn.prune)
    assert view
    assert isinstance(view.request, DeleteRequest)
    assert set(view.request.points) == {point.id for point in points[:-stay]}


def test_a_list_has_no_vms(context: Context) -> None:
    """It says how the runs stand; each VM is shown of one schedule, as a site may have thousands."""
    under_way(context, schedule_of(context, "oslo"), vm_of(1), vm_of(2))
    schedules = Schedules(context, no_beat)
    (listed,), one = schedules.all(), schedules.one(NAME)
    assert listed.latest == one.latest
    assert listed.latest
    assert (listed.latest.count, listed.latest.ended, listed.run) == ({"waiting": 2}, None, None)
    assert one.run
    assert [turn.vm.name for turn in one.run.turns] == ["web01", "web02"]


def test_what_keeps_a_look_from_its_end_is_shown(context: Context) -> None:
    """An error is in the schedule's standing until it is over, and the other schedules are looked at."""
    broken = schedule_of(context, "oslo", timezone="Mars/Olympus")
    enter(context, broken, schedule_of(context, "oslo", "other"))
    look(context, "other")
    runs = Runs(context.ledger.client)
    assert "Mars/Olympus" in runs.get(NAME)[0].trouble
    enter(context, broken.model_copy(update={"timezone": "UTC"}))
    look(context)
    assert runs.get(NAME)[0].trouble == ""


def test_a_worker_that_goes_in_the_middle_of_a_look(context: Context, beside: Context, hub: Hub, site: LabSite) -> None:
    """The VMs that it could not be asked for wait for it: none is left out."""
    under_way(context, schedule_of(context, "lab"), *refs(site))
    announce(hub, "lab")
    ended = threading.Event()

    def answer_once() -> None:
        while not ended.wait(0.02):
            for key in hub.client.scan_iter("sendense:asked:*"):
                presence.withdraw(hub.client, "lab-control")
                asking.answer(beside, key.decode().rpartition(":")[2])
                return

    thread = threading.Thread(target=answer_once)
    thread.start()
    try:
        run = look(context)
    finally:
        ended.set()
        thread.join(30)
    assert [turn.state for turn in run.turns] == ["begun"] + ["waiting"] * (len(run.turns) - 1)
    assert "nobody there speaks" in run.turns[-1].note
    assert not run.ended


def test_a_node_that_refuses(beside: Context, hub: Hub, site: LabSite, tmp_path: Path) -> None:
    """A VM that is gone is left out; that a site's password is not there is a failure, and told."""
    here, gone = refs(site)[0], vm_of(1, "lab")
    under_way(beside, schedule_of(beside, "lab"), here, gone)
    assert [turn.state for turn in look(beside).turns] == ["begun", "left out"]
    assert told(hub) == []

    hub.client.flushall()
    sites = {"lab": beside.settings.sites["lab"].model_copy(update={"password_file": tmp_path / "none"})}
    locked = context_of(hub, beside.settings.model_copy(update={"sites": sites}))
    under_way(locked, schedule_of(locked, "lab"), here)
    (turn,) = look(locked).turns
    assert (turn.state, str(tmp_path / "none") in turn.note) == ("failed", True)
    assert here.name in "".join(told(hub))


def test_a_silent_site_is_asked_once(context: Context, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """All schedules go by what one has found."""
    monkeypatch.setattr(attendance, "SITE_SECONDS", 0.1)
    monkeypatch.setattr(attendance, "PATIENT_SECONDS", 0.0)
    announce(hub, "oslo")
    names = ["one", "two", "three"]
    enter(context, *(schedule_of(context, "oslo", name, vm_of(number)) for number, name in enumerate(names)))
    runs = [look(context, name) for name in names]
    assert hub.client.llen(control_queue("oslo")) == 1
    assert [turn.state for run in runs for turn in run.turns] == ["waiting"] * 3
    assert all("did not answer" in turn.note for run in runs for turn in run.turns)


def test_a_site_that_stays_silent_is_asked_ever_less(
    context: Context, beside: Context, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several of them would keep all schedules waiting most of the time; one that answers is asked as before."""
    monkeypatch.setattr(attendance, "PATIENT_SECONDS", 0.0)
    announce(hub, "lab")

    def left_alone() -> int:
        """Seconds after one more look, which then have passed."""
        monkeypatch.setattr(attendance, "SITE_SECONDS", 0.1)
        look(context)
        seconds = hub.client.ttl("sendense:schedules:silent:lab")
        hub.client.delete("sendense:schedules:silent:lab")
        return round(seconds, -1)

    waits = schedule_of(context, "lab")
    under_way(context, waits, vm_of(1, "lab"))
    assert [left_alone() for _ in range(6)] == [60, 120, 240, 480, 600, 600]
    under_way(context, schedule_of(context, "lab", "answered"), vm_of(2, "lab"))
    monkeypatch.setattr(attendance, "SITE_SECONDS", 45.0)
    assert [turn.state for turn in look(beside, "answered").turns] == ["left out"]
    under_way(context, waits, vm_of(1, "lab"))
    assert left_alone() == 60


def test_each_duty_has_its_process() -> None:
    """None waits for another."""
    assert len(DUTIES) == ROUTINE_PROCESSES


def test_resumed_after_its_run(context: Context) -> None:
    """What was under way when a schedule was paused does not go on when it is resumed: that begins anew."""
    old = schedule_of(context, "oslo", at=f"{now_of(context) + timedelta(hours=2):%H:%M}")
    under_way(context, old.model_copy(update={"paused": True}), vm_of(1))
    assert [turn.state for turn in look(context).turns] == ["waiting"]
    enter(context, old.model_copy(update={"since": now_of(context)}))
    run = look(context)
    assert run.ended
    assert [turn.state for turn in run.turns] == ["not begun"]
    assert context.jobs.ids() == []


def test_paused_before_it_ran(context: Context) -> None:
    """A run that was asked for does not begin once the schedule is paused, nor when it is resumed."""
    schedule = schedule_of(context, "oslo", at=f"{now_of(context) + timedelta(hours=2):%H:%M}", vm=vm_of(1))
    runs = Runs(context.ledger.client)
    for update in ({"paused": True}, {"since": now_of(context) + timedelta(milliseconds=1)}):
        enter(context, schedule.model_copy(update=update))
        runs.put(NAME, runs.get(NAME)[1], Standing(asked=now_of(context) - timedelta(minutes=1)))
        attend(context, no_beat)
        standing, _ = runs.get(NAME)
        assert (standing.asked, standing.run) == (None, None)


def test_a_point_that_is_made_meanwhile(context: Context, story: Story) -> None:
    """A VM that got its restore point after the look began needs no other."""
    under_way(context, schedule_of(context, VM.site), VM)
    count = 0

    def beat() -> None:
        nonlocal count
        count += 1
        if count == 2:  # the first one of the look itself
            point = story.backup(d2000="A")
            path = story.repository.layout.root / "vms" / VM.uuid / "points" / point.id / "point.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"created": now_of(context).isoformat()}))

    (turn,) = look(context, beat=beat).turns
    assert (turn.state, turn.note.endswith("already")) == ("succeeded", True)


def test_a_user_changes_one_meanwhile(context: Context) -> None:
    """The other schedules are looked at all the same, and this one by the next look."""
    enter(context, schedule_of(context, "oslo"), schedule_of(context, "oslo", "other"))
    runs = Runs(context.ledger.client)
    count = 0

    def beat() -> None:
        nonlocal count
        count += 1
        if count == 2:  # the first one's own
            runs.put(NAME, "", Standing(asked=now_of(context)))

    look(context, "other", beat)
    assert runs.get(NAME)[0].run is None
    assert not look(context).ended


def test_what_was_told_of_a_schedule_goes_with_it(context: Context) -> None:
    """Nothing of it is left in Redis."""
    outbox, runs = Outbox(context.ledger.client), Runs(context.ledger.client)
    for name in (NAME, "other"):
        runs.put(name, "", Standing())
        outbox.enter("", "", {f"schedule:{name}": ("", "1")})
    runs.keep(["other"])
    assert outbox.marks() == {"schedule:other": "1"}


def test_a_clock_that_was_set_back(context: Context) -> None:
    """What the routine said before is no sign of life."""
    client = context.ledger.client
    presence.say_routine(client)
    assert presence.routine_silence(client) < SILENCE_SECONDS
    client.set("sendense:routine", context.jobs.clock() + 3600)
    assert presence.routine_silence(client) > SILENCE_SECONDS


def test_a_duty_that_gives_up_is_free(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next process need not wait until its hold lapses."""

    def give_up(context: Context, beat: Beat) -> None:
        raise ClaimLost(NAME, "its schedule")

    monkeypatch.setitem(DUTIES, "schedules", Duty(5.0, give_up))
    routine.run(context, "schedules", "w/1/a")
    assert presence.holder(context.ledger.client, "duty.schedules") == ""
