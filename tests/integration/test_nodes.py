"""Several nodes on one job, each a host of its own: network namespaces, TLS, and whatever can happen to them."""

import filecmp
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from sendense.jobs import presence
from tests.backup import WAIT_SECONDS, patiently
from tests.machines import CRAWL, ENDS, RATE, Machines, Service, open_machines, running
from tests.netns import forwarding
from tests.servers import qemu_nbd
from tests.site import LabSite, open_site

KiB, MiB = 2**10, 2**20

VM, DISK_SIZE, BATCHES = "web01", 640 * MiB, 10


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """A site with a disk of ten batches: data and holes by turns, so that 1024 extents are 64 MiB of disk."""
    with open_site(vms=1, disks=1, disk_size=DISK_SIZE, fill=0) as site:
        path, noise = site.client.vm(VM).disks[0].path, random.Random(VM)
        with path.open("r+b") as disk:
            for offset in range(0, DISK_SIZE, 128 * KiB):
                disk.seek(offset)
                disk.write(noise.randbytes(64 * KiB))
        yield site


@pytest.fixture(scope="module")
def kept(site: LabSite) -> dict[int, Path]:
    """The disk as it is: nothing writes to it here."""
    return {disk.key: disk.path for disk in site.client.vm(VM).disks}


class Fleet:
    """A hub and its nodes as they run now."""

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        self.early = machines.start_node("alpha", wait=False)
        self.early.wait_for("does not answer, waiting for it")
        self.hub = machines.start_hub()
        self.nodes = {"alpha": self.early, "beta": machines.start_node("beta")}
        self.early.wait_for("is ready")

    def node(self, name: str) -> Service:
        """A node that is up."""
        if name not in self.nodes or self.nodes[name].process.poll() is not None:
            self.nodes[name] = self.machines.start_node(name)
        return self.nodes[name]


@pytest.fixture(scope="module")
def machines(site: LabSite) -> Iterator[Machines]:
    """Hosts for a hub and three nodes."""
    with open_machines(site, "alpha", "beta", "gamma-1") as machines:
        yield machines


@pytest.fixture(scope="module")
def fleet(machines: Machines) -> Fleet:
    """A hub and two nodes, one of which was there before the hub."""
    return Fleet(machines)


def test_all_nodes_copy_one_disk(fleet: Fleet, kept: dict[int, Path]) -> None:
    """Three nodes share one disk's batches: one joins in mid-job, and leaves again without any failure."""
    machines = fleet.machines
    with running(fleet.machines, VM) as job:
        job.wait_for("alpha", "beta")
        gamma = fleet.node("gamma-1")
        job.wait_for("gamma-1")
        assert patiently(lambda: machines.nodes()["alpha"].rate > 0, WAIT_SECONDS)
        assert patiently(lambda: {node.tunnel.verdict for node in machines.nodes().values()} == {"ok"}, WAIT_SECONDS)
        nodes = machines.nodes()
        gamma.stop()
        assert machines.nodes().keys() == {"alpha", "beta"}
        progress = job.succeeds(kept)
        assert (progress.retries, progress.stalls, job.failures()) == (0, 0, [])
        assert patiently(lambda: fleet.hub.has_said(f"job {job.id}, backup of {VM}: succeeded"), WAIT_SECONDS)
    assert progress.by_worker.keys() == {"alpha-copy", "beta-copy", "gamma-1-copy"}
    assert sum(progress.by_worker.values()) == progress.copied == progress.data
    assert progress.batches == BATCHES
    assert nodes.keys() == {"alpha", "beta", "gamma-1"}
    for name, node in nodes.items():
        assert (node.name, node.site, node.processes, node.draining) == (name, "lab", 1, False)
        assert node.plugins[0].split()[0] == "python"
        assert node.versions.keys() == {"sendense", "python", "celery", "libnbd", "nbdkit"}
        assert 0 < node.round_trip < 1
    assert fleet.hub.has_said("node gamma-1 of site lab joins")
    assert patiently(lambda: fleet.hub.has_said("node gamma-1 is gone"), WAIT_SECONDS)


def test_lost_nodes_cost_what_they_had(fleet: Fleet, kept: dict[int, Path]) -> None:
    """A node that is killed and one that is cut off cost the batches that they had; both come back by themselves."""
    machines = fleet.machines
    fleet.node("gamma-1")
    with running(fleet.machines, VM) as job:
        job.wait_for("alpha", "beta", "gamma-1")
        machines.network.cut("beta")
        try:
            fleet.node("gamma-1").kill()
            job.succeeds(kept)
            assert 0 < len(job.failures()) <= 2
            fleet.node("beta").wait_for("does not answer, waiting for it", WAIT_SECONDS)
        finally:
            machines.network.mend("beta")
    fleet.node("beta").wait_for("answers again", WAIT_SECONDS)
    assert patiently(lambda: "beta" in machines.nodes(), WAIT_SECONDS)
    fleet.node("gamma-1").stop()  # started again, its name was its own at once


