"""
Deleting a restore point; with `merge`, the point that is built on it takes over what it needs.

The child C is an overlay on the parent P that is deleted. Its data is committed into P's image, which then takes the
place of C's: the larger image stays where it is. Every step leaves a chain that shows each point as it was:

    batches    C's batches with what is left of P's, under another name; P's content is verified where it is hashed anew
    leave      P's manifest is renamed: it is a point no more, and from here on recover() finishes what was interrupted
    commit     C's clusters are written into P's image; C's overlay hides them
    replace    P's image is renamed to C's: both show the same, and P's relative backing path stays right
    adopt      the batches take their name
    manifest   C's manifest says what it has become
    remove     P's folder
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

from sendense.beat import beating
from sendense.errors import InputError, JobFailed
from sendense.extents import total
from sendense.files import PART, rename, storing, sync, write_atomically
from sendense.nbd import images
from sendense.nbd.connect import Beat, no_beat
from sendense.repository import batches
from sendense.repository.catalogue import Broken, Repository
from sendense.repository.coverage import Coverage
from sendense.repository.layout import LEAVING, MANIFEST, REMOVED, Layout, disk_keys, image_name
from sendense.repository.points import Point, PointDisk, manifest_text, mode_of, read_manifest
from sendense.repository.rebatch import merged
from sendense.repository.writing import empty_removed, remove_folder
from sendense.units import MiB, show_bytes

NEXT = ".next"
"""What ends the name of batches that wait for their image."""

METADATA = 16 * MiB
"""Bytes that a merge may take beside the data: L2 tables for 128 GiB of new clusters."""

_UNFINISHED = (
    "Every remaining point can be restored; when this is cured, the VM's next deletion or backup goes on with it."
)

Step = Callable[[str], None]


def _no_step(step: str) -> None:
    pass


def delete(
    repository: Repository, point: Point, *, merge: bool, beat: Beat = no_beat, on_step: Step = _no_step
) -> list[str]:
    """
    Delete a point; returns the ids of the points that took over its data.

    InputError when points or unfinished work are built on it and it may not be merged; JobFailed when an image is in
    use, does not hold what was copied, or cannot be written. Until `on_step` is called with "leave" nothing is changed.
    """
    layout, vm = repository.layout, point.vm.uuid
    with layout.lock(vm, beat), storing(layout.points(vm)):
        _recover(repository, vm, beat)
        folder = layout.point(vm, point.id)
        if not (folder / MANIFEST).exists():
            return []
        heirs = _heirs(repository, point, merge=merge)
        _must_be_idle(layout, vm, [(point.id, key) for key in disk_keys(folder)] + heirs)
        if not heirs:
            remove_folder(folder)
            return []
        _must_fit(layout, vm, point.id, heirs, beat)
        try:
            for child, key in heirs:
                _write_next(layout, vm, child, point.id, key, beat)
                on_step(f"batches {key}")
        except BaseException:
            for child, key in heirs:
                _next(layout.batches(vm, child, key)).unlink(missing_ok=True)
            raise
        rename(folder / MANIFEST, folder / LEAVING)
        on_step("leave")
        _finish(repository, vm, point.id, beat, on_step)
    return sorted({child for child, _ in heirs})


def delete_broken(repository: Repository, broken: Broken) -> None:
    """Delete a point that cannot be used. InputError when another one is built on it."""
    layout = repository.layout
    with layout.lock(broken.vm), storing(layout.points(broken.vm)):
        folder = layout.point(broken.vm, broken.id)
        if built := _dependents(layout, broken.vm, broken.id):
            names = ", ".join(sorted({child for child, _ in built}))
            raise InputError(f"{names} is built on {broken.id}", "Delete that first.")
        _must_be_idle(layout, broken.vm, [(broken.id, key) for key in disk_keys(folder)])
        remove_folder(folder)


def recover(repository: Repository, vm: str, beat: Beat = no_beat) -> list[str]:
    """
    Finish the deletions of a VM's points that were interrupted; returns their ids. Changes nothing otherwise.

    JobFailed as from `delete`; every point can be restored meanwhile, and a verification has to wait.
    """
    if not repository.layout.points(vm).is_dir() or not _left_over(repository.layout, vm):
        return []
    with repository.layout.lock(vm, beat), storing(repository.layout.points(vm)):
        return _recover(repository, vm, beat)


def _left_over(layout: Layout, vm: str) -> bool:
    folders = [path for path in layout.points(vm).iterdir() if path.is_dir()]
    return bool(next(_strays(layout.vm(vm)), None)) or any(
        folder.name.startswith(REMOVED)
        or (folder / LEAVING).exists()
        or ((folder / MANIFEST).exists() and next(_strays(folder), None))
        for folder in folders
    )


def _strays(folder: Path) -> Iterator[Path]:
    """What an interrupted step leaves in the folder of a VM or a point. In a draft's, such a file may be in use."""
    return (path for path in folder.iterdir() if path.name.endswith((NEXT, PART)))


def _recover(repository: Repository, vm: str, beat: Beat) -> list[str]:
    layout, found = repository.layout, []
    for id in layout.point_ids(vm):
        if (layout.point(vm, id) / LEAVING).exists():
            _finish(repository, vm, id, beat, _no_step)
            found.append(id)
    points = [layout.point(vm, id) for id in layout.point_ids(vm)]
    for folder in (layout.vm(vm), *(folder for folder in points if (folder / MANIFEST).exists())):
        for path in list(_strays(folder)):
            path.unlink(missing_ok=True)
    empty_removed(layout.points(vm))
    return found


