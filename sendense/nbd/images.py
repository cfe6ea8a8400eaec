"""Local disk images: what qemu-img says of them, and making new ones."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sendense.errors import InputError, JobFailed

QEMU_IMG_SECONDS = 60.0
"""qemu-img reads headers and, for a check, the metadata of an image: seconds for a terabyte."""

FORMATS = {".raw": "raw", ".qcow2": "qcow2", ".vmdk": "vmdk", ".vhdx": "vhdx"}
"""The format that a name stands for. A raw disk's guest can write any header, so the name decides, not the content."""

TARGET_FORMATS = {".raw": "raw", ".qcow2": "qcow2"}


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


def repair_leaks(path: Path) -> None:
    """Give back clusters that a killed server left unreferenced; JobFailed when the image is damaged beyond that."""
    _run("check", "-q", "-r", "leaks", "-f", "qcow2", str(path))


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
