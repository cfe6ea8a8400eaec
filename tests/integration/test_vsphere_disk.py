"""The way from a login to a disk's bytes: the argv for nbdkit, run as it is."""

import subprocess
import time
import tomllib
from pathlib import Path

from sendense.models import DiskSource
from sendense.settings import Site
from sendense.vsphere import snapshot
from sendense.vsphere.session import no_beat, open_session
from sendense.vsphere.source import nbdkit_command
from tests.servers import short_folder
from tests.site import MiB, open_site


def test_nbdkit_serves_the_snapshot() -> None:
    """nbdkit, started with the argv, serves the disk as the snapshot froze it; the password is not in the argv."""
    with open_site(vms=1, disks=1, disk_size=16 * MiB) as lab, short_folder() as folder:
        site = Site.model_validate(tomllib.loads(lab.config.read_text())["sites"]["lab"])
        vm = lab.client.vm("web01")
        with open_session("lab", site) as session:
            made = snapshot.create_snapshot(session, vm.id, "sendense-disk", False, no_beat)
            (frozen,) = snapshot.snapshot_disks(session, made)
        content = lab.client.disk_path("web01").read_bytes()
        lab.client.write("web01", 0, b"later")
        disk = DiskSource(site="lab", vm=vm.id, snapshot=made, file=frozen.file, thumbprint=session.thumbprint)
        argv = nbdkit_command(site, disk, folder / "s", session.thumbprint)
        assert lab.password not in " ".join(argv)
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as server:
            try:
                _wait_for(folder / "s")
                uri, copy = f"nbd+unix:///?socket={folder}/s", folder / "copy"
                subprocess.run(["qemu-img", "convert", "-O", "raw", uri, copy], check=True, timeout=30)
            finally:
                server.terminate()
                server.wait(20)
        assert copy.read_bytes() == content


def _wait_for(socket: Path) -> None:
    deadline = time.monotonic() + 20
    while not socket.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
