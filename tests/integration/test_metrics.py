"""A hub's metrics on real Redis, repositories, workers and sites: each cause counts once, and no answer hangs."""

import math
import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sendense.beat import no_beat
from sendense.coordinator.context import Context
from sendense.coordinator.record import Jobs
from sendense.errors import InputError
from sendense.extents import Extent
from sendense.jobs import broker, presence, tally
from sendense.jobs.ledger import Claim, Ledger, Rest, connect
from sendense.jobs.plan import batch_of
from sendense.jobs.presence import Worker
from sendense.models import Failure, JobSpec, Survey, VmInfo, VmRef
from sendense.repository.settings import change_settings
from sendense.requests import BackupRequest, DiskWork, Work
from sendense.schedules import Schedule
from sendense.service import watching
from sendense.service.figures import RepositoryReader
from sendense.service.metrics import ANSWER_SECONDS, Metrics
from sendense.service.runs import Runs
from sendense.settings import Settings, Site
from sendense.vsphere import snapshot
from sendense.vsphere.session import open_session
from tests.api import Api, open_api, problem
from tests.backup import WAIT_SECONDS, open_backups, patiently, small_disk
from tests.fleet import Fleet, wait_for
from tests.hub import Hub, a_node, age
from tests.repository import Story
from tests.servers import talker
from tests.site import LabSite, MiB, open_site

KiB = 2**10
LONG = 1e6
"""Seconds that no test lasts."""

JOB, BATCH = "job1", 256 * KiB
SPEC = JobSpec(id=JOB, kind="copy", site="oslo", name="web01", source="nbd://source/", target="nbd://target/")
SURVEY = Survey(size=6 * BATCH, multi_conn=True, allocation=True, flush=True)
DIGEST = bytes(32)
VM = VmRef(site="oslo", moref="vm-1", uuid="00000000-0000-0000-0000-000000000001", name="web01")

MARGIN_SECONDS = 15.0
"""What a busy machine may add to an answer that has a time limit."""


@pytest.fixture
def ledger(hub: Hub) -> Ledger:
    """An empty ledger."""
    return hub.ledger


def context_of(hub: Hub, **settings: object) -> Context:
    """Of whoever would rather hear at once that Redis is away."""
    client = connect(hub.url, retries=0)
    return Context(Settings(**settings), Ledger(client), Jobs(client), broker.make_app(hub.url))  # type: ignore[arg-type]


