"""Workers on one Redis, as several nodes are, and VMs' disks that they read through nbdkits that are counted."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from sendense.extents import Extent
from sendense.jobs import broker, driver, presence
from sendense.jobs.plan import batch_of
from sendense.jobs.queues import HUB_QUEUE, site_queue
from sendense.models import DiskSource, JobSpec, JobState, Progress
from sendense.settings import Settings, Site
from tests.backup import patiently
from tests.hub import Hub, open_hub
from tests.servers import nbdkit, short_folder

SITE = "oslo"
PATIENCE = 90.0
"""Seconds for what takes one or two."""

END_SECONDS = 10.0

BATCH_BYTES = 64 * 1024
"""One request."""

QUICK: dict[str, object] = {"claim_seconds": 2, "renew_seconds": 0.3}

_PLUGIN = '''
"""A VM's disk for nbdkit's python plugin: takes vddk's parameters, notes reads, and what was open when it opened."""

import fcntl
import json
import os
from pathlib import Path

import nbdkit

API_VERSION = 2
settings = {}


def config(key, value):
    settings[key] = value


def thread_model():
    return nbdkit.THREAD_MODEL_PARALLEL


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def open(readonly):
    note("open")
    with Path(settings["notes"]).open("a+") as notes:
        fcntl.flock(notes, fcntl.LOCK_EX)
        notes.seek(0)
        before = json.loads((notes.readlines() or ["{}"])[-1])
        now = {pid: vm for pid, vm in before.items() if lives(pid)} | {os.getpid(): settings["vm"]}
        notes.write(json.dumps(now) + "\\n")
    return os.open(settings["file"], os.O_RDONLY)


def get_size(disk):
    return os.fstat(disk).st_size


def can_multi_conn(disk):
    return True


def note(what):
    with Path(settings["events"]).open("a") as events:
        events.write(f"{what} {settings['vm'].removeprefix('moref=')}\\n")


def pread(disk, buffer, offset, flags):
    note("read")
    os.preadv(disk, [buffer], offset)
