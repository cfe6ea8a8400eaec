"""What a repository says that it holds: manifests with anything in them, damaged ones, and newer ones."""

import json
import os
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sendense.errors import InputError, JobFailed
from sendense.models import VmDisk, VmInfo, VmRef
from sendense.repository.catalogue import KnownVm, Repository
from sendense.repository.layout import Layout, new_point_id, vm_uuid
from sendense.repository.points import Point, PointDisk, manifest_text, read_manifest

UUID = "5029a0a6-0000-4000-8000-00000000beef"
OTHER = "5029a0a6-0000-4000-8000-00000000cafe"
BIRTH = datetime(2026, 11, 22, 22, 50, 12, tzinfo=UTC)
SIZE = 2**20


def vm(uuid: str = UUID, name: str = "web01") -> VmRef:
    """A VM."""
    return VmRef(site="oslo", moref="vm-42", uuid=uuid, name=name)


def id_of(hour: int) -> str:
    """The id of the point of that hour."""
    return f"{BIRTH + timedelta(hours=hour):%Y%m%dT%H%M%SZ}-{hour:04x}"


def point(hour: int = 0, parent: int | None = None, **changes: Any) -> Point:
    """A point of one disk."""
    disk = PointDisk(
        key=2000,
        label="Hard disk 1",
        file="[ds] web01/web01.vmdk",
        size=SIZE,
        mode="full" if parent is None else "incremental",
        parent="" if parent is None else id_of(parent),
    )
    values: dict[str, Any] = {
        "id": id_of(hour),
        "vm": vm(),
        "created": BIRTH + timedelta(hours=hour),
        "job": "j",
        "quiesced": True,
        "mode": disk.mode,
        "disks": [disk],
        **changes,
    }
    return Point(**values)


def put(repository: Repository, *points: Point) -> list[Point]:
    """Store points as files, their images with nothing but a header."""
    for stored in points:
        folder = repository.layout.point(stored.vm.uuid, stored.id)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "point.json").write_bytes(manifest_text(stored))
        for disk in stored.disks:
            backing = f"../{disk.parent}/disk-{disk.key}.qcow2".encode() if disk.parent else b""
            header = struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 104 if backing else 0, len(backing), 16, disk.size)
            (folder / f"disk-{disk.key}.qcow2").write_bytes(header.ljust(104, b"\0") + backing)
            (folder / f"disk-{disk.key}.batches").touch()
    return list(points)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """An empty one."""
    return Repository.open(tmp_path / "repository", create=True)


def test_open_what_is_there(tmp_path: Path) -> None:
    """A repository is made in an empty folder, opened again, and keeps nothing else to itself."""
    folder = tmp_path / "a" / "b"
    Repository.open(folder, create=True)
    assert os.listdir(folder) == ["repository.json"]
    (folder / "lost+found").mkdir()
    Repository.open(folder, create=False)
    Repository.open(folder, create=True)
    assert Repository(folder).points() == []


@pytest.mark.parametrize("create", [False, True])
def test_open_what_is_no_repository(tmp_path: Path, create: bool) -> None:
    """Neither a file nor a folder of somebody else's becomes one."""
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: Not a directory"):
        Repository.open(tmp_path / "file", create=create)
    with pytest.raises(InputError, match="is no repository, and not empty"):
        Repository.open(tmp_path, create=create)


def test_open_nothing(tmp_path: Path) -> None:
    """What is only read is not made."""
    with pytest.raises(InputError, match="no such folder"):
        Repository.open(tmp_path / "r", create=False)
    with pytest.raises(InputError, match="is empty"):
        Repository.open(tmp_path, create=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"format": 2}', "format 2.*knows 1"),
        ('{"format": "1"}', "no format"),
        ("[]", "no format"),
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_open_another_format(tmp_path: Path, text: str, reason: str) -> None:
    """A newer repository is told apart from a damaged one, and neither is touched."""
    (tmp_path / "repository.json").write_text(text)
    with pytest.raises(InputError, match=reason):
        Repository.open(tmp_path, create=True)
    assert (tmp_path / "repository.json").read_text() == text