def test_drained_and_handed_back(fleet: Fleet, kept: dict[int, Path]) -> None:
    """
    A drained node begins nothing more, also after a restart, and copies again when it is resumed.

    When it has to end at once, others do what it had, and none of that is a failure or waits for a lapse.
    """
    machines = fleet.machines
    with running(fleet.machines, VM) as job:
        job.wait_for("alpha", "beta")
        machines.command("nodes", "drain", "alpha")
        assert patiently(lambda: not takers(machines, "alpha"), WAIT_SECONDS)
        assert patiently(lambda: machines.nodes()["alpha"].draining, WAIT_SECONDS)
        assert patiently(lambda: not machines.nodes()["alpha"].active, WAIT_SECONDS)
        job.read_at(CRAWL)
        fleet.node("alpha").stop()
        done = job.workers()["alpha-copy"]
        alpha = fleet.node("alpha")
        assert not takers(machines, "alpha")
        assert job.workers()["alpha-copy"] == done
        machines.command("nodes", "resume", "alpha")
        job.read_at(RATE)
        assert patiently(lambda: job.workers()["alpha-copy"] > done, WAIT_SECONDS)
        alpha.ask_to_end()
        alpha.wait_for(ENDS)
        assert patiently(lambda: prefetched(machines) <= 1, WAIT_SECONDS)  # beta's own
        alpha.ask_to_end()
        assert alpha.ends() == 0
        assert "alpha" not in machines.nodes()
        progress = job.succeeds(kept)
        assert (progress.retries, progress.stalls, job.failures()) == (0, 0, [])


def takers(machines: Machines, node: str) -> list[str]:
    """The workers of a node that copy, and take work."""
    with machines.client() as client:
        return [one.name for one in presence.present(client) if one.name == f"{node}-copy" and one.queues]


def prefetched(machines: Machines) -> int:
    """Messages about batches that workers have fetched and not begun."""
    with machines.client() as client:
        return sum(b"copy_extents" in message for message in cast(list[bytes], client.hvals("unacked")))


def test_the_hub_may_be_restarted(fleet: Fleet, kept: dict[int, Path]) -> None:
    """A job goes on whatever happens to the hub: its Redis killed, its exports, itself, and its end in good order."""
    fleet.node("alpha")
    with running(fleet.machines, VM) as job:
        job.leave()
        for happens in (kill_redis, kill_exports, Service.kill, Service.stop):
            assert job.goes_on(), happens
            happens(fleet.hub)
            if fleet.hub.process.poll() is not None:
                fleet.hub = fleet.machines.start_hub()
        assert job.goes_on()
        job.succeeds(kept)


def kill_redis(hub: Service) -> None:
    """As a crash would."""
    hub.child("redis-server").kill()


def kill_exports(hub: Service) -> None:
    """As a crash would."""
    hub.child("qemu-storage-daemon").kill()


def test_one_client_at_a_time(fleet: Fleet, kept: dict[int, Path], tmp_path: Path) -> None:
    """A target that takes one client is written by one process of all nodes."""
    machines, target = fleet.machines, tmp_path / "target.raw"
    fleet.node("alpha")
    target.touch()
    os.truncate(target, DISK_SIZE)
    with (
        qemu_nbd(target, "--persistent", tcp=True) as server,
        forwarding(machines.network.here, int(server.uri.rstrip("/").rpartition(":")[2])) as port,
    ):
        machines.command("migrate", VM, "--to", f"nbd://{machines.network.here}:{port}")
    assert filecmp.cmp(target, kept[2000], shallow=False)
    view = machines.job()
    assert view
    progress = view.work.disks[0].progress
    assert progress
    assert [worker.rpartition("-")[2] for worker in progress.by_worker] == ["solo"]
    assert progress.retries == 0


def test_what_a_node_needs(fleet: Fleet) -> None:
    """A name of its own, on the same machine and on another one; a known site; and to be told where its hub is."""
    machines = fleet.machines
    fleet.node("alpha")
    same = machines.run_node("alpha", "--site", "lab", "--name", "alpha")
    assert (same.returncode, same.stderr.splitlines()[0]) == (2, "sendense: node alpha runs already on this machine")
    other = machines.run_node("beta", "--site", "lab", "--name", "alpha")
    assert other.returncode == 2
    assert other.stderr.startswith("sendense: node alpha: another node of this name is up on ")
    assert "alpha" in machines.nodes()
    unknown = machines.run_node("beta", "--site", "paris")
    assert (unknown.returncode, unknown.stderr.splitlines()[0]) == (2, "sendense: site paris: not in the settings")
    lost = machines.run_node("beta", "--site", "lab", redis="")
    assert (lost.returncode, lost.stderr.splitlines()[0]) == (2, "sendense: no hub is set")


def test_a_node_without_a_way_to_the_exports(fleet: Fleet, kept: dict[int, Path]) -> None:
    """It says so, and costs a job nothing but time: what it takes and cannot do goes to others, and is no failure."""
    machines = fleet.machines
    fleet.node("alpha")
    lost = machines.start_node("gamma-1", "lost", "lost", exports="nbds://127.0.0.1:1")
    with running(machines, VM) as job:
        progress = job.succeeds(kept)
    assert patiently(lambda: machines.nodes()["lost"].tunnel.verdict == "refused", WAIT_SECONDS)
    lost.stop()
    assert (progress.retries, job.failures()) == (0, [])
    assert "lost-copy" not in progress.by_worker
