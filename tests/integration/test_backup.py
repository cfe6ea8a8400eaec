"""`sendense backup` on the lab: full, incremental, chains, several at once; each point is the disks as they were."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sendense.coordinator.record import Jobs
from sendense.extents import Extent, coarsen, total
from sendense.jobs.ledger import Ledger
from sendense.service.describing import describe
from sendense.views import Job, JobDisk
from tests.backup import CLUSTER, WAIT_SECONDS, Backups, MiB, kill_command, open_backups, patiently
from tests.integration.support import tool
from tests.site import LabSite, open_site

SIZE = 64 * MiB


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """Machines with two small disks each; a test has one or two of its own."""
    with open_site(vms=8, disk_size=SIZE, fill=8 * MiB) as site:
        yield site


@pytest.fixture
def alone(site: LabSite) -> Iterator[Backups]:
    """A repository without a hub: each command has to see to one."""
    with open_backups(site) as backups:
        yield backups
        assert backups.leftovers() == []


def disk_of(view: Job, key: int) -> JobDisk:
    """One disk of a job."""
    return next(disk for disk in view.disks if disk.key == key)


def moved(view: Job) -> int:
    """Bytes that a job moved."""
    return sum(disk.progress.copied for disk in view.disks if disk.progress)


def test_chain_of_four(site: LabSite, backups: Backups) -> None:
    """Full and incrementals hold what the disks held, move what changed and no more, also in a moved repository."""
    client, vm = site.client, "web01"
    kept = [backups.keep(vm)]
    first = backups.backup(vm)
    assert [disk.mode for disk in first.disks] == ["full", "full"]
    assert all("no restore point yet" in disk.reason for disk in first.disks)
    assert moved(first) < SIZE  # what is allocated, not all of both disks

    areas = client.write_files(vm, 2000, files=6, size=2 * MiB).areas
    changed = total(coarsen((Extent(*area) for area in areas), CLUSTER, SIZE), zero=False)
    kept.append(backups.keep(vm))
    second = backups.backup(vm)
    assert [disk.mode for disk in second.disks] == ["incremental", "incremental"]
    assert disk_of(second, 2000).changed == changed
    assert changed * 0.5 <= moved(second) <= changed * 1.05
    assert disk_of(second, 2001).changed == 0

    third = backups.backup(vm)
    assert moved(third) == 0
    kept.append(kept[-1])

    # Data that becomes zero, in whole clusters and in parts; data over zeroes; the last byte of the disk.
    client.write(vm, 2 * MiB, b"x" * MiB, 2001)
    kept.append(backups.keep(vm))
    fourth = backups.backup(vm)
    assert moved(fourth) == disk_of(fourth, 2001).changed == MiB
    client.zero(vm, 2 * MiB + 100, MiB - 200, 2001)
    client.write(vm, SIZE - 1, b"!", 2000)
    kept.append(backups.keep(vm))
    fifth = backups.backup(vm)
    assert disk_of(fifth, 2001).changed == MiB
    assert disk_of(fifth, 2000).changed == CLUSTER

    points = backups.points(vm)
    assert [point.id for point in points] == [view.point for view in (first, second, third, fourth, fifth)]
    assert [point.mode for point in points] == ["full", *["incremental"] * 4]
    moved_to = Backups(site, backups.folder, backups.folder / "elsewhere")
    shutil.copytree(backups.root, moved_to.root)
    for there in (backups, moved_to):
        for point, disks in zip(there.points(vm), kept, strict=True):
            there.check(point, disks)
            chain = json.loads(tool("qemu-img", "info", "--backing-chain", "--output=json", there.image(point, 2000)))
            assert len(chain) == 1 + points.index(point)
            assert all(not image.get("backing-filename", "").startswith("/") for image in chain)
    backups.check_files(points[1])
    assert client.snapshots(vm) == []


def test_writes_during_the_backup(site: LabSite, backups: Backups) -> None:
    """A point is what the snapshot froze, however much is written while it is copied; the next one has the rest."""
    client, vm = site.client, "db01"
    client.set(vm, read_rate=6 * MiB)
    process = backups.start("backup", vm, "--json")
    backups.wait_until_reading()
    (snapshot,) = client.snapshots(vm)
    frozen = backups.keep_files(snapshot.paths)
    client.write(vm, 4 * MiB, b"later" * 400_000)
    client.write_files(vm, 2001, files=4, size=MiB)
    assert client.snapshots(vm) == [snapshot]
    client.set(vm, read_rate=0)
    view = backups.succeeded(backups.finish(process))
    assert snapshot.name == f"sendense-{view.id}"
    assert snapshot.quiesced
    (first,) = backups.points(vm)
    backups.check(first, frozen)
    backups.check_files(first)
    kept = backups.keep(vm)
    view = backups.backup(vm)
    assert [disk.mode for disk in view.disks] == ["incremental", "incremental"]
    backups.check(backups.points(vm)[-1], kept)


@pytest.mark.parametrize(("window", "limit"), [(CLUSTER * 8, 2000), (0, 1), (CLUSTER * 3, 2)])
def test_changed_areas_in_many_pages(site: LabSite, backups: Backups, window: int, limit: int) -> None:
    """All pages of the changed areas are read: none is the last for being empty, or for being full."""
    client, vm = site.client, "app01"
    client.set(vm, window_bytes=0, area_limit=2000)
    backups.backup(vm)
    spots = [(5 * number * number + number) * CLUSTER for number in range(14)]
    for spot in spots:
        client.write(vm, spot, bytes([limit % 256, *b"changed"]) * 1000)
    client.set(vm, window_bytes=window, area_limit=limit)
    kept = backups.keep(vm)
    view = backups.backup(vm)
    assert disk_of(view, 2000).mode == "incremental"
    assert disk_of(view, 2000).changed == len(spots) * CLUSTER
    backups.check(backups.points(vm)[-1], kept)


def test_chosen_disks(site: LabSite, backups: Backups) -> None:
    """--disks copies those; a later backup of all makes a full of what the parent does not have."""
    vm, kept = "mail01", backups.keep("mail01")
    backups.backup(vm, "--disks", "2001")
    (point,) = backups.points(vm)
    assert [disk.key for disk in point.disks] == [2001]
    backups.check(point, kept)
    view = backups.backup(vm)
    assert disk_of(view, 2001).mode == "incremental"
    assert disk_of(view, 2000).mode == "full"
    assert point.id in disk_of(view, 2000).reason
    backups.check(backups.points(vm)[-1], kept)
    assert "has no disk 2007" in backups.refused(vm, "--disks", "2007")
    assert "not device keys" in backups.refused(vm, "--disks", "one")


def test_disks_that_cannot_be_backed_up(backups: Backups) -> None:
    """Independent and raw disks are left out, and both the job and the point say why."""
    kept = backups.keep("mixed01")
    view = backups.backup("mixed01")
    (point,) = backups.points("mixed01")
    assert [disk.key for disk in point.disks] == [2000]
    assert set(point.left_out) == {2001, 2002} == set(view.left_out)
    assert "independent" in point.left_out[2001]
    backups.check(point, kept)
    assert "independent" in backups.refused("mixed01", "--disks", "2001")


def test_verified_backup(site: LabSite, backups: Backups) -> None:
    """--verify reads everything back, of a full and of an incremental, and the point remembers it."""
    vm = "files01"
    for _ in range(2):
        view = backups.backup(vm, "--verify")
        assert all(disk.verified for disk in view.disks)
        assert backups.points(vm)[-1].verified
        site.client.write(vm, 8 * MiB, b"new" * 100_000)


def test_quiescing(site: LabSite, backups: Backups) -> None:
    """A snapshot is quiesced where the guest's tools run, unless that is not wanted."""
    vm = "git01"
    backups.backup(vm)
    backups.backup(vm, "--no-quiesce")
    site.client.set(vm, tools_running=False)
    view = backups.backup(vm)
    assert any("Tools do not run" in event.text for event in backups.events(view.id))
    assert [point.quiesced for point in backups.points(vm)] == [True, False, False]


