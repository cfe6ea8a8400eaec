"""A VM's disks as they change, backed up into a real repository, each state kept as bytes to compare with."""

import json
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

from blake3 import blake3

from sendense.extents import Extent, coarsen, split
from sendense.models import VmRef
from sendense.nbd.transfer import digest_of
from sendense.repository.batches import StoredBatch, read, stored_batch
from sendense.repository.catalogue import Repository
from sendense.repository.checking import check, strangers
from sendense.repository.layout import new_point_id
from sendense.repository.points import Point, PointDisk, mode_of
from sendense.repository.writing import Draft

ROOT = Path(__file__).resolve().parents[1]

KiB, MiB = 2**10, 2**20
CLUSTER = 64 * KiB
QEMU_SECONDS = 60

UUID = "5029a0a6-0000-4000-8000-00000000beef"
VM = VmRef(site="oslo", moref="vm-42", uuid=UUID, name="web01")

BIRTH = datetime(2026, 11, 22, 22, 50, 12, tzinfo=UTC)


class Story:
    """
    One VM's backups. A disk is drawn as a string, a cluster each: a letter is new data, '0' becomes zero, '-' stays.
    """

    def __init__(self, folder: Path, keys: Iterable[int] = (2000,), clusters: int = 32, vm: VmRef = VM) -> None:
        self.folder, self.vm, self.size = folder, vm, clusters * CLUSTER
        self.repository = Repository.open(folder / "repository", create=True)
        self.content = {key: bytearray(self.size) for key in keys}
        self.kept: dict[str, dict[int, bytes]] = {}
        self._random = random.Random(7)
        self._hours = 0

    def backup(self, *, full: bool = False, change_id: str = "", **drawings: str) -> Point:
        """A point: full, or built on the last one. Drawings are given as d2000="AA-0"; what has none is unchanged."""
        parent = None if full else self.repository.latest(self.vm.uuid)
        draft = self.begin()
        disks = [self.store(draft, key, parent, drawings.get(f"d{key}", "")) for key in self.content]
        return self.commit(draft, disks, change_id)

    def begin(self) -> Draft:
        """A new draft, an hour after the last."""
        self._hours += 1
        return self.repository.begin(self.vm, new_point_id(self._now()))

    def commit(self, draft: Draft, disks: list[PointDisk], change_id: str = "") -> Point:
        """Make it a point, and keep what it has to contain."""
        disks = [disk.model_copy(update={"change_id": change_id}) for disk in disks]
        point = Point(
            id=draft.id, vm=self.vm, created=self._now(), job="j1", quiesced=True, mode=mode_of(disks), disks=disks
        )
        draft.commit(point)
        self.kept[point.id] = {disk.key: bytes(self.content[disk.key]) for disk in disks}
        return point

    def _now(self) -> datetime:
        return BIRTH + timedelta(hours=self._hours)

    def store(self, draft: Draft, key: int, parent: Point | None, drawing: str) -> PointDisk:
        """Change a disk as drawn, and store what a backup on `parent` has to."""
        changed = list(self._change(key, drawing))
        extents = changed if parent else list(_data(self.content[key]))
        image = draft.make_image(key, self.size, parent)
        write(image, self.content[key], extents, self.folder)
        found = draft.write_batches(key, batches_of(self.content[key], extents))
        return PointDisk(
            key=key,
            label=f"Hard disk {key}",
            file=f"[ds] web01/{key}.vmdk",
            size=self.size,
            mode="incremental" if parent else "full",
            reason="" if parent else "the first",
            parent=parent.id if parent else "",
            data=found.data,
            changed=found.changed,
            digest=found.digest,
        )

    def _change(self, key: int, drawing: str) -> Iterator[Extent]:
        for number, kind in enumerate(drawing):
            if kind != "-":
                start = number * CLUSTER
                new = bytes(CLUSTER) if kind == "0" else self._random.randbytes(CLUSTER)
                self.content[key][start : start + CLUSTER] = new
                yield Extent(start, CLUSTER, kind == "0")

    def check_content(self) -> None:
        """Every point shows what its VM had, and its images are sound, in plain qemu."""
        for point in self.repository.points():
            for disk in point.disks:
                path = self.repository.layout.image(self.vm.uuid, point.id, disk.key)
                assert content(path, self.folder) == self.kept[point.id][disk.key], f"{point.id} {disk.key}"
                assert check(path) == ""
                chain = json.loads(qemu_img("info", "--backing-chain", "--output=json", path))
                assert all(not image.get("backing-filename", "").startswith("/") for image in chain)

    def check_digests(self) -> None:
        """Every level's batches and manifest say what its image has, all of it, and nothing is broken or left over."""
        assert self.repository.broken() == []
        for point in self.repository.points():
            for key in self.kept[point.id]:
                for level in self.repository.levels(point, key):
                    held = content(level.image, self.folder)
                    stored = list(read(level.batches))
                    for batch in stored:
                        assert batch == stored_batch(batch.extents, digest(held, batch.extents)), level
                    assert blake3(b"".join(batch.digest for batch in stored)).hexdigest() == level.disk.digest
                    assert sum(batch.data for batch in stored) == level.disk.data
                    assert sum(batch.length for batch in stored) == level.disk.changed
                    assert strangers(level.image, stored) == []
        names = {path.name for path in self.repository.layout.root.rglob("*") if path.is_file()}
        assert not [name for name in names if name.endswith((".part", ".next", ".deleted"))]


