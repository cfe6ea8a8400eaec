"""The records of jobs on a real Redis: locks, leases, cancelling, resuming; and plans that are amended."""

import json
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from sendense.beat import BEAT_ITEMS, Beat, no_beat
from sendense.coordinator import copying, run, submission
from sendense.coordinator.context import Context, Done, Run, Waiting
from sendense.coordinator.record import Jobs, Lease
from sendense.coordinator.restore import give_name
from sendense.errors import Cancelled, ClaimLost, Conflict, InputError, JobFailed, TargetFull
from sendense.extents import Extent
from sendense.jobs import broker, presence
from sendense.jobs.batch import failure_of
from sendense.jobs.ledger import Ledger
from sendense.jobs.patch import patch
from sendense.jobs.plan import batch_of
from sendense.models import JobSpec, Survey, VmRef
from sendense.requests import BackupRequest, DiskWork, RestoreRequest, VerifyRequest, Work
from sendense.service.operations import Operations
from sendense.settings import Settings
from sendense.units import KiB
from tests.hub import Hub, places

LONG = 1e6
"""Seconds that no test lasts."""

CLUSTER = 64 * KiB
VM = VmRef(site="lab", moref="vm-1", uuid="00000000-0000-0000-0000-000000000001", name="web01")
BACKUP = BackupRequest(vm=VM)


@pytest.fixture
def jobs(hub: Hub) -> Jobs:
    """No jobs."""
    return Jobs(hub.client)


def submit(jobs: Jobs, job: str, *locks: str) -> None:
    jobs.submit(job, BACKUP, "backup of web01", "inspect", locks)


def lease(jobs: Jobs, job: str, owner: str = "w/1/a", seconds: float = LONG, renew: float = 0.0) -> Lease:
    found, _ = jobs.lease(job, owner, seconds, renew)
    assert found
    return found


def finish(jobs: Jobs, job: str, state: str) -> None:
    lease(jobs, job, "w/9/end")
    assert jobs.finish(job, "w/9/end", state)


def test_submitted(jobs: Jobs) -> None:
    """A job is there as it was submitted."""
    submit(jobs, "aa", "vm:1")
    view = jobs.find("a")
    assert (view.id, view.request, view.state, view.step, view.work) == ("aa", BACKUP, "queued", "inspect", Work())
    assert jobs.active() == ["aa"]


def test_one_job_for_a_lock(jobs: Jobs) -> None:
    """A second job on a locked VM is refused with the first one's id, and takes no lock of its own."""
    submit(jobs, "aa", "vm:1")
    with pytest.raises(InputError, match="job aa is at work on it") as caught:
        submit(jobs, "bb", "target:t", "vm:1")
    assert "sendense jobs cancel aa" in caught.value.hint
    assert jobs.ids() == ["aa"]
    submit(jobs, "cc", "target:t")
    submit(jobs, "aa", "vm:1")  # its answer was lost: handed in again
    assert jobs.active() == ["aa", "cc"]


def test_the_end_frees_the_locks(jobs: Jobs) -> None:
    """Once a job has ended, its VM is free for others, and it cannot be resumed while one of them runs."""
    submit(jobs, "aa", "vm:1")
    finish(jobs, "aa", "failed")
    submit(jobs, "bb", "vm:1")
    with pytest.raises(InputError, match="job bb is at work on it"):
        jobs.resume("aa", "inspect", Work())
    view = jobs.find("aa")
    assert (view.state, bool(view.ended)) == ("failed", True)
    finish(jobs, "bb", "succeeded")
    assert jobs.ids() == ["bb", "aa"]
    jobs.resume("aa", "inspect", Work(point="p"))
    assert jobs.ids() == ["aa", "bb"]
    view = jobs.find("aa")
    assert (view.state, view.ended, view.outcome, view.error, view.work.point) == (
        "queued",
        None,
        "succeeded",
        None,
        "p",
    )


def test_what_cannot_be_resumed(jobs: Jobs) -> None:
    """A job that runs, or succeeded, has nothing to resume."""
    submit(jobs, "aa")
    with pytest.raises(InputError, match="queued"):
        jobs.resume("aa", "inspect", Work())
    finish(jobs, "aa", "succeeded")
    with pytest.raises(InputError, match="succeeded"):
        jobs.resume("aa", "inspect", Work())


