"""Backups that go on after another snapshot, and hold nothing of the one before that is not so any more."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from sendense.jobs.ledger import Ledger
from sendense.units import MiB
from tests.backup import CLUSTER, WAIT_SECONDS, Backups, patiently
from tests.site import LabSite, open_site

SIZE = 32 * MiB
SLOWLY = MiB
"""Bytes per second: a small disk is stored while a large one is still read."""


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """Machines with small disks; each test has one of its own."""
    with open_site(vms=3, disk_size=SIZE, fill=8 * MiB) as site:
        yield site


def interrupted(site: LabSite, backups: Backups, vm: str, key: int, *options: str) -> str:
    """The id of a backup that was cancelled while it read slowly, once it had stored something of this disk."""
    site.client.set(vm, read_rate=SLOWLY)
    try:
        process = backups.start("backup", vm, "--json", *options, request_bytes=CLUSTER)
        assert patiently(has_stored(backups, key), WAIT_SECONDS), process.poll()
        process.send_signal(signal.SIGINT)
        result = backups.finish(process)
    finally:
        site.client.set(vm, read_rate=0)
    assert result.status == 130, result
    return result.error[1].split("jobs resume ")[1]


def has_stored(backups: Backups, key: int) -> Callable[[], bool]:
    """Whether the latest job has a batch of this disk."""

    def ask() -> bool:
        view = backups.job()
        copies = [disk.copy_id for disk in view.work.disks if disk.key == key] if view and not view.ended else []
        with backups.client() as client:
            progress = Ledger(client).progress(copies[0]) if copies and copies[0] else None
        return bool(progress and progress.batches_done)

    return ask


def test_without_tracking(site: LabSite, backups: Backups) -> None:
    """Nothing is known of what changed: all is copied again, and what was data before and is zero now reads as zero."""
    client, vm = site.client, "legacy01"
    small = client.add_disk(vm, 4 * MiB)
    client.write(vm, 0, os.urandom(MiB // 2), small)
    client.write(vm, MiB, os.urandom(6 * MiB), 2000)
    job = interrupted(site, backups, vm, small)
    client.zero(vm, MiB, 6 * MiB, 2000)
    client.zero(vm, 0, MiB // 2, small)
    kept = backups.keep(vm)
    backups.succeeded(backups.run("jobs", "resume", job, "--json"))
    backups.check(backups.points(vm)[-1], kept)


def test_twice(site: LabSite, backups: Backups) -> None:
    """A resumption that fails behind its snapshot does not make the next one miss what changed before that snapshot."""
    client, vm = site.client, "web01"
    backups.backup(vm)
    client.write(vm, 4 * MiB, os.urandom(MiB // 2), 2000)
    client.write(vm, 4 * MiB, os.urandom(12 * MiB), 2001)
    job = interrupted(site, backups, vm, 2000)
    client.write(vm, 4 * MiB, os.urandom(CLUSTER), 2000)
    client.write(vm, 9 * MiB, os.urandom(CLUSTER), 2000)
    client.fail_next("QueryChangedDiskAreas", "NoPermission")
    failed = backups.run("jobs", "resume", job, "--json")
    assert failed.status == 1, failed
    assert client.snapshots(vm) == []
    kept = backups.keep(vm)
    view = backups.succeeded(backups.run("jobs", "resume", job, "--json"))
    assert [disk.mode for disk in view.disks] == ["incremental", "incremental"]
    backups.check(backups.points(vm)[-1], kept)


@pytest.mark.parametrize("mode", ["incremental", "full"])
def test_another_backup_meanwhile(site: LabSite, backups: Backups, mode: str) -> None:
    """Two points never build on one: a resumed incremental builds on the point that was made meanwhile."""
    client, vm = site.client, "db01"
    backups.backup(vm)
    client.write(vm, 4 * MiB, os.urandom(MiB // 2), 2000)
    client.write(vm, 4 * MiB, os.urandom(12 * MiB), 2001)
    job = interrupted(site, backups, vm, 2000, "--mode", mode)
    client.write(vm, 5 * MiB, os.urandom(CLUSTER), 2001)
    backups.backup(vm)
    client.zero(vm, 4 * MiB, MiB, 2001)
    kept = backups.keep(vm)
    latest = backups.points(vm)[-1]
    backups.succeeded(backups.run("jobs", "resume", job, "--json"))
    points = {point.job: point for point in backups.points(vm)}
    backups.check(points[job], kept)
    parents = [disk.parent for point in points.values() for disk in point.disks if disk.parent and disk.key == 2000]
    assert len(set(parents)) == len(parents)
    if mode == "incremental":
        assert {disk.parent for disk in points[job].disks} == {latest.id}
    backups.backup(vm)
    assert backups.points(vm)[-1].disk(2000).parent == points[job].id
