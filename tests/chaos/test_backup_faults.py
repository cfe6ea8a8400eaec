"""
Whatever is killed or stopped in any step of a backup: the old point or one more, both sound, and nothing left behind.

Each step is held for long enough by the lab (slow vim_tasks, many windows of changed areas, a slow disk), or is too
quick for that: then the fault strikes in it or right behind it, and has to be survived as well.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from sendense.coordinator.pipelines import pipeline
from sendense.jobs.ledger import Ledger
from sendense.jobs.presence import PRESENCE_SECONDS
from sendense.models import VmRef
from sendense.repository.points import Point
from sendense.requests import BackupRequest
from sendense.service.describing import describe
from sendense.supervise.worker import PRESENCE_GRACE_SECONDS
from tests.backup import CLUSTER, WAIT_SECONDS, Backups, MiB, kill_command, open_backups, patiently
from tests.site import LabSite, open_site

VM = "web01"
STEPS = [step.name for step in pipeline(BackupRequest(vm=VmRef(site="", moref="", uuid="", name="")))]
SLOW = {"requests_in_flight": 4, "request_bytes": 256 * 1024}
UNHURRIED = {"claim_seconds": 5}
"""A process that gives up on a stopped nbdkit waits for it for two seconds, which must not cost it its claim."""


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """A machine whose snapshots, changed areas and disks take their time."""
    with open_site(vms=1, disk_size=32 * MiB, fill=4 * MiB) as site:
        yield site


@dataclass(frozen=True)
class First:
    """A repository with one point of the machine, and its disks as they were then and are now."""

    root: Path
    point: Point
    then: dict[int, Path]
    now: dict[int, Path]


@pytest.fixture(scope="module")
def first(site: LabSite) -> Iterator[First]:
    """Made once: each test has a copy of the repository, and makes the second point."""
    with open_backups(site) as backups:
        then = backups.keep(VM)
        backups.backup(VM)
        for number in range(24):
            site.client.write(VM, (number * 16 + 3) * CLUSTER, os.urandom(CLUSTER), 2000)
            site.client.write(VM, (number * 11 + 5) * CLUSTER, os.urandom(CLUSTER), 2001)
        site.client.zero(VM, 20 * MiB, MiB, 2001)
        now = backups.keep(VM)
        site.client.set(VM, snapshot_seconds=0.4, task_seconds=0.4, window_bytes=2 * CLUSTER, read_rate=2 * MiB)
        yield First(backups.root, backups.points(VM)[0], then, now)


@pytest.fixture
def backups(site: LabSite, first: First) -> Iterator[Backups]:
    """A repository with the first point, without a hub."""
    with open_backups(site) as backups:
        shutil.copytree(first.root, backups.root)
        yield backups


def check(backups: Backups, first: First, made: int) -> None:
    """The first point and so many more are there, all of them sound, and nothing else is left."""
    points = backups.points()
    assert points[0] == first.point
    backups.check(points[0], first.then)
    for point in points[1:]:
        backups.check(point, first.now)
    assert len(points) == 1 + made
    assert backups.leftovers() == []


def strike(
    backups: Backups, step: str, fault: Callable[[Backups], None], **settings: object
) -> "subprocess.Popen[str]":
    """Start a backup, and have the fault happen in this step."""
    process = backups.start("backup", VM, "--json", **{**SLOW, **settings})
    backups.wait_for_step(step, process)
    if step == "copy":
        backups.wait_until_reading()
    fault(backups)
    return process


def kill(processes: list[psutil.Process]) -> None:
    """End them at once; one may have ended by itself."""
    assert processes
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def stop(processes: list[psutil.Process]) -> None:
    """Stop them for good."""
    assert processes
    for process in processes:
        process.suspend()


def kill_hub_processes(backups: Backups) -> None:
    kill(backups.pool("hub"))


def kill_control_processes(backups: Backups) -> None:
    kill(backups.pool("control"))


def kill_node_processes(backups: Backups) -> None:
    kill(backups.pool("node"))


def kill_hub_worker(backups: Backups) -> None:
    kill(backups.main("hub"))


def kill_control_worker(backups: Backups) -> None:
    kill(backups.main("control"))


def kill_node_worker(backups: Backups) -> None:
    copying(backups)
    kill(backups.main("node"))


def kill_exports(backups: Backups) -> None:
    kill(backups.family("qemu-storage-daemon"))


def kill_redis(backups: Backups) -> None:
    kill(backups.family("redis-server"))


def kill_nbdkits(backups: Backups) -> None:
    kill(backups.family("nbdkit", "--readonly"))


def kill_everything(backups: Backups) -> None:
    """All parts, but for the command that keeps them up."""
    kill(backups.family("qemu-storage-daemon") + backups.family("redis-server") + backups.family("-m", "workers"))


def stop_holder(backups: Backups) -> None:
    """The process that has the lease on the job's step."""
    assert patiently(lambda: bool(owner_of(backups)), WAIT_SECONDS)
    stop([psutil.Process(int(owner_of(backups).split("/")[1]))])


def owner_of(backups: Backups) -> str:
    """Who runs the job's step at this moment; empty when nobody does."""
    view = backups.job()
    assert view
    with backups.client() as client:
        return str((client.hget(f"sendense:job:{view.id}", "owner") or b"").decode())