def test_one_process_has_the_lease(jobs: Jobs) -> None:
    """While somebody runs a step nobody else does; what lapsed is named to the next."""
    submit(jobs, "aa")
    lease(jobs, "aa", "w/1/a")
    assert jobs.is_leased("aa")
    assert jobs.lease("aa", "w/2/b", LONG, 1.0) == (None, "")
    submit(jobs, "bb")
    first = lease(jobs, "bb", "w/1/a", seconds=-1.0)
    assert not jobs.is_leased("bb")
    found, lapsed = jobs.lease("bb", "w/2/b", LONG, 1.0)
    assert found
    assert lapsed == "w/1/a"
    with pytest.raises(ClaimLost):
        first.beat()
    with pytest.raises(ClaimLost):
        first.write({"step": "choose"})
    assert jobs.find("bb").step == "inspect"


def test_a_step_that_waits(jobs: Jobs) -> None:
    """A lease that was given back with a delay is not to be had before; one given back without is."""
    submit(jobs, "aa")
    lease(jobs, "aa").write({"attempts": 1}, release=True, delay=LONG)
    assert jobs.is_leased("aa")
    assert jobs.lease("aa", "w/2/b", LONG, 1.0) == (None, "")
    submit(jobs, "bb")
    lease(jobs, "bb").write({}, release=True)
    assert jobs.lease("bb", "w/2/b", LONG, 1.0)[1] == ""


def test_cancelled(jobs: Jobs) -> None:
    """A cancelled job's step ends at its next beat, a cleaning one does not; a delay is over at once."""
    submit(jobs, "aa")
    mine = lease(jobs, "aa")
    mine.beat()
    jobs.cancel("aa")
    with pytest.raises(Cancelled):
        mine.beat()
    mine.heeds_cancel = False
    mine.beat()
    mine.write({}, release=True, delay=LONG)
    jobs.cancel("aa")
    assert not jobs.is_leased("aa")


def test_an_ended_job_has_no_lease(jobs: Jobs) -> None:
    """A message that comes after the end finds nothing to do."""
    submit(jobs, "aa")
    finish(jobs, "aa", "succeeded")
    assert jobs.lease("aa", "w/1/a", LONG, 1.0) == (None, "")


def test_finding(jobs: Jobs) -> None:
    """A job is named by the beginning of its id, if only one begins so."""
    jobs.submit("ab12", VerifyRequest(point="p", name="web01"), "verify web01", "choose", [])
    submit(jobs, "ab34")
    assert jobs.find("ab1").request.kind == "verify"
    for text in ("ab", "x", ""):
        with pytest.raises(InputError):
            jobs.find(text)


def test_history(jobs: Jobs) -> None:
    """Lines come in their order, and from where somebody left off."""
    submit(jobs, "aa")
    for text in ("one", "two", "three"):
        jobs.event("aa", text)
    events = jobs.events("aa")
    assert [event.text for event in events] == ["one", "two", "three"]
    assert [event.text for event in jobs.events("aa", events[0].id)] == ["two", "three"]
    assert jobs.events("aa", events[-1].id) == []


