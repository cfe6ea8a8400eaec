"""What the guest of a virtual machine does: files added, changed and deleted in the ext4 file system of its disk."""

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sendense.errors import InputError
from sendense.lab.disks import PARTITION_START, text, tool
from sendense.units import show_bytes

_BLOCK = 4096
"""Bytes of a block of the file systems that the lab makes."""

_MAGIC, _MAGIC_OFFSET = b"\x53\xef", 1080
"""Of ext4: in its superblock."""

_FOLDER = "/guest"
"""Where new files go."""

_VISITED = 4
"""Folders that one call changes files in, beside that one."""


@dataclass(frozen=True, slots=True)
class FileChanges:
    """Paths within the guest, by what happened to them."""

    added: list[str]
    changed: list[str]
    deleted: list[str]


def change_files(disk: Path, *, files: int, size: int, seed: int) -> FileChanges:
    """
    Change the file system of a raw disk that nobody else writes: `files` new ones, and at most as many old ones.

    Of the older files in a few folders, a third at most gets new content and as many are deleted. The new content has
    `size` bytes together. The same changes for the same seed and disk.
    """
    noise = random.Random(seed)
    target = f"{disk}?offset={_offset(disk)}"
    root = _listing(target, ["/"])["/"]
    folders = [name for name in root if name.startswith("dir")]
    visited = [_FOLDER, *(f"/{name}" for name in noise.sample(folders, min(len(folders), _VISITED)))]
    older = [f"{folder}/{name}" for folder, names in _listing(target, visited).items() for name in names]
    noise.shuffle(older)
    share = min(files, len(older) // 3)
    added = [f"{_FOLDER}/{seed:08}-{number:04}" for number in range(files)]
    done = FileChanges(added, older[:share], older[share : 2 * share])
    written = [*done.added, *done.changed]
    length = max(1, size // max(1, len(written)))
    _need_room(target, len(written) * -(-length // _BLOCK))
    with tempfile.TemporaryDirectory(dir=disk.parent, prefix="guest-") as folder:
        # A mkdir of what is there fails half-way, and leaves a file system with errors (e2fsprogs 1.47.0).
        orders = [] if _FOLDER[1:] in root else [f"mkdir {_FOLDER}"]
        orders += [f"rm {path}" for path in [*done.changed, *done.deleted]]
        for number, path in enumerate(written):
            content = noise.randbytes(length) if number % 2 else text(noise, length)
            Path(folder, f"content{number}").write_bytes(content)
            orders.append(f"write content{number} {path}")
        _debugfs(target, orders, Path(folder))
    # What debugfs cannot do it says in words only: the file system tells whether it did.
    tool("e2fsck", "-f", "-n", target)
    _check(target, done)
    return done


def _offset(disk: Path) -> int:
    """Where the file system begins: by its magic number, which the disk has there or at the partition's start."""
    with disk.open("rb") as file:
        for offset in (0, PARTITION_START):
            file.seek(offset + _MAGIC_OFFSET)
            if file.read(2) == _MAGIC:
                return offset
    raise InputError(
        f"{disk.name} holds no file system that the lab made", "Write bytes to it, or name another --disk."
    )


def _need_room(target: str, blocks: int) -> None:
    """debugfs reports no full disk: it writes holes."""
    lines = tool("debugfs", "-R", "show_super_stats -h", target).splitlines()
    free = int(next(line for line in lines if line.startswith("Free blocks:")).split()[-1])
    if blocks > free * 9 // 10:
        raise InputError(
            f"the guest's file system has no room: {show_bytes(blocks * _BLOCK)} of {show_bytes(free * _BLOCK)} free",
            "Give fewer --bytes, or larger disks.",
        )


def _check(target: str, done: FileChanges) -> None:
    touched = [*done.added, *done.changed, *done.deleted]
    now = _listing(target, sorted({path.rpartition("/")[0] for path in touched}))
    present = {f"{folder}/{name}" for folder, names in now.items() for name in names}
    if not {*done.added, *done.changed} <= present or present & set(done.deleted):
        raise RuntimeError(f"debugfs did not carry out all of its orders on {target}")


def _listing(target: str, folders: list[str]) -> dict[str, list[str]]:
    """Names of what is in some folders; a folder that is not there is empty."""
    with tempfile.TemporaryDirectory() as scratch:
        lines = _debugfs(target, [f"ls -l {folder}" for folder in folders], Path(scratch), write=False).splitlines()
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("debugfs: "):  # it repeats each order before what came of it
            names = found.setdefault(line.split()[-1], [])
        elif len(words := line.split()) == 9 and words[-1] not in (".", ".."):
            names.append(words[-1])
    return found


def _debugfs(target: str, orders: list[str], scratch: Path, *, write: bool = True) -> str:
    """Carried out in the folder `scratch`: an order cannot name a file whose path has blanks or quotes in it."""
    (scratch / "orders").write_text("".join(f"{order}\n" for order in orders))
    return tool("debugfs", *(["-w"] if write else []), "-f", "orders", target, folder=scratch)