def test_machine_that_is_off(site: LabSite, backups: Backups) -> None:
    """A VM that is off is backed up, in full and then what changed before it was turned off."""
    vm = "ci01"
    backups.backup(vm)
    site.client.write(vm, 3 * MiB, b"last words" * 1000)
    site.client.power(vm, on=False)
    kept = backups.keep(vm)
    view = backups.backup(vm)
    assert [disk.mode for disk in view.disks] == ["incremental", "incremental"]
    backups.check(backups.points(vm)[-1], kept)


@pytest.mark.parametrize("name", ["web01", "/Lab/vm/production/web01", "uuid", "moref"])
def test_ways_to_name_a_machine(site: LabSite, backups: Backups, name: str) -> None:
    """By name, inventory path, UUID and moref."""
    vm = site.client.vm("web01")
    text = {"uuid": vm.instance_uuid, "moref": vm.id}.get(name, name)
    assert backups.backup(text).point == backups.points("web01")[-1].id


def test_second_backup_of_a_machine(site: LabSite, alone: Backups) -> None:
    """While a VM is backed up, another backup of it is refused with the first one's id."""
    site.client.set("db01", read_rate=6 * MiB)
    first = alone.start("backup", "db01", "--json")
    alone.wait_until_reading()
    running = alone.job()
    error = alone.refused("db01")
    assert running
    assert f"job {running.id}" in error
    assert f"sendense jobs watch {running.id}" in error
    site.client.set("db01", read_rate=0)
    assert alone.succeeded(alone.finish(first)).id == running.id
    assert len(alone.points("db01")) == 1