def _dependents(layout: Layout, vm: str, id: str) -> list[tuple[str, int]]:
    """By the images themselves whose backing file is one of the point's: (id, key), unfinished work included."""
    found = []
    for other in layout.point_ids(vm):
        folder = layout.point(vm, other)
        for key in disk_keys(folder):
            with suppress(InputError):  # what has no header is built on nothing
                if images.read_header(folder / image_name(key)).backing.startswith(f"../{id}/"):
                    found.append((other, key))
    return found


def _heirs(repository: Repository, point: Point, *, merge: bool) -> list[tuple[str, int]]:
    """The disks that take over what the point has: (child's id, key)."""
    heirs = _dependents(repository.layout, point.vm.uuid, point.id)
    names = ", ".join(sorted({child for child, _ in heirs}))
    if heirs and not merge:
        raise InputError(
            f"{names} is built on {point.id}", "Delete that first, or use --merge: it then takes over what it needs."
        )
    sound = {child.id for child in repository.points(point.vm.uuid)}
    if strangers := {child for child, _ in heirs} - sound:
        raise InputError(
            f"{', '.join(sorted(strangers))} is built on {point.id}, and is unfinished or damaged",
            "Let its job end or clean it ('sendense jobs clean'); delete it if it is damaged.",
        )
    if len({key for _, key in heirs}) < len(heirs):
        raise InputError(f"several points are built on the same disk of {point.id}: {names}", "Delete all but one.")
    return heirs


def _must_be_idle(layout: Layout, vm: str, disks: list[tuple[str, int]]) -> None:
    for id, key in disks:
        image = layout.image(vm, id, key)
        if images.is_in_use(image):
            raise JobFailed(
                f"{image}: is in use by a qemu program", "Let the restore, verification or export that reads it end."
            )


def _must_fit(layout: Layout, vm: str, parent: str, heirs: list[tuple[str, int]], beat: Beat) -> None:
    """Refuse while it can be refused: a merge that ran out of room could only wait for more."""
    needed = 0
    for child, key in heirs:
        below = images.own_extents(layout.image(vm, parent, key), beat)
        stored = Coverage(extent for extent in below if not extent.zero)
        above = images.own_extents(layout.image(vm, child, key), beat)
        needed += total(stored.rest_of(extent for extent in above if not extent.zero), zero=False) + METADATA
    if (free := shutil.disk_usage(layout.root).free) < needed:
        raise JobFailed(
            f"{layout.root}: has {show_bytes(free)} left, and merging {parent} may take {show_bytes(needed)}",
            "Make room on that file system, or delete the points that are built on it instead.",
        )


def _write_next(layout: Layout, vm: str, child: str, parent: str, key: int, beat: Beat) -> None:
    ours, theirs = layout.batches(vm, child, key), layout.batches(vm, parent, key)
    found = merged(ours, theirs, layout.image(vm, parent, key), f"{parent} disk {key}", beat)
    with closing(found):
        batches.write(_next(ours), beating(found, beat))


def _next(path: Path) -> Path:
    return path.with_name(path.name + NEXT)


def _finish(repository: Repository, vm: str, id: str, beat: Beat, on_step: Step) -> None:
    """Everything after "leave"; each step finds out whether it was done already."""
    layout = repository.layout
    parent = read_manifest(layout.point(vm, id) / LEAVING, vm, id)
    for other in layout.point_ids(vm):
        path = layout.point(vm, other) / MANIFEST
        try:
            child = read_manifest(path, vm, other)
        except InputError:
            continue
        heirs = [disk for disk in child.disks if disk.parent == id]
        for disk in heirs:
            _take_over(layout, vm, child.id, id, disk.key, beat, on_step)
        if heirs:
            write_atomically(path, manifest_text(_adopted(layout, child, parent, beat)))
            on_step(f"manifest {child.id}")
    if built := _dependents(layout, vm, id):
        names = ", ".join(sorted({child for child, _ in built}))
        raise JobFailed(f"{names} is built on {id} and cannot take over from it", "Delete it, or bring its files back.")
    remove_folder(layout.point(vm, id))
    on_step("remove")


def _take_over(layout: Layout, vm: str, child: str, parent: str, key: int, beat: Beat, on_step: Step) -> None:
    below, above = layout.image(vm, parent, key), layout.image(vm, child, key)
    if below.exists():
        _must_be_idle(layout, vm, [(parent, key), (child, key)])
        try:
            images.commit_into_backing(above, beat)
            images.repair_leaks(below, beat)
        except JobFailed as exc:
            raise JobFailed(f"{above}: {exc}", _UNFINISHED) from exc
        sync(below)
        on_step(f"commit {key}")
        rename(below, above)
        on_step(f"replace {key}")
    path = layout.batches(vm, child, key)
    if _next(path).exists():
        rename(_next(path), path)
        on_step(f"adopt {key}")


def _adopted(layout: Layout, child: Point, parent: Point, beat: Beat) -> Point:
    """The child's manifest once its images are the parent's."""
    disks = [
        _adopted_disk(layout, child, parent, disk, beat) if disk.parent == parent.id else disk for disk in child.disks
    ]
    mode = mode_of(disks)
    reason = f"took over from {parent.id}, a full" if mode == "full" and child.mode != "full" else child.reason
    # It was not verified as it is now.
    return child.model_copy(update={"disks": disks, "mode": mode, "reason": reason, "verified": None})


def _adopted_disk(layout: Layout, child: Point, parent: Point, disk: PointDisk, beat: Beat) -> PointDisk:
    before = parent.disk(disk.key)
    stored = batches.totals(layout.batches(child.vm.uuid, child.id, disk.key), beat)
    reason = f"took over from {parent.id}, a full" if before.mode == "full" else disk.reason
    took = {"mode": before.mode, "parent": before.parent, "reason": reason}
    return disk.model_copy(update={**took, "data": stored.data, "changed": stored.changed, "digest": stored.digest})
