"""Backups of the lab's machines by the real command: run, disturbed, and compared with the disks as they were."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import redis

from sendense.coordinator.record import Jobs
from sendense.lab.disks import PARTITION_START
from sendense.repository.catalogue import Repository
from sendense.repository.points import Point
from sendense.requests import Event, JobView
from sendense.supervise.redis import url_of
from sendense.views import Job
from tests.integration.support import Result, same_image, tool
from tests.servers import short_folder
from tests.site import LabSite

MiB = 2**20
CLUSTER = 64 * 1024

COMMAND_SECONDS = 90.0
"""The longest that one command may take: fifteen times what it does take."""

WAIT_SECONDS = 30.0
"""The longest wait for something that takes a second or two."""

END_SECONDS = 5.0
"""A killed process is gone at once; the kernel may take a moment to take its memory."""

QUICK = {
    "claim_seconds": 2,
    "renew_seconds": 0.5,
    "tick_seconds": 0.5,
    "retry_seconds": 0.2,
    "no_progress_timeout": 3,
    "connect_timeout": 3,
    "processes": 2,
}
"""Deadlines that let a test see what happens behind them."""

_HUB = """
import signal, sys, time
from sendense.hub.seat import Seat
from sendense.settings import load_settings
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
with Seat(load_settings(), lambda text: None, work=True) as seat:
    print("up", flush=True)
    while True:
        seat.go_on()
        time.sleep(0.05)
