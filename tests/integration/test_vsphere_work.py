"""The inventory, snapshots, changed areas and power of the lab's VMs."""

import threading
import time
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest

from sendense.errors import (
    ChangesUnknown,
    InputError,
    PermissionMissing,
    PowerFailed,
    QuiesceFailed,
    SnapshotFailed,
    SnapshotGone,
    VmGone,
)
from sendense.extents import Extent
from sendense.lab.client import LabVm
from sendense.settings import Site
from sendense.units import KiB
from sendense.vsphere import inventory, power, snapshot
from sendense.vsphere.changes import ALL, changed_areas, same_tracking
from sendense.vsphere.faults import moref_of
from sendense.vsphere.session import Session, no_beat, open_session
from sendense.vsphere.vim_tasks import wait_for
from tests.site import LabSite, MiB, open_site

NAME = "sendense-work"
SIZE = 16 * MiB
BLOCK = 64 * KiB
KEY = 2000


@pytest.fixture(scope="module")
def lab() -> Iterator[LabSite]:
    """A site with two VMs of two small disks each, and those that every lab has."""
    with open_site(vms=2, disks=2, disk_size=SIZE) as site:
        yield site


@pytest.fixture
def site(lab: LabSite) -> Site:
    """Settings of the lab."""
    return Site.model_validate(tomllib.loads(lab.config.read_text())["sites"]["lab"])


@pytest.fixture
def session(lab: LabSite, site: Site) -> Iterator[Session]:
    """A login at the lab, whose VMs are without snapshots afterwards, and whose knobs are as they were."""
    knobs = lab.client.status()["knobs"]
    with open_session("lab", site) as session:
        yield session
        lab.client.set(**{name: value for name, value in knobs.items() if name != "read_errors"})
        for vm, _, name in snapshot.find_snapshots(session, ""):
            snapshot.remove_snapshots(session, vm.moref, name, no_beat)


@pytest.fixture
def vm(lab: LabSite, session: Session) -> LabVm:
    """A VM that is on, and whose changes are tracked."""
    found = lab.client.vm("web01")
    power.power_on(session, found.id, no_beat)
    snapshot.enable_tracking(session, found.id)
    _freeze(session, found.id, "first")
    snapshot.remove_snapshots(session, found.id, "first", no_beat)
    return found


def _freeze(session: Session, moref: str, name: str = NAME) -> tuple[str, str]:
    """A snapshot, and the change ID of its first disk."""
    made = snapshot.create_snapshot(session, moref, name, False, no_beat)
    return made, snapshot.snapshot_disks(session, made)[0].change_id


def _perform(session: Session, act: Any) -> None:
    """Have vCenter do what the product never asks for."""
    wait_for(session, "test", session.call("test", act), time.monotonic() + 20)


# Inventory


