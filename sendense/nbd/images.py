"""Local disk images: what qemu-img says of them, and making new ones."""

import fcntl
import json
import os
import select
import struct
import subprocess
import tempfile
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sendense.errors import InputError, JobFailed
from sendense.extents import Extent
from sendense.lifeline import tied
from sendense.nbd.connect import POLL_MS, Beat, no_beat

QEMU_IMG_SECONDS = 60.0
"""What only reads or writes headers takes milliseconds."""

STALL_SECONDS = 600.0
"""How long qemu-img may read and write nothing: at the end of a commit it flushes all that it wrote."""

CLUSTER_BITS = 16
"""64 KiB, as the batches have it: no two of them write one cluster."""

_HEADER = struct.Struct(">4sIQIIQ")
"""Magic, version, where the backing file's name is, its length, cluster bits, the disk's size (qcow2.txt, "Header")."""

_LOCKS = (100, 264)
"""The bytes of an image that qemu locks: 100 and more for what it does, 200 and more for what others may not."""

_CHECK_FINDINGS = (2, 3)
"""Exit statuses of `qemu-img check` for corruption and for leaks (qemu-img(1))."""

FORMATS = {".raw": "raw", ".qcow2": "qcow2", ".vmdk": "vmdk", ".vhdx": "vhdx"}
"""The format that a name stands for. A raw disk's guest can write any header, so the name decides, not the content."""

TARGET_FORMATS = {".raw": "raw", ".qcow2": "qcow2"}

PARTIAL = ".partial"
"""What ends the name of an image that is not whole."""


@dataclass(frozen=True, slots=True)
class Image:
    """A local disk image. `files` are all the files that its content comes from, backing files included."""

    path: Path
    format: str
    files: tuple[Path, ...]


def inspect(path: Path) -> Image:
    """What is at path; InputError when that cannot be copied."""
    if not path.exists():
        raise InputError(f"{path}: no such file", "Name an image (.raw, .qcow2, .vmdk, .vhdx) or an NBD URI.")
    if path.is_dir():
        raise InputError(f"{path}: is a directory", "Name an image (.raw, .qcow2, .vmdk, .vhdx) or an NBD URI.")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: may not be read by this user", "Run as a user who may read it.")
    known = FORMATS.get(path.suffix.lower())
    if known == "raw":
        return Image(path, "raw", (path,))
    chain = _info(path, known)
    return Image(path, chain[0]["format"], tuple(dict.fromkeys(_files(chain))))


def create(path: Path, kind: str, size: int) -> None:
    """A new sparse image of size bytes, readable by its owner alone; JobFailed when there is no room for it."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        if kind == "raw":
            os.ftruncate(descriptor, size)
    except OSError as exc:
        raise JobFailed(f"{path}: cannot be made {size} bytes large: {exc.strerror}") from exc
    finally:
        os.close(descriptor)
    if kind != "raw":
        _run("create", "-q", "-f", kind, str(path), str(size))


@dataclass(frozen=True, slots=True)
class Header:
    """What a qcow2 says first: the disk's size in bytes, and its backing file as it is written there, or ''."""

    size: int
    backing: str


def create_qcow2(path: Path, size: int, backing: str = "") -> None:
    """
    A new image for a restore point, empty or transparent, for its owner alone.

    `backing` is a qcow2's path, relative to the folder of `path`. Refcounts are written at once (not lazily), so that
    a killed server leaves leaks at worst.
    """
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    options = f"cluster_size={1 << CLUSTER_BITS},lazy_refcounts=off"
    below = ["-b", backing, "-F", "qcow2"] if backing else []
    _run("create", "-q", "-f", "qcow2", "-o", options, *below, str(path), str(size))


def virtual_size(size: int) -> int:
    """The size of a qcow2 that holds `size` bytes: whole sectors."""
    return -(-size // 512) * 512


def read_header(path: Path) -> Header:
    """What a qcow2 says of itself, without qemu and whoever has it open; InputError when it is none."""
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER.size)
            if len(start) < _HEADER.size or not start.startswith(b"QFI\xfb"):
                raise InputError(f"{path}: damaged: no qcow2", "Bring the file back from a copy of it.")
            _, _, at, length, _, size = _HEADER.unpack(start)
            if length > 1023:  # the format's own limit
                raise InputError(f"{path}: damaged: a backing file's name of {length} bytes", "Bring the file back.")
            file.seek(at)
            return Header(size, os.fsdecode(file.read(length)) if at else "")
    except FileNotFoundError as exc:
        raise InputError(f"{path}: is missing", "Bring the file back from a copy of it.") from exc
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror}", "Look at its file system.") from exc


def is_in_use(path: Path) -> bool:
    """Whether a qemu program has the image open, to read or to write."""
    first, last = _LOCKS
    with path.open("rb") as file:
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, first, last - first, 0)  # struct flock, fcntl(2)
        answer = fcntl.fcntl(file.fileno(), fcntl.F_OFD_GETLK, asked)
    return bool(struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK)


