"""An unfinished restore point: its folder from the first image to the manifest, which makes it a point."""

import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sendense.errors import InputError, JobFailed
from sendense.files import PART, rename, storing, sync, write_atomically
from sendense.nbd import images
from sendense.nbd.connect import Beat, no_beat
from sendense.repository import batches
from sendense.repository.batches import StoredBatch, Totals
from sendense.repository.layout import (
    LEAVING,
    MANIFEST,
    REMOVED,
    Layout,
    backing_path,
    batches_name,
    disk_keys,
    image_name,
)
from sendense.repository.points import Point, PointDisk, manifest_text, read_manifest

COMMIT_LOCK_SECONDS = 600.0
"""A merge of the VM's older points may take minutes: worth waiting for, with all the data copied."""

_RESUME = "Make room on the repository's file system, or make it writable; then resume."


@dataclass(frozen=True, slots=True)
class Draft:
    """
    The folder of one unfinished point. Its owner is one job; every method may run again after a crash at any instant.

    Whatever cannot be written is a JobFailed that says where and what to do.
    """

    layout: Layout
    vm: str
    """The VM's UUID."""
    id: str

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.layout.point(self.vm, self.id)

    def image(self, key: int) -> Path:
        """Where a disk's image is, or will be."""
        return self.layout.image(self.vm, self.id, key)

    def committed(self) -> Point | None:
        """The point, when the draft has become one."""
        manifest = self.folder / MANIFEST
        return read_manifest(manifest, self.vm, self.id) if manifest.exists() else None

    def make_image(self, key: int, size: int, parent: Point | None, beat: Beat = no_beat) -> Path:
        """
        A new image of `size` bytes, or the one that is there already, with whatever an earlier run stored in it.

        With a parent it is an overlay on that point's image of the disk, which must have the same size. An image of
        another size or parent is never replaced (JobFailed): say drop_image first.
        """
        path, size = self.image(key), images.virtual_size(size)
        backing = backing_path(parent.id, key) if parent else ""
        with self.layout.lock(self.vm, beat, COMMIT_LOCK_SECONDS), storing(path):
            self._must_be_unfinished()
            if parent:
                self._must_be_there(parent, key, size)
            if path.exists():
                self._must_match(path, size, backing)
                return path
            part = path.with_name(path.name + PART)
            part.unlink(missing_ok=True)
            try:
                images.create_qcow2(part, size, backing)
            except JobFailed as exc:
                raise JobFailed(f"{path}: {exc}", _RESUME) from exc
            sync(part)
            rename(part, path)
        return path

    def drop_image(self, key: int, beat: Beat = no_beat) -> None:
        """Delete a disk's image and batches, and all that was copied: it is made anew, say as a full."""
        with self.layout.lock(self.vm, beat, COMMIT_LOCK_SECONDS), storing(self.folder):
            self._must_be_unfinished()
            self.image(key).unlink(missing_ok=True)
            self.layout.batches(self.vm, self.id, key).unlink(missing_ok=True)
            sync(self.folder)

    def write_batches(self, key: int, stored: Iterable[StoredBatch]) -> Totals:
        """Store what was copied of a disk; its totals are what PointDisk wants as data, changed and digest."""
        return batches.write(self.layout.batches(self.vm, self.id, key), stored)

    def commit(self, point: Point, beat: Beat = no_beat) -> None:
        """
        Check that everything of the point is there and sound, make it durable, and make the point one by renaming.

        Nobody may have the images open: their exports are gone by now. Leaks that a killed server left are given back.
        """
        if (point.id, point.vm.uuid) != (self.id, self.vm):
            raise JobFailed(f"{self.folder}: cannot be committed as {point.id} of {point.vm.uuid}")
        with self.layout.lock(self.vm, beat, COMMIT_LOCK_SECONDS), storing(self.folder):
            if (self.folder / MANIFEST).exists():
                return
            self._sweep(point)
            for disk in point.disks:
                self._finish(disk, beat)
            sync(self.folder)
            write_atomically(self.folder / MANIFEST, manifest_text(point))

    def discard(self) -> None:
        """Delete the folder, if it is there; a point that was committed is refused."""
        with self.layout.lock(self.vm), storing(self.folder):
            if self.folder.exists():
                self._must_be_unfinished()
                remove_folder(self.folder)

    def _must_be_unfinished(self) -> None:
        for name in (MANIFEST, LEAVING):
            if (self.folder / name).exists():
                raise JobFailed(f"{self.folder}: is a restore point already", "Begin a new one.")

    def _must_be_there(self, parent: Point, key: int, size: int) -> None:
        """A point that is deleted meanwhile cannot be built on; the lock keeps it there from here on."""
        if parent.vm.uuid != self.vm:
            raise JobFailed(f"{parent.id} is a point of another VM, {parent.vm.uuid}", "Make a full.")
        if not (self.layout.point(self.vm, parent.id) / MANIFEST).exists():
            raise JobFailed(f"{parent.id}: was deleted meanwhile", "Start the backup again.")
        if images.virtual_size(parent.disk(key).size) != size:
            raise JobFailed(
                f"disk {key} has {size} bytes, and had {parent.disk(key).size} in {parent.id}", "Make a full."
            )

    def _must_match(self, path: Path, size: int, backing: str) -> None:
        try:
            found = images.read_header(path)
        except InputError as exc:
            raise JobFailed(exc.message, exc.hint) from exc
        if (found.size, found.backing) != (size, backing):
            raise JobFailed(
                f"{path}: has {found.size} bytes on {found.backing or 'nothing'}, "
                f"and is to have {size} on {backing or 'nothing'}",
                "Discard the unfinished point, then start again.",
            )

    def _sweep(self, point: Point) -> None:
        """Delete what a crash left, and images of disks that are no part of the point."""
        for part in self.folder.glob(f"*{PART}"):
            part.unlink(missing_ok=True)
        for key in set(disk_keys(self.folder)) - {disk.key for disk in point.disks}:
            (self.folder / image_name(key)).unlink()
            (self.folder / batches_name(key)).unlink(missing_ok=True)

    def _finish(self, disk: PointDisk, beat: Beat) -> None:
        image, file = self.image(disk.key), self.layout.batches(self.vm, self.id, disk.key)
        self._must_match(
            image, images.virtual_size(disk.size), backing_path(disk.parent, disk.key) if disk.parent else ""
        )
        if disk.parent and not self.layout.image(self.vm, disk.parent, disk.key).exists():
            raise JobFailed(f"{image}: its parent {disk.parent} was deleted meanwhile", "Start the backup again.")
        found = batches.totals(file, beat)
        if (found.data, found.changed, found.digest) != (disk.data, disk.changed, disk.digest):
            raise JobFailed(f"{file}: is not what the point says of disk {disk.key}", "Resume the job.")
        images.repair_leaks(image, beat)
        sync(image)
        sync(file)


def remove_folder(folder: Path) -> None:
    """Delete a point's folder so that at no instant it looks like one, or like unfinished work. OSError as it comes."""
    removed = folder.with_name(f"{REMOVED}{folder.name}-{time.time_ns()}")
    rename(folder, removed)
    shutil.rmtree(removed)


def empty_removed(points: Path) -> None:
    """Finish deletions that were interrupted after remove_folder's first step."""
    with suppress(FileNotFoundError):
        for folder in points.iterdir():
            if folder.name.startswith(REMOVED):
                shutil.rmtree(folder)