def test_points_in_order(repository: Repository) -> None:
    """Points come oldest first, of one VM or of all; what is built on what is found from both ends."""
    one, two, three = put(repository, point(0), point(1, 0), point(2, 1))
    (other,) = put(repository, point(3, vm=vm(OTHER, "db01")))
    assert repository.points() == [one, two, three, other]
    assert repository.points(UUID) == repository.points(UUID.upper()) == [one, two, three]
    assert repository.latest(UUID) == three
    assert repository.latest("5029a0a6-0000-4000-8000-000000000000") is None
    assert repository.chain(three, 2000) == [three, two, one]
    assert repository.children(one) == [two]
    assert [level.image.parent.name for level in repository.levels(three, 2000)] == [three.id, two.id, one.id]
    assert repository.broken() == []
    assert [known.ref.name for known in repository.vms()] == ["db01", "web01"]


def test_the_latest_by_a_wrong_clock(repository: Repository) -> None:
    """A point that others are built on is not the latest, whatever the clocks said."""
    one, two = put(repository, point(5), point(1, 5))
    assert repository.points() == [two, one]
    assert repository.latest(UUID) == two
    (apart,) = put(repository, point(3))
    assert repository.latest(UUID) == apart


def test_find(repository: Repository) -> None:
    """An id, or the beginning that only one has; otherwise the error names the candidates."""
    one, two = put(repository, point(0), point(1, 0))
    assert repository.find(one.id) == one
    assert repository.find(two.id[:-1]) == two
    with pytest.raises(InputError, match="stands for 2") as caught:
        repository.find("2026")
    assert one.id in caught.value.hint
    assert two.id in caught.value.hint
    for text in ("2025", "", "../../etc/passwd", "*", one.id + "0"):
        with pytest.raises(InputError, match="no restore point"):
            repository.find(text)


def test_the_catalogue_follows_the_files(repository: Repository) -> None:
    """What another process adds, changes or deletes is seen at the next call."""
    (one,) = put(repository, point(0))
    assert repository.points() == [one]
    two, changed = put(repository, point(1, 0), one.model_copy(update={"job": "other"}))
    assert repository.points() == [changed, two]
    (repository.layout.point(UUID, two.id) / "point.json").unlink()
    assert repository.points() == [changed]
    assert [found.id for found in repository.unfinished()] == [two.id]


NASTY = [
    "../../../etc/passwd",
    "a/b\\c",
    "x" * 255,
    "line\nbreak\r\n\ttab",
    "nul\0byte",
    "Ünïcödé 仮想マシン 🖥 \u202e rtl",
    "'; DROP TABLE points; --",
    '"}],"format":9',
    "$(touch /tmp/x) `id` %s {0} [bold]x[/bold]",
    "",
]


@pytest.mark.parametrize("name", NASTY)
def test_nasty_names(repository: Repository, name: str) -> None:
    """Names are data: they come back as they were, and are in no path."""
    named = point(0, vm=VmRef(site=name, moref=name, uuid=UUID, name=name), job=name, reason=name)
    named = named.model_copy(
        update={"disks": [named.disks[0].model_copy(update={"label": name, "file": name, "change_id": name})]}
    )
    put(repository, named)
    info = VmInfo(
        ref=named.vm,
        path=name,
        power="on",
        host=name,
        tools=True,
        tracking=True,
        tracking_possible=True,
        snapshots=0,
        disks=[VmDisk(key=2000, label=name, file=name, size=SIZE)],
    )
    repository.remember(info)
    again = Repository.open(repository.layout.root, create=False)
    assert again.points() == [named]
    assert again.vms() == [KnownVm(ref=info.ref, path=name, disks=info.disks)]
    names = {path.name for path in repository.layout.root.rglob("*")}
    assert names == {
        *("repository.json", "vms", UUID, ".lock", "vm.json", "points", named.id),
        *("point.json", "disk-2000.qcow2", "disk-2000.batches"),
    }


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_name(tmp_path: Path, name: str) -> None:
    """Whatever a VM is called, its manifest gives it back."""
    named = point(0, vm=vm(name=name))
    path = tmp_path / "point.json"
    path.write_bytes(manifest_text(named))
    assert read_manifest(path, UUID, named.id) == named


@pytest.mark.parametrize("uuid", ["", "..", "../" + UUID, UUID + "/..", UUID + "\n", "x" * 36, "web01", f" {UUID}"])
def test_a_uuid_is_no_path(repository: Repository, uuid: str) -> None:
    """Only a UUID names a VM's folder."""
    with pytest.raises(InputError, match="not the UUID"):
        vm_uuid(uuid)
    with pytest.raises(InputError):
        repository.begin(vm(uuid), id_of(0))
    with pytest.raises(InputError):
        repository.points(uuid)


