"""`sendense doctor --hub` and `--node` on real machines: each fault is made to happen, and its verdict names it."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from sendense.coordinator.record import Jobs
from sendense.hub.folder import service_lock
from sendense.requests import BackupRequest
from tests.backup import COMMAND_SECONDS, WAIT_SECONDS, edit_settings, patiently, small_disk
from tests.machines import HUB, Machines, Service, environment, open_machines
from tests.repository import VM, Story
from tests.servers import locked_by_another, short_folder
from tests.site import LabSite, open_site

MiB = 2**20

MOST_SECONDS = 150.0
"""For a whole check-up, whatever is stopped: its own limit, and the start of Python on a busy machine."""


class Checked(NamedTuple):
    """How a check-up ended."""

    status: int
    results: dict[str, str]
    verdicts: dict[str, str]
    details: dict[str, str]
    fixes: dict[str, str]


class Clinic:
    """A hub and a node, and the doctor on the machine of either."""

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        self._web = {"api_listen": "127.0.0.1:7780", "flower_listen": "127.0.0.1:5555"}
        self._config = machines.backups.folder / "hub.toml"

    def hub(self, *prefix: str, **settings: object) -> Checked:
        """The check-up of the hub."""
        known = {"config": self._config, **self.machines.hub_settings, **self._web, **settings}
        return self._doctor(HUB, ["--hub"], known, prefix)

    def node(self, *prefix: str, name: str = "alpha", **settings: object) -> Checked:
        """The check-up of the node."""
        known = {**self.machines.node_settings("alpha", "alpha"), **settings}
        return self._doctor("alpha", ["--node", "--site", "lab", "--name", name], known, prefix)

    def start(self) -> tuple[Service, Service]:
        """Have both run."""
        hub = self.machines.start_hub(**self._web)
        return hub, self.machines.start_node("alpha")

    def _doctor(self, host: str, arguments: list[str], settings: dict[str, object], prefix: tuple[str, ...]) -> Checked:
        command = [*prefix, sys.executable, "-m", "sendense", "doctor", *arguments, "--json"]
        argv, began = self.machines.network.on(host, command), time.monotonic()
        done = subprocess.run(
            argv, env=environment(settings), capture_output=True, text=True, timeout=COMMAND_SECONDS + MOST_SECONDS
        )
        assert time.monotonic() - began < MOST_SECONDS
        assert done.stdout, done.stderr
        told = json.loads(done.stdout)
        findings = {each["check"]: each for each in told["findings"]}
        wrong = [each["verdict"] for each in told["findings"] if each["result"] in ("wrong", "unknown")]
        assert told["verdict"] == (wrong[0] if wrong else "ok"), done.stdout
        assert done.returncode == (1 if wrong else 0), done.stdout
        for each in told["findings"]:
            assert bool(each["verdict"]) == bool(each["fix"]) == (each["result"] not in ("ok", "skipped")), each
        return Checked(
            done.returncode,
            {name: each["result"] for name, each in findings.items()},
            {name: each["verdict"] for name, each in findings.items() if each["verdict"]},
            {name: each["detail"] for name, each in findings.items()},
            {name: each["fix"] for name, each in findings.items()},
        )


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """A small site."""
    with open_site(vms=1, disks=1, disk_size=32 * MiB, fill=0) as site:
        yield site


@pytest.fixture(scope="module")
def clinic(site: LabSite) -> Iterator[Clinic]:
    """Hosts for a hub and a node, with nothing running."""
    with open_machines(site, "alpha") as machines:
        yield Clinic(machines)


@pytest.fixture(scope="module")
def running(clinic: Clinic) -> tuple[Service, Service]:
    """The hub and the node, up."""
    return clinic.start()


@contextmanager
def stopped(*processes: psutil.Process) -> Iterator[None]:
    """Processes that do nothing for a while, as on a machine that hangs; the first of them heals the others."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in reversed(processes):
            process.resume()


