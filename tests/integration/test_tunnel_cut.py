"""A node that reaches its hub through an ssh tunnel, as deploy/tunnel sets it up, and the tunnel's end in mid-job."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from sendense.units import MiB
from tests.backup import WAIT_SECONDS, patiently
from tests.machines import HUB, Machines, Service, open_machines
from tests.site import LabSite, open_site
from tests.tunnel import Tunnel, open_sshd, open_tunnel

VM, NODE = "web01", "alpha"

REDIS, NBD = 6379, 10809
"""Ports of the hub's loopback; the node has them as its own."""

DISK_SIZE, DATA = 288 * MiB, 256 * MiB
RATE = 24 * MiB
"""Bytes per second that the disk is read: the job outlasts the cut's beginning."""

CUT_SECONDS = 15.0
"""Longer than ssh, a stalled connection, a claim, a lease and a node's announcement last here."""

IN_FLIGHT = 128 * MiB
"""A batch, which the cut may cost."""

BY_ITSELF_SECONDS = 90.0
"""For everything to be as before: Celery looks for its broker every few seconds, at the most every half minute."""


@dataclass
class Way:
    """A hub, a node, and the tunnel between them, which is the node's only way."""

    machines: Machines
    tunnel: Tunnel
    node: Service

    def verdict(self) -> str:
        """What the node says of its tunnel; empty while it says nothing."""
        found = self.machines.nodes().get(NODE)
        return found.tunnel.verdict if found else ""


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """A machine with one disk."""
    with open_site(vms=1, disks=1, disk_size=DISK_SIZE, fill=DATA) as site:
        yield site


@pytest.fixture(scope="module")
def way(site: LabSite) -> Iterator[Way]:
    """All of it, up."""
    with ExitStack() as stack:
        machines = stack.enter_context(open_machines(site, NODE))
        network = machines.network
        machines.hub_settings |= {
            "redis_listen": f"127.0.0.1:{REDIS}",
            "exports_listen": f"127.0.0.1:{NBD}",
            "tls_dir": None,
        }
        machines.start_hub()
        server = stack.enter_context(open_sshd(REDIS, NBD, address=network.address(HUB), prefix=network.on(HUB, [])))
        forwards = {REDIS: REDIS, NBD: NBD}
        tunnel = stack.enter_context(open_tunnel(server, forwards, prefix=network.on(NODE, [])))
        node = machines.start_node(
            NODE, redis=f"redis://127.0.0.1:{REDIS}", exports=f"nbd://127.0.0.1:{NBD}", tls_dir=None
        )
        yield Way(machines, tunnel, node)
        machines.stop()


def test_cut(site: LabSite, way: Way) -> None:
    """The node finds its tunnel well, and says when it is not; after a cut the job goes on by itself."""
    machines = way.machines
    assert patiently(lambda: way.verdict() == "ok", WAIT_SECONDS), machines.nodes()
    kept = machines.backups.keep(VM)
    site.client.set(VM, read_rate=RATE)
    process = machines.start_command("backup", VM, "--json")
    try:
        assert patiently(lambda: machines.moved() > 16 * MiB, WAIT_SECONDS), process.poll()
        machines.network.cut(NODE)
        time.sleep(CUT_SECONDS)
        assert process.poll() is None
        assert NODE not in machines.nodes()
        assert way.node.has_said("Redis")
        assert way.tunnel.exits
    finally:
        machines.network.mend(NODE)
        site.client.set(VM, read_rate=0)
    assert patiently(lambda: process.poll() is not None, BY_ITSELF_SECONDS), way.node.text()
    view = machines.backups.succeeded(machines.backups.finish(process))
    progress = view.disks[0].progress
    assert progress
    assert progress.copied - progress.data <= IN_FLIGHT
    assert patiently(lambda: way.verdict() == "ok", WAIT_SECONDS), machines.nodes()
    machines.backups.check(machines.backups.points(VM)[-1], kept)
