"""The `sendense serve` command."""

import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sendense.cli.opening import is_remote, open_hub, to_stderr
from sendense.cli.tables import print_json
from sendense.errors import InputError

if TYPE_CHECKING:
    from sendense.views import ServedDisk

LOOK_SECONDS = 0.5
"""Between two looks at the server."""


def serve(
    point: Annotated[str, typer.Argument(help="Restore point: its id, or the beginning of it.")],
    disk: Annotated[int | None, typer.Option(help="Device key of the disk; all of them otherwise.")] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="A TCP port on 127.0.0.1; a Unix socket otherwise.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array in place of the URIs.")] = False,
) -> None:
    """
    Serve a restore point's disks read-only over NBD, at once and without copying, until Ctrl-C.

    Prints a URI for each disk. Clients come and go, and write nothing; the point cannot be deleted meanwhile.
    """
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: stopped.set())
    if not is_remote():
        _serve_here(point, disk, port, stopped, as_json=as_json)
    elif port:
        raise InputError("--port is for a point that this machine serves", "Leave it out: the hub has one for all.")
    else:
        _have_served(point, disk, stopped, as_json=as_json)


def _have_served(point: str, disk: int | None, stopped: threading.Event, *, as_json: bool) -> None:
    """Have the hub serve it, until Ctrl-C."""
    with open_hub() as hub:
        served = hub.serve(point, disk)
        try:
            _show(served, point, as_json=as_json)
            stopped.wait()
        finally:
            for each in served:
                hub.unserve(each.export)


def _serve_here(point: str, disk: int | None, port: int | None, stopped: threading.Event, *, as_json: bool) -> None:
    """Serve it with a daemon of this command's own."""
    from sendense.coordinator.context import open_repository
    from sendense.exports import Exports
    from sendense.repository.finding import find_sound
    from sendense.settings import load_settings
    from sendense.supervise.service import Budget
    from sendense.supervise.storage import Storage
    from sendense.views import ServedDisk

    repository = open_repository(load_settings(), create=False)
    found = find_sound(repository, point)
    if port:
        _must_be_free(port)
    disks = [found.disk(disk)] if disk is not None else found.disks
    folder = Path(tempfile.mkdtemp(prefix="sendense-serve-"))
    address = f"127.0.0.1:{port}" if port else str(folder / "nbd.sock")
    storage = Storage(address, folder, to_stderr, Budget())
    images = {f"disk-{each.key}": repository.levels(found, each.key)[0].image for each in disks}

    def export() -> list[str]:
        exports = Exports(storage.qmp_socket, address)
        return [exports.add(name, image, writable=False) for name, image in images.items()]

    try:
        storage.start()
        storage.wait()
        served = [
            ServedDisk(key=each.key, label=each.label, size=each.size, export=name, uri=uri)
            for each, name, uri in zip(disks, images, export(), strict=True)
        ]
        _show(served, f"{found.id} of {found.vm.name}", as_json=as_json)
        pid = storage.child.pid
        while not stopped.wait(LOOK_SECONDS):
            storage.supervise()
            if storage.child.pid != pid:
                pid = storage.child.pid
                export()
    finally:
        storage.child.kill()  # it wrote nothing
        shutil.rmtree(folder, ignore_errors=True)


def _show(served: "Sequence[ServedDisk]", what: str, *, as_json: bool) -> None:
    if as_json:
        print_json(served)
    else:
        print("\n".join(each.uri for each in served), flush=True)
    to_stderr(f"serving {what}, read-only, until Ctrl-C")


def _must_be_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as qemu does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            raise InputError(f"cannot listen on 127.0.0.1:{port}: {exc.strerror}", "Give another --port.") from exc
