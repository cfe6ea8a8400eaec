"""Which restore points there are: the files of a repository, read and cached."""

import os
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from sendense.beat import Beat, no_beat
from sendense.errors import Conflict, InputError, NotFound
from sendense.files import PART, hint_for, make_folder, storing, write_atomically
from sendense.models import VmDisk, VmInfo, VmRef
from sendense.repository.layout import HUB_LOCK, LEAVING, MANIFEST, Layout, vm_uuid
from sendense.repository.points import FORMAT, Point, PointDisk, manifest_text, read_as, read_json, read_manifest
from sendense.repository.survey import Survey
from sendense.repository.writing import Draft

REPOSITORY_FORMAT = 1

NO_CONTENT = {"lost+found", ".snapshot", HUB_LOCK}
"""What a new file system comes with, and what a hub leaves there before its first backup."""

_SHOWN = 8
"""Candidates that an ambiguous id's error names."""


class KnownVm(BaseModel):
    """A VM as it was last seen, `vm.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = FORMAT
    ref: VmRef
    path: str = ""
    """Inventory path; empty when only its points tell of the VM."""
    disks: list[VmDisk] = []


@dataclass(frozen=True, slots=True)
class Broken:
    """A point that cannot be restored, and why."""

    vm: str
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A folder without a manifest: a job's work, or what is left of one. `modified` in seconds since the epoch."""

    vm: str
    id: str
    modified: float


@dataclass(frozen=True, slots=True)
class Level:
    """One image of a chain, with the batches that its own content was copied in."""

    point: str
    disk: PointDisk
    image: Path
    batches: Path