def test_patched_plan(jobs: Jobs, hub: Hub) -> None:
    """What changed is to do again, as data; what no batch had becomes one; patched twice is patched once."""
    ledger = Ledger(hub.client)
    size = 16 * CLUSTER
    spec = JobSpec(id="aa-2000", kind="copy", name="disk", source="nbd://s/", target="nbd://t/")
    zero, data = Extent(0, 4 * CLUSTER, True), Extent(4 * CLUSTER, 4 * CLUSTER)
    other = Extent(8 * CLUSTER, 2 * CLUSTER)
    ledger.prepare(spec)
    survey = Survey(size=size, multi_conn=True, allocation=True, flush=True)
    ledger.write_plan(spec.id, survey, [batch_of([zero]), batch_of([data]), batch_of([other])])
    epoch = ledger.begin(spec)
    ledger.take(spec.id, epoch, 3)
    for batch in range(3):
        claim = ledger.claim(spec.id, batch, epoch, "w/1/a", LONG)
        assert claim
        assert ledger.record(claim, bytes(32), 1, batch_of(claim.extents).data, 0, None)
    changed = [Extent(CLUSTER, CLUSTER), Extent(12 * CLUSTER, CLUSTER)]
    for _ in range(2):
        patch(ledger, spec.id, changed, size, no_beat)
        assert places(hub.client, spec.id) == {0: ["todo"], 1: ["done"], 2: ["done"], 3: ["todo"]}
        progress = ledger.progress(spec.id)
        assert progress
        assert (progress.batches, progress.batches_done, progress.data, progress.zero) == (
            4,
            2,
            8 * CLUSTER,
            3 * CLUSTER,
        )
        assert progress.done == 6 * CLUSTER
    plan = dict(ledger.plan(spec.id))
    assert plan[0] == [Extent(0, CLUSTER, True), Extent(CLUSTER, CLUSTER), Extent(2 * CLUSTER, 2 * CLUSTER, True)]
    assert plan[3] == [Extent(12 * CLUSTER, CLUSTER)]


def test_patch_that_was_interrupted(jobs: Jobs, hub: Hub) -> None:
    """A patch that died between two of its new batches is made whole by the next one."""
    ledger, size = Ledger(hub.client), 64 * CLUSTER
    spec = JobSpec(id="aa-2000", kind="copy", name="disk", source="nbd://s/", target="nbd://t/")
    ledger.prepare(spec)
    survey = Survey(size=size, multi_conn=True, allocation=True, flush=True)
    ledger.write_plan(spec.id, survey, [batch_of([Extent(0, CLUSTER)])])
    changed = [Extent(at * CLUSTER, CLUSTER) for at in range(10, 60, 10)]
    for number, extent in enumerate(changed[:2], 1):  # as far as it came: its counters were not written yet
        hub.client.hset(f"sendense:{spec.id}:plan", str(number), batch_of([extent]).packed)
        hub.client.zadd(f"sendense:{spec.id}:todo", {str(number): number})
    patch(ledger, spec.id, changed, size, no_beat)
    planned = sorted(extent for _, extents in ledger.plan(spec.id) for extent in extents)
    assert planned == [Extent(0, CLUSTER), *changed]
    progress = ledger.progress(spec.id)
    assert progress
    assert progress.batches == len(places(hub.client, spec.id)) == len(dict(ledger.plan(spec.id)))


BATCHES = 300
"""More than go into one round trip."""


def planned(ledger: Ledger) -> str:
    """A planned copy of BATCHES batches of one cluster, each followed by a gap of one."""
    spec = JobSpec(id="aa-2000", kind="copy", name="disk", source="nbd://s/", target="nbd://t/")
    survey = Survey(size=2 * BATCHES * CLUSTER, multi_conn=True, allocation=True, flush=True)
    ledger.delete(spec.id)
    ledger.prepare(spec)
    ledger.write_plan(spec.id, survey, (batch_of([Extent(2 * at * CLUSTER, CLUSTER)]) for at in range(BATCHES)))
    return spec.id


def patch_all(ledger: Ledger, job: str, beat: Beat) -> None:
    """Have each batch copied again, and each gap, too."""
    patch(ledger, job, [Extent(2 * at * CLUSTER, 2 * CLUSTER) for at in range(BATCHES)], 2 * BATCHES * CLUSTER, beat)


def must_be_patched_once(hub: Hub, ledger: Ledger, job: str) -> None:
    found = sorted(extent for _, extents in ledger.plan(job) for extent in extents)
    assert found == [Extent(at * CLUSTER, CLUSTER) for at in range(2 * BATCHES)]
    progress = ledger.progress(job)
    assert progress
    assert (progress.batches, progress.data) == (len(places(hub.client, job)), 2 * BATCHES * CLUSTER)


def at_beat(number: int, act: Callable[[], object]) -> Beat:
    """Acts at the beat of this number."""
    beats = count()

    def beat() -> None:
        if next(beats) == number:
            act()

    return beat