def samples(text: bytes) -> dict[str, dict[tuple[str, ...], float]]:
    """By metric, and the values of its labels in the order of their names."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[key] = sample.value
    return found


def begin(ledger: Ledger, spec: JobSpec = SPEC) -> int:
    """A copy of six batches; its epoch."""
    ledger.prepare(spec)
    ledger.write_plan(spec.id, SURVEY, (batch_of([Extent(number * BATCH, BATCH)]) for number in range(6)))
    return ledger.begin(spec)


def claims(ledger: Ledger, epoch: int, owner: str = "sna1-copy/1/a", spec: JobSpec = SPEC) -> list[Claim]:
    """Claims of three batches."""
    found = [ledger.claim(spec.id, batch, epoch, owner, LONG) for batch in ledger.take(spec.id, epoch, 3).batches]
    return [claim for claim in found if claim]


def failed(batch: int, verdict: str = "") -> Failure:
    """A failed attempt; one with a verdict stalled."""
    return Failure(batch=batch, error="ReadStalled", message="", stalled=bool(verdict), verdict=verdict)


def test_each_cause_counts_once(hub: Hub, ledger: Ledger) -> None:
    """Whatever is sent again after its answer was lost counts once; what is counted outlasts the job."""
    epoch = begin(ledger)
    first, second, third = claims(ledger, epoch)
    for _ in range(2):
        ledger.renew(first, LONG, 1000)
        ledger.record(first, DIGEST, BATCH, BATCH, 2, None)
        ledger.release(second, failed(1, "no-greeting"), 500, 0.0, end_job=False)
    stored, left = batch_of([Extent(2 * BATCH, KiB)]), batch_of([Extent(2 * BATCH + KiB, BATCH - KiB)])
    rest = Rest(stored, left, failed(2), 0.0)
    for _ in range(2):
        ledger.record(third, DIGEST, KiB, KiB, 0, rest)
    age(hub.client, JOB, LONG)
    ledger.sweep(JOB, epoch, 5, LONG, LONG, 0.0)
    (again, *others) = claims(ledger, epoch, "sna2-copy/1/b")
    assert len(others) == 2
    age(hub.client, JOB, 2 * LONG)
    for _ in range(2):
        ledger.sweep(JOB, epoch, 5, LONG, LONG, 0.0)
    assert not ledger.release(again, failed(1, "read-stalled"), 0, 0.0, end_job=False)
    ledger.delete(JOB)
    found, moving = tally.read(hub.client)
    assert found.moved == {("copy", "oslo", "sna1-copy"): BATCH + 500 + KiB}
    assert (found.moved_by(["sna1-copy", "sna1-solo"]), found.moved_by(["sna1"])) == (BATCH + 500 + KiB, 0)
    assert found.retries == 2 + 1 + 1 + 3
    assert {verdict: count for verdict, count in found.stalls.items() if count} == {"no-greeting": 1, "claim-lapsed": 3}
    assert moving.keys() == {"oslo"}


def test_survey_that_stalls(ledger: Ledger) -> None:
    """A stall counts before there is a plan, too."""
    ledger.prepare(SPEC)
    ledger.fail(JOB, Failure(error="NoGreeting", message="", stalled=True, verdict="no-greeting"))
    ledger.fail(JOB, Failure(error="Refused", message="", verdict="refused"))
    assert sum(tally.read(ledger.client)[0].stalls.values()) == 1


def test_verification_counts_apart(ledger: Ledger) -> None:
    """What is read back is not copied."""
    spec = SPEC.model_copy(update={"id": f"{JOB}-verify", "kind": "verify", "site": "hub"})
    (claim, *_) = claims(ledger, begin(ledger, spec), "hub-node/1/a", spec)
    ledger.record(claim, DIGEST, BATCH, BATCH, 0, None)
    assert tally.read(ledger.client)[0].moved == {("verify", "hub", "hub-node"): BATCH}


def test_ends_of_jobs(hub: Hub, ledger: Ledger) -> None:
    """A job's end counts with its end, once; who has lost the lease ends and counts nothing."""
    jobs = Jobs(hub.client)
    jobs.submit(JOB, BackupRequest(vm=VM), "backup of web01", "inspect", ["vm"])
    jobs.lease(JOB, "w/1/a", LONG, 1.0)
    assert not jobs.finish(JOB, "w/2/b", "succeeded")
    assert jobs.finish(JOB, "w/1/a", "failed")
    assert not jobs.finish(JOB, "w/1/a", "failed")
    assert tally.read(hub.client)[0].jobs == {("backup", "failed"): 1}
    jobs.resume(JOB, "inspect", Work())
    jobs.lease(JOB, "w/1/c", LONG, 1.0)
    assert jobs.finish(JOB, "w/1/c", "succeeded")
    assert tally.read(hub.client)[0].jobs == {("backup", "failed"): 1, ("backup", "succeeded"): 1}
    assert jobs.states() == {"succeeded": 1}


def test_time_limit(fleet: Fleet) -> None:
    """A process that is killed at its task's limit counts, once, with the task's name."""
    client = fleet.hub.client
    with talker() as uri, fleet.node("sna1", 1, task_time_limit=1, connect_timeout=600):
        spec = SPEC.model_copy(update={"source": uri, "target": uri})
        fleet.hub.ledger.prepare(spec)
        broker.send_survey(fleet.app, spec)
        wait_for("the limit", lambda: tally.read(client)[0].limits)
        time.sleep(2)
        assert tally.read(client)[0].limits == {"sendense.survey": 1}


# Of a job at work