@contextmanager
def slowly(site: LabSite, *vms: str) -> Iterator[None]:
    """Have these machines' disks read slowly."""
    for vm in vms:
        site.client.set(vm, read_rate=MiB)
    try:
        yield
    finally:
        for vm in vms:
            site.client.set(vm, read_rate=0)


SMALL_REQUESTS = {"requests_in_flight": 2, "request_bytes": 256 * 1024}
"""A slow disk that is to be quick from now on still owes the requests under way."""


def both_copied(backups: Backups) -> bool:
    """Whether two jobs are copying, and both have moved something."""
    with backups.client() as client:
        jobs, ledger = Jobs(client), Ledger(client)
        views = [view for job in jobs.active() if (view := jobs.get(job))]
        assert "backup of web01" in [view.name for view in views]
        found = [describe(ledger, view).progress for view in views if view.step == "copy"]
    return len([one for one in found if one and (one.done or any(part.done for part in one.active))]) == 2


@pytest.mark.parametrize("end", ["in turn", "first killed", "first interrupted", "first stays"])
def test_two_machines_at_once(site: LabSite, alone: Backups, end: str) -> None:
    """Two backups at once both progress and end well: whoever keeps the hub up, and whatever ends that command."""
    client = site.client
    kept = {vm: alone.keep(vm) for vm in ("web01", "app01")}
    with slowly(site, "web01", "app01"):
        host = alone.start("backup", "web01", "--json", processes=4, **SMALL_REQUESTS)
        alone.wait_until_reading()
        guest = alone.start("backup", "app01", "--json", processes=4, **SMALL_REQUESTS)
        assert patiently(lambda: both_copied(alone), WAIT_SECONDS)
        if end == "first killed":
            kill_command(host)
        if end == "first interrupted":
            host.send_signal(signal.SIGINT)
        if end == "in turn":
            client.set("web01", read_rate=0)
        if end == "first stays":
            client.set("app01", read_rate=0)
            alone.succeeded(alone.finish(guest))
    if end == "first interrupted":
        assert alone.finish(host).status == 130
    if end != "first killed" and end != "first interrupted":
        alone.succeeded(alone.finish(host))
    if end != "first stays":
        alone.succeeded(alone.finish(guest))
    if end == "first killed":  # its job goes on with any other command
        views = json.loads(alone.run("jobs", "--json").stdout)
        first = next(view["id"] for view in views if view["name"] == "backup of web01")
        alone.succeeded(alone.run("jobs", "watch", first, "--json"))
    wanted = ["app01"] if end == "first interrupted" else ["app01", "web01"]
    assert sorted(point.vm.name for point in alone.points()) == wanted
    for point in alone.points():
        alone.check(point, kept[point.vm.name])
    if end == "first interrupted":
        assert alone.run("jobs", "clean").status == 0


