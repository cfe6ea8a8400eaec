"""
`make bench`: one disk moved by one node and by four, each of whose sources gives so many bytes a second, in one run.

A hub, and nodes of one process each, on the loopback; nbdkit's rate filter in front of every node's source stands for
what a VMware host gives to one connection. The disk and the repository lie in RAM. Each round: a full backup with one
node, then one with all of them; what is compared is the copying.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sendense.lab.client import LabClient
from sendense.units import GiB, show_bytes
from sendense.views import Job
from tests.bench.copy import BenchError, copy_once, versions, work_folder
from tests.servers import free_port
from tests.site import LabSite

SITE = "lab"

MB = 10**6

BURST_SECONDS = 0.1
"""What nbdkit's filter lets through at once after a rest; its default of 2 s would flatter many nodes."""

START_SECONDS = 30.0
END_SECONDS = 45.0

GOAL = 3.8
"""Times the speed of one node, with four."""

SPACE = 2.2
"""Of the disk's size: the disk, what its snapshot holds, a restore point."""


class Machines:
    """A hub and nodes on this machine, each a process of its own with its own settings and state."""

    def __init__(self, site: LabSite, folder: Path, state: Path, rate: int) -> None:
        self._site, self._folder, self._state = site, folder, state
        self._redis, self._exports = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        self._password = state / "redis.password"
        self._password.touch(0o600)
        self._password.write_text(secrets.token_urlsafe() + "\n")
        self._limited = state / "limited.toml"
        settings, options = site.config.read_text(), "nbdkit_options = {"
        if options not in settings:
            raise BenchError(f"{site.config}: no {options}")
        limits = f'nbdkit_filters = ["rate"]\n{options} rate = "{8 * rate}", burstiness = "{BURST_SECONDS}",'
        self._limited.write_text(settings.replace(options, limits))

    @contextmanager
    def hub(self) -> Iterator[None]:
        """Run the hub, which knows no site itself."""
        own = {
            "state_dir": self._state / "hub",
            "repository": self._folder / "repository",
            "redis_listen": self._redis,
            "exports_listen": self._exports,
            "api_listen": "",
            "flower_listen": "",
            "config": self._nothing,
            "processes": 1,
        }
        self._hub = self._environment(own)
        with self._running("hub", self._hub):
            yield

    @contextmanager
    def node(self, name: str) -> Iterator[None]:
        """Run a node with one process, until it is there."""
        own = {
            "state_dir": self._state / name,
            "redis": f"redis://{self._redis}",
            "exports": f"nbd://{self._exports}",
            "config": self._limited,
            "processes": 1,
        }
        with self._running("node", self._environment(own), "--site", SITE, "--name", name):
            deadline = time.monotonic() + START_SECONDS
            while name not in self._nodes():
                if time.monotonic() > deadline:
                    raise BenchError(f"node {name} did not appear: see {self._state / name}.log")
                time.sleep(0.1)
            yield

    def backup(self, vm: str) -> Job:
        """A full backup on an empty repository."""
        shutil.rmtree(self._folder / "repository", ignore_errors=True)
        os.environ.update(self._hub)
        _, out, _ = copy_once([_sendense(), "backup", vm, "--mode", "full", "--json"])
        return Job.model_validate_json(out)

    @property
    def _nothing(self) -> Path:
        path = self._state / "nothing.toml"
        path.touch()
        return path

    def _environment(self, own: dict[str, Any]) -> dict[str, str]:
        common = {"redis_password_file": self._password}
        return {f"SENDENSE_{name.upper()}": str(value) for name, value in {**common, **own}.items()}

    def _nodes(self) -> list[str]:
        done = subprocess.run(
            [_sendense(), "nodes", "--json"],
            env={**os.environ, **self._hub},
            capture_output=True,
            timeout=START_SECONDS,
            check=False,
        )
        return [node["name"] for node in json.loads(done.stdout)] if not done.returncode else []

    @contextmanager
    def _running(self, role: str, environment: dict[str, str], *options: str) -> Iterator[None]:
        name = options[-1] if options else role
        with (self._state / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", _sendense(), role, *options],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def measure(machines: Machines, vm: str, nodes: int) -> Job:
    """A backup with so many nodes; BenchError when one of them did nothing."""
    with ExitStack() as stack:
        for number in range(nodes):
            stack.enter_context(machines.node(f"sna{number + 1}"))
        job = machines.backup(vm)
    progress = job.progress or job.disks[0].progress
    workers = progress.by_worker if progress else {}
    if len(workers) != nodes:
        raise BenchError(f"{len(workers)} of {nodes} nodes copied: {workers}")
    return job


def _sendense() -> str:
    return str(Path(sys.executable).with_name("sendense"))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.nodes", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--size-gib", type=float, default=5.0, help="data on the disk (default 5)")
    parser.add_argument("--rate-mb", type=int, default=50, help="MB/s of each node's source (default 50)")
    parser.add_argument("--nodes", type=int, default=4, help="how many nodes (default 4)")
    parser.add_argument("--rounds", type=int, default=2, help="how often all is done (default 2)")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where disks go (default /dev/shm)")
    parser.add_argument("--json", type=Path, default=Path("bench-nodes.json"), help="result file")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.size_gib <= 0 or options.nodes < 2:
        parser.error("--rounds must be 1 or more, --nodes 2 or more, --size-gib more than 0")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run it all; the exit status is 0 unless something could not be measured."""
    options, console = parse(arguments), Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder in RAM is removed
    data = int(options.size_gib * GiB)
    seconds: dict[int, list[float]] = {1: [], options.nodes: []}
    for name in [name for name in os.environ if name.startswith("SENDENSE_")]:
        del os.environ[name]
    try:
        with work_folder(options.folder, int(data * SPACE)) as folder, tempfile.TemporaryDirectory() as state:
            size = int(data * 1.25)
            plan = ["--vms", "1", "--disks", "1", "--disk-size", str(size), "--fill", str(data)]
            site = LabSite(folder / "lab", plan, LabClient(folder / "lab"))
            try:
                site.start()
                vm = site.client.vms()[0].name
                machines = Machines(site, folder, Path(state), options.rate_mb * MB)
                with machines.hub():
                    for number in range(options.rounds):
                        for nodes, found in seconds.items():
                            job = measure(machines, vm, nodes)
                            found.append(job.disks[0].seconds)
                            progress = job.disks[0].progress
                            moved = progress.copied if progress else 0
                            rate = show_bytes(moved / found[-1])
                            console.print(f"  round {number + 1}: {nodes} nodes, {found[-1]:.1f} s, {rate}/s")
            finally:
                site.stop()
    except (BenchError, RuntimeError) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    times = [one / many for one, many in zip(seconds[1], seconds[options.nodes], strict=True)]
    speedup = statistics.median(times)
    table = Table(title=f"{show_bytes(data)} of data, {options.rate_mb} MB/s for each node", title_justify="left")
    for heading in ("nodes", "copying", "times the speed of one", "at least", ""):
        table.add_column(heading, justify="right")
    table.add_row("1", f"{statistics.median(seconds[1]):.1f} s")
    verdict = "[green]met[/]" if speedup >= GOAL else "[red]missed[/]"
    goal = (str(GOAL), verdict) if options.nodes == 4 else ("", "")
    table.add_row(str(options.nodes), f"{statistics.median(seconds[options.nodes]):.1f} s", f"{speedup:.2f}", *goal)
    console.print(table)
    result = {"seconds": seconds, "speedup": speedup, "bytes": data, "versions": versions(), "cpus": os.cpu_count()}
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"written to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