@pytest.mark.parametrize("id", ["", ".", "..", "../x", "20261122T225012Z-3f9a/..", "20261122T225012Z-3f9a\n", "latest"])
def test_a_point_id_is_no_path(repository: Repository, id: str) -> None:
    """Only a point's id names its folder, and only a key its disk's files."""
    with pytest.raises(InputError, match="not the id"):
        repository.begin(vm(), id)
    with pytest.raises(InputError, match="not a disk's key"):
        Layout(Path("/r")).image(UUID, id_of(0), -1)


def test_new_ids_sort_by_time() -> None:
    """Ids are of UTC, whatever the clock's zone; two of one second differ."""
    zone = datetime.fromisoformat("2026-11-23T00:50:12+02:00")
    assert new_point_id(zone).startswith("20261122T225012Z-")
    assert new_point_id(BIRTH) < new_point_id(BIRTH + timedelta(seconds=1))
    assert len({new_point_id(BIRTH) for _ in range(20)}) > 1


def rewrite(repository: Repository, stored: Point, change: dict[str, Any]) -> None:
    """Change keys of a stored manifest."""
    path = repository.layout.point(UUID, stored.id) / "point.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2, "disks": "of another kind"}, "format 2.*knows 1"),
        ({"format": None}, "no format"),
        ({"format": 0}, "format"),
        ({"id": id_of(9)}, f"belongs to point {id_of(9)}"),
        ({"id": "../x"}, "not a restore point's id"),
        ({"vm": {"site": "s", "moref": "m", "uuid": OTHER, "name": "n"}}, f"of {OTHER}"),
        ({"vm": {"site": "s", "moref": "m", "uuid": "../x", "name": "n"}}, "uuid"),
        ({"created": "2026-11-22T22:50:12"}, "created"),
        ({"disks": []}, "disks"),
        ({"mode": "incremental"}, "its mode"),
        ({"job": 7}, "job"),
    ],
)
def test_a_manifest_that_cannot_be_used(repository: Repository, change: dict[str, Any], reason: str) -> None:
    """It is listed as broken, with the reason, and so is what is built on it; the other points are as before."""
    one, two, apart = put(repository, point(0), point(1, 0), point(2))
    rewrite(repository, one, change)
    assert repository.points() == [apart]
    broken = {found.id: found.reason for found in repository.broken()}
    assert set(broken) == {one.id, two.id}
    with pytest.raises(InputError, match=reason):
        repository.find(one.id)
    with pytest.raises(InputError, match=f"parent {one.id}"):
        repository.find(two.id)
    with pytest.raises(InputError, match=f"parent {one.id}"):
        repository.chain(two, 2000)


@pytest.mark.parametrize(
    "disk", [{"parent": "../x"}, {"parent": ""}, {"mode": "full"}, {"size": -1}, {"key": -1}, {"parent": id_of(1)}]
)
def test_a_disk_that_cannot_be(disk: dict[str, Any]) -> None:
    """A manifest's disk never names a path, and has a parent when it is an incremental."""
    good = point(1, 0).model_dump()
    good["disks"][0] |= disk
    with pytest.raises(ValidationError):
        Point.model_validate(good)


def test_more_keys_are_no_harm(repository: Repository) -> None:
    """A later version of the same format writes more; what is known of it is read."""
    (one,) = put(repository, point(0))
    newer = {"mood": "good", "vm": {**one.vm.model_dump(), "colour": "blue"}}
    rewrite(repository, one, {**newer, "disks": [{**one.disks[0].model_dump(), "spin": 7200}]})
    assert repository.points() == [one]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("rm disk-2000.qcow2", "disk-2000.qcow2: is missing"),
        ("rm disk-2000.batches", "disk-2000.batches: is missing"),
        ("> disk-2000.qcow2", "no qcow2"),
        ("printf 'QFI\\373%0100d' 0 > disk-2000.qcow2", "disk-2000.qcow2"),
        ("rm disk-2000.qcow2 && mkdir disk-2000.qcow2", "cannot be read"),
        ("rm disk-2000.qcow2 && ln -s disk-2000.qcow2 disk-2000.qcow2", "cannot be read"),
        ("rm point.json && mkdir point.json", "cannot be read"),
    ],
)
def test_damaged_files(repository: Repository, damage: str, reason: str) -> None:
    """A point whose files are lost or are something else is broken, with what is built on it."""
    one, two, apart = put(repository, point(0), point(1, 0), point(2))
    folder = repository.layout.point(UUID, one.id)
    assert os.system(f"cd {folder} && {damage}") == 0
    assert repository.points() == [apart]
    broken = {found.id: found.reason for found in repository.broken()}
    assert set(broken) == {one.id, two.id}
    assert reason in broken[one.id]
    assert reason in broken[two.id]


