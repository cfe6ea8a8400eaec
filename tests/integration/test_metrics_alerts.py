"""A hub with nodes, watched by a real Prometheus: each condition that loses sleep really comes about, and is told."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import psutil
import pytest
import yaml

from sendense.coordinator.context import Context
from sendense.coordinator.outbox import BEGINNING, OUTBOX
from sendense.coordinator.record import Jobs
from sendense.jobs import broker
from sendense.jobs.clock import clock
from sendense.jobs.ledger import Ledger, connect
from sendense.repository.points import Point
from sendense.service import routine
from sendense.settings import Settings
from sendense.supervise.redis import url_of
from tests.backup import COMMAND_SECONDS, QUICK, WAIT_SECONDS, Backups, SmallDisk, open_backups, patiently, small_disk
from tests.machines import Service, environment
from tests.prometheus import SHIPPED, Prometheus, open_prometheus
from tests.receivers import Webhook
from tests.servers import free_port
from tests.site import LabSite, MiB, open_site

FIRE_SECONDS = 120.0
"""The longest wait for an alert; the slowest takes twenty."""

CRAWL = 256 * 1024
"""Bytes a second at which a disk is read that must not be at its end."""

GONE = 410
"""What a webhook answers that wants no more notices."""

OLD, LATE = timedelta(days=2), timedelta(hours=2)


class Scene:
    """A hub and its nodes on this machine, with a repository on a file system of its own."""

    def __init__(self, site: LabSite, backups: Backups, disk: SmallDisk, own: SmallDisk, hook: Webhook) -> None:
        """Nobody is at the mail server's address. `disk` is the repository's, `own` the state folder's."""
        self.site, self.backups, self.disk, self.own, self.hook = site, backups, disk, own, hook
        self.api, self._exports = free_port(), free_port()
        self.url = url_of(backups.state / "hub")
        self._settings = backups.folder / "hub.toml"
        self._settings.write_text(f"""
[notices]
webhook = "{hook.url}"
mail_to = ["ops@example.org"]
mail_from = "sendense@example.org"
smtp = "127.0.0.1:{free_port()}"
""")
        self._services: list[Service] = []
        self.hub = self._start(
            "hub",
            config=self._settings,
            state_dir=backups.state,
            exports_listen=f"127.0.0.1:{self._exports}",
            api_listen=f"127.0.0.1:{self.api}",
            flower_listen="",
            node_name="hub",
        )

    def node(self, name: str, exports: int | None = None) -> Service:
        """A node of the site; `exports` is the port where it looks for the hub's exports."""
        return self._start(
            *("node", "--site", "lab", "--name", name, "--processes", "1"),
            config=self.site.config,
            state_dir=self.backups.state / name,
            redis=self.url,
            exports=f"nbd://127.0.0.1:{exports or self._exports}",
        )

    def _start(self, *arguments: str, **settings: object) -> Service:
        known = {**QUICK, "repository": self.backups.root, **settings}
        argv = [sys.executable, "-m", "sendense", *arguments]
        service = Service(argv, environment(known), self.backups.folder / f"{arguments[-1]}.out")
        self._services.append(service)
        service.wait_for("is ready")
        return service

    def command(self, *arguments: str) -> "subprocess.Popen[str]":
        """A command at the hub."""
        return self.backups.start(*arguments, config=self._settings)

    def finish(self, *arguments: str) -> None:
        """A command that succeeds."""
        result = self.backups.finish(self.command(*arguments))
        assert result.status == 0, result.stderr

    def backup(self, vm: str) -> dict[str, Any]:
        """A backup, to its end."""
        result = self.backups.finish(self.command("backup", vm, "--json"))
        assert result.stdout, result.stderr
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    def do(self, duty: str) -> None:
        """What the hub does by itself every few minutes."""
        client = connect(self.url)
        context = Context(
            Settings(repository=self.backups.root), Ledger(client), Jobs(client), broker.make_app(self.url)
        )
        routine.run(context, duty, "test/1/1")

    def age(self, point: Point) -> None:
        """Have a point been made earlier."""
        path = self.backups.repository.layout.point(point.vm.uuid, point.id) / "point.json"
        made = json.loads(path.read_text())
        made["created"] = (datetime.fromisoformat(made["created"]) - OLD).isoformat()
        path.write_text(json.dumps(made))

    def age_notices(self) -> None:
        """Have the notices that wait been made earlier."""
        with self.backups.client() as redis:
            made = cast(list[tuple[bytes, dict[str, str]]], redis.xrange(OUTBOX))
            redis.delete(OUTBOX)
            for id, fields in made:
                at, _, number = id.decode().partition("-")
                redis.xadd(OUTBOX, fields, id=f"{int(at) - int(LATE.total_seconds() * 1000)}-{number}")
            redis.hset("sendense:notices:to:mail", "passed", BEGINNING)

    def stop_routine(self) -> None:
        """What the hub does by itself is killed, and the hub, which would start it again, is stopped; long ago."""
        hub = psutil.Process(self.hub.pid)
        hub.suspend()
        for part in hub.children(recursive=True):
            if "workers" in " ".join(part.cmdline()):
                part.kill()
        with self.backups.client() as redis:
            redis.set("sendense:routine", clock(redis) - LATE.total_seconds())

    def fill(self) -> None:
        """Leave a twentieth of the repository's file system, and of the state folder's."""
        for disk in (self.disk, self.own):
            disk.remount("size=64M")
            with (disk.path / "other").open("wb") as file:
                file.write(bytes(61 * MiB - _used(disk.path)))

    def make_room(self) -> None:
        """As before."""
        for disk in (self.disk, self.own):
            (disk.path / "other").unlink()
            disk.remount("size=256M")

    def stop(self) -> None:
        """End what runs."""
        for service in reversed(self._services):
            if service.process.poll() is None:
                service.kill()