def problems(path: Path, beat: Beat = no_beat) -> str:
    """What `qemu-img check` finds wrong with a qcow2, in a line; '' for nothing. JobFailed when it cannot look."""
    return _watch("check", "-q", "-f", "qcow2", str(path), beat=beat, findings=_CHECK_FINDINGS)


def own_extents(path: Path, beat: Beat = no_beat) -> Iterator[Extent]:
    """The parts of the disk that a qcow2 itself has, whatever its backing file has, in order."""
    with tempfile.TemporaryFile("w+") as output:
        _watch("map", "--output=json", "-f", "qcow2", str(path), beat=beat, output=output)
        output.seek(0)
        for line in output:  # an extent a line: a large disk has millions
            if text := line.strip(" \n,[]"):
                found = json.loads(text)
                if found["depth"] == 0 and found["present"]:
                    yield Extent(found["start"], found["length"], found["zero"])


def commit_into_backing(path: Path, beat: Beat = no_beat) -> None:
    """
    Write all that an overlay has itself into its backing file; the overlay stays as it is, and so does what it shows.

    May be done again after it was interrupted. JobFailed when either image is in use, when there is no room, or when
    nothing moves for STALL_SECONDS.
    """
    _watch("commit", "-d", "-q", "-f", "qcow2", str(path), beat=beat)


def repair_leaks(path: Path, beat: Beat = no_beat) -> None:
    """Give back clusters that a killed server left unreferenced; JobFailed when the image is damaged beyond that."""
    _watch("check", "-q", "-r", "leaks", "-f", "qcow2", str(path), beat=beat)


def _watch(*arguments: str, beat: Beat, output: IO[str] | None = None, findings: Container[int] = ()) -> str:
    """
    Run a qemu-img that takes as long as the image is large. It ends with this process, or when it stalls.

    JobFailed when it fails; an exit status that is one of its `findings` is no failure: then what it says is returned.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            tied(["qemu-img", *arguments]),
            stdin=subprocess.DEVNULL,
            stdout=output or subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            _await_end(process, arguments[0], beat)
        finally:
            process.kill()
            status = process.wait()
        errors.seek(0)
        if not status:
            return ""
        said = f"qemu-img {arguments[0]}: {' '.join(errors.read().split()) or status}"
        if status in findings:
            return said
        raise JobFailed(said)


def _await_end(process: "subprocess.Popen[bytes]", name: str, beat: Beat) -> None:
    moved, since = "", time.monotonic()
    descriptor = os.pidfd_open(process.pid)
    try:
        while not select.select([descriptor], [], [], POLL_MS / 1000)[0]:
            beat()
            now = _moved(process.pid)
            if now != moved:
                moved, since = now, time.monotonic()
            if time.monotonic() - since > STALL_SECONDS:
                raise JobFailed(
                    f"qemu-img {name}: read and wrote nothing for {STALL_SECONDS:.0f} s",
                    "Look at the image's file system, then try again.",
                )
    finally:
        os.close(descriptor)


def _moved(pid: int) -> str:
    """What a process read and wrote so far (proc(5), /proc/PID/io): its sign of life."""
    try:
        return Path(f"/proc/{pid}/io").read_text()
    except OSError:
        return ""


def _info(path: Path, known: str | None) -> list[dict[str, Any]]:
    chosen = ["-f", known] if known else []
    try:
        text = _run("info", "--backing-chain", "--force-share", "--output=json", *chosen, str(path))
    except JobFailed as exc:
        raise InputError(f"{path}: not an image that qemu can read: {exc}", "Check the file and its name.") from exc
    chain: list[dict[str, Any]] = json.loads(text)
    return chain


def _files(chain: list[dict[str, Any]]) -> Iterator[Path]:
    """A VMDK's extents and a qcow2's data file have the content; a backing file can be elsewhere, as an NBD export."""
    for image in chain:
        path = Path(image["filename"])
        details = image.get("format-specific", {}).get("data", {})
        names = [extent["filename"] for extent in details.get("extents", [])]
        if details.get("data-file"):
            names.append(details["data-file"])
        yield from (file for file in (path, *(path.parent / name for name in names)) if file.exists())


def _run(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["qemu-img", *arguments], capture_output=True, text=True, timeout=QEMU_IMG_SECONDS, check=False
        )
    except FileNotFoundError as exc:
        raise JobFailed("qemu-img is not installed", "Run 'sendense doctor'.") from exc
    except subprocess.TimeoutExpired as exc:
        raise JobFailed(f"qemu-img {arguments[0]} took more than {QEMU_IMG_SECONDS:.0f} s") from exc
    if done.returncode:
        raise JobFailed(f"qemu-img {arguments[0]}: {' '.join(done.stderr.split()) or done.returncode}")
    return done.stdout
