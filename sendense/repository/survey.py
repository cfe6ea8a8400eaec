"""What the folders of a VM hold: sound points, points that cannot be used, and why. Read once, until a file changes."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from sendense.errors import InputError
from sendense.nbd.images import Header, read_header, virtual_size
from sendense.repository.layout import LEAVING, MANIFEST, Layout, backing_path
from sendense.repository.points import Point, PointDisk, read_manifest

_Value = TypeVar("_Value")
_Version = tuple[int, ...]


class Entry(NamedTuple):
    """One manifest: the point, or the reason why it cannot be read; `leaving` while it is merged into its child."""

    point: Point | None
    reason: str
    leaving: bool


class Survey:
    """Reads manifests and images' headers, and keeps them by inode, time and size."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._entries: dict[Path, tuple[_Version, Entry]] = {}
        self._headers: dict[Path, tuple[_Version, Header | str]] = {}

    def entry(self, vm: str, id: str) -> Entry | None:
        """A point's manifest; None for unfinished work, or for no folder at all."""
        folder = self._layout.point(vm, id)
        for name in (MANIFEST, LEAVING):
            path = folder / name
            if version := _version(path):
                return _cached(self._entries, path, version, lambda: self._read(path, vm, id))  # noqa: B023
        return None

    def points(self, vm: str) -> dict[str, Point | str]:
        """By id the VM's points, or why one cannot be used."""
        entries = {id: entry for id in self._layout.point_ids(vm) if (entry := self.entry(vm, id))}
        flaws: dict[tuple[str, int], str] = {}
        found: dict[str, Point | str] = {}
        for id, entry in entries.items():
            if entry.leaving:
                continue
            point = entry.point
            if point is None:
                found[id] = entry.reason
                continue
            reasons = [self._flaw(entries, flaws, id, disk.key) for disk in point.disks]
            found[id] = next(filter(None, reasons), point)
        return found

    def _read(self, path: Path, vm: str, id: str) -> Entry:
        try:
            return Entry(read_manifest(path, vm, id), "", path.name == LEAVING)
        except InputError as exc:
            return Entry(None, str(exc), path.name == LEAVING)

    def _flaw(self, entries: dict[str, Entry], flaws: dict[tuple[str, int], str], id: str, key: int) -> str:
        """What is wrong with a disk's chain, as far as headers show; '' for nothing. `flaws` has what is known."""
        steps: list[tuple[str, int]] = []
        flaw = ""
        while id:
            if (id, key) in flaws:
                flaw = flaws[id, key]
                break
            steps.append((id, key))
            flaws[id, key] = f"{id} disk {key}: its parents form a ring"  # stands if the walk comes by again
            flaw, id = self._step(entries, id, key)
            if flaw:
                break
        flaws.update(dict.fromkeys(steps, flaw))
        return flaw

    def _step(self, entries: dict[str, Entry], id: str, key: int) -> tuple[str, str]:
        """What is wrong with this image itself, and the parent's id."""
        entry = entries.get(id)
        if entry is None or entry.point is None:
            return f"its parent {id} is {entry.reason if entry else 'missing'}", ""
        disk = next((disk for disk in entry.point.disks if disk.key == key), None)
        if disk is None:
            return f"its parent {id} has no disk {key}", ""
        parent = entries.get(disk.parent)
        # While a point is merged into its child, the child's image takes the place of the point's.
        merging = entry.leaving or (parent is not None and parent.leaving)
        return ("" if merging else self._flaw_of_files(entry.point, disk)), disk.parent

    def _flaw_of_files(self, point: Point, disk: PointDisk) -> str:
        path = self._layout.image(point.vm.uuid, point.id, disk.key)
        header = _cached(self._headers, path, _version(path), lambda: _read_header(path))
        if isinstance(header, str):
            return header
        if header.size != virtual_size(disk.size):
            return f"{path}: has {header.size} bytes, not {disk.size}"
        if header.backing != (backing_path(disk.parent, disk.key) if disk.parent else ""):
            return f"{path}: is built on {header.backing or 'nothing'}, not on {disk.parent or 'nothing'}"
        batches = self._layout.batches(point.vm.uuid, point.id, disk.key)
        return "" if batches.exists() else f"{batches}: is missing"


def _read_header(path: Path) -> Header | str:
    try:
        return read_header(path)
    except InputError as exc:
        return str(exc)


def _cached(
    cache: dict[Path, tuple[_Version, _Value]], path: Path, version: _Version, read: Callable[[], _Value]
) -> _Value:
    known = cache.get(path)
    if known is None or known[0] != version or not version:
        known = cache[path] = (version, read())
    return known[1]


def _version(path: Path) -> _Version:
    """Another whenever the file is: manifests and images are replaced, not changed. Empty when it cannot be seen."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_mtime_ns, found.st_size)