def test_before_anything_runs(clinic: Clinic, tmp_path: Path) -> None:
    """The hub does not run, or a port keeps it from that; who gets notices is away; at the node, nobody is there."""
    network = clinic.machines.network
    found = clinic.hub()
    assert found.verdicts == {"hub": "not-running", "notices": "no-notices"}
    assert "systemctl start sendense-hub" in found.fixes["hub"]
    assert found.results["redis"] == found.results["exports read"] == found.results["api"] == "skipped"
    server = subprocess.Popen(
        network.on(HUB, [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "7780"]),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    told = {"webhook": "http://127.0.0.1:7780/", "mail_to": ["ops@example.org"], "mail_from": "hub@example.org"}
    told |= {"smtp": "127.0.0.1:1", "smtp_security": "none"}
    try:
        assert patiently(lambda: clinic.hub().verdicts["hub"] == "port-taken", COMMAND_SECONDS)
        found = clinic.hub(notices=json.dumps(told))
        assert found.verdicts == {"hub": "port-taken", "notices: mail": "receiver"}
        assert "Connection refused" in found.details["notices: mail"]
        assert "sendense notices test" in found.fixes["notices: mail"]
        assert found.details["notices: webhook"] == "http://127.0.0.1:7780"
    finally:
        server.kill()
        server.wait(WAIT_SECONDS)
    found = clinic.node(redis_password_file=None)
    assert {"redis": "redis-away", "exports": "refused", "node": "not-running"}.items() <= found.verdicts.items()
    assert found.results["redis answers"] == found.results["coordinator"] == "skipped"


def test_all_is_well(clinic: Clinic, running: tuple[Service, Service]) -> None:
    """Of a hub and a node that work, all is ok; a drained node is worth a warning, a job that waits for it more."""
    found = clinic.hub()
    assert found.verdicts == {"notices": "no-notices"}
    assert set(found.results.values()) == {"ok", "warning"}
    assert clinic.node().verdicts == {}
    clinic.machines.command("nodes", "drain", "alpha")
    try:
        drained = clinic.machines.nodes
        assert patiently(lambda: drained()["alpha"].draining and not drained()["alpha"].active, WAIT_SECONDS)
        assert clinic.node().verdicts == {"workers": "drained"}
        found = clinic.hub()
        assert (found.status, found.verdicts["nodes"], found.results["sites"]) == (0, "drained", "ok")
        backup = clinic.machines.start_command("backup", "web01")
        assert patiently(lambda: (job := clinic.machines.job()) and "drained" in job.waiting, WAIT_SECONDS)
        found = clinic.hub()
        assert found.verdicts["waiting jobs"] == "job-waits"
        assert "all nodes of lab are drained: alpha" in found.details["waiting jobs"]
    finally:
        clinic.machines.command("nodes", "resume", "alpha")
    assert clinic.machines.backups.finish(backup).status == 0
    assert clinic.hub().details["waiting jobs"] == "none"


def test_another_hub_on_this_machine(clinic: Clinic, running: tuple[Service, Service]) -> None:
    """What answers at the addresses of this hub is not taken for this hub."""
    with short_folder() as folder:
        (folder / "hub").mkdir()
        with locked_by_another(service_lock(folder / "hub")):  # as of a hub that runs, and could not listen
            found = clinic.hub(state_dir=folder)
    assert (found.verdicts["api"], found.verdicts["flower"]) == ("port-taken", "port-taken")


def test_what_is_wrong_at_a_node(clinic: Clinic, running: tuple[Service, Service], tmp_path: Path) -> None:
    """Settings that cannot work, a name that another node has, and a clock that is wrong."""
    password = tmp_path / "password"
    password.write_text("wrong\n")
    password.chmod(0o600)
    config = edit_settings(clinic.machines.backups.site, tmp_path, password_file=str(password), nbdkit_plugin="nosuch")
    known = clinic.machines.node_settings("alpha", "alpha")
    port = Path(str(known["config"])).read_text().split("vcenter = ")[1].split("\n")[0].strip("'\"")
    config.write_text(config.read_text().replace(f"127.0.0.1:{clinic.machines.backups.site.port}", port))
    found = clinic.node(config=config, redis_password_file=password, exports="nbds://127.0.0.1:1", state_dir=tmp_path)
    assert found.verdicts == {
        "lab: nbdkit plugin": "nbdkit-plugin",
        "lab: vCenter": "vcenter-login",
        "redis answers": "redis-refused",
        "exports": "refused",
        "node": "not-running",
    }
    assert clinic.node(state_dir=tmp_path).verdicts == {"node's name": "name-taken", "node": "not-running"}
    found = clinic.node(name="vm")
    assert found.verdicts == {"node": "not-running"}
    assert "sendense doctor --node --name alpha" in found.fixes["node"]
    wrong = clinic.node("faketime", "-f", "+10m", DONT_FAKE_MONOTONIC=None).verdicts
    assert (wrong["clock"], wrong["lab: vCenter"]) == ("clock", "clock")
    assert clinic.node("faketime", "-f", "+9000d").verdicts["certificates"] == "certificate-ended"


def test_a_hub_whose_parts_stop(clinic: Clinic, running: tuple[Service, Service]) -> None:
    """A stopped Redis, exports daemon and API are each named, at the hub and, where they are seen, at the node."""
    hub = psutil.Process(running[0].pid)
    redis, exports = running[0].child("redis-server"), running[0].child("qemu-storage-daemon")
    api = running[0].child("sendense.api")
    with stopped(hub, redis):
        found = clinic.hub()
        assert found.verdicts["redis answers"] == "redis-silent"
        assert found.results["redis data"] == found.results["nodes"] == "skipped"
        assert clinic.node().verdicts == {"redis answers": "redis-silent"}
    with stopped(hub, exports, api):
        found = clinic.hub()
        assert {"exports": "exports-silent", "api": "api-silent"}.items() <= found.verdicts.items()
        assert found.results["exports read"] == "skipped"
        assert clinic.node().verdicts == {"exports": "no-greeting"}
        exports.kill()
        assert patiently(lambda: exports.status() == psutil.STATUS_ZOMBIE, WAIT_SECONDS)
        assert clinic.hub().verdicts["exports"] == "exports-away"
    assert patiently(lambda: clinic.hub().status == 0, COMMAND_SECONDS)


def test_a_node_that_is_cut_off(clinic: Clinic, running: tuple[Service, Service]) -> None:
    """Without the net nothing is reached, which is said in time."""
    clinic.machines.network.cut("alpha")
    try:
        verdicts = clinic.node().verdicts
    finally:
        clinic.machines.network.mend("alpha")
    assert verdicts["exports"] == "unreachable"
    assert verdicts["redis"] in ("redis-unreachable", "redis-away")
    assert verdicts["lab: vCenter"] == "vcenter-unreachable"


def test_points_that_cannot_be_restored(clinic: Clinic, running: tuple[Service, Service], tmp_path: Path) -> None:
    """A broken point is told of, and keeps nothing else from being looked at."""
    story = Story(tmp_path)
    story.repository.layout.image(VM.uuid, story.backup(d2000="A").id, 2000).unlink()
    story.backup(full=True, d2000="B")
    found = clinic.hub(repository=tmp_path / "repository")
    assert found.verdicts["broken points"] == "broken-points"
    assert "1 cannot be restored" in found.details["broken points"]
    assert found.details["restore points"] == "1 of 2 are sound"
    for name in ("unfinished points", "schedules", "overdue VMs"):
        assert (found.results[name], found.details[name]) == ("ok", "none")


def test_a_repository_without_room(clinic: Clinic, running: tuple[Service, Service]) -> None:
    """A file system that is full is wrong; one that is nearly so is worth a warning."""
    with small_disk(64 * MiB) as disk:
        (disk.path / "repository").mkdir()
        (disk.path / "other").write_bytes(bytes(63 * MiB))
        assert clinic.hub(repository=disk.path / "repository").verdicts["repository"] == "repository-space"
        disk.remount(f"size={63 * MiB}")
        assert clinic.hub(repository=disk.path / "repository").verdicts["repository"] == "repository"


def test_a_job_that_nobody_goes_on_with(clinic: Clinic, running: tuple[Service, Service]) -> None:
    """Without its node a site is silent, and a job is named with what it waits for, but for one that is paused."""
    machines = clinic.machines
    running[1].kill()
    assert patiently(lambda: not machines.nodes(), WAIT_SECONDS)
    with machines.client() as client:
        jobs, vm = Jobs(client), VM.model_copy(update={"site": "lab"})
        jobs.submit("a1b2", BackupRequest(vm=vm), "backup of web02", "inspect", [])
        assert patiently(lambda: "no worker" in jobs.find("a1b2").waiting, WAIT_SECONDS)
        found = clinic.hub()
        assert (found.verdicts["nodes"], found.verdicts["sites"]) == ("node-gone", "site-silent")
        assert found.verdicts["waiting jobs"] == "job-waits"
        assert "backup of web02 (a1b2): no worker reads the queue control.lab" in found.details["waiting jobs"]
        assert "at site lab" in found.fixes["waiting jobs"]
        jobs.pause("a1b2", True)
        assert clinic.hub().details["waiting jobs"] == "none"
