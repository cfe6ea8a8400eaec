"""What breaks a chain of incrementals: the disk is copied whole then, and the job and the point say why."""

# pyVmomi's constructors have no types.
# mypy: allow-untyped-calls

import json
from collections.abc import Iterator

import pytest
from pyVmomi import vim

from sendense.repository.points import Point
from sendense.settings import Site
from sendense.views import Job
from sendense.vsphere.session import Session, no_beat, open_session
from sendense.vsphere.snapshot import create_snapshot, remove_snapshots
from sendense.vsphere.vim_tasks import no_progress, perform
from tests.backup import Backups, MiB
from tests.site import LabSite, open_site

SIZE = 32 * MiB
KEYS = [2000, 2001]


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """A machine of its own for each test."""
    with open_site(vms=10, disk_size=SIZE, fill=4 * MiB) as site:
        yield site


def modes(view: Job) -> list[str]:
    """How each disk was copied."""
    return [disk.mode for disk in view.disks]


def reasons(backups: Backups, vm: str, view: Job) -> list[str]:
    """Why each disk was copied whole: the job and the point say the same."""
    point = backups.points(vm)[-1]
    assert point.id == view.point
    assert [disk.reason for disk in point.disks] == [disk.reason for disk in view.disks]
    assert point.reason == next((disk.reason for disk in point.disks if disk.mode == "full"), "")
    return [disk.reason for disk in point.disks]


def full_then(backups: Backups, vm: str) -> Point:
    """A first point of the machine, whose disks then change."""
    backups.backup(vm)
    for key in KEYS:
        backups.site.client.write(vm, 5 * MiB, b"new content" * 10_000, key)
    return backups.points(vm)[0]


def session_at(site: LabSite) -> Session:
    """A login of an administrator of the site."""
    settings = Site(
        vcenter=f"127.0.0.1:{site.port}",
        user="operator@lab.local",
        password_file=site.folder / "password",
        ca_file=site.folder / "ca.pem",
    )
    return open_session("lab", settings)


def forge_change_id(backups: Backups, point: Point, key: int, change_id: str) -> None:
    """Have a point's manifest say another change ID."""
    path = backups.repository.layout.point(point.vm.uuid, point.id) / "point.json"
    manifest = json.loads(path.read_text())
    next(disk for disk in manifest["disks"] if disk["key"] == key)["change_id"] = change_id
    path.write_text(json.dumps(manifest))


def test_tracking_was_reset(site: LabSite, backups: Backups) -> None:
    """After a reset of change tracking everything is copied, and the next one is an incremental again."""
    vm = "web01"
    full_then(backups, vm)
    site.client.reset_tracking(vm)
    kept = backups.keep(vm)
    view = backups.backup(vm)
    assert modes(view) == ["full", "full"]
    assert all("tracking was reset" in reason for reason in reasons(backups, vm, view))
    assert any("tracking was reset" in event.text for event in backups.events(view.id))
    backups.check(backups.points(vm)[-1], kept)
    assert modes(backups.backup(vm)) == ["incremental", "incremental"]


def test_incremental_that_is_impossible(site: LabSite, backups: Backups) -> None:
    """--mode incremental refuses rather than to make a full, says why, and leaves nothing; --mode full is one."""
    vm = "db01"
    assert "no restore point yet" in backups.refused(vm, "--mode", "incremental")
    full_then(backups, vm)
    site.client.reset_tracking(vm)
    assert "tracking was reset" in backups.refused(vm, "--mode", "incremental")
    assert len(backups.points(vm)) == 1
    assert backups.repository.unfinished() == []
    view = backups.backup(vm, "--mode", "full")
    assert reasons(backups, vm, view) == ["a full was asked for"] * 2
    assert modes(backups.backup(vm, "--mode", "incremental")) == ["incremental", "incremental"]


def test_machine_was_reverted(site: LabSite, backups: Backups) -> None:
    """A VM that was reverted to a snapshot from before its last point is copied whole."""
    vm = "app01"
    moref = site.client.vm(vm).id
    backups.backup(vm)
    with session_at(site) as session:
        before = create_snapshot(session, moref, "mine", False, no_beat)
        full_then(backups, vm)
        assert [shot.name for shot in site.client.snapshots(vm)] == ["mine"]
        snapshot = session.snapshot(before)
        deadline = 1e9
        perform(session, "revert", lambda: snapshot.RevertToSnapshot_Task(), deadline, no_progress)
        kept = backups.keep(vm)
        view = backups.backup(vm)
        assert modes(view) == ["full", "full"]
        assert all(reasons(backups, vm, view))
        backups.check(backups.points(vm)[-1], kept)
        remove_snapshots(session, moref, "mine", no_beat)


@pytest.mark.parametrize(
    "change_id",
    ["garbage", "52 df 1a 2b 3c 4d 5e 6f-00 11 22 33 44 55 66 77/4", "SAME/99"],
    ids=["garbage", "foreign", "future"],
)
def test_change_id_that_is_wrong(site: LabSite, backups: Backups, change_id: str) -> None:
    """A change ID that the site refuses makes a full of that disk; the other one is an incremental."""
    vm = "mail01"
    full_then(backups, vm)
    point = backups.points(vm)[-1]
    own = point.disk(2000).change_id.rpartition("/")[0]
    forge_change_id(backups, point, 2000, change_id.replace("SAME", own))
    kept = backups.keep(vm)
    view = backups.backup(vm)
    assert modes(view) == ["full", "incremental"]
    assert reasons(backups, vm, view)[0]
    backups.check(backups.points(vm)[-1], kept)


