"""The real `sendense lab up` as a process of its own, in a folder that is deleted afterwards."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sendense.errors import InputError
from sendense.lab.client import LabClient
from tests.servers import short_folder

MiB = 2**20

START_SECONDS = 60.0
"""The longest that a start may take; it takes one."""

END_SECONDS = 10.0


@dataclass(slots=True)
class LabSite:
    """A site in a folder: `client` turns its knobs, `config` is the settings file that it wrote for the product."""

    folder: Path
    options: list[str]
    client: LabClient
    process: "subprocess.Popen[bytes] | None" = field(default=None)

    @property
    def config(self) -> Path:
        """The path of `sendense.toml`."""
        return self.folder / "sendense.toml"

    @property
    def port(self) -> int:
        """Of the vCenter, on 127.0.0.1."""
        return int((self.folder / "url").read_text().strip().rpartition(":")[2])

    @property
    def password(self) -> str:
        """Of operator@lab.local."""
        return (self.folder / "password").read_text().strip()

    def start(self) -> None:
        """Start the site, or start it again, and wait until it answers."""
        log = self.folder.with_name("site.log")
        argv = [sys.executable, "-m", "sendense", "lab", "up", "--folder", str(self.folder), *self.options]
        with log.open("ab") as output:
            guarded = ["setpriv", "--pdeathsig", "KILL", *argv]
            self.process = subprocess.Popen(guarded, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.client.status()
                return
            except InputError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the site did not start: {log.read_text(errors='replace')}") from None
                time.sleep(0.02)

    def stop(self) -> None:
        """End the site in good order; kill it if it does not end."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the site at once (SIGKILL), as a crash would."""
        assert self.process
        self.process.kill()
        self.process.wait(END_SECONDS)


@contextmanager
def open_site(vms: int = 2, disks: int = 2, disk_size: int = 64 * MiB, fill: int | None = None) -> Iterator[LabSite]:
    """A running site; sizes in bytes."""
    with short_folder() as parent:
        folder = parent / "lab"
        options = ["--vms", str(vms), "--disks", str(disks), "--disk-size", str(disk_size)]
        if fill is not None:
            options += ["--fill", str(fill)]
        site = LabSite(folder, options, LabClient(folder))
        try:
            site.start()
            yield site
        finally:
            site.stop()
