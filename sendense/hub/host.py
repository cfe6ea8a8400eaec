"""The parts of a hub and of its sites' nodes, as children of one process: started, supervised, ticked, ended."""

import shutil
import socket
import time
from collections.abc import Iterator

from sendense.coordinator import run
from sendense.coordinator.record import Jobs
from sendense.jobs import broker, presence
from sendense.jobs.queues import HUB_QUEUE, control_queue, site_queue
from sendense.nbd.uri import is_uri
from sendense.requests import JobView, MigrateRequest, RestoreRequest
from sendense.settings import HUB_SITE, Settings
from sendense.supervise.redis import PrivateRedis
from sendense.supervise.service import Budget, Note
from sendense.supervise.storage import Storage
from sendense.supervise.worker import Worker
from sendense.units import MiB

COORDINATORS = 4
"""Processes of the hub's worker, and of the control worker: they mostly wait, some of them for hours."""

END_SECONDS = 3.0
"""For Redis to write what it has."""

LARGE_LOG = 8 * MiB
"""Bytes of a log that is put aside at the next start; the one before it goes."""

_TEMPORARY = ("disk-*", "pymp-*")
"""What killed workers leave in their temporary folder."""


class Host:
    """All parts on one machine. Whoever has it holds the lock of the hub's folder."""

    def __init__(self, settings: Settings, note: Note) -> None:
        self._settings, self._note = settings, note
        folder = settings.hub_dir
        self._redis = PrivateRedis(folder, note, Budget())
        self._storage = Storage(str(settings.nbd_socket), folder, note, Budget())
        sites = list(settings.sites)
        copying = [site_queue(site) for site in (HUB_SITE, *sites)]
        self._workers = {"hub": self._worker("hub", [HUB_QUEUE], COORDINATORS)}
        self._workers["node"] = self._worker("node", copying, settings.processes)
        if sites:
            self._workers["control"] = self._worker("control", list(map(control_queue, sites)), COORDINATORS)
        self._solo = self._worker("solo", [site_queue(site, solo=True) for site in (HUB_SITE, *sites)], 1)
        self._jobs = Jobs(self._redis.client)
        self._app = broker.make_app(self._redis.url)
        self._complete = False
        self._ticked = 0.0

    def start_redis(self) -> None:
        """Start what it takes to look at the jobs."""
        self._sweep()
        for log in self._settings.hub_dir.glob("*.log"):
            if log.stat().st_size > LARGE_LOG:
                log.replace(log.with_suffix(".log.1"))
        self._redis.start()
        self._redis.wait()

    def start_all(self) -> None:
        """Start the rest, once."""
        if self._complete:
            return
        self._complete = True
        self._storage.start()
        for worker in self._workers.values():
            worker.start()
        self._storage.wait()

    def supervise(self) -> None:
        """Start again whatever ended or stopped, kill what was condemned, and have the jobs' steps run."""
        try:
            self._redis.supervise()
            if not self._complete:
                return
            self._storage.supervise()
            for worker in self._workers.values():
                worker.supervise()
                for pid in presence.take_condemned(self._redis.client, worker.name):
                    worker.kill_process(pid)
            if time.monotonic() - self._ticked > self._settings.tick_seconds:
                self._tick()
        except broker.Unavailable:
            self._redis.restart_silent()

    def _tick(self) -> None:
        self._ticked = time.monotonic()
        for view in self._active():
            if "solo" not in self._workers and _needs_solo(view):
                self._workers["solo"] = self._solo
                self._solo.start()
            if lapsed := self._jobs.lapsed(view.id):  # all processes may be stopped, and none left to notice
                presence.condemn(self._redis.client, lapsed)
            if not self._jobs.is_leased(view.id):
                run.send(self._app, view, expires=2 * self._settings.tick_seconds)

    def _active(self) -> Iterator[JobView]:
        return (view for job in self._jobs.active() if (view := self._jobs.get(job)))

    def close(self) -> None:
        """End everything; what counts is in the ledger and in the repository."""
        for worker in self._workers.values():
            worker.child.kill()
        if self._complete:
            self._storage.end()
        self._redis.child.end(END_SECONDS)
        self._sweep()

    def _sweep(self) -> None:
        for pattern in _TEMPORARY:
            for path in self._settings.hub_dir.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def _worker(self, role: str, queues: list[str], processes: int) -> Worker:
        log = self._settings.hub_dir / f"{role}.log"
        worker = Worker(f"{socket.gethostname()}-{role}", self._redis, queues, log, self._note, Budget())
        worker.processes = processes
        return worker


def _needs_solo(view: JobView) -> bool:
    """Whether an endpoint of the job may take one client only."""
    request = view.request
    return isinstance(request, RestoreRequest | MigrateRequest) and any(map(is_uri, request.targets.values()))