def test_point_made_without_change_id(site: LabSite, backups: Backups) -> None:
    """A parent without change IDs is none to build on."""
    vm = "files01"
    point = full_then(backups, vm)
    forge_change_id(backups, point, 2001, "")
    view = backups.backup(vm)
    assert modes(view) == ["incremental", "full"]
    assert reasons(backups, vm, view)[1] == f"restore point {point.id} was made without change tracking"


def test_disk_that_grew(site: LabSite, backups: Backups) -> None:
    """A disk that grew is copied whole, the other one is an incremental."""
    vm = "git01"
    full_then(backups, vm)
    site.client.grow_disk(vm, 2001, SIZE + 8 * MiB)
    site.client.write(vm, SIZE + MiB, b"in the new part" * 1000, 2001)
    kept = backups.keep(vm)
    view = backups.backup(vm)
    assert modes(view) == ["incremental", "full"]
    assert "size changed" in reasons(backups, vm, view)[1]
    backups.check(backups.points(vm)[-1], kept)
    assert modes(backups.backup(vm)) == ["incremental", "incremental"]


def test_disk_added_and_removed(site: LabSite, backups: Backups) -> None:
    """A disk that was added is copied whole, the others are incrementals; one that was removed is in no new point."""
    vm = "ci01"
    full_then(backups, vm)
    added = site.client.add_disk(vm, 16 * MiB)
    site.client.write(vm, MiB, b"a new disk" * 1000, added)
    kept = backups.keep(vm)
    view = backups.backup(vm)
    assert modes(view) == ["incremental", "incremental", "full"]
    assert "does not have this disk" in reasons(backups, vm, view)[2]
    backups.check(backups.points(vm)[-1], kept)
    site.client.remove_disk(vm, 2001)
    kept = backups.keep(vm)
    view = backups.backup(vm)
    assert modes(view) == ["incremental", "incremental"]
    point = backups.points(vm)[-1]
    assert [disk.key for disk in point.disks] == [2000, added]
    backups.check(point, kept)
    # A disk that comes back under the key of a removed one is another disk.
    assert site.client.add_disk(vm, SIZE) == added + 1


def test_another_disk_under_the_same_key(site: LabSite, backups: Backups) -> None:
    """A disk that was replaced by another of the same size, which takes its key, is copied whole."""
    vm = "cache01"
    full_then(backups, vm)
    site.client.remove_disk(vm, 2001)
    assert site.client.add_disk(vm, SIZE) == 2001
    site.client.write(vm, 7 * MiB, b"another disk" * 1000, 2001)
    kept = backups.keep(vm)
    view = backups.backup(vm)
    assert modes(view) == ["incremental", "full"]
    backups.check(backups.points(vm)[-1], kept)


def test_machine_without_tracking(site: LabSite, backups: Backups) -> None:
    """A VM whose hardware cannot track changes is copied whole each time, and it is said why."""
    vm = "legacy01"
    for reason in ("no restore point yet", "without change tracking"):
        site.client.write(vm, 2 * MiB, b"old hardware" * 1000)
        kept = backups.keep(vm)
        view = backups.backup(vm)
        assert modes(view) == ["full"]
        assert reason in reasons(backups, vm, view)[0]
        backups.check(backups.points(vm)[-1], kept)


def test_tracking_turned_off(site: LabSite, backups: Backups) -> None:
    """Tracking that somebody turned off is turned on again, and what it missed is not missed."""
    vm = "build01"
    full_then(backups, vm)
    moref = site.client.vm(vm).id
    with session_at(site) as session:
        spec = vim.vm.ConfigSpec(changeTrackingEnabled=False)
        perform(session, "off", lambda: session.vm(moref).ReconfigVM_Task(spec), 1e9, no_progress)
        remove_snapshots(session, moref, "none", no_beat)
        create_snapshot(session, moref, "stun", False, no_beat)
        remove_snapshots(session, moref, "stun", no_beat)
    site.client.write(vm, 9 * MiB, b"unseen" * 10_000)
    kept = backups.keep(vm)
    view = backups.backup(vm)
    assert modes(view) == ["full", "full"]
    assert all(reasons(backups, vm, view))
    backups.check(backups.points(vm)[-1], kept)
    assert modes(backups.backup(vm)) == ["incremental", "incremental"]


def test_parent_that_is_damaged(backups: Backups) -> None:
    """A last point that cannot be used is not built on: the one before it is."""
    vm = "print01"
    backups.backup(vm)
    backups.backup(vm)
    last, before = backups.points(vm)[-1], backups.points(vm)[-2]
    manifest = backups.repository.layout.point(last.vm.uuid, last.id) / "point.json"
    text = manifest.read_text()
    manifest.write_text("{")
    try:
        kept = backups.keep(vm)
        view = backups.backup(vm)
    finally:
        manifest.write_text(text)
    assert {disk.parent for disk in view.disks} == {before.id}
    point = next(point for point in backups.points(vm) if point.id == view.point)
    backups.check(point, kept)
