"""The `sendense serve` command."""

import shutil
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated

import typer

from sendense.errors import InputError

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
    from sendense.cli.catalogue import find_sound, open_repository
    from sendense.cli.tables import print_json
    from sendense.exports import Exports
    from sendense.settings import load_settings
    from sendense.supervise.service import Budget
    from sendense.supervise.storage import Storage

    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: stopped.set())
    repository = open_repository(load_settings())
    found = find_sound(repository, point)
    if port:
        _must_be_free(port)
    disks = [found.disk(disk)] if disk is not None else found.disks
    folder = Path(tempfile.mkdtemp(prefix="sendense-serve-"))
    address = f"127.0.0.1:{port}" if port else str(folder / "nbd.sock")
    storage = Storage(address, folder, _note, Budget())
    images = {f"disk-{each.key}": repository.levels(found, each.key)[0].image for each in disks}

    def export() -> list[str]:
        exports = Exports(storage.qmp_socket, address)
        return [exports.add(name, image, writable=False) for name, image in images.items()]

    try:
        storage.start()
        storage.wait()
        uris = export()
        if as_json:
            fields = ({"key": each.key, "label": each.label, "size": each.size} for each in disks)
            print_json([entry | {"uri": uri} for entry, uri in zip(fields, uris, strict=True)])
        else:
            print("\n".join(uris), flush=True)
        _note(f"serving {found.id} of {found.vm.name}, read-only, until Ctrl-C")
        pid = storage.child.pid
        while not stopped.wait(LOOK_SECONDS):
            storage.supervise()
            if storage.child.pid != pid:
                pid = storage.child.pid
                export()
    finally:
        storage.child.kill()  # it wrote nothing
        shutil.rmtree(folder, ignore_errors=True)


def _must_be_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as qemu does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            raise InputError(f"cannot listen on 127.0.0.1:{port}: {exc.strerror}", "Give another --port.") from exc


def _note(text: str) -> None:
    print(f"sendense: {text}", file=sys.stderr, flush=True)