def copying(backups: Backups) -> list[str]:
    """Who has a batch, once both disks are copied."""
    found: list[str] = []

    def both_claimed() -> bool:
        view = backups.job()
        assert view
        with backups.client() as client:
            progress = describe(Ledger(client), view).progress
        found[:] = [each.worker for each in progress.active] if progress else []
        return len(found) == 2

    assert patiently(both_claimed, WAIT_SECONDS)
    return found


def stop_copying_processes(backups: Backups) -> None:
    """All those that have a batch."""
    stop([psutil.Process(int(owner.split("/")[1])) for owner in copying(backups)])


def stop_exports(backups: Backups) -> None:
    stop(backups.family("qemu-storage-daemon"))


def stop_redis(backups: Backups) -> None:
    stop(backups.family("redis-server"))


def stop_nbdkits(backups: Backups) -> None:
    copying(backups)
    stop(backups.family("nbdkit", "--readonly"))


def fill_redis(backups: Backups) -> None:
    """It stores nothing for longer than anybody is expected to be silent; who lives is not taken for dead."""
    parts = [*backups.family("redis-server"), *backups.main("hub"), *backups.main("control"), *backups.main("node")]
    with backups.client() as client:
        client.config_set("maxmemory", 1)
        time.sleep(PRESENCE_GRACE_SECONDS + PRESENCE_SECONDS)
        client.config_set("maxmemory", 0)
    assert all(part.is_running() for part in parts)


FAULTS = [
    *((kill_hub_processes, step) for step in ("choose", "prepare", "copy", "commit", "close")),
    *((kill_control_processes, step) for step in ("inspect", "snapshot", "changes", "remove-snapshot")),
    *((kill_exports, step) for step in ("prepare", "copy", "commit")),
    *((kill_redis, step) for step in ("snapshot", "copy", "commit")),
    *((kill_everything, step) for step in ("changes", "copy", "remove-snapshot")),
    *((fault, "copy") for fault in (kill_node_processes, kill_node_worker, kill_nbdkits, kill_hub_worker)),
    (kill_control_worker, "snapshot"),
    *((fault, "copy") for fault in (stop_copying_processes, stop_nbdkits, stop_exports, stop_redis)),
    (fill_redis, "copy"),
    *((stop_holder, step) for step in ("snapshot", "changes")),
]


@pytest.mark.parametrize(
    ("fault", "step"), FAULTS, ids=[f"{fault.__name__}-{step}".replace("_", "-") for fault, step in FAULTS]
)
def test_fault_of_a_part(backups: Backups, first: First, fault: Callable[[Backups], None], step: str) -> None:
    """A part that is killed or stopped in a step costs time, and nothing else: the backup succeeds."""
    settings = UNHURRIED if fault is stop_nbdkits else {}
    view = backups.succeeded(backups.finish(strike(backups, step, fault, **settings)))
    assert [disk.mode for disk in view.disks] == ["incremental", "incremental"]
    check(backups, first, 1)


@pytest.mark.parametrize("step", STEPS)
def test_command_is_killed(backups: Backups, first: First, step: str) -> None:
    """A command that is killed, and the hub with it, leaves a job that the next command brings to its end."""
    process = strike(backups, step, lambda backups: None)
    view = backups.job()
    assert view
    kill_command(process)
    assert patiently(lambda: not backups.family(), WAIT_SECONDS)
    points = len(backups.points())
    result = backups.run("jobs", "watch", view.id, "--json")
    assert backups.succeeded(result).id == view.id
    assert points in (1, 2)
    check(backups, first, 1)


@pytest.mark.parametrize("step", ["changes", "copy"])
def test_killed_and_cleaned(backups: Backups, first: First, step: str) -> None:
    """After a command was killed, `sendense jobs clean` removes all that it left."""
    kill_command(strike(backups, step, lambda backups: None))
    result = backups.run("jobs", "clean")
    assert result.status == 0, result.stderr
    view = json.loads(backups.run("jobs", "--json").stdout)[0]
    assert view["state"] == "cancelled"
    check(backups, first, 0)


@pytest.mark.parametrize(
    ("number", "step"), [(signal.SIGINT, "snapshot"), (signal.SIGTERM, "changes"), (signal.SIGINT, "copy")]
)
def test_interrupted(backups: Backups, first: First, number: signal.Signals, step: str) -> None:
    """Ctrl-C cancels: the job cleans up after itself, and can be resumed to the same end."""
    process = strike(backups, step, lambda backups: None)
    process.send_signal(number)
    result = backups.finish(process)
    assert result.status == 130
    job = result.error[1].split("jobs resume ")[1]
    assert f"sendense-{job}" not in [shot.name for shot in backups.site.client.snapshots(VM)]
    assert len(backups.points()) == 1
    assert backups.survivors() == []
    assert backups.succeeded(backups.run("jobs", "resume", job, "--json")).id == job
    check(backups, first, 1)


def test_site_that_goes_away(site: LabSite, backups: Backups, first: First) -> None:
    """A vCenter that is killed in the middle of a copy, and is back soon, costs time."""
    process = strike(backups, "copy", lambda backups: site.kill())
    site.start()
    backups.succeeded(backups.finish(process))
    check(backups, first, 1)