def _data(content: bytearray) -> Iterator[Extent]:
    found = (
        Extent(start, CLUSTER) for start in range(0, len(content), CLUSTER) if any(content[start : start + CLUSTER])
    )
    return coarsen(found, CLUSTER, len(content))


def batches_of(content: bytes | bytearray, extents: Iterable[Extent]) -> list[StoredBatch]:
    """Small batches, of up to three extents of up to four clusters."""
    pieces, found = split(extents, 4 * CLUSTER), []
    while batch := list(islice(pieces, 3)):
        found.append(stored_batch(batch, digest(content, batch)))
    return found


def digest(content: bytes | bytearray, extents: Iterable[Extent]) -> bytes:
    """What a transfer of these extents finds."""
    starts = (start for extent in extents for start in range(extent.offset, extent.end, CLUSTER))
    clusters = ((start, bytes(content[start : start + CLUSTER])) for start in starts)
    return digest_of((start, blake3(cluster).digest()) for start, cluster in clusters if any(cluster))


def write(image: Path, content: bytes | bytearray, extents: Iterable[Extent], folder: Path) -> None:
    """Store extents of the content in an image, with qemu-io."""
    commands = []
    for number, extent in enumerate(extents):
        if extent.zero:
            commands.append(f"write -z {extent.offset} {extent.length}")
        else:
            file = folder / f"data{number}"
            file.write_bytes(content[extent.offset : extent.end])
            commands.append(f"write -q -s {file} {extent.offset} {extent.length}")
    arguments = [word for command in commands for word in ("-c", command)]
    if arguments:
        run("qemu-io", "-f", "qcow2", *arguments, image)


def content(image: Path, folder: Path) -> bytes:
    """What an image shows."""
    raw = folder / "shown.raw"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
    return raw.read_bytes()


def qemu_img(*arguments: str | Path) -> str:
    """Run qemu-img, which has to succeed; its output."""
    return run("qemu-img", *arguments)


def run(*command: str | Path) -> str:
    """Run a command, which has to succeed; its output."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=QEMU_SECONDS, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done
    return done.stdout


def in_namespace(root: Path, options: str, script: str) -> str:
    """Run a Python script where `root` is a copy of itself on a tmpfs, mounted with `options`; its output."""
    return run(
        *("unshare", "--map-root-user", "--mount", "sh", "-ec"),
        'cp -a "$1" "$1.copy"; mount -t tmpfs tmpfs "$1"; cp -a "$1.copy"/. "$1"; mount -o remount,"$2" "$1"; '
        'exec "$3" -c "$4"',
        *("sh", root, options, sys.executable, script),
    )
