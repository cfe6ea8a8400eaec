"""Raw sparse files: made with a file system in them, copied without their holes, compared block by block."""

import fcntl
import os
import random
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from sendense.errors import InputError
from sendense.lab.tracking import BLOCK, Area, merge
from sendense.units import KiB, MiB

PARTITION_START = 1 * MiB

_FICLONE = 0x40049409
"""Linux: share the blocks of a file, where the file system can (btrfs, xfs)."""

_TOOL_SECONDS = 300.0
"""mke2fs writes 200 MiB in about one second, debugfs as well."""

_PIECE = 1 * MiB

_WORDS = "disk block extent sector partition inode journal volume mirror shadow archive ledger batch cluster".split()


def tool(*argv: str | Path, stdin: str | None = None, folder: Path | None = None) -> str:
    """Output of a command of the file system tools, run in a folder; Debian leaves them out of a user's PATH."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    program = shutil.which(str(argv[0]), path=path)
    if program is None:
        raise InputError(
            f"{argv[0]}: not installed", "Install e2fsprogs and fdisk (Debian: apt install e2fsprogs fdisk)."
        )
    command = [program, *map(str, argv[1:])]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=_TOOL_SECONDS, cwd=folder)
    if done.returncode:
        raise InputError(
            f"{' '.join(command)} failed ({done.returncode}): {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


def make_disk(path: Path, size: int, *, fill: int, partitioned: bool, seed: int) -> None:
    """
    A raw disk with an ext4 file system, in a partition or by itself, with about `fill` bytes of files.

    The same files for the same seed. `size` is a multiple of 1 MiB, 8 MiB or more.
    """
    noise = random.Random(seed)
    offset = PARTITION_START if partitioned else 0
    with path.open("wb") as file:
        file.truncate(size)
    if partitioned:
        blocks = (size - 2 * PARTITION_START) // MiB
        table = f"label: gpt\nlabel-id: {_uuid(noise)}\nstart=1MiB, size={blocks}MiB, type=linux, uuid={_uuid(noise)}\n"
        # Without these two options it waits a quarter of a second for the kernel to see a device.
        tool("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", path, stdin=table)
    length = size - 2 * PARTITION_START if partitioned else size
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="files-") as content:
        _make_files(Path(content), fill, noise)
        os.chmod(content, 0o755)
        options = f"offset={offset},hash_seed={_uuid(noise)},root_owner=0:0"
        tool(
            *("mke2fs", "-q", "-F", "-t", "ext4", "-L", "lab", "-U", _uuid(noise), "-b", "4096", "-d", content),
            *("-E", options, path, f"{length // KiB}k"),
        )
    os.truncate(path, size)


def _uuid(noise: random.Random) -> str:
    return str(uuid.UUID(int=noise.getrandbits(128), version=4))


def _make_files(folder: Path, fill: int, noise: random.Random) -> None:
    """Text in the one half, what no compression shrinks in the other; folders of 16 files."""
    number, left = 0, fill
    while left > 0:
        size = min(left, noise.choice((3_000, 40_000, 400_000, 1_500_000)))
        place = folder / f"dir{number // 16:03}"
        place.mkdir(exist_ok=True)
        if number % 2:
            (place / f"file{number:05}.bin").write_bytes(noise.randbytes(size))
        else:
            (place / f"file{number:05}.txt").write_bytes(text(noise, size))
        left -= size
        number += 1


def text(noise: random.Random, size: int) -> bytes:
    """So many bytes of words, in lines."""
    line = " ".join(noise.choice(_WORDS) for _ in range(400)).encode() + b"\n"
    return (line * (size // len(line) + 1))[:size]


def freeze(source: Path, target: Path) -> None:
    """Copy a raw file with its holes; the blocks are shared where the file system can."""
    with source.open("rb") as old, target.open("wb") as new:
        size = os.fstat(old.fileno()).st_size
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
            return
        except OSError:
            new.truncate(size)
        for start, length in data_areas(old.fileno(), size):
            offset, end = start, start + length
            while offset < end:
                copied = os.copy_file_range(old.fileno(), new.fileno(), end - offset, offset, offset)
                if not copied:
                    raise OSError(f"{source} became shorter while it was copied")
                offset += copied


def data_areas(file: int, size: int) -> Iterator[Area]:
    """Where a sparse file has data, as its file system tells."""
    offset = 0
    while offset < size:
        try:
            start = os.lseek(file, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole up to the end
            return
        offset = os.lseek(file, start, os.SEEK_HOLE)
        yield start, offset - start


def allocated_areas(path: Path, capacity: int) -> list[Area]:
    """Blocks in which a raw file has data."""
    with path.open("rb") as file:
        return merge(data_areas(file.fileno(), capacity), capacity)


def allocated_bytes(path: Path) -> int:
    """Bytes that a file takes on its disk."""
    return path.stat().st_blocks * 512


def differences(old: Path, new: Path, capacity: int) -> list[Area]:
    """Blocks in which two raw files differ; where both have holes nothing is read."""
    found: list[Area] = []
    with old.open("rb") as before, new.open("rb") as after:
        one, two = before.fileno(), after.fileno()
        data = merge([*data_areas(one, capacity), *data_areas(two, capacity)], capacity)
        for start, length in data:
            for piece in range(start, start + length, _PIECE):
                count = min(_PIECE, start + length - piece)
                left, right = os.pread(one, count, piece), os.pread(two, count, piece)
                if left != right:
                    found += [
                        (piece + at, min(BLOCK, count - at))
                        for at in range(0, count, BLOCK)
                        if left[at : at + BLOCK] != right[at : at + BLOCK]
                    ]
    return merge(found, capacity)


def punch(path: Path, offset: int, length: int) -> None:
    """Make a range of a raw file a hole."""
    # Python has no binding of fallocate's modes; util-linux is on every Debian.
    tool("fallocate", "--punch-hole", "--offset", str(offset), "--length", str(length), path)
