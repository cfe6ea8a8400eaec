"""Restores, verifications and migrations by the real command, compared with the disks."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sendense.units import KiB, MiB
from tests.backup import Backups
from tests.integration.support import same_image, tool
from tests.servers import qemu_nbd
from tests.site import LabSite, open_site

SIZE = 32 * MiB


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """Machines with two small disks each; each test has one of its own."""
    with open_site(vms=4, disk_size=SIZE, fill=8 * MiB) as site:
        yield site


def same(image: Path, raw: Path) -> bool:
    """Whether an image of either format holds what a raw file holds."""
    return same_image(raw, image) if image.suffix == ".qcow2" else tool("cmp", raw, image) == ""


def test_restored(site: LabSite, backups: Backups, tmp_path: Path) -> None:
    """An incremental point is restored into a folder, into one image, and onto a server that takes one client."""
    client, vm = site.client, "web01"
    backups.backup(vm)
    client.write_files(vm, 2000)
    client.zero(vm, 4 * MiB, MiB, 2001)
    kept = backups.keep(vm)
    backups.backup(vm)
    point = f"{vm}@latest"
    view = backups.succeeded(backups.run("restore", point, tmp_path, "--verify", "--json"))
    assert all(disk.verified for disk in view.disks)
    assert all(same(tmp_path / f"disk-{key}.qcow2", raw) for key, raw in kept.items())
    raw = tmp_path / "one.raw"
    backups.succeeded(backups.run("restore", point, raw, "--disk", "2001", "--json"))
    assert same(raw, kept[2001])
    refused = backups.run("restore", point, raw, "--disk", "2001")
    assert (refused.status, "exists" in refused.error[0]) == (2, True)
    folder = tmp_path / "one.disk"
    folder.mkdir()
    backups.succeeded(backups.run("restore", point, f"{folder}/", "--disk", "2001", "--json"))
    assert same(folder / "disk-2001.qcow2", kept[2001])
    nowhere = backups.run("restore", point, tmp_path / "nowhere", "--disk", "2001")
    assert (nowhere.status, "nowhere: no such folder" in nowhere.error[0]) == (2, True), nowhere
    target = tmp_path / "target.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", target, str(SIZE))
    with qemu_nbd(target, image_format="qcow2") as server:
        backups.succeeded(backups.run("restore", point, server.uri, "--disk", "2000", "--verify", "--json"))
    assert same(target, kept[2000])
    assert not list(tmp_path.glob("*.partial"))


def test_restore_into_the_repository(backups: Backups) -> None:
    """A restore point's image is never a target, not even with --force."""
    vm = "db01"
    backups.backup(vm)
    point = backups.points(vm)[-1]
    image = backups.image(point, 2000)
    before = image.read_bytes()
    refused = backups.run("restore", point.id, image, "--disk", "2000", "--force")
    assert (refused.status, "lies in the repository" in refused.error[0]) == (2, True), refused
    assert image.read_bytes() == before


def test_damaged_image(site: LabSite, backups: Backups) -> None:
    """A changed byte is found, with its place; what builds on it is damaged as well, and the next backup is a full."""
    client, vm = site.client, "app01"
    client.write(vm, 4 * MiB, os.urandom(MiB), 2001)
    backups.backup(vm)
    client.write(vm, 9 * MiB, os.urandom(64 * KiB), 2001)
    backups.backup(vm)
    first, second = backups.points(vm)
    assert backups.run("verify", second.id).status == 0
    tool("qemu-io", "-f", "qcow2", "-c", f"write -P 7 {4 * MiB + 100 * KiB} 512", backups.image(first, 2001))
    found = backups.run("verify", second.id)
    assert found.status == 3, found
    assert f"disk 2001 of {first.id}" in found.error[0]
    offset, length = (int(word.split("=")[1]) for word in found.error[0].split() if "=" in word)
    assert offset <= 4 * MiB + 100 * KiB < offset + length
    assert [bool(point.damaged) for point in backups.points(vm)] == [True, True]
    both = backups.run("verify", "--all")
    assert both.status == 3, both
    kept = backups.keep(vm)
    view = backups.backup(vm)
    assert [disk.mode for disk in view.disks] == ["full", "full"]
    assert "is damaged" in view.disks[0].reason
    third = backups.points(vm)[-1]
    assert backups.run("verify", third.id).status == 0
    backups.check(third, kept)


def test_migrated(site: LabSite, backups: Backups, tmp_path: Path) -> None:
    """A VM's disks are copied while it runs, then what changed, then for good; a failed cutover costs its own sync."""
    client, vm = site.client, "mail01"
    targets = {2000: tmp_path / "system.qcow2", 2001: tmp_path / "data.raw"}
    options = [word for target in targets.values() for word in ("--to", str(target))]
    refused = backups.run("migrate", vm, *options, "--sync")
    assert (refused.status, "no complete copy to sync" in refused.error[0]) == (2, True), refused

    def migrate(*more: str) -> list[int]:
        view = backups.succeeded(backups.run("migrate", vm, *options, "--json", *more))
        return [disk.progress.copied for disk in view.disks if disk.progress]

    assert min(migrate("--verify")) > MiB
    client.write(vm, 4 * MiB, os.urandom(MiB), 2000)
    client.zero(vm, 2 * MiB, MiB, 2001)
    kept = backups.keep(vm)
    assert migrate("--sync") == [MiB, MiB]
    assert all(same(target, kept[key]) for key, target in targets.items())
    client.write(vm, 8 * MiB, os.urandom(MiB), 2001)
    client.fail_next("QueryChangedDiskAreas", "NoPermission")
    failed = backups.run("migrate", vm, *options, "--cutover")
    assert failed.status == 1, failed
    moref = client.vm(vm).id
    assert f"turn it on again: sendense vms start {moref}" in failed.error[1]
    assert backups.run("vms", "start", moref).status == 0
    assert client.vm(vm).powered_on
    client.write(vm, 12 * MiB, os.urandom(MiB), 2000)
    assert migrate("--cutover") == [MiB, MiB]
    assert not client.vm(vm).powered_on
    kept = backups.keep(vm)
    assert all(same(target, kept[key]) for key, target in targets.items())
