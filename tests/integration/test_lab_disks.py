"""The disks of the simulated site, through the real nbdkit and libnbd."""

import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nbd as _nbd
import pytest

from sendense.errors import InputError
from tests.integration.support import tool
from tests.integration.test_lab_vcenter import done, enable, find, login, snapshot
from tests.servers import Server, nbdkit
from tests.site import LabSite, open_site

nbd: Any = _nbd

MiB, KiB = 2**20, 2**10
SECONDS = 20.0


@pytest.fixture(scope="module")
def shared() -> Iterator[LabSite]:
    """One site for the tests that leave its knobs as they were, with a snapshot of web01."""
    with open_site(vms=1) as site:
        with login(site) as content:
            snapshot(find(content, "web01"))
        yield site


@pytest.fixture
def site() -> Iterator[LabSite]:
    """A site of its own, with a snapshot of web01."""
    with open_site(vms=1) as site:
        with login(site) as content:
            snapshot(find(content, "web01"))
        yield site


@contextmanager
def serve(
    site: LabSite, *, readonly: bool = True, changed: Mapping[str, str | None] = MappingProxyType({})
) -> Iterator[Server]:
    """nbdkit with a disk of web01's snapshot; `changed` parameters replace the right ones, None leaves one out."""
    settings = tomllib.loads(site.config.read_text())["sites"]["lab"]
    vm = site.client.vm("web01")
    parameters = {
        "libdir": "/opt/vddk",
        "server": settings["vcenter"],
        "user": settings["user"],
        "password": f"+{settings['password_file']}",
        "thumbprint": settings["thumbprint"],
        "vm": f"moref={vm.id}",
        "snapshot": vm.snapshots[0].id if vm.snapshots else None,
        "file": "[ssd] web01/web01.vmdk",
        "transports": "nbdssl:nbd",
        "compression": "none",
        **changed,
    }
    given = [f"{key}={value}" for key, value in parameters.items() if value is not None]
    options = ["--readonly"] if readonly else []
    with nbdkit(*options, "python", settings["nbdkit_options"]["script"], *given) as server:
        yield server


def connect(server: Server) -> Any:
    """A handle on the disk."""
    handle = nbd.NBD()
    handle.add_meta_context("base:allocation")
    handle.connect_uri(server.uri)
    return handle


def read(handle: Any) -> bytes:
    """The whole disk."""
    return b"".join(bytes(handle.pread(MiB, offset)) for offset in range(0, handle.get_size(), MiB))


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_snapshot_is_served(site: LabSite) -> None:
    """The disk is read-only and has the content of the snapshot, also after the guest wrote and the snapshot went."""
    before = site.client.disk_path("web01").read_bytes()
    with serve(site) as server:
        handle = connect(server)
        assert (handle.get_size(), handle.is_read_only(), handle.can_multi_conn()) == (64 * MiB, True, False)
        assert read(handle) == before
        site.client.write("web01", 3 * MiB, b"later" * 1000)
        with login(site) as content:
            done(find(content, "web01").RemoveAllSnapshots_Task())
        assert list((site.folder / "snapshots").iterdir()) == []
        assert read(handle) == before
        handle.shutdown()


def test_extents_are_chunks(shared: LabSite) -> None:
    """Extents cover the disk in whole chunks of 64 KiB; what is called a hole reads as zeroes, and much is."""
    with serve(shared) as server:
        handle = connect(server)
        image, position, holes = read(handle), 0, 0
        entries: list[int] = []

        def note(found: list[int]) -> int:
            entries.extend(found)
            return 0

        while position < len(image):
            entries.clear()
            handle.block_status(len(image) - position, position, lambda context, offset, found, error: note(found))
            for length, flags in zip(entries[::2], entries[1::2], strict=True):
                assert length > 0
                assert length % (64 * KiB) == 0
                if flags:
                    assert flags == nbd.STATE_HOLE | nbd.STATE_ZERO
                    assert not any(image[position : position + length])
                    holes += length
                position += length
        assert holes > 32 * MiB
        handle.shutdown()


WRONG = {
    "password": ("not it", "incorrect user name or password"),
    "user": ("root", "incorrect user name or password"),
    "thumbprint": ("00:11", "thumbprint"),
    "server": ("127.0.0.1:1", "Cannot connect to host"),
    "vm": ("moref=vm-9", "moref=vm-9 was not found"),
    "snapshot": ("snapshot-9", "snapshot-9 was not found"),
    "file": ("[ssd] web01/other.vmdk", "A file was not found"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_on_stderr(shared: LabSite, name: str) -> None:
    """A wrong parameter fails when a client connects; only nbdkit's last line on stderr says why."""
    value, reason = WRONG[name]
    with serve(shared, changed={name: value}) as server:
        with pytest.raises(nbd.Error) as refused:
            connect(server)
        assert reason not in str(refused.value)
        assert reason in server.log.read_text().strip().splitlines()[-1]
        assert shared.client.open_disks() == 0


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"nonsense": "1"}, "unknown parameter 'nonsense'"),
        ({"user": None}, "missing parameter: user"),
        ({"file": None}, "missing parameter: file"),
        ({"compression": "best"}, "unknown compression type: best"),
    ],
)
def test_parameters_are_checked_at_the_start(shared: LabSite, changed: dict[str, str | None], reason: str) -> None:
    """An unknown parameter, or a missing one, ends nbdkit before any client comes."""
    with pytest.raises(RuntimeError, match=reason), serve(shared, changed=changed):
        pass


