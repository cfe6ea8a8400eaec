"""A VM's disk as a process reads it: an nbdkit of its own, which nobody shares and which ends with it."""

import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sendense.errors import EndpointError, InputError, Refused, SourceRefused
from sendense.models import DiskSource
from sendense.nbd.connect import Beat, Connection, connect
from sendense.nbd.uri import Endpoint
from sendense.settings import Site
from sendense.supervise.child import Child
from sendense.vsphere.source import mask, nbdkit_command

START_SECONDS = 20.0
"""Until nbdkit listens: it loads a plugin, and VDDK's libraries with it."""

OPEN_SECONDS = 60.0
"""For each stage of the first connection: nbdkit logs in at vCenter and opens the disk meanwhile."""

LOG = "nbdkit.log"
"""Where the output of all nbdkits of a worker's processes is kept, next to the worker's own log."""

END_SECONDS = 2.0
"""For nbdkit to close the disk in good order."""


@dataclass(slots=True)
class OpenDisk:
    """A disk, the server that reads it, and the folder of that server's socket and log."""

    disk: DiskSource
    connection: Connection
    server: Child
    folder: Path
    secrets: list[str]

    def words(self) -> str:
        """What the server said last, without secrets."""
        return mask(self.server.last_words(), self.secrets)

    def close(self) -> None:
        """Hang up, and end the server."""
        self.connection.close()
        _end(self.server, self.folder, self.secrets)


def open_disk(site: Site, disk: DiskSource, beat: Beat) -> OpenDisk:
    """Start an nbdkit for the disk and connect to it; SourceRefused says what nbdkit said."""
    label = str(disk)
    secrets = [_secret(site)]
    folder = Path(tempfile.mkdtemp(prefix="disk-"))
    socket = folder / "s"
    server = Child("nbdkit", nbdkit_command(site, disk, socket, disk.thumbprint), folder / "log")
    try:
        server.start()
        endpoint = Endpoint(uri=label, export="", socket=str(socket))
        return OpenDisk(disk, _connect(endpoint, server, beat), server, folder, secrets)
    except EndpointError as exc:
        said = _end(server, folder, secrets)
        raise SourceRefused(label, said or exc.detail, exc.state) from exc
    except BaseException:
        _end(server, folder, secrets)
        raise


def _connect(endpoint: Endpoint, server: Child, beat: Beat) -> Connection:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return connect(endpoint, OPEN_SECONDS, beat)
        except Refused:
            if not server.is_running() or time.monotonic() > deadline:
                raise
            beat()
            time.sleep(0.01)


def _end(server: Child, folder: Path, secrets: list[str]) -> str:
    """End the server; what it said goes into a log that outlives it, and its last words are returned."""
    server.end(END_SECONDS)
    with suppress(OSError), server.log.open(errors="replace") as said, (folder.parent / LOG).open("a") as log:
        log.writelines(mask(line, secrets) for line in said)
    words = mask(server.last_words(), secrets)
    shutil.rmtree(folder, ignore_errors=True)
    return words


def _secret(site: Site) -> str:
    try:
        return site.password_file.read_text().strip()
    except OSError as exc:
        raise InputError(
            f"{site.password_file}: {exc.strerror}", "Put the password of the site's user there, readable by you alone."
        ) from exc
