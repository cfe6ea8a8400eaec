"""The commands that serve a local image, as one named export on a Unix socket, to any number of clients."""

from pathlib import Path

from sendense.nbd.images import Image


def serve_source(image: Image, socket: Path, export: str) -> list[str]:
    """Read-only. nbdkit for raw images: qemu rounds their size up to 512 bytes."""
    if image.format == "raw":
        return [*_nbdkit(socket), "--readonly", *_file(image.path, export)]
    return [*_qemu_nbd(socket, export, image.format), "--read-only", str(image.path)]


def serve_target(path: Path, kind: str, socket: Path, export: str) -> list[str]:
    """Writable, with multi-conn: a flush on one connection covers the writes of all."""
    if kind == "raw":
        return [*_nbdkit(socket), *_file(path, export)]
    return [*_qemu_nbd(socket, export, kind), "--discard=unmap", str(path)]


def _nbdkit(socket: Path) -> list[str]:
    return ["nbdkit", "--foreground", "--exit-with-parent", "--unix", str(socket), "--filter=exportname"]


def _file(path: Path, export: str) -> list[str]:
    return ["file", f"file={path}", f"exportname={export}", "exportname-strict=true"]


def _qemu_nbd(socket: Path, export: str, kind: str) -> list[str]:
    command = ["qemu-nbd", "--persistent", "--shared=0", "--socket", str(socket)]
    return [*command, "--export-name", export, "--format", kind]