def test_job_at_work(hub: Hub, ledger: Ledger) -> None:
    """Batches, the time without progress and the snapshot's age are those of active jobs; a paused one may rest."""
    context, jobs = context_of(hub), Jobs(hub.client)
    jobs.submit(JOB, BackupRequest(vm=VM), "backup of web01", "copy", ["vm"])
    lease, _ = jobs.lease(JOB, "w/1/a", LONG, 1.0)
    assert lease
    disk = DiskWork(key=2000, copy_id="copy1")
    made = jobs.clock() - 500
    fields = {"snapshot": "snapshot-1", "created": made, "disks": [disk], "info": info(VM)}
    lease.write({"state": "running", "work": Work.model_validate(fields).model_dump_json()})
    spec = SPEC.model_copy(update={"id": "copy1"})
    epoch = begin(ledger, spec)
    (claim, *_) = claims(ledger, epoch, spec=spec)
    ledger.take("copy1", epoch, 3)
    hub.client.hincrbyfloat("sendense:copy1:job", "began", -100)
    found = samples(Metrics(context).text())
    assert found["sendense_batches"] == {("to-do",): 0, ("queued",): 3, ("running",): 3}
    assert 100 <= found["sendense_no_progress_seconds"][("oslo",)] < 200
    assert 500 <= found["sendense_snapshot_age_seconds"][("oslo", VM.uuid, "web01")] < 600
    assert (found["sendense_jobs"][("running",)], found["sendense_jobs"][("queued",)]) == (1, 0)
    assert found["sendense_routine_silence_seconds"] == {(): math.inf}
    presence.say_routine(hub.client)
    assert samples(Metrics(context).text())["sendense_routine_silence_seconds"][()] < 100
    ledger.renew(claim, LONG, 1000)
    assert samples(Metrics(context).text())["sendense_no_progress_seconds"][("oslo",)] < 100
    hub.client.hset("sendense:moving", "oslo", jobs.clock() - 50)
    jobs.pause(JOB, True)
    assert samples(Metrics(context).text())["sendense_no_progress_seconds"] == {("oslo",): 0}


def test_survey_that_nobody_takes(hub: Hub, ledger: Ledger) -> None:
    """A job whose site has no node is not at work; a survey that goes on for long is."""
    context, jobs = context_of(hub), Jobs(hub.client)
    jobs.submit(JOB, BackupRequest(vm=VM), "backup of web01", "copy", ["vm"])
    lease, _ = jobs.lease(JOB, "w/1/a", LONG, 1.0)
    assert lease
    work = Work(disks=[DiskWork(key=2000, copy_id="copy1")])
    lease.write({"state": "running", "started": "2026-01-01T00:00:00+00:00", "work": work.model_dump_json()})
    ledger.prepare(SPEC.model_copy(update={"id": "copy1"}))
    idle = samples(Metrics(context).text())["sendense_no_progress_seconds"][("oslo",)]
    assert idle > 1000
    ledger.touch("copy1", "sna1-copy/1/a")
    assert samples(Metrics(context).text())["sendense_no_progress_seconds"][("oslo",)] < 100


def test_job_that_nobody_is_at(hub: Hub, ledger: Ledger) -> None:
    """A job counts since nobody is at it; not while its step runs, is to run later, has to wait its turn, or rests."""
    context, jobs = context_of(hub), Jobs(hub.client)

    def idle() -> float:
        return samples(Metrics(context).text()).get("sendense_no_progress_seconds", {}).get(("oslo",), 0.0)

    def age_job() -> None:
        """As if what befell the job had been earlier."""
        hub.client.hset(f"sendense:job:{JOB}", mapping={"until": jobs.clock() - 500, "due": jobs.clock() - 600})
        hub.client.zadd("sendense:jobs", {JOB: jobs.clock() - 700})

    jobs.submit(JOB, BackupRequest(vm=VM), "backup of web01", "snapshot", ["vm"])
    assert idle() < 100
    hub.client.zadd("sendense:jobs", {JOB: jobs.clock() - 700})
    assert 700 <= idle() < 800
    lease, _ = jobs.lease(JOB, "sna1-control/1/a", LONG, 1.0)
    assert lease
    assert idle() == 0
    lease.write({}, release=True, delay=LONG)  # it is tried again then
    assert idle() == 0
    age_job()
    assert 500 <= idle() < 600
    jobs.lease(JOB, "sna1-control/2/b", LONG, 1.0)
    age_job()  # the process was stopped
    assert 500 <= idle() < 600
    assert jobs.disown(JOB, "sna1-control")
    assert 500 <= idle() < 600
    for active, least in ((2, 0), (1, 500)):  # all are at other jobs; or one is free, and is not at it
        reader = Worker(name="sna1-control", queues=["control.oslo"], processes=2, active=active)
        presence.announce(hub.client, reader)
        hub.client.persist("sendense:worker:sna1-control")  # it lives however long this takes
        assert least <= idle() <= least + 100
    presence.withdraw(hub.client, "sna1-control")
    jobs.pause(JOB, True)
    assert idle() == 0