def test_an_image_of_another_point(repository: Repository) -> None:
    """An image that is built on something else than the manifest says, or has another size, is no backup of it."""
    one, two, three = put(repository, point(0), point(1, 0), point(2, 1))
    at = repository.layout.image
    at(UUID, three.id, 2000).write_bytes(at(UUID, two.id, 2000).read_bytes())
    assert [found.id for found in repository.broken()] == [three.id]
    assert "is built on" in repository.broken()[0].reason
    larger = one.disks[0].model_copy(update={"size": 2 * SIZE})
    rewrite(repository, one, {"disks": [larger.model_dump()]})
    assert "bytes" in repository.broken()[0].reason
    assert repository.points() == []


def test_parents_in_a_ring(repository: Repository) -> None:
    """Manifests that name each other as parents end nothing in an endless loop."""
    one, two = put(repository, point(0, 1), point(1, 0))
    assert {found.id for found in repository.broken()} == {one.id, two.id}
    assert "ring" in repository.broken()[0].reason
    with pytest.raises(InputError, match="ring"):
        repository.chain(one, 2000)


def test_foreign_files(repository: Repository) -> None:
    """What else lies in the repository is nobody's point."""
    (one,) = put(repository, point(0))
    for name in ("vms/x", "vms/x.txt", f"vms/{UUID}/points/copy of a point", f"vms/{UUID}/points/.snapshot"):
        (repository.layout.root / name).mkdir()
    (repository.layout.root / f"vms/{UUID}/points/{id_of(7)}").touch()
    assert repository.points() == [one]
    assert repository.broken() == []


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2}', '{"format": 1, "ref": {}}'])
def test_a_vm_whose_file_is_lost(repository: Repository, text: str) -> None:
    """It is then known as its last point has it."""
    put(repository, point(0), point(1, 0, vm=vm(name="renamed")))
    repository.layout.vm_file(UUID).write_text(text)
    assert repository.vms() == [KnownVm(ref=vm(name="renamed"))]


def test_verified(repository: Repository) -> None:
    """The time of a verification is stored, and nothing else of the point changes."""
    (one,) = put(repository, point(0))
    now = datetime.now(UTC)
    repository.mark_verified(one.model_copy(update={"job": "not stored"}), now)
    assert repository.points() == [one.model_copy(update={"verified": now})]
    with pytest.raises(InputError, match="cannot be read"):
        repository.mark_verified(point(5), now)


def test_a_lock_that_is_held(repository: Repository) -> None:
    """Who waits for a deletion of the VM's points does so with a deadline, and is told."""
    with repository.layout.lock(UUID), pytest.raises(JobFailed, match="another process"):
        with repository.layout.lock(UUID, seconds=0.1):
            pass
    with repository.layout.lock(UUID, seconds=0.1):
        pass


def test_usage(repository: Repository) -> None:
    """What the files take on the file system, holes not counted."""
    (one,) = put(repository, point(0))
    before = repository.usage()
    path = repository.layout.image(UUID, one.id, 2000)
    with path.open("ab") as file:
        file.write(bytes(2**20))
        file.truncate(2**40)
        os.fsync(file.fileno())
    assert 2**20 <= repository.usage() - before <= 2**20 + 2**16
    assert 2**20 <= repository.usage_of(one) <= repository.usage()
    assert repository.free() > 0


def test_thousands_of_points(repository: Repository) -> None:
    """A chain of two thousand is walked in a straight line, without recursion."""
    stored = put(repository, point(0), *(point(hour, hour - 1) for hour in range(1, 2000)))
    assert repository.points() == stored
    assert len(repository.chain(stored[-1], 2000)) == 2000


def test_what_did_not_change_is_not_read_again(repository: Repository) -> None:
    """A manifest is known by inode, time and size: while they are the same, its content is not looked at."""
    (one,) = put(repository, point(0))
    assert repository.points() == [one]
    path = repository.layout.point(UUID, one.id) / "point.json"
    found = path.stat()
    path.write_bytes(b"?" * found.st_size)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert repository.points() == [one]
    assert Repository(repository.layout.root).points() == []