def test_it_is_not_written_to(shared: LabSite) -> None:
    """Without --readonly the disk does not open."""
    with serve(shared, readonly=False) as server, pytest.raises(nbd.Error):
        connect(server)


def test_the_present_disk_needs_a_machine_that_is_off(site: LabSite) -> None:
    """Without a snapshot a disk opens only while the machine is powered off; an independent one never does."""
    with serve(site, changed={"snapshot": None}) as server:
        with pytest.raises(nbd.Error):
            connect(server)
        assert "Failed to lock the file" in server.log.read_text()
        site.client.power("web01", False)
        connect(server).shutdown()
    mixed = site.client.vm("mixed01")
    for disk in mixed.disks[1:]:
        with (
            serve(site, changed={"vm": mixed.id, "snapshot": None, "file": disk.file}) as server,
            pytest.raises(nbd.Error),
        ):
            connect(server)


def test_open_disks_are_counted(site: LabSite) -> None:
    """A host takes so many clients; one that leaves, or is killed, makes room at once."""
    site.client.set(connection_limit=2)
    with serve(site) as first, serve(site) as second:
        one, two = connect(first), connect(second)
        assert site.client.open_disks() == 2
        with serve(site) as third:
            with pytest.raises(nbd.Error):
                connect(third)
            assert "out of NFC connections" in third.log.read_text()
            one.shutdown()
            eventually(lambda: site.client.open_disks() == 1)
            three = connect(third)
            second.kill()
            eventually(lambda: site.client.open_disks() == 1)
            three.shutdown()
        del two


def test_sectors(shared: LabSite) -> None:
    """Reads have to be of whole sectors, as VDDK's."""
    with serve(shared) as server:
        handle = connect(server)
        assert len(handle.pread(512, 512)) == 512
        for length, offset in ((512, 1), (100, 0)):
            with pytest.raises(nbd.Error, match="Invalid argument"):
                handle.pread(length, offset)
        handle.shutdown()


def test_read_errors(site: LabSite) -> None:
    """Reads fail in the areas that were ordered, or by chance, at once and until that is taken back."""
    with serve(site) as server:
        handle = connect(server)
        site.client.set("web01", read_errors={"areas": [[MiB, 4096]]})
        eventually(lambda: _fails(handle, MiB))
        assert not _fails(handle, MiB + 4096)
        site.client.set("web01", read_errors={"percent": 100})
        eventually(lambda: _fails(handle, 0))
        site.client.set("web01", read_errors={})
        eventually(lambda: not _fails(handle, MiB))
        assert "A read error was ordered" in server.log.read_text()
        handle.shutdown()


def _fails(handle: Any, offset: int) -> bool:
    try:
        handle.pread(512, offset)
    except nbd.Error:
        return True
    return False


@pytest.mark.parametrize("knob", ["read_rate", "latency_ms"])
def test_slow_disks(site: LabSite, knob: str) -> None:
    """A disk is read no faster than its rate, and each request waits for the latency."""
    site.client.set("web01", **{knob: {"read_rate": 8 * MiB, "latency_ms": 100}[knob]})
    with serve(site) as server:
        handle = connect(server)
        started = time.monotonic()
        for _ in range(4):
            handle.pread(MiB, 0)
        assert time.monotonic() - started > 0.35
        handle.shutdown()


def test_the_guest_writes_files(site: LabSite) -> None:
    """Files are added, changed and deleted; tracking sees just the blocks that differ; the file system stays clean."""
    with login(site) as content:
        vm = find(content, "web01")
        enable(vm)
        for key in (2000, 2001):
            frozen = snapshot(vm)
            old = site.client.snapshots("web01")[-1].paths[key]
            written = site.client.write_files("web01", key, files=6, size=MiB)
            assert len(written.added) == 6
            assert written.changed
            assert written.deleted
            change_id = next(d for d in frozen.config.hardware.device if d.key == key).backing.changeId
            answer = vm.QueryChangedDiskAreas(snapshot(vm), key, 0, change_id)
            assert [(area.start, area.length) for area in answer.changedArea] == written.areas
            assert MiB < written.bytes < 8 * MiB
            assert _differing(old, site.client.disk_path("web01", key)) == written.areas
            offset = MiB if key == 2000 else 0
            tool("e2fsck", "-f", "-n", f"{site.client.disk_path('web01', key)}?offset={offset}")


def _differing(old: Path, new: Path) -> list[tuple[int, int]]:
    """Blocks of 64 KiB in which two files differ, joined."""
    before, after, block, found = old.read_bytes(), new.read_bytes(), 64 * KiB, list[tuple[int, int]]()
    for start in range(0, len(before), block):
        if before[start : start + block] != after[start : start + block]:
            if found and sum(found[-1]) == start:
                found[-1] = (found[-1][0], found[-1][1] + block)
            else:
                found.append((start, block))
    return found


def test_disks_come_and_go(site: LabSite) -> None:
    """A machine gets a disk more, loses one, and has one grow, which shows in its configuration."""
    with login(site) as content:
        vm = find(content, "web01")
        done(vm.RemoveAllSnapshots_Task())
        key = site.client.add_disk("web01", 32 * MiB)
        assert key == 2002
        site.client.grow_disk("web01", 2001, 80 * MiB)
        with pytest.raises(InputError, match="holds no file system"):
            site.client.write_files("web01", 2002)
        site.client.write("web01", 70 * MiB, b"new space", 2001)
        site.client.remove_disk("web01", 2000)
        sizes = {d.key: d.capacityInBytes for d in vm.config.hardware.device if d.key >= 2000}
        assert sizes == {2001: 80 * MiB, 2002: 32 * MiB}