def info(vm: VmRef) -> dict[str, object]:
    """A VM as its job knows it."""
    return {
        "ref": vm,
        "path": "/dc/vm/web01",
        "power": "on",
        "host": "esx1",
        "guest": "",
        "tools": True,
        "tracking": True,
        "tracking_possible": True,
        "snapshots": 0,
        "disks": [],
    }


# Nodes


def test_nodes_that_are_missed(ledger: Ledger) -> None:
    """A node that ended in good order is not missed; one that vanished is, for a day."""
    client = ledger.client
    for name in ("sna1", "sna2", "sna3"):
        presence.announce_node(client, a_node(name))
    presence.withdraw_node(client, "sna1", missed=False)
    presence.withdraw_node(client, "sna2", missed=True)
    assert presence.known_nodes(client) == {"sna2": "oslo", "sna3": "oslo"}
    assert [node.name for node in presence.nodes(client)] == ["sna3"]
    assert 80_000 < client.ttl("sendense:known-node:sna2") <= 86_400
    client.delete("sendense:known-node:sna2")  # as after that day
    assert presence.known_nodes(client) == {"sna3": "oslo"}


# Parts that are away


def answer_within_its_time(metrics: Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    """What is told, in time whatever is away."""
    began = time.monotonic()
    found = samples(metrics.text())
    assert time.monotonic() - began < ANSWER_SECONDS + MARGIN_SECONDS
    return found


def test_redis_that_hangs(hub: Hub, ledger: Ledger, tmp_path: Path) -> None:
    """A Redis that is stopped is told to be away, in time, and the repository all the same; then all is there again."""
    metrics = Metrics(context_of(hub, repository=tmp_path / "repository"))
    pid = hub.client.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        found = answer_within_its_time(metrics)
        assert found["sendense_up"] == {("redis",): 0, ("repository",): 1}
        assert "sendense_jobs" not in found
        assert found["sendense_repository_free_bytes"][()] > 0
    finally:
        os.kill(pid, signal.SIGCONT)
    assert patiently(lambda: samples(metrics.text())["sendense_up"][("redis",)] == 1, WAIT_SECONDS)


def test_repository_that_hangs(hub: Hub, ledger: Ledger, tmp_path: Path) -> None:
    """A file system that does not answer holds up one look, and no more than one answer; nothing else is held up."""
    root = tmp_path / "repository"
    root.mkdir()
    os.mkfifo(root / "repository.json")  # to open it takes until somebody writes
    metrics = Metrics(context_of(hub, repository=root))
    found = answer_within_its_time(metrics)
    assert found["sendense_up"] == {("redis",): 1, ("repository",): 0}
    assert "sendense_repository_free_bytes" not in found
    began = time.monotonic()
    for _ in range(5):
        assert samples(metrics.text())["sendense_up"] == {("redis",): 1, ("repository",): 0}
    assert time.monotonic() - began < ANSWER_SECONDS
    (root / "repository.json").write_text("")


def test_repository_that_is_away(hub: Hub, ledger: Ledger, tmp_path: Path) -> None:
    """No repository where one was, and no folder that is one, are told; an empty folder is a new one."""
    (tmp_path / "other").touch()
    assert samples(Metrics(context_of(hub, repository=tmp_path)).text())["sendense_up"][("repository",)] == 0
    assert samples(Metrics(context_of(hub)).text())["sendense_up"][("repository",)] == 0
    new = samples(Metrics(context_of(hub, repository=tmp_path / "new")).text())
    assert new["sendense_up"][("repository",)] == 1
    assert not (tmp_path / "new").exists()


def test_repository_that_is_lost(tmp_path: Path) -> None:
    """An empty folder where a repository was is no new one, however often it is looked at; until it is back."""
    repository = Story(tmp_path).repository.layout.root
    reader = RepositoryReader(Settings(repository=repository))
    before = reader.read()
    repository.rename(tmp_path / "unmounted")
    repository.mkdir()
    for _ in range(3):
        with pytest.raises(InputError, match="no repository any more"):
            reader.read()
    repository.rmdir()
    (tmp_path / "unmounted").rename(repository)
    assert reader.read().vms == before.vms


def test_vm_whose_points_break(hub: Hub, ledger: Ledger, tmp_path: Path) -> None:
    """A VM all of whose points are broken has none, and is told; one whose points were all deleted is not."""
    story = Story(tmp_path)
    first, second = story.backup(full=True, d2000="A"), story.backup(d2000="B")
    story.repository.remember(VmInfo.model_validate(info(story.vm)))
    layout = story.repository.layout
    key = (story.vm.uuid, story.vm.name)

    def points() -> dict[str, dict[tuple[str, ...], float]]:
        found = samples(Metrics(context_of(hub, repository=layout.root)).text())
        names = ("sendense_points", "sendense_repository_broken_points", "sendense_point_age_seconds")
        return {name: found.get(name, {}) for name in names}

    found = points()
    assert (found["sendense_points"], found["sendense_repository_broken_points"]) == ({key: 2}, {key: 0})
    assert found["sendense_point_age_seconds"].keys() == {key}
    for point in (first, second):
        layout.image(story.vm.uuid, point.id, 2000).write_bytes(b"")
    found = points()
    assert (found["sendense_points"], found["sendense_repository_broken_points"]) == ({key: 0}, {key: 2})
    assert found["sendense_point_age_seconds"] == {}
    for point in (second, first):
        shutil.rmtree(layout.point(story.vm.uuid, point.id))
    assert layout.vm_file(story.vm.uuid).exists()
    assert not any(points().values())


def test_state_folder(hub: Hub, ledger: Ledger, tmp_path: Path) -> None:
    """How full the file system of the hub's own folder is, apart from the repository's."""
    with small_disk(8 * MiB) as disk:
        settings = Settings(state_dir=disk.path / "state")
        settings.hub_dir.mkdir(parents=True)
        (settings.hub_dir / "log").write_bytes(bytes(6 * MiB))
        found = samples(Metrics(context_of(hub, state_dir=settings.state_dir, repository=tmp_path / "new")).text())
        assert found["sendense_state_size_bytes"] == {(): 8 * MiB}
        assert found["sendense_state_free_bytes"][()] <= 2 * MiB
        assert found["sendense_repository_size_bytes"] != {(): 8 * MiB}
    assert "sendense_state_size_bytes" not in samples(Metrics(context_of(hub, state_dir=tmp_path / "no")).text())


def test_schedules(hub: Hub, ledger: Ledger, tmp_path: Path) -> None:
    """A VM is overdue for as long as its schedule says, whether it has points or not; a paused one says nothing."""
    story = Story(tmp_path)
    story.backup(full=True, d2000="A")
    now = datetime.now(UTC)
    never = VM.model_copy(update={"uuid": VM.uuid.replace("1", "2"), "name": "never"})
    late = Schedule(name="late", vm=never, at="00:00", since=now - timedelta(days=10))
    well = Schedule(name="well", at="00:00", since=now)  # for all VMs: it is new, so nothing is missed yet
    resting = late.model_copy(update={"name": "resting", "vm": VM, "paused": True})

    def scheduled(*schedules: Schedule) -> dict[tuple[str, ...], float]:
        repository = story.repository
        change_settings(repository.layout, lambda old: old.model_copy(update={"schedules": list(schedules)}))
        text = Metrics(context_of(hub, repository=repository.layout.root)).text()
        return samples(text).get("sendense_vm_overdue_seconds", {})

    assert scheduled() == {}
    assert scheduled(resting) == {}
    found = scheduled(late, well)
    assert found[(never.uuid, "never")] > 8 * 86_400 - 3600
    assert found[(story.vm.uuid, "web01")] == 0
    Runs(hub.client).put_seen("well", {})  # its run did not find the VM: nothing hides the age of its points
    assert scheduled(late, well).keys() == {(never.uuid, "never")}


# Snapshots that jobs left


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """Two small VMs."""
    with open_site(vms=2, disks=1, disk_size=16 * MiB) as site:
        yield site


@contextmanager
def made(site: LabSite, settings: Site, *names: str) -> Iterator[None]:
    """Snapshots of these names of the first VM, until the block ends."""
    moref = site.client.vm("web01").id
    with open_session("lab", settings) as session:
        for name in names:
            snapshot.create_snapshot(session, moref, name, False, no_beat)
        try:
            yield
        finally:
            for name in names:
                snapshot.remove_snapshots(session, moref, name, no_beat)


def test_orphaned_snapshots(hub: Hub, ledger: Ledger, site: LabSite) -> None:
    """A snapshot of a job that is over is an orphan; one of an active job, or of somebody else, is not."""
    settings = Site(
        vcenter=f"127.0.0.1:{site.port}",
        user="operator@lab.local",
        password_file=site.folder / "password",
        ca_file=site.folder / "ca.pem",
    )
    context = context_of(hub, sites={"lab": settings})
    jobs = context.jobs
    for job in ("aaaa", "bbbb"):
        jobs.submit(job, BackupRequest(vm=VM), "backup of web01", "inspect", [job])
    jobs.lease("bbbb", "w/1/a", LONG, 1.0)
    jobs.finish("bbbb", "w/1/a", "failed")
    with made(site, settings, "sendense-aaaa", "sendense-bbbb", "sendense-cccc", "before the update"):
        watching.watch(context, no_beat)
        look = watching.looks(context)["lab"]
        assert [(each.name, each.known) for each in look.orphans] == [("sendense-bbbb", True), ("sendense-cccc", False)]
        assert all(each.vm.name == "web01" and 0 <= jobs.clock() - each.made < 600 for each in look.orphans)
        assert len(samples(Metrics(context).text())["sendense_orphaned_snapshot_age_seconds"]) == 2
        (site.folder / "password").rename(site.folder / "away")
        try:
            watching.watch(context, no_beat)
        finally:
            (site.folder / "away").rename(site.folder / "password")
        away = watching.looks(context)["lab"]
        assert away.error
        assert (away.orphans, away.answered) == (look.orphans, look.answered)
        assert samples(Metrics(context).text())["sendense_site_up"] == {("lab",): 0}
    watching.watch(context, no_beat)
    look = watching.looks(context)["lab"]
    assert (look.orphans, look.error) == ([], "")


def test_site_that_is_forgotten(hub: Hub, ledger: Ledger) -> None:
    """A site without a node is asked for a day, and is then told of no more."""
    context, now = context_of(hub), hub.client.time()[0]
    look = watching.SiteLook(asked=now - 400.0, answered=now - 2 * watching.KEPT_SECONDS)
    hub.client.hset("sendense:snapshots", "oslo", look.model_dump_json())
    watching.watch(context, no_beat)
    assert watching.looks(context) == {}


def test_site_whose_record_is_of_another_version(hub: Hub, ledger: Ledger) -> None:
    """A record that cannot be read hides neither the other sites nor what else Redis tells."""
    context, now = context_of(hub), hub.client.time()[0]
    hub.client.hset("sendense:snapshots", "bergen", '{"asked": "yesterday"}')
    hub.client.hset("sendense:snapshots", "oslo", watching.SiteLook(asked=now, answered=now).model_dump_json())
    found = samples(Metrics(context).text())
    assert found["sendense_up"][("redis",)] == 1
    assert found["sendense_site_up"] == {("oslo",): 1}
    watching.watch(context, no_beat)
    assert watching.looks(context).keys() == {"oslo"}


# Over HTTP


@pytest.fixture(scope="module")
def api(site: LabSite) -> Iterator[Api]:
    """An API of a hub whose Redis was never started."""
    with open_backups(site) as backups, open_api(backups) as api:
        yield api


def test_scrape_needs_a_token(api: Api) -> None:
    """Nobody without a token learns the VMs' names; a reader's is enough."""
    problem(api.client().get("/metrics"), 401)
    problem(api.client("sendense_wrong").get("/metrics"), 401)
    for role in ("reader", "operator"):
        answer = api.client(api.token(role)).get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        assert samples(answer.content)["sendense_up"] == {("redis",): 0, ("repository",): 1}


def test_wrong_scrapes(api: Api) -> None:
    """What is not asked for rightly is refused as everywhere."""
    client = api.client(api.token("reader"))
    assert problem(client.get("/metrics", params={"name": "x"}), 422)["fields"]
    problem(client.post("/metrics"), 403)
    problem(client.get("/metrics/"), 404)


def test_scrapes_at_once(api: Api) -> None:
    """Many at once wait for one another, and each has its answer."""
    token = api.token("reader")
    with (
        httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {token}"}, timeout=60.0) as client,
        ThreadPoolExecutor(20) as pool,
    ):
        answers = list(pool.map(lambda _: client.get("/metrics"), range(20)))
    assert {answer.status_code for answer in answers} == {200}