def test_resumed_backup(site: LabSite, alone: Backups) -> None:
    """A backup that was interrupted goes on from what is stored, and holds what was written since as well."""
    client, vm = site.client, "files01"
    alone.backup(vm)
    client.write(vm, 4 * MiB, os.urandom(MiB), 2000)
    client.write(vm, 4 * MiB, os.urandom(12 * MiB), 2001)
    with slowly(site, vm):
        process = alone.start("backup", vm, "--json", **SMALL_REQUESTS)
        alone.wait_until_reading()
        assert patiently(lambda: stored(alone, 2000) == MiB, WAIT_SECONDS)
        process.send_signal(signal.SIGINT)
        result = alone.finish(process)
    assert result.status == 130
    assert len(alone.points(vm)) == 1
    assert client.snapshots(vm) == []
    client.write(vm, 9 * MiB, os.urandom(CLUSTER), 2000)
    kept = alone.keep(vm)
    job = result.error[1].split("jobs resume ")[1]
    view = alone.succeeded(alone.run("jobs", "resume", job, "--json"))
    assert [disk.mode for disk in view.disks] == ["incremental", "incremental"]
    first = disk_of(view, 2000).progress
    assert first
    assert first.already_done == MiB
    assert first.copied == CLUSTER
    alone.check(alone.points(vm)[-1], kept)


def stored(backups: Backups, key: int) -> int:
    """Bytes of a disk that the running job has stored."""
    view = backups.job()
    assert view
    with backups.client() as client:
        found = [Ledger(client).progress(disk.copy_id) for disk in view.work.disks if disk.key == key]
    return found[0].done if found and found[0] else 0


@pytest.mark.parametrize("lifetime", ["expired again and again", "short"])
def test_sessions_that_expire(site: LabSite, backups: Backups, lifetime: str) -> None:
    """vCenter's sessions may end between any two calls."""
    client, vm = site.client, "cache01"
    client.set(session_seconds=0.05 if lifetime == "short" else 1800)
    client.set(vm, snapshot_seconds=0.5, task_seconds=0.5, window_bytes=CLUSTER * 64)
    over = threading.Event()

    def expire() -> None:
        while not over.wait(0.15):
            client.expire_sessions()

    thread = threading.Thread(target=expire)
    if lifetime != "short":
        thread.start()
    try:
        kept = backups.keep(vm)
        backups.backup(vm)
        assert client.snapshots(vm) == []
    finally:
        over.set()
        if thread.ident:
            thread.join()
        client.set(session_seconds=1800)
    backups.check(backups.points(vm)[-1], kept)


NAMES = {
    "legacy01": "..%2f..%2f..%2fetc%2fpasswd",
    "mixed01": "Grüße aus 東京 ☃ '\"; $(touch x) {0} \\n",
    "web01": "x" * 255,
    "db01": "🖥" * 60,
}
"""What vCenter may call a VM; it writes a slash as %2f."""


def test_name_of_a_machine_is_data() -> None:
    """A VM's name from vCenter is shown and stored as it is, and never a path."""
    with open_site(vms=2, disks=1, disk_size=16 * MiB) as site:
        rename(site, NAMES)
        with open_backups(site) as backups, backups.hub():
            for name in NAMES.values():
                vm = next(vm for vm in site.client.vms() if vm.name == name)
                view = backups.backup(name.replace("%2f", "/"))
                (point,) = backups.points(vm.id)
                assert point.vm.name == name.replace("%2f", "/")
                assert view.name == f"backup of {point.vm.name}"
                backups.check(point, backups.keep(vm.id))
            files = [path for path in backups.root.rglob("*") if path.is_file()]
            assert all(path.resolve().is_relative_to(backups.root) for path in files)
            folders = {path.name for path in (backups.root / "vms").iterdir()}
            assert folders == {vm.instance_uuid for vm in site.client.vms() if vm.name in NAMES.values()}
            assert not list(backups.folder.rglob("x"))


def rename(site: LabSite, names: dict[str, str]) -> None:
    """Give machines other names, while the site is down."""
    site.stop()
    path = site.folder / "state.json"
    state = json.loads(path.read_text())
    for vm in state["vms"]:
        vm["name"] = names.get(vm["name"], vm["name"])
    path.write_text(json.dumps(state))
    site.start()