"""


class Backups:
    """A state folder and a repository of their own, for one site; every process of the commands run here is known."""

    def __init__(self, site: LabSite, folder: Path, repository: Path | None = None) -> None:
        self.site, self.folder = site, folder
        self.state, self.root = folder / "state", repository or folder / "repository"
        self._before = self._snapshots()
        self._processes: list[subprocess.Popen[str]] = []

    @property
    def repository(self) -> Repository:
        """The restore points."""
        return Repository.open(self.root, create=False)

    # Commands

    def start(self, *arguments: str | Path, **settings: object) -> "subprocess.Popen[str]":
        """Start `sendense ARGUMENTS`; settings become SENDENSE_… variables."""
        return self._start(["-m", "sendense", *map(str, arguments)], settings)

    def _start(self, arguments: list[str], settings: dict[str, object]) -> "subprocess.Popen[str]":
        variables = {name: text for name, text in os.environ.items() if not name.startswith("SENDENSE_")}
        known = {"config": self.site.config, "state_dir": self.state, "repository": self.root, **QUICK, **settings}
        variables.update({f"SENDENSE_{name.upper()}": str(value) for name, value in known.items()})
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=variables,
        )
        self._processes.append(process)
        return process

    def close(self) -> None:
        """End what a test that failed left behind: found much later, it would fail another one."""
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for command in self._processes:
            command.kill()
            with command:  # closes its pipes
                pass
        patiently(lambda: not self.family(), END_SECONDS)

    def run(self, *arguments: str | Path, **settings: object) -> Result:
        """Run `sendense ARGUMENTS` to its end."""
        return self.finish(self.start(*arguments, **settings))

    def finish(self, process: "subprocess.Popen[str]") -> Result:
        """Wait for the end of a command."""
        try:
            stdout, stderr = process.communicate(timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate(timeout=END_SECONDS)
            raise AssertionError(f"did not end within {COMMAND_SECONDS:.0f} s: {stdout}{stderr}") from None
        return Result(process.returncode, stdout, stderr)

    def backup(self, vm: str, *options: str, **settings: object) -> Job:
        """A backup that has to succeed; how it went."""
        return self.succeeded(self.run("backup", vm, "--json", *options, **settings))

    def succeeded(self, result: Result) -> Job:
        """The job of a command with --json that has to have succeeded, and to have left no snapshot."""
        assert result.status == 0, result.stderr
        job = Job.model_validate(result.summary)
        assert job.state == "succeeded"
        assert job.leftover == []
        return job

    def refused(self, vm: str, *options: str, status: int = 2, **settings: object) -> str:
        """The error of a backup that has to end with this status: two lines, as one text."""
        result = self.run("backup", vm, "--json", *options, **settings)
        assert result.status == status, result
        return "\n".join(result.error)

    @contextmanager
    def hub(self) -> Iterator[None]:
        """Keep the hub up, so that commands find one and are quicker."""
        process = self._start(["-c", _HUB], {})
        try:
            assert process.stdout
            assert process.stdout.readline() == "up\n", process.communicate(timeout=END_SECONDS)
            yield
        finally:
            process.terminate()
            self.finish(process)

    # What is to be, and what is there

    def keep(self, vm: str) -> dict[int, Path]:
        """Copies of the machine's disks as they are now, by key; nobody may write to them meanwhile."""
        return self.keep_files({disk.key: disk.path for disk in self.site.client.vm(vm).disks if disk.mode != "rdm"})

    def keep_files(self, disks: dict[int, Path]) -> dict[int, Path]:
        """Copies of these raw files."""
        folder = self.folder / f"kept{time.monotonic_ns()}"
        folder.mkdir()
        for key, path in disks.items():
            tool("cp", "--sparse=always", "--reflink=auto", path, folder / f"{key}.raw")
        return {key: folder / f"{key}.raw" for key in disks}

    def points(self, vm: str | None = None) -> list[Point]:
        """The sound points, oldest first; none is broken."""
        if not self.root.exists():
            return []
        repository = self.repository
        assert repository.broken() == []
        uuid = self.site.client.vm(vm).instance_uuid if vm else None
        return repository.points(uuid)

    def image(self, point: Point, key: int) -> Path:
        """A disk's image."""
        return self.repository.layout.image(point.vm.uuid, point.id, key)

    def check(self, point: Point, kept: dict[int, Path]) -> None:
        """The point has these disks with this content; its images are sound, by plain qemu."""
        for disk in point.disks:
            image = self.image(point, disk.key)
            assert same_image(kept[disk.key], image), f"disk {disk.key} of {point.id}"
            assert tool("qemu-img", "check", "-f", "qcow2", image).startswith("No errors were found")

    def check_files(self, point: Point) -> None:
        """The file systems in the point are clean."""
        for disk in point.disks:
            raw = self.folder / "fsck.raw"
            tool("qemu-img", "convert", "-O", "raw", self.image(point, disk.key), raw)
            offset = PARTITION_START if disk.key == point.disks[0].key else 0
            tool("e2fsck", "-f", "-n", f"{raw}?offset={offset}")
            raw.unlink()

    def leftovers(self) -> list[str]:
        """Snapshots, open disks, processes, unfinished points and temporary files."""
        found = sorted(self._snapshots() - self._before)
        found += [f"{self.site.client.open_disks()} open disks"] if not self._closed() else []
        found += self.survivors()
        if self.root.exists():
            found += [f"unfinished {draft.id}" for draft in self.repository.unfinished()]
            found += [str(path) for path in self.root.rglob("*.part")]
            found += [str(path) for path in self.root.glob("vms/*/points/removed-*")]
        found += [str(path) for pattern in ("disk-*", "pymp-*", "*.part") for path in self.state.rglob(pattern)]
        return found

    def _snapshots(self) -> set[str]:
        return {f"snapshot {shot.name} of {vm.name}" for vm in self.site.client.vms() for shot in vm.snapshots}

    def _closed(self) -> bool:
        """The lab learns of a killed nbdkit when its connection ends."""
        return patiently(lambda: not self.site.client.open_disks(), END_SECONDS)

    def survivors(self) -> list[str]:
        """Command lines of the processes that know the state folder, once ended ones had time to go."""
        patiently(lambda: not self.family(), END_SECONDS)
        return [" ".join(one.cmdline()) for one in self.family()]

    def family(self, *words: str) -> list[psutil.Process]:
        """The processes of the commands run here with all of these words in their command line, oldest first."""
        found, mark = [], os.fsencode(self.state)
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                line = (entry / "cmdline").read_bytes()
                if mark not in line and mark not in (entry / "environ").read_bytes():
                    continue
                if line and all(word.encode() in line for word in words):
                    found.append(psutil.Process(int(entry.name)))
            except (OSError, psutil.Error):  # it ended meanwhile
                continue
        return sorted(found, key=lambda one: one.pid)

    def main(self, role: str) -> list[psutil.Process]:
        """The main process of a worker: hub, control or node."""
        workers = self.family("workers", f"-{role}")
        ids = {one.pid for one in workers}
        return [one for one in workers if _parent(one) not in ids]

    def pool(self, role: str) -> list[psutil.Process]:
        """The processes that do a worker's tasks."""
        workers = self.family("workers", f"-{role}")
        ids = {one.pid for one in workers}
        return [one for one in workers if _parent(one) in ids]

    # The record

    def client(self) -> "redis.Redis":
        """A client of the hub's Redis."""
        return redis.Redis.from_url(url_of(self.state / "hub"), socket_timeout=2)

    def job(self) -> JobView | None:
        """The latest job, while Redis runs."""
        try:
            with self.client() as client:
                views = Jobs(client).views()
        except redis.exceptions.RedisError:
            return None
        return views[0] if views else None

    def events(self, job: str) -> list[Event]:
        """A job's history, while Redis runs."""
        with self.client() as client:
            return Jobs(client).events(job)

    def wait_for_step(self, step: str, process: "subprocess.Popen[str]") -> JobView:
        """Wait until the latest job is at this step; the command must not end before."""
        while True:
            view = self.job()
            if view and view.step == step and view.started and not view.ended:
                return view
            assert process.poll() is None, (step, process.communicate())
            time.sleep(0.002)

    def wait_until_reading(self) -> None:
        """Wait until a disk is open at the site."""
        assert patiently(lambda: self.site.client.open_disks() > 0, WAIT_SECONDS)


