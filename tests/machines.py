"""A hub and nodes as the real commands, each on a host of its own, over TLS; the site is on this machine."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import redis

from sendense import pki
from sendense.coordinator.record import Jobs
from sendense.jobs import presence, tally
from sendense.jobs.ledger import Ledger, LedgerUnavailable, connect
from sendense.models import Node, Progress
from sendense.requests import JobView
from sendense.settings import Settings
from tests.backup import (
    COMMAND_SECONDS,
    END_SECONDS,
    QUICK,
    WAIT_SECONDS,
    Backups,
    edit_settings,
    open_backups,
    patiently,
)
from tests.netns import Network, forwarding, open_network
from tests.site import LabSite

HUB = "hub"

START_SECONDS = 60.0
"""The longest that a start may take; it takes three."""

ENDS = "ends: what is under way has 30 s"
"""What it says when it was told to end."""

RATE, CRAWL = 8 * 2**20, 2 * 2**20
"""Bytes a second that a process reads of a slow backup's disk, and of one that must not end meanwhile."""

STOP_SECONDS = 45.0
"""As long as systemd would wait."""


class Service:
    """`sendense hub` or `sendense node` as a process, and what it logged."""

    def __init__(self, argv: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.log, self._from = log, log.stat().st_size if log.exists() else 0
        self._asked = False
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environment),
            )

    @property
    def pid(self) -> int:
        """Of its main process."""
        return self.process.pid

    def lines(self) -> list[dict[str, Any]]:
        """What it logged since it was started, as objects; lines that are none have a `message` alone."""
        with self.log.open("rb") as file:
            file.seek(self._from)
            whole, _, _ = file.read().rpartition(b"\n")
        texts = whole.decode(errors="replace").splitlines()
        return [json.loads(text) if text.startswith("{") else {"message": text} for text in texts]

    def has_said(self, words: str) -> bool:
        """Whether a message has these words."""
        return any(words in line["message"] for line in self.lines())

    def wait_for(self, words: str, seconds: float = START_SECONDS) -> None:
        """Wait until it says so."""
        assert patiently(lambda: self.has_said(words) or self.process.poll() is not None, seconds), self.text()
        assert self.has_said(words), self.text()

    def ask_to_end(self) -> None:
        """Send SIGTERM, if it runs; for the second time, it ends at once."""
        if self.process.poll() is None:
            self._asked = True
            self.process.send_signal(signal.SIGTERM)

    def ends(self, seconds: float = STOP_SECONDS) -> int:
        """Wait for its end; its exit status."""
        return self.process.wait(seconds)

    def stop(self) -> None:
        """End it in good order."""
        if self.process.poll() is None:
            if not self._asked:
                self.ask_to_end()
            assert self.ends() == 0, self.text()

    def kill(self) -> None:
        """End it at once, as a crash would (SIGKILL); its children end with it."""
        family = psutil.Process(self.pid).children(recursive=True)
        self.process.kill()
        self.process.wait(END_SECONDS)
        _, left = psutil.wait_procs(family, END_SECONDS)
        assert left == []

    def child(self, *words: str) -> psutil.Process:
        """The one child with all of these words in its command line."""
        found = [
            one
            for one in psutil.Process(self.pid).children()
            if all(any(word in part for part in one.cmdline()) for word in words)
        ]
        assert len(found) == 1, found
        return found[0]

    def text(self) -> str:
        """All that it logged, for a failure."""
        return self.log.read_text(errors="replace")


