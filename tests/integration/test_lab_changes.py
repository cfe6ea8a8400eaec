"""Changed block tracking of the simulated vCenter: change IDs, pages of changed areas, and faults."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integration.test_lab_vcenter import all_changes, disk, done, enable, find, login, snapshot, vim, vmodl
from tests.site import LabSite, open_site

MiB, KiB = 2**20, 2**10


@pytest.fixture
def site() -> Iterator[LabSite]:
    """A site of its own."""
    with open_site(vms=1) as site:
        yield site


def test_tracking_starts_with_a_stun(site: LabSite) -> None:
    """Change IDs come from the first snapshot or power cycle after tracking was enabled, not before."""
    with login(site) as content:
        vm = find(content, "web01")
        assert disk(snapshot(vm).config).backing.changeId is None
        enable(vm)
        assert vm.config.changeTrackingEnabled
        assert disk(vm.config).backing.changeId is None
        first = snapshot(vm)
        assert disk(first.config).backing.changeId.endswith("/1")
        assert disk(vm.config).backing.changeId.endswith("/2")
        done(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=False)))
        done(vm.PowerOffVM_Task())
        done(vm.PowerOnVM_Task())
        assert disk(vm.config).backing.changeId is None


def test_changed_areas(site: LabSite) -> None:
    """Between two snapshots: the blocks that were written, also when they became zero, and no others."""
    with login(site) as content:
        vm = find(content, "web01")
        enable(vm)
        first = snapshot(vm).config
        ids, other, expected = [disk(first).backing.changeId], disk(first, 2001).backing.changeId, []
        for number in range(1, 4):
            site.client.write("web01", number * 3 * MiB + 100, b"x" * (70 * KiB))
            site.client.zero("web01", 20 * MiB, number * 64 * KiB)
            site.client.write("web01", 64 * MiB - 5, b"tail!")
            expected.append((number * 3 * MiB, 128 * KiB))
            frozen = snapshot(vm)
            found, _, _ = all_changes(vm, frozen, ids[-1])
            assert found == [expected[-1], (20 * MiB, number * 64 * KiB), (64 * MiB - 64 * KiB, 64 * KiB)]
            ids.append(disk(frozen.config).backing.changeId)
        since_first, _, _ = all_changes(vm, frozen, ids[0])
        assert since_first == [*expected, (20 * MiB, 192 * KiB), (64 * MiB - 64 * KiB, 64 * KiB)]
        assert all_changes(vm, frozen, ids[-1])[0] == []
        assert all_changes(vm, frozen, other, 2001)[0] == []


def test_allocated_areas(site: LabSite) -> None:
    """The change ID `*` gives the blocks that hold data; all else reads as zeroes."""
    with login(site) as content:
        vm = find(content, "web01")
        enable(vm)
        frozen = snapshot(vm)
        found, _, _ = all_changes(vm, frozen, "*")
        image = site.client.snapshots("web01")[-1].paths[2000].read_bytes()
        assert 16 * MiB < sum(length for _, length in found) < 32 * MiB
        position = 0
        for start, length in [*found, (64 * MiB, 0)]:
            assert not any(image[position:start])
            position = start + length


def test_changed_areas_come_in_pages(site: LabSite) -> None:
    """Windows and a limit on areas force pages, empty ones among them; together they say the same."""
    with login(site) as content:
        vm = find(content, "web01")
        enable(vm)
        change_id = disk(snapshot(vm).config).backing.changeId
        for number in range(30):
            site.client.write("web01", number * 512 * KiB, b"y")
        frozen = snapshot(vm)
        whole, pages, _ = all_changes(vm, frozen, change_id)
        assert (len(whole), pages) == (30, 1)
        site.client.set(window_bytes=5 * MiB, area_limit=7)
        before = site.client.calls()["QueryChangedDiskAreas"]
        parts, pages, empty = all_changes(vm, frozen, change_id)
        assert site.client.calls()["QueryChangedDiskAreas"] == before + pages
        assert parts == whole
        assert pages > 13
        assert empty > 3


def _faults(vm: Any, frozen: Any, change_id: str) -> Iterator[tuple[type[Exception], Callable[[], Any]]]:
    own = change_id.rpartition("/")[0]
    other = ("0" if own[0] != "0" else "1") + own[1:]
    query = vm.QueryChangedDiskAreas
    yield vmodl.fault.InvalidArgument, lambda: query(frozen, 2000, 64 * MiB, change_id)
    yield vmodl.fault.InvalidArgument, lambda: query(frozen, 2000, -1, change_id)
    yield vmodl.fault.InvalidArgument, lambda: query(frozen, 2009, 0, change_id)
    yield vmodl.fault.InvalidArgument, lambda: query(frozen, 2000, 0, "nonsense")
    yield vmodl.fault.InvalidArgument, lambda: query(frozen, 2000, 0, f"{own}/x")
    yield vmodl.fault.InvalidArgument, lambda: query(frozen, 2000, 0, f"{own}/99")
    yield vim.fault.FileFault, lambda: query(frozen, 2000, 0, f"{other}/1")
    yield vim.fault.InvalidPowerState, lambda: query(None, 2000, 0, change_id)
    yield vmodl.fault.ManagedObjectNotFound, lambda: query(vim.vm.Snapshot("snapshot-9"), 2000, 0, change_id)


def test_faults_of_changed_areas(site: LabSite) -> None:
    """A wrong offset, key, change ID or snapshot gives the fault that vCenter gives."""
    with login(site) as content:
        vm = find(content, "web01")
        enable(vm)
        frozen = snapshot(vm)
        change_id = disk(frozen.config).backing.changeId
        for kind, call in _faults(vm, frozen, change_id):
            with pytest.raises(kind):
                call()
        done(vm.PowerOffVM_Task())
        assert vm.QueryChangedDiskAreas(None, 2000, 0, change_id).length == 64 * MiB


@pytest.mark.parametrize("breach", ["reset", "revert"])
def test_a_broken_chain(site: LabSite, breach: str) -> None:
    """After a reset or a revert older change IDs are a FileFault, and new ones have another UUID."""
    with login(site) as content:
        vm = find(content, "web01")
        enable(vm)
        old = snapshot(vm)
        change_id = disk(old.config).backing.changeId
        if breach == "reset":
            site.client.reset_tracking("web01")
        else:
            done(old.RevertToSnapshot_Task())
        new = snapshot(vm)
        assert disk(new.config).backing.changeId.rpartition("/")[0] != change_id.rpartition("/")[0]
        with pytest.raises(vim.fault.FileFault):
            vm.QueryChangedDiskAreas(new, 2000, 0, change_id)
        assert all_changes(vm, new, "*")[0]


def test_independent_disks(site: LabSite) -> None:
    """Independent and raw disks are in no snapshot's content, and have no change ID."""
    with login(site) as content:
        vm = find(content, "mixed01")
        enable(vm)
        frozen = snapshot(vm)
        ids = [getattr(disk(frozen.config, key).backing, "changeId", None) for key in (2000, 2001, 2002)]
        assert [bool(change_id) for change_id in ids] == [True, False, False]
        assert list(site.client.snapshots("mixed01")[0].paths) == [2000]
        with pytest.raises(vim.fault.FileFault):
            vm.QueryChangedDiskAreas(frozen, 2001, 0, "*")