def _parent(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.Error:
        return 0


def patiently(
    done: Callable[[], object],
    seconds: float,
    every: float = 0.02,
    missing: tuple[type[Exception], ...] = (LookupError,),
) -> bool:
    """
    Wait until it is done; False when it is not within so many seconds.

    As long as what it looks at is not there (an error of `missing`), it is not done; in the end that is raised.
    """
    deadline = time.monotonic() + seconds
    while True:
        is_over = time.monotonic() > deadline
        try:
            if done():
                return True
        except missing:
            if is_over:
                raise
        if is_over:
            return False
        time.sleep(every)


def kill_command(process: "subprocess.Popen[str]") -> None:
    """End a command at once (SIGKILL), as a crash would."""
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=END_SECONDS)


@contextmanager
def open_backups(site: LabSite) -> Iterator[Backups]:
    """A state folder and a repository, deleted afterwards; no process that knows them is left in the end."""
    with short_folder() as folder:
        backups = Backups(site, folder)
        try:
            yield backups
        finally:
            left = backups.survivors()
            backups.close()
        assert left == []


class SmallDisk:
    """A file system of its own size: a tmpfs in a mount namespace that ends with its only process."""

    def __init__(self, size: int) -> None:
        command = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
        script = f"mount -t tmpfs -o size={size} none /mnt && echo ready && exec sh"
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command, "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._wait()
        self.path = Path(f"/proc/{self._holder.pid}/root/mnt")

    def remount(self, options: str) -> None:
        """Change how it is mounted: ro, rw, size=BYTES."""
        assert self._holder.stdin
        self._holder.stdin.write(f"mount -o remount,{options} /mnt && echo ready\n")
        self._holder.stdin.flush()
        self._wait()

    def close(self) -> None:
        """End it, and all that is on it."""
        self._holder.kill()
        self._holder.communicate(timeout=END_SECONDS)

    def _wait(self) -> None:
        assert self._holder.stdout
        assert self._holder.stdout.readline() == "ready\n"


@contextmanager
def small_disk(size: int) -> Iterator[SmallDisk]:
    """A file system of `size` bytes."""
    disk = SmallDisk(size)
    try:
        yield disk
    finally:
        disk.close()


def edit_settings(site: LabSite, folder: Path, **values: str) -> Path:
    """A copy of the site's settings file with other values of its site."""
    lines = site.config.read_text().splitlines()
    path = folder / "edited.toml"
    kept = [line for line in lines if line.split(" = ")[0] not in values]
    path.write_text("\n".join([*kept, *(f"{key} = '{value}'" for key, value in values.items() if value)]) + "\n")
    return path