class Repository:
    """
    The restore points below one folder.

    Reading needs no lock and no write access. Every call looks at the folder; what did not change since is not read
    again. A point that cannot be used is in `broken()`, and nowhere else.
    """

    def __init__(self, path: Path) -> None:
        self.layout = Layout(path.absolute())
        self._survey = Survey(self.layout)

    @classmethod
    def open(cls, path: Path, *, create: bool) -> Self:
        """The repository at path; with `create` an empty or missing folder becomes one. InputError says what it is."""
        repository = cls(path)
        try:
            repository._make(create=create)
        except OSError as exc:
            raise InputError(f"{repository.layout.root}: {exc.strerror or exc}", hint_for(exc)) from exc
        read_json(repository.layout.marker, REPOSITORY_FORMAT)
        return repository

    def _make(self, *, create: bool) -> None:
        root = self.layout.root
        if self.layout.marker.exists():
            return
        entries = set(os.listdir(root)) - NO_CONTENT if root.exists() else set()
        if self.layout.marker.name in entries:  # another process made it just now
            return
        if any(not name.endswith(PART) for name in entries):
            raise Conflict(f"{root}: is no repository, and not empty", "Name a repository, or an empty folder.")
        if not create:
            state = "is empty" if root.exists() else "no such folder"
            raise Conflict(f"{root}: {state}", "The first backup makes the repository there; or name another one.")
        make_folder(root)
        write_atomically(self.layout.marker, b'{"format": %d}\n' % REPOSITORY_FORMAT)

    def begin(self, vm: VmRef, point: str) -> Draft:
        """The draft of a new point, or the one that was begun under this id. JobFailed when it cannot be made."""
        draft = self.draft(vm.uuid, point)
        with storing(draft.folder):
            make_folder(draft.folder)
        return draft

    def draft(self, vm: str, point: str) -> Draft:
        """A draft that was begun, to go on with it or to discard it."""
        return Draft(self.layout, vm_uuid(vm), point)

    def remember(self, info: VmInfo) -> None:
        """Keep how a VM was last seen. JobFailed when it cannot be written."""
        known = KnownVm(ref=info.ref, path=info.path, disks=info.disks)
        path = self.layout.vm_file(info.ref.uuid)
        with self.layout.lock(info.ref.uuid), storing(path):
            write_atomically(path, manifest_text(known))

    def vms(self, beat: Beat = no_beat) -> list[KnownVm]:
        """The VMs that have points, by name; one whose file is lost or damaged as its last point has it."""
        found = []
        for uuid in self.layout.vm_uuids():
            beat()
            if known := self._known(uuid):
                found.append(known)
            elif points := self.points(uuid):
                found.append(KnownVm(ref=points[-1].vm))
        return sorted(found, key=lambda known: (known.ref.name, known.ref.uuid))

    def _known(self, uuid: str) -> KnownVm | None:
        path = self.layout.vm_file(uuid)
        try:
            known = read_as(KnownVm, path, FORMAT, "")
        except InputError:
            return None
        return known if known.ref.uuid == uuid else None

    def points(self, vm: str | None = None) -> list[Point]:
        """The sound points, of one VM or of all, oldest first."""
        return self.sound_and_broken(vm)[0]

    def broken(self, vm: str | None = None) -> list[Broken]:
        """The points whose manifest or chain of images is missing or damaged."""
        return self.sound_and_broken(vm)[1]

    def sound_and_broken(self, vm: str | None = None) -> tuple[list[Point], list[Broken]]:
        """Both at one look, which costs a few calls of the file system for each point."""
        sound: list[Point] = []
        broken: list[Broken] = []
        for uuid in self._uuids(vm):
            for id, found in self._survey.points(uuid).items():
                if isinstance(found, Point):
                    sound.append(found)
                else:
                    broken.append(Broken(uuid, id, found))
        return sorted(sound, key=_age), broken

    def unfinished(self, vm: str | None = None) -> list[Unfinished]:
        """The folders that are no points: what jobs are working on, or left."""
        found = []
        for uuid in self._uuids(vm):
            for id in self.layout.point_ids(uuid):
                folder = self.layout.point(uuid, id)
                if not (folder / MANIFEST).exists() and not (folder / LEAVING).exists():
                    found.append(Unfinished(uuid, id, _modified(folder)))
        return found

    def find(self, text: str) -> Point:
        """The point with this id, or the only one whose id begins so. InputError otherwise, with the candidates."""
        points, unusable = self.sound_and_broken()
        sound = {(point.vm.uuid, point.id): point for point in points}
        broken = {(point.vm, point.id): point for point in unusable}
        ids = [key for key in (*sound, *broken) if text and key[1].startswith(text)]
        ids = [key for key in ids if key[1] == text] or ids
        if not ids:
            raise NotFound(f"no restore point {text!r}", "'sendense points' lists them.")
        if len(ids) > 1:
            shown = ", ".join(sorted(id for _, id in ids)[:_SHOWN]) + (", …" if len(ids) > _SHOWN else "")
            raise Conflict(f"{text!r} stands for {len(ids)} restore points", f"Name one of them: {shown}")
        if ids[0] in broken:
            reason = broken[ids[0]].reason
            raise Conflict(f"{ids[0][1]} cannot be used: {reason}", "Use another point: 'sendense points' lists them.")
        return sound[ids[0]]

    def latest(self, vm: str) -> Point | None:
        """
        The newest sound point of a VM, for the next one to build on.

        One that another is built on is not it, even where a clock that was set back makes it the newest: two points on
        one parent could not be merged.
        """
        points = self.points(vm)
        parents = {disk.parent for point in points for disk in point.disks}
        return next((point for point in reversed(points) if point.id not in parents), None)

    def chain(self, point: Point, key: int) -> list[Point]:
        """The points that a disk's content comes from: this one first, the full last. InputError when one is lost."""
        chain, seen = [point], {point.id}
        while parent := chain[-1].disk(key).parent:
            entry = self._survey.entry(point.vm.uuid, parent)
            if entry is None or entry.point is None:
                why = entry.reason if entry else "missing"
                raise Conflict(f"{chain[-1].id} disk {key}: its parent {parent} is {why}", _LOST)
            if parent in seen:
                raise Conflict(f"{point.id} disk {key}: its parents form a ring at {parent}", _LOST)
            seen.add(parent)
            chain.append(entry.point)
        return chain

    def children(self, point: Point) -> list[Point]:
        """The sound points of which a disk is built on this one."""
        return [other for other in self.points(point.vm.uuid) if any(disk.parent == point.id for disk in other.disks)]

    def levels(self, point: Point, key: int) -> list[Level]:
        """The images of a disk's chain, the point's own first: each is verified against its own batches."""
        return [
            Level(
                level.id,
                level.disk(key),
                self.layout.image(level.vm.uuid, level.id, key),
                self.layout.batches(level.vm.uuid, level.id, key),
            )
            for level in self.chain(point, key)
        ]

    def mark_verified(self, point: Point, when: datetime) -> None:
        """Store in a point's manifest when its content was found to be right. JobFailed where it cannot be written."""
        with self.layout.lock(point.vm.uuid):
            self._amend(point, {"verified": when, "damaged": ""})

    def mark_damaged(self, vm: str, point: str, key: int, words: str) -> None:
        """Store in a point's manifest, and in those whose disk `key` is built on it, what was found to be wrong."""
        with self.layout.lock(vm):
            for other in self.points(vm):
                keys = {disk.key for disk in other.disks}
                if key in keys and any(level.id == point for level in self.chain(other, key)):
                    self._amend(other, {"damaged": words})

    def _amend(self, point: Point, fields: dict[str, object]) -> None:
        path = self.layout.point(point.vm.uuid, point.id) / MANIFEST
        with storing(path):
            stored = read_manifest(path, point.vm.uuid, point.id)
            write_atomically(path, manifest_text(stored.model_copy(update=fields)))

    def usage(self) -> int:
        """Bytes that all of its files take on the file system."""
        return _allocated(self.layout.root)

    def usage_of(self, point: Point) -> int:
        """Bytes that a point's own files take: its parents' not counted."""
        return _allocated(self.layout.point(point.vm.uuid, point.id))

    def free(self) -> int:
        """Bytes that are left on its file system."""
        return shutil.disk_usage(self.layout.root).free

    def _uuids(self, vm: str | None) -> list[str]:
        return [vm_uuid(vm)] if vm is not None else self.layout.vm_uuids()


_LOST = "Make a full of the VM; the points that were built on it cannot be restored."


def _age(point: Point) -> tuple[float, str]:
    return (point.created.timestamp(), point.id)


def _modified(folder: Path) -> float:
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:  # it was deleted meanwhile
        return 0.0


def _allocated(folder: Path) -> int:
    return sum(_blocks(Path(top) / name) for top, _, names in os.walk(folder) for name in names)


def _blocks(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0