def test_the_list_is_the_same_in_any_pages(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """All VMs are listed, however few fit on a page, in the order of their paths."""
    whole = inventory.list_vms(session)
    assert [vm.path for vm in whole] == sorted(vm.path for vm in whole)
    assert {"web01", "db01", "mixed01", "legacy01", "test01"} == {vm.ref.name for vm in whole}
    for size in (1, 3):
        monkeypatch.setattr("sendense.vsphere.properties.PAGE_OBJECTS", size)
        assert inventory.list_vms(session) == whole


def test_what_is_said_of_a_vm(lab: LabSite, session: Session) -> None:
    """One VM is described as in the list, with what vCenter has of it."""
    known = lab.client.vm("db01")
    info = inventory.vm_info(session, known.id)
    assert info in inventory.list_vms(session)
    assert (info.ref.site, info.ref.moref, info.ref.uuid) == ("lab", known.id, known.instance_uuid)
    assert info.path.endswith("/databases/db01")
    assert (info.power, info.tools, info.snapshots) == ("on", True, 0)
    assert info.host.startswith("esx")
    assert [(disk.key, disk.size, disk.file) for disk in info.disks] == [
        (disk.key, disk.size, disk.file) for disk in known.disks
    ]
    assert all(0 < info.allocated[disk.key] < disk.size for disk in info.disks)


def test_disks_that_cannot_be_backed_up(lab: LabSite, session: Session) -> None:
    """An independent disk and a physical RDM are refused with a reason, their VM's other disk is not."""
    refusals = [disk.refusal for disk in inventory.find_vm(session, "mixed01").disks]
    assert refusals[0] == ""
    assert "independent" in refusals[1]
    assert "physical mode" in refusals[2]
    legacy = inventory.find_vm(session, "legacy01")
    assert (legacy.tracking_possible, legacy.disks[0].refusal) == (False, "")


def test_ways_to_name_a_vm(lab: LabSite, session: Session) -> None:
    """A VM is found by moref, both UUIDs in any case, path with or without its first slash, and name in any case."""
    known = lab.client.vm("web01")
    path = inventory.vm_info(session, known.id).path
    for text in (known.id, known.uuid, known.instance_uuid.upper(), path, path[1:], "web01", "WEB01"):
        assert inventory.find_vm(session, text).ref.moref == known.id


def test_an_ambiguous_name(session: Session) -> None:
    """A name that two VMs bear is refused with both paths, and each path is enough."""
    with pytest.raises(InputError, match="has 2 VMs that 'test01' can mean") as caught:
        inventory.find_vm(session, "test01")
    paths = [vm.path for vm in inventory.list_vms(session) if vm.ref.name == "test01"]
    assert len(paths) == 2
    for path in paths:
        assert path in caught.value.hint
        assert inventory.find_vm(session, path).path == path


def test_an_unknown_name(session: Session) -> None:
    """A name that no VM bears is refused with the similar ones, or else with how to list them all."""
    with pytest.raises(InputError, match="no VM 'web02'") as caught:
        inventory.find_vm(session, "web02")
    assert "web01" in caught.value.hint
    with pytest.raises(InputError) as caught:
        inventory.find_vm(session, "/Lab/vm/nowhere/xyz")
    assert "sendense vms" in caught.value.hint


# Snapshots


def test_change_tracking_is_turned_on_once(lab: LabSite, session: Session) -> None:
    """Tracking is turned on where it is off; not where it is impossible, and not where snapshots exist."""
    known = lab.client.vm("db01")
    _freeze(session, known.id, "before")
    assert snapshot.enable_tracking(session, known.id) is False
    snapshot.remove_snapshots(session, known.id, "before", no_beat)
    assert snapshot.enable_tracking(session, known.id) is True
    assert snapshot.enable_tracking(session, known.id) is False
    assert inventory.vm_info(session, known.id).tracking
    assert snapshot.enable_tracking(session, lab.client.vm("legacy01").id) is False


def test_a_snapshot_has_the_disks_as_they_were(session: Session, vm: LabVm) -> None:
    """A snapshot's disks come with their keys, sizes, change IDs, and the files of that moment."""
    made, _ = _freeze(session, vm.id)
    disks = snapshot.snapshot_disks(session, made)
    assert [(disk.key, disk.size, disk.file) for disk in disks] == [(d.key, d.size, d.file) for d in vm.disks]
    assert all("/" in disk.change_id for disk in disks)
    assert inventory.vm_info(session, vm.id).disks[0].file != disks[0].file
    assert inventory.vm_info(session, vm.id).snapshots == 1


def test_a_snapshot_without_tracking_has_no_change_id(lab: LabSite, session: Session) -> None:
    """Where changes are not tracked the change ID is empty."""
    assert _freeze(session, lab.client.vm("legacy01").id)[1] == ""


def test_a_snapshot_is_made_once(session: Session, vm: LabVm) -> None:
    """Asking again, from another session too, gives the snapshot that is there."""
    made, _ = _freeze(session, vm.id)
    with open_session("lab", session.site) as other:
        assert _freeze(other, vm.id)[0] == made
    assert [found[1] for found in snapshot.find_snapshots(session, NAME)] == [made]


def test_a_snapshot_that_is_being_made_is_waited_for(lab: LabSite, session: Session, vm: LabVm) -> None:
    """Two workers that want one snapshot at the same time get the same one."""
    lab.client.set("web01", snapshot_seconds=0.6)
    made: list[str] = []

    def freeze() -> None:
        with open_session("lab", session.site) as other:
            made.append(_freeze(other, vm.id)[0])

    threads = [threading.Thread(target=freeze, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    lab.client.set("web01", snapshot_seconds=0)
    assert len(made) == 3
    assert len(set(made)) == 1
    assert len(snapshot.find_snapshots(session, NAME)) == 1


def test_a_slow_snapshot(lab: LabSite, session: Session, vm: LabVm) -> None:
    """While a snapshot takes its time, progress is shown and the caller's beat goes on."""
    lab.client.set("web01", snapshot_seconds=2.5)
    percents: list[int] = []
    beats: list[int] = []
    snapshot.create_snapshot(session, vm.id, NAME, False, lambda: beats.append(1), percents.append)
    lab.client.set("web01", snapshot_seconds=0)
    assert percents == sorted(set(percents))
    assert len(percents) > 2
    assert len(beats) > 1


def test_a_snapshot_that_takes_too_long(lab: LabSite, session: Session, site: Site, vm: LabVm) -> None:
    """At the deadline the wait ends with where the vim_task stands; asking again waits for that very snapshot."""
    lab.client.set("web01", snapshot_seconds=1.0)
    with (
        open_session("lab", site.model_copy(update={"snapshot_seconds": 0.3})) as hasty,
        pytest.raises(SnapshotFailed, match=r"task-\d+ is at \d+ % after 0\.\d s") as caught,
    ):
        snapshot.create_snapshot(hasty, vm.id, NAME, False, no_beat)
    assert caught.value.retryable
    made, _ = _freeze(session, vm.id)
    lab.client.set("web01", snapshot_seconds=0)
    assert [found[1] for found in snapshot.find_snapshots(session, NAME)] == [made]


def test_another_vim_task_in_the_way_for_too_long(lab: LabSite, session: Session, site: Site, vm: LabVm) -> None:
    """What keeps a snapshot from being made, until the deadline, is named."""
    lab.client.set("web01", task_seconds=1.2)
    other = session.call("test", lambda: session.vm(vm.id).PowerOff())
    try:
        with (
            open_session("lab", site.model_copy(update={"snapshot_seconds": 0.3})) as hasty,
            pytest.raises(SnapshotFailed, match=rf"{moref_of(other)} of the same VM is in the way, for 0\.3 s"),
        ):
            snapshot.create_snapshot(hasty, vm.id, NAME, False, no_beat)
    finally:
        wait_for(session, "test", other, time.monotonic() + 20)
        lab.client.set("web01", task_seconds=0)
        power.power_on(session, vm.id, no_beat)


def test_the_beat_ends_the_wait(lab: LabSite, session: Session, vm: LabVm) -> None:
    """A caller whose beat raises, as for a job that was cancelled, gets its error at once and may ask again."""
    lab.client.set("web01", snapshot_seconds=1.5)

    def beat() -> None:
        raise KeyError("cancelled")

    with pytest.raises(KeyError):
        snapshot.create_snapshot(session, vm.id, NAME, False, beat)
    assert snapshot.remove_snapshots(session, vm.id, NAME, no_beat) <= 1
    assert _freeze(session, vm.id)[0]
    lab.client.set("web01", snapshot_seconds=0)


def test_quiescing_fails(lab: LabSite, session: Session, vm: LabVm) -> None:
    """Where the guest cannot be quiesced the error says so, and nothing is left; without quiescing it works."""
    legacy = lab.client.vm("legacy01").id
    with pytest.raises(QuiesceFailed) as caught:
        snapshot.create_snapshot(session, legacy, NAME, True, no_beat)
    assert "--no-quiesce" in caught.value.hint
    assert snapshot.find_snapshots(session, NAME) == []
    assert _freeze(session, legacy)[0]
    lab.client.fail_next("CreateSnapshot", "ApplicationQuiesceFault")
    with pytest.raises(QuiesceFailed, match="ApplicationQuiesceFault"):
        snapshot.create_snapshot(session, vm.id, NAME, True, no_beat)


@pytest.mark.parametrize(
    ("fault", "error"),
    [("SnapshotFault", SnapshotFailed), ("NoPermission", PermissionMissing), ("InvalidName", SnapshotFailed)],
)
def test_a_snapshot_fails(fault: str, error: type[Exception], lab: LabSite, session: Session, vm: LabVm) -> None:
    """A vim_task that fails is told in its own words, in making and in removing."""
    lab.client.fail_next("CreateSnapshot", fault)
    with pytest.raises(error, match=f"make snapshot '{NAME}' of {vm.id}: ") as caught:
        snapshot.create_snapshot(session, vm.id, NAME, False, no_beat)
    assert fault in str(caught.value) or isinstance(caught.value, PermissionMissing)
    _freeze(session, vm.id)
    lab.client.fail_next("RemoveSnapshot", fault)
    with pytest.raises(error, match=f"remove snapshot '{NAME}' of {vm.id}: "):
        snapshot.remove_snapshots(session, vm.id, NAME, no_beat)


def test_removing(lab: LabSite, session: Session, vm: LabVm) -> None:
    """All snapshots of the name go, their children and other names stay, and removing again, or from no VM, is fine."""
    first, _ = _freeze(session, vm.id)
    other, _ = _freeze(session, vm.id, "keep")
    for _ in range(2):
        _perform(session, lambda: session.vm(vm.id).CreateSnapshot(NAME, "", False, False))
    assert snapshot.remove_snapshots(session, vm.id, NAME, no_beat) == 3
    assert [found.id for found in lab.client.snapshots("web01")] == [other]
    assert snapshot.remove_snapshots(session, vm.id, NAME, no_beat) == 0
    assert snapshot.remove_snapshots(session, "vm-1", NAME, no_beat) == 0
    with pytest.raises(SnapshotGone, match=first):
        snapshot.snapshot_disks(session, first)


def test_removing_what_is_being_removed(lab: LabSite, session: Session, vm: LabVm) -> None:
    """A removal that an earlier worker began is waited for."""
    made, _ = _freeze(session, vm.id)
    lab.client.set("web01", snapshot_seconds=0.7, task_seconds=0.7)
    session.call("test", lambda: session.snapshot(made).Remove(False, True))
    snapshot.remove_snapshots(session, vm.id, NAME, no_beat)
    lab.client.set("web01", snapshot_seconds=0, task_seconds=0)
    assert lab.client.snapshots("web01") == []


def test_finding_what_was_left(lab: LabSite, session: Session, vm: LabVm) -> None:
    """Snapshots are found by how their names begin, nested ones too, over the whole site, with their VMs."""
    legacy = lab.client.vm("legacy01")
    names = {"sendense-a": vm.id, "other": vm.id, "sendense-b": vm.id, "sendense-c": legacy.id}
    morefs = {name: _freeze(session, moref, name)[0] for name, moref in names.items()}
    found = snapshot.find_snapshots(session, "sendense-")
    assert {(ref.moref, moref, name) for ref, moref, name in found} == {
        (names[name], moref, name) for name, moref in morefs.items() if name != "other"
    }
    assert {ref.uuid for ref, _, _ in found} == {vm.instance_uuid, legacy.instance_uuid}


# Changed areas


def _areas(session: Session, vm: LabVm, made: str | None, since: str, key: int = KEY) -> list[Extent]:
    return list(changed_areas(session, vm.id, made, key, SIZE, since, no_beat))


def test_changed_areas(lab: LabSite, session: Session, vm: LabVm) -> None:
    """What was written between two snapshots, and nothing else, is changed, neighbours as one, each disk by itself."""
    _, since = _freeze(session, vm.id, "since")
    for offset in (0, 5 * BLOCK + 17, 6 * BLOCK, SIZE - 1):
        lab.client.write("web01", offset, b"x", KEY)
    lab.client.zero("web01", 10 * BLOCK, BLOCK, KEY)
    made, change_id = _freeze(session, vm.id)
    lab.client.write("web01", 20 * BLOCK, b"x", KEY)
    assert same_tracking(since, change_id)
    assert _areas(session, vm, made, since) == [
        Extent(0, BLOCK),
        Extent(5 * BLOCK, 2 * BLOCK),
        Extent(10 * BLOCK, BLOCK),
        Extent(SIZE - BLOCK, BLOCK),
    ]
    assert _areas(session, vm, made, change_id) == []
    other = snapshot.snapshot_disks(session, made)[1]
    assert _areas(session, vm, made, other.change_id, other.key) == []


@pytest.mark.parametrize(("window", "limit"), [(BLOCK, 1), (3 * BLOCK, 2000), (0, 1), (0, 2), (SIZE - BLOCK, 5)])
def test_all_windows_are_read(window: int, limit: int, lab: LabSite, session: Session, vm: LabVm) -> None:
    """However little one answer covers, empty ones in between included, all changed areas are read, joined again."""
    _, since = _freeze(session, vm.id, "since")
    wanted = [
        Extent(BLOCK, 4 * BLOCK),
        Extent(100 * BLOCK, BLOCK),
        Extent(102 * BLOCK, BLOCK),
        Extent(255 * BLOCK, BLOCK),
    ]
    for area in wanted:
        lab.client.write("web01", area.offset, b"x" * area.length, KEY)
    made, _ = _freeze(session, vm.id)
    allocated = _areas(session, vm, made, ALL)
    lab.client.set(window_bytes=window, area_limit=limit)
    assert _areas(session, vm, made, since) == wanted
    assert _areas(session, vm, made, ALL) == allocated
    assert allocated


def test_now_of_a_vm_that_is_off(lab: LabSite, session: Session, vm: LabVm) -> None:
    """Of a VM that is off the changes until now can be asked for, without a snapshot."""
    _, since = _freeze(session, vm.id)
    lab.client.write("web01", 7 * BLOCK, b"x", KEY)
    power.shutdown(session, vm.id, 0, no_beat)
    try:
        assert _areas(session, vm, None, since) == [Extent(7 * BLOCK, BLOCK)]
    finally:
        power.power_on(session, vm.id, no_beat)


def test_tracking_was_reset(lab: LabSite, session: Session, vm: LabVm) -> None:
    """Where tracking began anew an old change ID is refused, and the reason says it."""
    _, since = _freeze(session, vm.id, "since")
    lab.client.reset_tracking("web01")
    made, now = _freeze(session, vm.id)
    assert not same_tracking(since, now)
    with pytest.raises(ChangesUnknown, match="its change tracking was reset"):
        _areas(session, vm, made, since)
    assert _areas(session, vm, made, ALL)


def test_the_vm_was_reverted(lab: LabSite, session: Session, vm: LabVm) -> None:
    """After a revert the change IDs of snapshots that came later are refused."""
    base, _ = _freeze(session, vm.id, "base")
    lab.client.write("web01", 0, b"x", KEY)
    _, since = _freeze(session, vm.id, "since")
    _perform(session, lambda: session.snapshot(base).Revert(None, None))
    made, _ = _freeze(session, vm.id)
    with pytest.raises(ChangesUnknown):
        _areas(session, vm, made, since)


def test_change_ids_that_were_never_given(session: Session, vm: LabVm) -> None:
    """A change ID that is ahead of the snapshot, or none at all, is refused, with the reason as far as it is known."""
    made, now = _freeze(session, vm.id)
    ahead = f"{now.partition('/')[0]}/4000"
    with pytest.raises(ChangesUnknown, match="reverted to before the last copy"):
        _areas(session, vm, made, ahead)
    for odd in ("", "nonsense", f"{now}x"):
        with pytest.raises(ChangesUnknown):
            _areas(session, vm, made, odd)


def test_changes_of_a_disk_without_tracking(lab: LabSite, session: Session) -> None:
    """Without tracking nothing is known, not even what is allocated."""
    legacy = lab.client.vm("legacy01")
    made, _ = _freeze(session, legacy.id)
    with pytest.raises(ChangesUnknown, match="does not say what is allocated"):
        _areas(session, legacy, made, ALL)


def test_the_snapshot_goes_while_it_is_read(session: Session, vm: LabVm) -> None:
    """A snapshot or VM that is gone is an error of its own: a full would not help."""
    made, since = _freeze(session, vm.id)
    snapshot.remove_snapshots(session, vm.id, NAME, no_beat)
    with pytest.raises(SnapshotGone, match=made):
        _areas(session, vm, made, since)
    with pytest.raises(VmGone):
        list(changed_areas(session, "vm-1", None, KEY, SIZE, since, no_beat))


def test_the_session_ends_between_two_windows(lab: LabSite, session: Session, vm: LabVm) -> None:
    """An hour-long delta outlives its session: the areas go on where they were."""
    made, _ = _freeze(session, vm.id)
    whole = _areas(session, vm, made, ALL)
    lab.client.set(window_bytes=16 * BLOCK)
    found = []
    for area in changed_areas(session, vm.id, made, KEY, SIZE, ALL, no_beat):
        lab.client.expire_sessions()
        found.append(area)
    assert found == whole


# Power


def test_off_and_on(lab: LabSite, session: Session, vm: LabVm) -> None:
    """A guest with tools is shut down; off and on twice are fine."""
    for _ in range(2):
        power.shutdown(session, vm.id, 10, no_beat)
        assert inventory.vm_info(session, vm.id).power == "off"
    for _ in range(2):
        power.power_on(session, vm.id, no_beat)
        assert inventory.vm_info(session, vm.id).power == "on"


def test_a_guest_that_does_not_shut_down(lab: LabSite, session: Session) -> None:
    """The power goes where the guest takes too long, or has no tools to be asked through."""
    lab.client.set("mixed01", shutdown_seconds=30)
    for name in ("mixed01", "legacy01"):
        moref = lab.client.vm(name).id
        power.shutdown(session, moref, 0.3, no_beat)
        assert inventory.vm_info(session, moref).power == "off"


def test_power_fails(lab: LabSite, session: Session, vm: LabVm) -> None:
    """A host that refuses is told in its own words."""
    lab.client.fail_next("PowerOffVM", "InvalidState")
    with pytest.raises(PowerFailed, match="InvalidState"):
        power.shutdown(session, vm.id, 0, no_beat)
    with pytest.raises(VmGone):
        power.power_on(session, "vm-1", no_beat)
