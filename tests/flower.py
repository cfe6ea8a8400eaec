"""Flower as a hub starts it, its pages as a program reads them, and a job over several workers to see there."""

import base64
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import psutil
import redis

from sendense.extents import Extent
from sendense.jobs import broker, driver, presence
from sendense.jobs.ledger import Ledger
from sendense.jobs.plan import batch_of
from sendense.jobs.queues import HUB_QUEUE, site_queue
from sendense.models import JobSpec, JobState, Survey
from sendense.settings import load_settings
from sendense.supervise.flower import USER, Flower, read_password
from sendense.supervise.redis import PrivateRedis
from sendense.supervise.service import Budget
from sendense.units import KiB
from tests.hub import age
from tests.servers import free_port, nbdkit, short_folder

ANSWER_SECONDS = 20.0
PATIENCE = 60.0
"""Seconds for what takes one or two."""

END_SECONDS = 10.0

BATCH_BYTES = 256 * KiB

RETRY_SECONDS = 30.0
"""Half an hour until a batch that keeps failing is given up: no test is so slow. `FleetJob.tick` need not wait."""


class Hub(NamedTuple):
    """Where Flower and the workers find each other."""

    url: str
    client: redis.Redis
    ledger: Ledger


class Pages:
    """A running Flower, and what it answers."""

    def __init__(self, service: Flower, password: str, notes: list[str]) -> None:
        self.service, self.password = service, password
        self.notes = notes
        """What the service told its supervisor."""

    @property
    def url(self) -> str:
        """Without a slash at its end."""
        return self.service.url.rstrip("/")

    @property
    def url_with_password(self) -> str:
        """As a user who logs in would write it."""
        return self.url.replace("//", f"//{USER}:{self.password}@")

    def ask(self, path: str, method: str = "GET", password: str | None = None) -> tuple[int, str]:
        """Status and text; with the right password, or with another one, or with none when that is empty."""
        request = urllib.request.Request(self.url + path, method=method, data=b"" if method == "POST" else None)
        if password != "":
            credentials = f"{USER}:{password or self.password}".encode()
            request.add_header("Authorization", f"Basic {base64.b64encode(credentials).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.read().decode()

    def read(self, path: str) -> str:
        """The text of a page that has to be there."""
        status, text = self.ask(path)
        assert status == 200, (path, status, text)
        return text


@contextmanager
def open_flower(redis_url: str, folder: Path, **settings: object) -> Iterator[Pages]:
    """Flower on a Redis, with its password in a state folder; settings become SENDENSE_… variables."""
    variables = {"STATE_DIR": folder, "FLOWER_LISTEN": f"127.0.0.1:{free_port()}", **settings}
    with patch.dict(os.environ, {f"SENDENSE_{name.upper()}": str(value) for name, value in variables.items()}):
        found = load_settings()
        notes: list[str] = []
        service = Flower(found, redis_url, folder, notes.append, Budget())
        try:
            service.start()
            service.wait()
            yield Pages(service, read_password(found), notes)
        finally:
            service.end()


def wait_for(what: str, condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {PATIENCE:.0f} s"
        time.sleep(0.02)


class Fleet:
    """Workers of one process each, with names of their own, on one Redis."""

    def __init__(self, hub: Hub, log: Path) -> None:
        self._hub, self._log = hub, log
        self.processes: dict[str, psutil.Process] = {}

    def start(self, *names: str) -> None:
        """Start workers, and wait until all of them listen."""
        for name in names:
            environment = {"SENDENSE_REDIS": self._hub.url, "SENDENSE_WORKER": name}
            queues = f"{HUB_QUEUE},{site_queue(JobSpec.model_fields['site'].default)}"
            command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "workers", name, "1", queues]
            environment["SENDENSE_RETRY_SECONDS"] = str(RETRY_SECONDS)
            with self._log.open("ab") as log:
                self.processes[name] = psutil.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment}
                )
        wait_for(f"workers {names}", lambda: all(presence.is_present(self._hub.client, name) for name in names))

    def close(self) -> None:
        """Kill them all, with their processes, which end with them."""
        children = [child for process in self.processes.values() for child in process.children()]
        for process in [*self.processes.values(), *children]:
            if process.is_running():
                process.kill()
        psutil.wait_procs([*self.processes.values(), *children], END_SECONDS)