def beats_of_a_patch(ledger: Ledger) -> int:
    beats: list[None] = []
    patch_all(ledger, planned(ledger), lambda: beats.append(None))
    return len(beats)


def test_patch_that_lost_its_lease(jobs: Jobs, hub: Hub) -> None:
    """A patch shows life all along, can be ended at each beat, and is made whole by the next one."""
    ledger = Ledger(hub.client)

    def lose() -> None:
        raise ClaimLost("aa", "its lease")

    beats = beats_of_a_patch(ledger)
    assert beats > 2 * BATCHES // BEAT_ITEMS
    for number in range(beats):
        job = planned(ledger)
        with pytest.raises(ClaimLost):
            patch_all(ledger, job, at_beat(number, lose))
        patch_all(ledger, job, no_beat)
        must_be_patched_once(hub, ledger, job)


def test_patch_that_was_overtaken(jobs: Jobs, hub: Hub) -> None:
    """A process that goes on with a patch that another has made meanwhile changes nothing, as when a run has begun."""
    ledger = Ledger(hub.client)
    for number in range(beats_of_a_patch(ledger)):
        job = planned(ledger)
        with pytest.raises(ClaimLost):
            patch_all(ledger, job, at_beat(number, partial(patch_all, ledger, job, no_beat)))
        must_be_patched_once(hub, ledger, job)
    job = planned(ledger)
    spec = ledger.spec(job)
    assert spec
    with pytest.raises(ClaimLost):
        patch_all(ledger, job, at_beat(number, lambda: ledger.begin(spec)))


def test_plan_that_was_overtaken(jobs: Jobs, hub: Hub) -> None:
    """Of two processes that plan a job the later one does; nobody does so any more when it is planned."""
    ledger = Ledger(hub.client)
    spec = JobSpec(id="aa-2000", kind="copy", name="disk", source="nbd://s/", target="nbd://t/")
    survey = Survey(size=CLUSTER, multi_conn=True, allocation=True, flush=True)
    mine, others = batch_of([Extent(0, 512)]), batch_of([Extent(0, CLUSTER)])
    ledger.prepare(spec)
    with pytest.raises(ClaimLost):
        ledger.write_plan(
            spec.id, survey, [mine] * 600, at_beat(5, lambda: ledger.write_plan(spec.id, survey, [others]))
        )
    with pytest.raises(ClaimLost):
        ledger.write_plan(spec.id, survey, [mine])
    assert dict(ledger.plan(spec.id)) == {0: [Extent(0, CLUSTER)]}
    assert ledger.state(spec.id) == "ready"


def test_areas_that_two_write(jobs: Jobs, hub: Hub) -> None:
    """Areas that two processes store at the same time are one's or the other's, not a mixture."""
    ledger = Ledger(hub.client)
    areas = [Extent(2 * at * CLUSTER, CLUSTER) for at in range(5000)]
    assert ledger.areas("aa-2000") is None
    ledger.write_areas("aa-2000", areas, at_beat(3, lambda: ledger.write_areas("aa-2000", areas, no_beat)))
    assert list(ledger.areas("aa-2000") or ()) == areas
    ledger.write_areas("aa-2000", [], no_beat)
    assert list(ledger.areas("aa-2000") or ()) == []


def test_records_beat(jobs: Jobs, hub: Hub) -> None:
    """Records of more batches than go into one round trip are read with signs of life, and in disk order."""
    ledger, beats = Ledger(hub.client), list[None]()
    job = planned(ledger)
    for number in range(0, BATCHES, 2):
        hub.client.hset(f"sendense:{job}:done", str(number), json.dumps({"data": CLUSTER, "digest": "ab" * 32}))
    found = ledger.records(job, lambda: beats.append(None))
    assert [record.batch for record in found] == list(range(0, BATCHES, 2))
    assert found[1].extents == [Extent(4 * CLUSTER, CLUSTER)]
    assert len(beats) >= BATCHES // BEAT_ITEMS


