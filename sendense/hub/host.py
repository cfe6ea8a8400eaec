"""The parts of a hub and of its sites' nodes, as children of one process: started, supervised, ticked, ended."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sendense.beat import no_beat
from sendense.coordinator import run, upkeep
from sendense.coordinator.context import Context
from sendense.coordinator.record import Jobs
from sendense.errors import Conflict, SendenseError
from sendense.files import identify
from sendense.hub.folder import RepositoryLock
from sendense.hub.served import Served
from sendense.jobs import broker, presence
from sendense.jobs.access import must_store
from sendense.jobs.ledger import Ledger
from sendense.jobs.queues import HUB_QUEUE, ROUTINE_QUEUE, SLOW, SLOW_QUEUE, control_queue, site_queue
from sendense.models import HUB_SITE
from sendense.service import throttling
from sendense.settings import Settings
from sendense.supervise.beat import BeatService
from sendense.supervise.child import sweep
from sendense.supervise.redis import PrivateRedis
from sendense.supervise.remote import RemoteRedis
from sendense.supervise.service import Budget, Note
from sendense.supervise.storage import Storage
from sendense.supervise.worker import Worker
from sendense.units import MiB

COORDINATORS = 4
"""Processes of the hub's worker, and of the control worker: they mostly wait, some of them for hours."""

SLOW_COORDINATORS = 2
"""Processes for steps that take long: each keeps a disk of the repository busy."""

HOLD_SECONDS = 2.0
"""Between two looks whether the Redis that others run is still this hub's alone: five until another may have it."""

ROUTINE_PROCESSES = 5
"""One for each of the hub's duties (`service.routine`): none waits for another, which may wait for a site."""

END_SECONDS = 3.0
"""For Redis to write what it has."""

LARGE_LOG = 8 * MiB
"""Bytes of a log that is put aside at the next start; the one before it goes."""

LOOK_SECONDS = 0.05
"""Between two looks at whether the workers have ended."""


