"""A node that reaches its hub through the ssh tunnel of deploy/tunnel alone, which is cut in mid-job."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backup import WAIT_SECONDS, patiently
from tests.machines import HUB, Machines, open_machines, running
from tests.site import LabSite, open_site
from tests.tunnel import open_sshd, open_tunnel

MiB = 2**20

VM = "web01"

FORWARDS = {6379: 6379, 10809: 10809}


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """A site with a disk of some files."""
    with open_site(vms=1, disks=1, disk_size=256 * MiB, fill=96 * MiB) as site:
        yield site


@pytest.fixture
def machines(site: LabSite) -> Iterator[Machines]:
    """Hosts for a hub that listens on its loopback alone, and for a node."""
    with open_machines(site, "alpha") as machines:
        loopback = {"redis_listen": "127.0.0.1:6379", "exports_listen": "127.0.0.1:10809", "tls_dir": None}
        machines.hub_settings.update(loopback)
        yield machines


def test_work_goes_on_after_a_cut(machines: Machines, site: LabSite) -> None:
    """The tunnel carries all that a node needs; when it was cut without a word, the job goes on with the next one."""
    kept: dict[int, Path] = {disk.key: disk.path for disk in site.client.vm(VM).disks}
    network = machines.network
    machines.start_hub()
    with (
        open_sshd(*FORWARDS, address=network.address(HUB), prefix=network.on(HUB, [])) as server,
        open_tunnel(server, FORWARDS, prefix=network.on("alpha", [])) as tunnel,
    ):
        alpha = machines.start_node(
            "alpha", redis="redis://127.0.0.1:6379", exports="nbd://127.0.0.1:10809", tls_dir=None
        )
        with running(machines, VM) as job:
            job.wait_for("alpha")
            assert patiently(lambda: machines.nodes()["alpha"].tunnel.verdict == "ok", WAIT_SECONDS)
            server.signal(signal.SIGSTOP)
            alpha.wait_for("does not answer, waiting for it", WAIT_SECONDS)
            assert patiently(lambda: bool(tunnel.exits), WAIT_SECONDS)
            server.signal(signal.SIGCONT)
            alpha.wait_for("answers again", WAIT_SECONDS)
            assert job.goes_on()
            job.succeeds(kept)
        assert patiently(lambda: machines.nodes()["alpha"].tunnel.verdict == "ok", WAIT_SECONDS)
        alpha.stop()