def _used(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def scene(hook: Webhook) -> Iterator[Scene]:
    """A hub with one node, and two VMs."""
    with ExitStack() as stack:
        site = stack.enter_context(open_site(vms=2, disks=1, disk_size=16 * MiB, fill=8 * MiB))
        disk, own = (stack.enter_context(small_disk(256 * MiB)) for _ in range(2))
        backups = stack.enter_context(open_backups(site))
        backups.root, backups.state = disk.path / "repository", own.path / "state"
        scene = Scene(site, backups, disk, own, hook)
        stack.callback(scene.stop)
        yield scene


class Watch:
    """What Prometheus has told."""

    def __init__(self, prometheus: Prometheus) -> None:
        self._prometheus, self.seen = prometheus, set[str]()

    def fires(self, alert: str, **labels: str) -> None:
        """Wait until an alert fires with these labels."""

        def is_told() -> bool:
            found = self._prometheus.firing()
            self.seen |= found.keys()
            return any(labels.items() <= each.items() for each in found.get(alert, []))

        assert _soon(is_told), (alert, labels, self._prometheus.ask("alerts"))

    def ends(self, alert: str) -> None:
        """Wait until it does not fire any more."""
        assert _soon(lambda: alert not in self._prometheus.firing()), alert


def _soon(done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + FIRE_SECONDS
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _metrics_in(text: str) -> set[str]:
    return set(re.findall(r"\bsendense[_:][a-z0-9_:]+", text))


@pytest.mark.timeout(600)
def test_each_condition_is_told(scene: Scene, tmp_path: Path) -> None:
    """What loses sleep is told within moments, by its name and place; what is mended is told no more."""
    backups, site = scene.backups, scene.site
    client = site.client
    token = backups.run("token", "create", "--role", "reader").stdout.strip()
    tonight = (datetime.now(UTC) + OLD / 4).strftime("%H:%M")
    first = scene.node("sna1")
    with open_prometheus(tmp_path, f"127.0.0.1:{scene.api}", token) as prometheus:
        watch = Watch(prometheus)
        assert scene.backup("web01")["state"] == "succeeded"
        assert scene.backup("db01")["state"] == "succeeded"
        scene.finish("schedule", "add", "db01", "--daily", tonight, "--timezone", "UTC")
        scene.do("snapshots")
        assert _soon(lambda: bool(prometheus.query("sendense_site_up == 1")))
        assert prometheus.firing() == {}

        # A job fails, and its snapshot cannot be removed; of two who are told of it one refuses, and one is not there.
        scene.hook.answers = [GONE]
        client.write("db01", 0, b"new")
        client.fail_next("QueryChangedDiskAreas", "NoPermission")
        client.fail_next("RemoveSnapshot", "GenericVmConfigFault", times=5)
        failed = scene.backup("db01")
        assert (failed["state"], len(client.snapshots("db01"))) == ("failed", 1), failed
        scene.do("snapshots")
        scene.age(backups.points("web01")[0])
        second = scene.node("sna2", exports=free_port())  # nobody is there
        scene.fill()
        (broken,) = backups.points("db01")
        backups.image(broken, 2000).write_bytes(b"")
        watch.fires("SendenseJobFailed", kind="backup", state="failed")
        watch.fires("SendenseNoticesGivenUp", receiver="webhook")
        scene.age_notices()
        watch.fires("SendenseNoticesWaiting", receiver="mail")
        watch.fires("SendenseOrphanedSnapshot", site="lab", vm="db01", left_by="ended")
        watch.fires("SendenseVmWithoutPoint", vm="web01")
        watch.fires("SendenseTunnelDown", node="sna2", site="lab")
        watch.fires("SendenseDiskFilling")
        watch.fires("SendenseStateFilling")
        watch.fires("SendenseBrokenPoints", vm="db01")
        watch.fires("SendenseVmWithoutPoint", vm="db01")
        scene.finish("jobs", "clean")
        assert client.snapshots("db01") == []
        scene.do("snapshots")
        watch.ends("SendenseOrphanedSnapshot")

        # A backup is at work when both nodes are gone, one of them in good order.
        scene.make_room()
        client.set("web01", read_rate=CRAWL)
        job = scene.command("backup", "web01", "--mode", "full")
        moving = 'sum(sendense_batches{state="running"}) > 0 and on () sum(sendense_snapshot_age_seconds) >= 0'
        assert _soon(lambda: bool(prometheus.query(moving)))
        first.kill()
        second.stop()
        watch.fires("SendenseNodeGone", node="sna1", site="lab")
        watch.fires("SendenseNoProgress", site="lab")
        assert {labels["node"] for labels in prometheus.firing()["SendenseNodeGone"]} == {"sna1"}
        job.kill()
        job.communicate(timeout=COMMAND_SECONDS)

        # Nobody is left to ask the site; and Redis may use less memory than it does.
        scene.do("snapshots")
        watch.fires("SendenseSiteAway", site="lab")
        with backups.client() as redis:
            redis.config_set("maxmemory", redis.info("memory")["used_memory"] * 9 // 10)
        watch.fires("SendenseLedgerFilling")
        ready = httpx.get(f"http://127.0.0.1:{scene.api}/readyz")
        assert (ready.status_code, "Redis has no room" in ready.text) == (503, True)
        with backups.client() as redis:
            redis.config_set("maxmemory", 0)

        # What the rules and the dashboard go by was there, all of it.
        scraped = set(prometheus.ask("label/__name__/values"))
        dashboard = (SHIPPED / "dashboard.json").read_text()
        absent = (_metrics_in(dashboard) | _metrics_in((SHIPPED / "alerts.yml").read_text())) - scraped
        assert absent == set()

        backups.root.rename(backups.root.with_name("moved"))
        watch.fires("SendensePartAway", part="repository")
        scene.stop_routine()
        watch.fires("SendenseRoutineStopped")
        scene.hub.kill()
        watch.fires("SendenseHubAway")
        rules = yaml.safe_load((SHIPPED / "alerts.yml").read_text())["groups"][1]["rules"]
        assert {rule["alert"] for rule in rules} == watch.seen
    assert patiently(lambda: not backups.family("prometheus"), WAIT_SECONDS)