def test_resuming_a_job_that_runs(jobs: Jobs, hub: Hub) -> None:
    """It is refused, and what the job has stored and is doing stays as it is."""
    ledger, settings = Ledger(hub.client), Settings()
    context = Context(settings, ledger, jobs, broker.make_app(hub.url))
    submit(jobs, "aa", "vm:1")
    spec = JobSpec(id="aa-2000", kind="copy", name="disk", source="nbd://s/", target="nbd://t/", part_of="aa")
    ledger.prepare(spec)
    survey = Survey(size=CLUSTER, multi_conn=True, allocation=True, flush=True)
    ledger.write_plan(spec.id, survey, [batch_of([Extent(0, CLUSTER)])])
    ledger.begin(spec)
    work = Work(disks=[DiskWork(key=2000, copy_id=spec.id)])
    lease(jobs, "aa").write({"work": work.model_dump_json(), "step": "copy", "state": "running"}, release=True)
    with pytest.raises(InputError, match="running"):
        submission.resume(context, "aa")
    assert ledger.state(spec.id) == "copying"
    submission.submit(context, "aa", BACKUP, "backup of web01")  # its answer was lost: handed in again
    assert (jobs.find("aa").step, jobs.find("aa").work) == ("copy", work)


def test_verification_that_runs_twice(jobs: Jobs, hub: Hub) -> None:
    """A batch that was found to be wrong is wrong at the second look, too; and such a job commits nothing."""
    ledger = Ledger(hub.client)
    extents = [Extent(at * CLUSTER, CLUSTER) for at in range(3)]
    survey = Survey(size=3 * CLUSTER, multi_conn=True, allocation=True, flush=True)
    for name, wrong in (("aa-2000", -1), ("aa-2000-verify", 1)):
        spec = JobSpec(id=name, kind="copy", name="disk", source="nbd://s/", target="nbd://t/")
        ledger.prepare(spec)
        ledger.write_plan(name, survey, (batch_of([extent]) for extent in extents))
        epoch = ledger.begin(spec)
        ledger.take(name, epoch, 3)
        for batch in range(3):
            claim = ledger.claim(name, batch, epoch, "w/1/a", LONG)
            assert claim
            digest = bytes([batch == wrong] * 32)
            assert ledger.record(claim, digest, CLUSTER, CLUSTER, 0, None)
    disk = DiskWork(key=2000, copy_id="aa-2000")
    for _ in range(2):
        found = copying._compare(ledger, disk, no_beat)
        assert not found.verified
        assert [each.offset for each in found.differences] == [CLUSTER]
    context = Context(Settings(), ledger, jobs, broker.make_app(hub.url))
    assert len(copying.records_of(context, disk, no_beat)) == 3
    ledger.reopen("aa-2000", [record for record in ledger.records("aa-2000") if record.batch == 1])
    with pytest.raises(JobFailed, match="2 of 3 batches"):
        copying.records_of(context, disk, no_beat)


def test_no_room_for_an_image(jobs: Jobs, hub: Hub, tmp_path: Path) -> None:
    """Where the target is full, the job's error names the repository: the worker knows of the export alone."""
    ledger = Ledger(hub.client)
    context = Context(Settings(repository=tmp_path), ledger, jobs, broker.make_app(hub.url))
    submit(jobs, "aa", "vm:1")
    spec = JobSpec(id=planned(ledger), kind="copy", name="disk", source="nbd://s/", target="hub:job-aa", part_of="aa")
    epoch = ledger.begin(spec)
    ledger.take(spec.id, epoch, 1)
    claim = ledger.claim(spec.id, 0, epoch, "w/1/a", LONG)
    assert claim
    exc = TargetFull("nbd://127.0.0.1/job-aa", 0, CLUSTER, "No space left on device")
    assert ledger.release(claim, failure_of(exc, batch=0, worker="w/1/a"), 0, None, end_job=True)
    work = Work(disks=[DiskWork(key=2000, copy_id=spec.id, image=str(tmp_path / "vm" / "disk-2000.qcow2"))])
    run = Run(jobs.find("aa").model_copy(update={"work": work}), no_beat)
    with pytest.raises(JobFailed, match=f"the file system of {tmp_path} is full: disk 2000: write nbd://") as caught:
        copying.copy(lambda disk: spec, context, run)
    assert f"df -h {tmp_path}" in caught.value.hint