class FleetJob:
    """A job for the workers of a fleet."""

    def __init__(self, hub: Hub, spec: JobSpec, batches: int) -> None:
        self._hub, self.spec, self.ledger = hub, spec, hub.ledger
        self._app = broker.make_app(hub.url)
        self._batches = batches
        self.ledger.prepare(spec)
        survey = Survey(size=batches * BATCH_BYTES, multi_conn=True, allocation=True, flush=True)
        plan = (batch_of([Extent(batch * BATCH_BYTES, BATCH_BYTES)]) for batch in range(batches))
        self.ledger.write_plan(spec.id, survey, plan)
        self._epoch = self.ledger.begin(spec)

    def tick(self) -> JobState | None:
        """What the job's coordinator does every two seconds; a batch that failed is due at once."""
        age(self._hub.client, self.spec.id, 2 * RETRY_SECONDS, {"later"})
        window = self._batches
        dispatch = broker.chord_dispatch(self._app, self.ledger, self.spec, self._batches, window)
        return driver.tick(self.ledger, self.spec.id, self._epoch, window, dispatch)[0]

    def close(self) -> None:
        """Close the connections of this process."""
        self._app.pool.force_close_all()
        self._app.backend.client.close()


class Show:
    """A job over a few workers, some of whose reads fail, and Flower to watch it."""

    def __init__(self, hub: Hub, folder: Path, stack: ExitStack) -> None:
        self.hub, self._folder = hub, folder
        self._stack = stack.enter_context(ExitStack())  # ended after the workers: nbdkit waits for its clients
        self.fleet = Fleet(hub, folder / "workers.log")
        stack.callback(self.fleet.close)
        self.pages = stack.enter_context(open_flower(hub.url, folder))
        self.failing = folder / "failing"
        """While this file is there, no read succeeds."""

    def job(self, name: str, batches: int, seconds: float = 0.0, *, full: bool = False) -> FleetJob:
        """Begin a job; each read of its disk takes so long. full: there is no room for what is written."""
        source, target = self._folder / f"{name}.source", self._folder / f"{name}.target"
        source.write_bytes(os.urandom(batches * BATCH_BYTES))
        target.write_bytes(bytes(batches * BATCH_BYTES))
        filters = ["--filter=error", "--filter=delay", "file"]
        reads = ["error-pread-rate=100%", f"error-file={self.failing}", f"rdelay={round(seconds * 1000)}ms"]
        writes = ["error-pwrite-rate=100%", "error=ENOSPC"] if full else []
        served = self._stack.enter_context(nbdkit("--readonly", *filters, source, *reads))
        stored = self._stack.enter_context(nbdkit(*filters, target, *writes))
        spec = JobSpec(id=f"job-{name}", kind="copy", name=f"{name} · disk 2000", source=served.uri, target=stored.uri)
        job = FleetJob(self.hub, spec, batches)
        self._stack.callback(job.close)
        job.tick()
        return job


@contextmanager
def open_show() -> Iterator[Show]:
    """All that there is to see, on a hub's Redis with its password, without workers and jobs, until the block ends."""
    with short_folder() as folder, ExitStack() as stack:
        variables = {"SENDENSE_STATE_DIR": str(folder), "SENDENSE_REDIS_LISTEN": f"127.0.0.1:{free_port()}"}
        stack.enter_context(patch.dict(os.environ, variables))
        settings = load_settings()
        settings.hub_dir.mkdir()
        server = PrivateRedis(settings.hub_dir, print, Budget(), settings)
        stack.callback(server.child.kill)
        server.start()
        server.wait()
        yield Show(Hub(server.url, server.client, Ledger(server.client)), folder, stack)
