"""The storage daemon as a child: one NBD server whose exports come and go (`sendense.exports`)."""

import resource
import time
from pathlib import Path

from sendense.exports import PROBE_EXPORT, Exports, host_and_port
from sendense.supervise.child import Child
from sendense.supervise.service import Budget, Note, Service
from sendense.supervise.web import must_be_free
from sendense.units import MiB

ASK_SECONDS = 2.0
"""Between two looks at whether the daemon answers."""

ANSWER_SECONDS = 8.0
"""A daemon that answers nothing for so long is stopped. Closing an image is the longest that it is busy by itself,
and `Exports.remove` has that image's data on the disk by then."""

PROBE_BYTES = 1 * MiB

END_SECONDS = 20.0
"""To write the images' last metadata and close them."""


class Storage(Service):
    """
    One qemu-storage-daemon, listening on `address`: an absolute path, or HOST:PORT.

    With `tls_dir`, whoever comes to HOST:PORT has to speak TLS and to show a certificate of that folder's authority.

    Its sockets and its log are in `folder`, which only its owner may enter: whoever reaches the monitor's socket may
    open any file. A daemon that is started again has no exports: who needs them adds them again, and their URIs stay.
    """

    def __init__(self, address: str, folder: Path, note: Note, budget: Budget, tls_dir: Path | None = None) -> None:
        self.qmp_socket = folder / "exports.sock"
        """The monitor for `Exports`."""
        self._watch_socket = folder / "exports-watch.sock"
        self._address, self._tls_dir = address, tls_dir
        super().__init__(Child("exports daemon", self._command(), folder / "exports.log"), note, budget)
        # A monitor of its own: the other one serves one client at a time, and each of those may keep it for a while.
        self._watch = Exports(self._watch_socket, address, ANSWER_SECONDS)
        self._asked = 0.0

    def prepare(self) -> None:
        """A killed daemon leaves its sockets; JobFailed where another process has its address."""
        if not self._address.startswith("/"):
            must_be_free("exports_listen", self._address)
        listening = (Path(self._address),) if self._address.startswith("/") else ()
        for socket in (self.qmp_socket, self._watch_socket, *listening):
            socket.unlink(missing_ok=True)

    def is_ready(self) -> bool:
        """Whether it answers; it listens by then."""
        return self._watch_socket.exists() and self._watch.answers()

    def supervise(self) -> None:
        """Start it again if it ended, or stopped answering; returns within ANSWER_SECONDS, but for a restart."""
        super().supervise()
        if time.monotonic() - self._asked > ASK_SECONDS:
            if not self._watch.answers() and self.child.is_running():
                self.restart("the exports daemon stopped answering: killing it and starting it again")
            self._asked = time.monotonic()

    def end(self) -> None:
        """End it in good order: every image is closed."""
        self.child.end(END_SECONDS)

    def _command(self) -> list[str]:
        if self._address.startswith("/"):
            listen = f"addr.type=unix,addr.path={_escaped(self._address)}"
        else:
            host, port = host_and_port(self._address)
            listen = f"addr.type=inet,addr.host={host},addr.port={port}"
        command = [*_with_many_files(), "qemu-storage-daemon"]
        for name, socket in (("qmp", self.qmp_socket), ("watch", self._watch_socket)):
            command += ["--chardev", f"socket,id={name},path={_escaped(str(socket))},server=on,wait=off"]
            command += ["--monitor", f"id=monitor-{name},chardev={name}"]
        if self._tls_dir and not self._address.startswith("/"):
            folder = _escaped(str(self._tls_dir.absolute()))
            command += ["--object", f"tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir={folder}"]
            listen += ",tls-creds=tls"
        # Any number of clients: only then does a writable export advertise multi-conn.
        command += ["--nbd-server", f"{listen},max-connections=0"]
        command += ["--blockdev", f"null-co,node-name=probe,read-zeroes=on,size={PROBE_BYTES}"]
        return [*command, "--export", f"nbd,id={PROBE_EXPORT},name={PROBE_EXPORT},node-name=probe"]


def _with_many_files() -> list[str]:
    """Each image of a backing chain and each client is an open file, and the usual limit is 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ["prlimit", f"--nofile={most}:{most}"]


def _escaped(path: str) -> str:
    """A comma ends a value in qemu's options, unless doubled."""
    return path.replace(",", ",,")