def test_close_spares_who_is_at_other_jobs(jobs: Jobs, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that holds an ended job's disk is killed for that unless it copies for another: then close waits."""
    monkeypatch.setattr(copying, "CLOSE_SECONDS", 0.0)
    context = Context(Settings(), Ledger(hub.client), jobs, broker.make_app(hub.url))
    ledger = context.ledger
    for job in ("aa", "bb"):
        submit(jobs, job)
        disks = [DiskWork(key=2000, copy_id=planned(ledger) if job == "bb" else "ended")]
        lease(jobs, job).write({"work": Work(disks=disks).model_dump_json()})
    copy = jobs.find("bb").work.disks[0].copy_id
    spec = ledger.spec(copy)
    assert spec
    epoch = ledger.begin(spec)
    ledger.take(copy, epoch, 1)
    assert ledger.claim(copy, 0, epoch, "n/5/task", LONG)
    for pid in (5, 6):
        ledger.hold("ended", f"n/{pid}", LONG)
    answer = copying.close(context, Run(jobs.find("aa"), no_beat))
    assert isinstance(answer, Waiting)
    assert answer.reason.startswith("n/5, which is at work on another job")
    assert presence.take_condemned(hub.client, "n") == [6]
    for pid in (5, 6):
        ledger.let_go("ended", f"n/{pid}")
    assert isinstance(copying.close(context, Run(jobs.find("aa"), no_beat)), Done)


def test_work_survives(jobs: Jobs) -> None:
    """What a step found out is read back as it was."""
    submit(jobs, "aa")
    work = Work(disks=[DiskWork(key=2000, label="Hard disk 1", size=1)], left_out={2001: "independent"})
    lease(jobs, "aa").write({"work": work.model_dump_json()})
    assert jobs.find("aa").work == work


def test_a_cancelled_job_that_is_paused_cleans_up(jobs: Jobs, hub: Hub) -> None:
    """Pausing does not keep a cancelled job from its cleaning."""
    context = Context(Settings(), Ledger(hub.client), jobs, broker.make_app(hub.url))
    submission.submit(context, "aaaa", VerifyRequest(point="p", name="x"), "verify")
    operations = Operations(context)
    operations.cancel("aaaa")
    with pytest.raises(Conflict):
        operations.pause("aaaa")
    jobs.pause("aaaa", True)  # as if it had come at the same moment
    run.advance(context, "aaaa", "hub", "w/1/t")
    view = jobs.get("aaaa")
    assert view
    assert view.waiting != run.PAUSED
    assert view.outcome == "cancelled"


def test_one_target_in_two_spellings(jobs: Jobs, hub: Hub, tmp_path: Path) -> None:
    """Two jobs cannot write one image, or one export, however they call it."""
    context = Context(Settings(), Ledger(hub.client), jobs, broker.make_app(hub.url))
    (tmp_path / "link").symlink_to(tmp_path)

    def restore(job: str, target: str) -> None:
        submission.submit(context, job, RestoreRequest(point="p", name="x", targets={2000: target}), f"restore {job}")

    restore("aa", f"{tmp_path}/x.qcow2")
    restore("bb", "nbd://Host/e")
    for target in (f"{tmp_path}/./x.qcow2", f"{tmp_path}/link/x.qcow2"):
        with pytest.raises(Conflict, match="job aa is at work"):
            restore("cc", target)
    with pytest.raises(Conflict, match="job bb is at work"):
        restore("cc", "nbd://host:10809/e")


def test_an_image_that_was_taken_away(tmp_path: Path) -> None:
    """Only the image that the job itself made gets the name that was asked for."""
    partial, final = tmp_path / "x.qcow2.part", tmp_path / "x.qcow2"
    partial.touch()
    disk = DiskWork(key=2000, image=str(partial), inode=partial.stat().st_ino)
    give_name(disk)
    assert final.exists()
    give_name(disk)  # again, after a crash
    final.unlink()
    with pytest.raises(JobFailed, match="is gone"):
        give_name(disk)
    other = tmp_path / "other"
    other.touch()
    other.rename(partial)
    disk = disk.model_copy(update={"inode": partial.stat().st_ino + 1})
    with pytest.raises(JobFailed, match="another image"):
        give_name(disk)