'''


def wait_for(what: str, condition: Callable[[], object], every: float = 0.02) -> None:
    """Wait until a condition holds."""
    assert patiently(condition, PATIENCE, every), f"{what} did not come about within {PATIENCE:.0f} s"


class Job:
    """A disk to copy, driven as a coordinator drives it."""

    def __init__(self, fleet: "Fleet", spec: JobSpec, target: Path, window: int, batch_bytes: int) -> None:
        self._fleet, self.spec, self._target, self._window = fleet, spec, target, window
        self._batch_bytes = batch_bytes
        self.ledger, self.id = fleet.hub.ledger, spec.id
        self.ledger.prepare(spec)
        broker.send_survey(fleet.app, spec)

    def tick(self) -> JobState | None:
        """Begin it once it is planned, in batches of one size; hand them out, and kill whoever let a claim lapse."""
        state = self.ledger.state(self.id)
        if state == "ready":
            survey = self.ledger.survey(self.id)
            assert survey
            starts = range(0, survey.size, self._batch_bytes)
            self.ledger.prepare(self.spec)
            self.ledger.write_plan(self.id, survey, (batch_of([Extent(start, self._batch_bytes)]) for start in starts))
            self.ledger.begin(self.spec)
            state = "copying"
        if state != "copying":
            return state
        total = self.progress.batches
        dispatch = broker.chord_dispatch(self._fleet.app, self.ledger, self.spec, total, self._window)
        epoch = self.ledger.epoch(self.id)
        state, lapsed = driver.tick(self.ledger, self.id, epoch, self._window, dispatch)
        for _, owner in lapsed:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(int(owner.split("/")[1])).kill()
        return state

    @property
    def progress(self) -> Progress:
        """The job's counters."""
        found = self.ledger.progress(self.id)
        assert found
        return found

    @property
    def done(self) -> int:
        """Batches that are stored."""
        return self.progress.batches_done

    def assert_copied(self, lapses: int = 0) -> None:
        """All is stored as it was read, and nothing failed on the way but processes that were stopped."""
        assert self.spec.disk
        assert self.ledger.state(self.id) == "copied"
        assert [failure.error for failure in self.ledger.failures(self.id)] == ["ClaimLapsed"] * lapses
        assert (self.progress.retries, self.progress.stalls) == (lapses, lapses)
        assert self.target_is_source()

    def target_is_source(self) -> bool:
        """Whether all is stored as it was read."""
        assert self.spec.disk
        return self._target.read_bytes() == Path(self.spec.disk.file).read_bytes()


class Fleet:
    """A hub's Redis, workers as they are on nodes, and a site whose disks are files."""

    def __init__(self, hub: Hub, folder: Path, stack: ExitStack) -> None:
        self.hub, self.folder, self._stack = hub, folder, stack
        self.app = broker.make_app(hub.url)
        self.config, self._notes, self._events = folder / "sendense.toml", folder / "notes", folder / "events"
        self.jobs: list[Job] = []
        self.configure()

    def configure(self, connections: int = 52, host_connections: int = 50, read_delay: str = "0") -> Settings:
        """Write the settings file of all nodes; a read takes `read_delay`, as nbdkit's delay filter takes it."""
        plugin, password = self.folder / "plugin.py", self.folder / "password"
        plugin.write_text(_PLUGIN)
        password.write_text("none")
        options = {"script": str(plugin), "notes": str(self._notes), "events": str(self._events), "rdelay": read_delay}
        table = ", ".join(f"{key} = {json.dumps(value)}" for key, value in options.items())
        self.config.write_text(
            f'[sites.{SITE}]\nvcenter = "vc"\nuser = "me"\npassword_file = "{password}"\nnbdkit_plugin = "python"\n'
            f'nbdkit_filters = ["delay"]\nnbdkit_options = {{ {table} }}\n'
            f"connections = {connections}\nhost_connections = {host_connections}\n"
        )
        site = Site(
            vcenter="vc",
            user="me",
            password_file=password,
            nbdkit_plugin="python",
            nbdkit_filters=["delay"],
            nbdkit_options=options,
            connections=connections,
            host_connections=host_connections,
        )
        return Settings.model_construct(sites={SITE: site}, claim_seconds=2.0)

    @contextmanager
    def node(self, name: str, processes: int, **settings: object) -> Iterator[psutil.Process]:
        """A worker of that name for the site and the hub; yields its main process."""
        variables = {f"SENDENSE_{key.upper()}": str(value) for key, value in {**QUICK, **settings}.items()}
        variables |= {"SENDENSE_REDIS": self.hub.url, "SENDENSE_WORKER": name, "SENDENSE_CONFIG": str(self.config)}
        variables |= {"SENDENSE_STATE_DIR": str(self.folder), "TMPDIR": str(self.folder)}
        queues = f"{HUB_QUEUE},{site_queue(SITE)}"
        command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "workers", name, str(processes), queues]
        with self.log.open("ab") as log:
            process = psutil.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **variables}
            )
        try:
            wait_for(name, lambda: presence.is_present(self.hub.client, name) or process.poll() is not None)
            assert process.poll() is None, self.log.read_text()
            yield process
        finally:
            family = process.children(recursive=True) if process.is_running() else []
            for each in [process, *family]:
                if each.is_running():
                    each.kill()
            psutil.wait_procs([process, *family], END_SECONDS)

    @property
    def log(self) -> Path:
        """Of all workers."""
        return self.folder / "workers.log"

    def job(self, name: str, batches: int, host: str = "", window: int = 8, batch_bytes: int = BATCH_BYTES) -> Job:
        """A disk of so many batches, and a job that copies it: its survey is asked for."""
        size = batches * batch_bytes
        disk, target = self.folder / f"{name}.disk", self.folder / f"{name}.target"
        disk.write_bytes(os.urandom(size))
        target.write_bytes(bytes(size))
        server = self._stack.enter_context(nbdkit("file", target))
        source = DiskSource(site=SITE, vm=name, snapshot="s", file=str(disk), thumbprint="t", host=host)
        job = Job(
            self,
            JobSpec(id=name, kind="copy", site=SITE, name=name, source="", disk=source, target=server.uri),
            target,
            window,
            batch_bytes,
        )
        self.jobs.append(job)
        return job

    def tick_until(self, what: str, condition: Callable[[], object]) -> None:
        """Have the jobs' coordinators look every fifth of a second until a condition holds."""

        def look() -> object:
            for job in self.jobs:
                state = job.tick()
                assert state != "failed", job.ledger.failures(job.id)
            return condition()

        wait_for(what, look, 0.2)

    def copy_all(self) -> None:
        """Drive all jobs to their end."""
        self.tick_until("the end of all jobs", lambda: all(job.tick() == "copied" for job in self.jobs))

    def opened(self) -> list[Counter[str]]:
        """For each opening of a disk: how many nbdkits had which VM's disk open just then."""
        lines = self._notes.read_text().splitlines() if self._notes.exists() else []
        return [Counter(vm.removeprefix("moref=") for vm in json.loads(line).values()) for line in lines]

    def events(self) -> list[str]:
        """`open VM` for each opening of a disk, and `read VM` for each read of a batch, in their order."""
        return self._events.read_text().splitlines() if self._events.exists() else []

    def close(self) -> None:
        """Close the connections of this process."""
        self.app.pool.force_close_all()
        self.app.backend.client.close()


@contextmanager
def open_fleet() -> Iterator[Fleet]:
    """A hub without nodes."""
    with open_hub() as hub, short_folder() as folder, ExitStack() as stack:
        fleet = Fleet(hub, folder, stack)
        stack.callback(fleet.close)
        yield fleet
