"""Jobs that rest for a while, told so by a user, and go on where they were."""

from collections.abc import Callable, Iterator

import pytest

from sendense.jobs.ledger import Ledger
from sendense.models import Progress
from sendense.units import MiB
from tests.backup import CLUSTER, WAIT_SECONDS, Backups, patiently
from tests.site import LabSite, open_site

VM = "web01"
SLOWLY = 2 * MiB
"""Bytes per second: a batch takes a few seconds."""


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """A machine with two disks."""
    with open_site(vms=1, disk_size=16 * MiB, fill=8 * MiB) as site:
        yield site


def test_paused(site: LabSite, backups: Backups) -> None:
    """What a paused job has under way ends, nothing more begins, and then it goes on: each byte is moved once."""
    kept = backups.keep(VM)
    site.client.set(VM, read_rate=SLOWLY)
    process = backups.start("backup", VM, "--json", request_bytes=CLUSTER)
    try:
        assert patiently(copying(backups, lambda each: bool(each.active)), WAIT_SECONDS), process.poll()
        job = backups.job()
        assert job
        assert backups.run("jobs", "pause", job.id).status == 0
        assert patiently(copying(backups, lambda each: not each.active), WAIT_SECONDS)
        resting = backups.run("jobs", "show", job.id)
        assert "paused" in resting.stdout
    finally:
        site.client.set(VM, read_rate=0)
    assert process.poll() is None
    assert backups.run("jobs", "resume", job.id, "--json").status == 0
    view = backups.succeeded(backups.finish(process))
    for disk in view.disks:
        assert disk.progress
        assert disk.progress.copied == disk.progress.data
        assert disk.progress.retries == 0
    backups.check(backups.points(VM)[-1], kept)


def test_paused_and_cancelled(site: LabSite, backups: Backups) -> None:
    """A job that rests before it has begun can be cancelled, and leaves nothing behind."""
    site.client.set(VM, snapshot_seconds=4.0)
    try:
        process = backups.start("backup", VM, "--mode", "full", "--json")
        view = backups.wait_for_step("snapshot", process)
        assert backups.run("jobs", "pause", view.id).status == 0
    finally:
        site.client.set(VM, snapshot_seconds=0)
    assert patiently(lambda: bool((now := backups.job()) and now.waiting), WAIT_SECONDS)
    assert backups.run("jobs", "cancel", view.id).status == 0
    assert backups.finish(process).status == 130
    refused = backups.run("jobs", "pause", view.id)
    assert (refused.status, refused.error[0]) == (2, f"sendense: job {view.id}: cancelled already")


def copying(backups: Backups, holds: Callable[[Progress], bool]) -> Callable[[], bool]:
    """Whether this holds for the copying of each disk of the latest job."""

    def ask() -> bool:
        view = backups.job()
        if not view or not view.work.disks:
            return False
        with backups.client() as client:
            found = [Ledger(client).progress(disk.copy_id) for disk in view.work.disks]
        return all(each and each.batches and holds(each) for each in found)

    return ask