class Machines:
    """A hub's and its nodes' settings, and the processes that run now."""

    def __init__(self, network: Network, backups: Backups, config: Path) -> None:
        self.network, self.backups = network, backups
        self._config, self._tls = config, backups.folder / "tls"
        pki.init(self._tls, [network.address(HUB)])
        self._services: list[Service] = []
        # The commands of the hub's machine have its settings.
        self.hub_settings: dict[str, object] = {
            "state_dir": backups.state,
            "repository": backups.root,
            "tls_dir": self._tls,
            "redis_listen": f"{network.address(HUB)}:6379",
            "exports_listen": f"{network.address(HUB)}:10809",
            "api_listen": "",
            "flower_listen": "",
            "node_name": HUB,
            **QUICK,
        }
        self._no_sites = backups.folder / "hub.toml"
        self._no_sites.touch()

    def start_hub(self, **settings: object) -> Service:
        """Start the hub, and wait until it is ready."""
        hub = self._start(HUB, ["hub"], {"config": self._no_sites, **self.hub_settings, **settings})
        hub.wait_for("is ready")
        return hub

    def start_node(
        self, host: str, name: str = "", state: str = "", *, wait: bool = True, **settings: object
    ) -> Service:
        """Start a node of the site on a host, and wait until it is ready."""
        name = name or host
        known = {**self.node_settings(host, state or host), **settings}
        node = self._start(host, ["node", "--site", "lab", "--name", name, "--processes", "1"], known)
        if wait:
            node.wait_for("is ready")
        return node

    def node_settings(self, host: str, state: str) -> dict[str, object]:
        """What a node's machine has, `state` naming its state folder."""
        hub, certificates = self.network.address(HUB), self._tls / "nodes" / host
        if not certificates.exists():
            pki.add_node(self._tls, host)
        return {
            "config": self._config,
            "state_dir": self.backups.state / state,
            "redis": f"rediss://{hub}:6379",
            "redis_password_file": self.backups.state / "redis.password",
            "exports": f"nbds://{hub}:10809",
            "tls_dir": certificates,
            **QUICK,
        }

    def run_node(self, host: str, *arguments: str, **settings: object) -> "subprocess.CompletedProcess[str]":
        """Run `sendense node ARGUMENTS`, which has to end by itself."""
        known = {**self.node_settings(host, host), **settings}
        argv = self.network.on(host, [sys.executable, "-m", "sendense", "node", *arguments])
        return subprocess.run(argv, env=environment(known), capture_output=True, text=True, timeout=START_SECONDS)

    def start_command(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a command on the hub's machine."""
        return self.backups.start(*arguments, **{**self.hub_settings, "config": self._no_sites})

    def command(self, *arguments: str) -> str:
        """Run a command on the hub's machine, which has to succeed; its stdout."""
        result = self.backups.finish(self.start_command(*arguments))
        assert result.status == 0, result.stderr
        return result.stdout

    def client(self) -> "redis.Redis":
        """A client of the hub's Redis, over its socket."""
        settings = Settings.model_construct(
            state_dir=self.backups.state, redis="", redis_listen=str(self.hub_settings["redis_listen"])
        )
        return connect(f"unix://{self.backups.state}/hub/redis.sock", retries=0, settings=settings)

    def job(self) -> JobView | None:
        """The latest job, while Redis answers."""
        try:
            with self.client() as client:
                views = Jobs(client).views()
        except LedgerUnavailable:
            return None
        return views[0] if views else None

    def events(self, job: str) -> list[str]:
        """A job's history."""
        with self.client() as client:
            return [event.text for event in Jobs(client).events(job)]

    def moved(self) -> int:
        """Bytes that all workers ever moved; 0 while Redis does not answer."""
        try:
            with self.client() as client:
                return sum(tally.read(client)[0].moved.values())
        except LedgerUnavailable:
            return 0

    def nodes(self) -> dict[str, Node]:
        """The nodes that announce themselves."""
        with self.client() as client:
            return {node.name: node for node in presence.nodes(client)}

    def stop(self) -> None:
        """End all that run, the nodes first."""
        hubs = [service for service in self._services if service.log.stem == HUB]
        for services in ([service for service in self._services if service not in hubs], hubs):
            for service in services:
                service.ask_to_end()
            for service in services:
                service.stop()

    def _start(self, host: str, arguments: list[str], settings: dict[str, object]) -> Service:
        argv = self.network.on(host, [sys.executable, "-m", "sendense", *arguments, "--log-json"])
        service = Service(argv, environment(settings), self.backups.folder / f"{host}.out")
        self._services.append(service)
        return service


class Running:
    """A full backup under way, as the hub's record has it."""

    def __init__(self, machines: Machines, vm: str) -> None:
        self._machines, self._backups, self._vm = machines, machines.backups, vm
        before = machines.job()
        machines.backups.site.client.reset_tracking(vm)  # so that it is a full
        self.read_at(RATE)
        self.process = machines.start_command("backup", vm, "--json")
        if not patiently(lambda: self._is_known(before), WAIT_SECONDS):
            self.process.kill()
            raise AssertionError(self.process.communicate(timeout=COMMAND_SECONDS))
        self.id = self.view.id

    def _is_known(self, before: JobView | None) -> bool:
        view = self._machines.job()
        return bool(view and (not before or view.id != before.id))

    @property
    def view(self) -> JobView:
        """As it is now."""
        view = self._machines.job()
        assert view
        return view

    def workers(self) -> dict[str, int]:
        """The bytes that each worker has copied so far."""
        disks = self.view.work.disks
        with self._machines.client() as client:
            progress = Ledger(client).progress(disks[0].copy_id) if disks and disks[0].copy_id else None
        return progress.by_worker if progress else {}

    def wait_for(self, *nodes: str) -> None:
        """Wait until these nodes have copied something."""
        names = {f"{node}-copy" for node in nodes}
        assert patiently(lambda: names <= self.workers().keys(), WAIT_SECONDS), self.view

    def goes_on(self) -> bool:
        """Wait until more was copied than now."""
        before = self._machines.moved()
        return patiently(lambda: self._machines.moved() > before, WAIT_SECONDS)

    def read_at(self, rate: int) -> None:
        """Have the disk read at this rate from now on, by each process; 0: as fast as it can be."""
        self._backups.site.client.set(self._vm, read_rate=rate)

    def leave(self) -> None:
        """End the command that began it: the job goes on by itself."""
        self.process.kill()
        self.process.communicate(timeout=COMMAND_SECONDS)

    def succeeds(self, kept: dict[int, Path]) -> Progress:
        """Wait for its success; its content is the disk's. How it was copied."""
        self.read_at(0)
        assert patiently(self._has_ended, COMMAND_SECONDS), self.view
        view = self.view
        assert (view.state, view.error) == ("succeeded", None)
        point = next(point for point in self._backups.points(self._vm) if point.id == view.work.point)
        self._backups.check(point, kept)
        progress = view.work.disks[0].progress
        assert progress
        return progress

    def _has_ended(self) -> bool:
        view = self._machines.job()
        return bool(view and view.id == self.id and view.ended)

    def failures(self) -> list[str]:
        """What its history has of batches that were to do again."""
        return [text for text in self._machines.events(self.id) if "batch" in text]


@contextmanager
def running(machines: Machines, vm: str) -> Iterator[Running]:
    """A slow backup of a VM with one disk; where the test fails, it is cancelled."""
    job = Running(machines, vm)
    try:
        yield job
    finally:
        job.read_at(0)
        if job.process.poll() is None:
            job.process.terminate()
            job.process.communicate(timeout=COMMAND_SECONDS)
        with job.process:  # closes its pipes
            pass


def environment(settings: Mapping[str, object]) -> dict[str, str]:
    """This process's, with these settings and no others; those that are None are left out."""
    variables = {name: text for name, text in os.environ.items() if not name.startswith("SENDENSE_")}
    known = {name: value for name, value in settings.items() if value is not None}
    return variables | {f"SENDENSE_{name.upper()}": str(value) for name, value in known.items()}


@contextmanager
def open_machines(site: LabSite, *hosts: str) -> Iterator[Machines]:
    """A hub's and these nodes' hosts, with nothing running; no process of them is left in the end."""
    with ExitStack() as stack:
        backups = stack.enter_context(open_backups(site))
        network = stack.enter_context(open_network(HUB, *hosts))
        port = stack.enter_context(forwarding(network.here, site.port))
        config = edit_settings(site, backups.folder, vcenter=f"{network.here}:{port}")
        machines = Machines(network, backups, config)
        try:
            yield machines
        finally:
            machines.stop()