class Host:
    """All parts on one machine. Whoever has it holds the lock of the hub's folder."""

    def __init__(self, settings: Settings, note: Note, *, news: Note | None = None, routine: bool = False) -> None:
        """
        `note` is told what is wrong, and `news` that it no longer is.

        `routine`: also what a hub does by itself, which is for a service.
        """
        self._settings, self._note = settings, note
        folder = settings.hub_dir
        self._own = None if settings.redis else PrivateRedis(folder, note, Budget(), settings)
        self._redis: PrivateRedis | RemoteRedis = self._own or RemoteRedis(settings, note, news or note)
        self._storage = Storage(settings.exports_address, folder, note, Budget(), settings.tls_dir)
        self._workers = {"hub": self._worker("hub", [HUB_QUEUE], COORDINATORS)}
        copying = [site_queue(site) for site in self._sites]
        self._workers["node"] = self._worker("node", copying, settings.processes)
        if settings.sites:
            queues = list(map(control_queue, settings.sites))
            self._workers["control"] = self._worker("sites-control", queues, COORDINATORS)
        self._beat: BeatService | None = None
        if routine:
            worker = self._workers["routine"] = self._worker("routine", [ROUTINE_QUEUE], ROUTINE_PROCESSES)
            self._beat = BeatService(self._redis, worker, folder, note, Budget())
        client = self._redis.client
        self.context = Context(settings, Ledger(client), Jobs(client), broker.make_app(self._redis.url))
        """For whoever watches the jobs: its calls give up soon."""
        self._served = Served(self.context, note)
        self._repository = RepositoryLock(settings)
        self._identity = "" if self._own else identify(folder)
        self._complete = False
        self._ticked = self._held = 0.0

    @property
    def redis_url(self) -> str:
        """Where the hub's Redis is."""
        return self._redis.url

    @property
    def logs(self) -> dict[str, Path]:
        """The parts' logs, by their names; those that are started when they are needed included."""
        later = {role: self._log(role) for role in ("slow", *(f"solo-{site}" for site in self._sites))}
        own = {"redis": self._own.child.log} if self._own else {}
        names = {"hub": "coordinator"}  # the hub itself says more
        workers = {names.get(role, role): worker.child.log for role, worker in self._workers.items()}
        beat = {"beat": self._beat.child.log} if self._beat else {}
        return {**own, "exports": self._storage.child.log, **beat, **workers, **later}

    def take_repository(self) -> None:
        """Have the repository for this hub alone, until `close`; Conflict while another hub has it."""
        self._repository.take()

    def start_redis(self) -> None:
        """Start what it takes to look at the jobs."""
        sweep(self._settings.hub_dir)
        for log in self._settings.hub_dir.glob("*.log"):
            if log.stat().st_size > LARGE_LOG:
                log.replace(log.with_suffix(".log.1"))
        if self._own:
            self._own.start()
            self._own.wait()

    def hold(self) -> bool:
        """
        Have Redis for this hub alone; False while another one has it.

        LedgerUnavailable when it does not answer, or has no room.
        """
        holds = True
        if self._own:
            must_store(self._redis.client)
        else:
            holds = presence.hold(self._redis.client, "hub", self._identity)
        self._held = time.monotonic()  # not before: without Redis nothing else is worth trying
        return holds

    def taken(self) -> Conflict:
        """What to say when another hub has this one's Redis."""
        return Conflict(
            f"another hub uses the Redis at {self._redis.url}", "End that one, or give this one a Redis of its own."
        )

    def start_all(self) -> None:
        """Start the rest, once. Conflict while another hub has the repository."""
        if self._complete:
            return
        self.take_repository()
        self._complete = True
        self._storage.start()
        for worker in self._workers.values():
            with suppress(*broker.Unavailable):
                presence.withdraw(self._redis.client, worker.name)  # of a hub that was killed
            worker.start()
        if self._beat:
            self._beat.start()
        self._storage.wait()

    def supervise(self) -> None:
        """
        Start again whatever ended or stopped, kill what was condemned, and have the jobs' steps run.

        Conflict when another hub took over its Redis, as this one was silent for long, or has the repository, which
        was not there before.
        """
        try:
            if self._own:
                self._own.supervise()
            if not self._complete:
                return
            if time.monotonic() - self._held > HOLD_SECONDS and not self.hold():
                raise self.taken()
            self._storage.supervise()
            if self._beat:
                self._beat.supervise()
            for worker in self._workers.values():
                worker.supervise()
            self._kill_condemned()
            if time.monotonic() - self._ticked > self._settings.tick_seconds:
                self._tick()
            if isinstance(self._redis, RemoteRedis):
                self._redis.answered()
        except broker.Unavailable as exc:
            self.missed(exc)

    def missed(self, exc: Exception) -> None:
        """Redis is of no use: whoever says through it that he lives could not."""
        self._redis.missed(exc)
        for worker in self._workers.values():
            worker.excuse()
        if self._beat:
            self._beat.excuse()

    def is_ready(self) -> bool:
        """Whether all parts are of use; LedgerUnavailable when Redis is not."""
        present = (presence.is_present(self._redis.client, worker.name) for worker in self._workers.values())
        goes_on = not self._beat or self._beat.is_heard()
        return self._complete and self._storage.is_ready() and all(present) and goes_on

    def end_work(self, go_on: Callable[[], bool]) -> None:
        """Have the workers take no more work and end what they have, for as long as `go_on` says."""
        if self._beat:
            self._beat.end()
        for worker in self._workers.values():
            worker.ask_to_end()
        while any(worker.child.is_running() for worker in self._workers.values()) and go_on():
            with suppress(*broker.Unavailable):
                self._kill_condemned()
            time.sleep(LOOK_SECONDS)

    def close(self) -> None:
        """End everything; what counts is in the ledger and in the repository."""
        if self._beat:
            self._beat.end()
        for worker in self._workers.values():
            worker.child.kill()
        if self._complete:
            with suppress(*broker.Unavailable):  # then it lapses
                upkeep.hand_back(self.context.ledger, self.context.jobs, [each.name for each in self._workers.values()])
            self._storage.end()
        if self._own:
            self._own.child.end(END_SECONDS)
        else:
            with suppress(*broker.Unavailable):
                presence.let_go(self._redis.client, "hub", self._identity)
        sweep(self._settings.hub_dir)
        self._repository.release()

    def _tick(self) -> None:
        self._ticked = time.monotonic()
        self.take_repository()
        jobs = self.context.jobs
        solo, is_slow = set(), False
        for view in upkeep.active(jobs):
            solo.add(upkeep.solo_site(view))
            is_slow |= run.place_of(view) == SLOW
            if lapsed := jobs.lapsed(view.id):  # all processes may be stopped, and none left to notice
                presence.condemn(self._redis.client, lapsed)
            if not jobs.is_leased(view.id):
                run.remind(self.context, view)
        for site in self._sites:
            self._serve_solo(site, wanted=site in solo)
        if is_slow and "slow" not in self._workers:
            worker = self._workers["slow"] = self._worker("slow", [SLOW_QUEUE], SLOW_COORDINATORS)
            presence.withdraw(self._redis.client, worker.name)
            worker.start()
        self._served.keep(self._storage.child.pid)
        if not self._beat:  # whose duty it is otherwise
            with suppress(SendenseError):
                throttling.publish(self.context, no_beat)

    def _serve_solo(self, site: str, *, wanted: bool) -> None:
        """Have one process, and the only one of all nodes, copy what takes one client."""
        role = f"solo-{site}"
        if not wanted and role not in self._workers:
            return
        worker = self._workers.get(role) or self._worker(role, [site_queue(site, solo=True)], 1)
        if not presence.hold(self._redis.client, f"{site}.solo", worker.name):
            if self._workers.pop(role, None):
                worker.child.kill()
        elif role not in self._workers:
            self._workers[role] = worker
            worker.start()

    def _kill_condemned(self) -> None:
        for worker in self._workers.values():
            for pid in presence.take_condemned(self._redis.client, worker.name):
                worker.kill_process(pid)

    @property
    def _sites(self) -> tuple[str, ...]:
        """Those that this machine copies for itself."""
        return (HUB_SITE, *self._settings.sites)

    def _worker(self, role: str, queues: list[str], processes: int) -> Worker:
        name = f"{self._settings.node_name}-{role}"
        worker = Worker(name, self._redis, queues, self._log(role), self._note, Budget())
        worker.processes = processes
        return worker

    def _log(self, role: str) -> Path:
        return self._settings.hub_dir / f"{role}.log"
