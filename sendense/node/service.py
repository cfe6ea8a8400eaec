"""A node as a service: its site's workers as children, for the Redis of a hub that may be away now and then."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

from sendense.coordinator import upkeep
from sendense.coordinator.record import Jobs
from sendense.errors import Conflict, InputError
from sendense.jobs import broker, presence, tally
from sendense.jobs.ledger import Ledger
from sendense.jobs.queues import control_queue, site_queue
from sendense.models import Node
from sendense.node.folder import NodeFolder
from sendense.node.looks import Looks, Rate
from sendense.settings import Settings
from sendense.supervise.child import sweep
from sendense.supervise.journal import Journal
from sendense.supervise.notify import Notifier
from sendense.supervise.remote import RemoteRedis
from sendense.supervise.service import Budget
from sendense.supervise.stopping import Stop
from sendense.supervise.worker import Worker

CONTROLLERS = 4
"""Processes that speak to the site's vCenter: they mostly wait for it."""

STOP_SECONDS = 30.0
"""For batches and steps under way to end, before they are handed back."""

LOOK_SECONDS = 0.1
"""Between two looks at the children and at the signals."""

BEAT_SECONDS = 2.0
"""Between two announcements: five of them until the node counts as gone."""


class NodeService:
    """One node, from its start to its end. Its name is its own among all nodes of the hub for as long."""

    def __init__(self, settings: Settings, site: str, journal: Journal, stop: Stop) -> None:
        if not settings.redis:
            raise InputError(
                "no hub is set", 'Say where its Redis is: redis = "redis://HOST:PORT" in the settings (docs/nodes.md).'
            )
        self._settings, self._site, self._journal, self._stop = settings, site, journal, stop
        self._site_settings = settings.site(site)
        self.name = settings.node_name
        self._folder = NodeFolder(settings, self.name)
        self._redis = RemoteRedis(
            settings,
            lambda text: self._tell(text, "warning", action="redis"),
            lambda text: self._tell(text, action="redis"),
        )
        self._client = self._redis.client
        self._ledger, self._jobs = Ledger(self._client), Jobs(self._client)
        self._notifier, self._rate = Notifier(), Rate()
        self._workers = {
            "copy": self._worker("copy", site_queue(site), settings.processes),
            "control": self._worker("control", control_queue(site), CONTROLLERS),
        }
        self._solo = self._worker("solo", site_queue(site, solo=True), 1)
        self._started, self._beaten = time.time(), 0.0
        self._draining: bool | None = None
        self._has_name = False

    def run(self) -> None:
        """
        Work until told to end.

        InputError where it cannot begin, Conflict where its name is taken, JobFailed where a worker cannot be kept up.
        """
        with self._folder.locked():
            looks, graceful = Looks(self._settings, self._site_settings), False
            try:
                self._tell(f"starts, for site {self._site} and the hub at {self._redis.url}", action="starts")
                for role, worker in {**self._workers, "solo": self._solo}.items():
                    self._journal.follow(role, worker.child.log)
                self._take_name()
                self._keep_up(looks)
                graceful = True
            finally:
                self._end(looks, graceful=graceful)

    def _take_name(self) -> None:
        """Have the name alone; the crash of a node of this name elsewhere keeps it for a while."""
        deadline = 0.0
        while not self._stop.asked:
            try:
                if self._hold_name():
                    return
                deadline = deadline or time.monotonic() + presence.PRESENCE_SECONDS + LOOK_SECONDS
                self._notifier.status("waiting for the end of another node of this name")
                if time.monotonic() > deadline:
                    raise self._name_taken()
                self._redis.answered()
            except broker.Unavailable as exc:
                self._notifier.status("waiting for the hub's Redis")
                self._redis.missed(exc)
            self._breathe()

    def _hold_name(self) -> bool:
        self._has_name = presence.hold(self._client, f"node.{self.name}", self._folder.identity)
        return self._has_name

    def _name_taken(self) -> Conflict:
        other = next((node for node in presence.nodes(self._client) if node.name == self.name), None)
        where = f" on {other.host}" if other else ""
        return Conflict(
            f"node {self.name}: another node of this name is up{where}", "Give this one another name with --name."
        )

    def _keep_up(self, looks: Looks) -> None:
        while not self._stop.asked:
            ended = any(worker.child.pid and not worker.child.is_running() for worker in self._working())
            if ended or time.monotonic() - self._beaten > BEAT_SECONDS:
                self._try_to_beat(looks)
            self._breathe()

    def _try_to_beat(self, looks: Looks) -> None:
        self._beaten = time.monotonic()
        try:
            self._beat(looks)
        except broker.Unavailable as exc:
            self._redis.missed(exc)
            self._notifier.status("waiting for the hub's Redis")
        except Conflict:
            raise
        except InputError as exc:  # it once knew the password: the hub is being changed
            self._redis.missed(exc)

    def _beat(self, looks: Looks) -> None:
        round_trip = self._redis.measure()
        if self._redis.answered():
            for worker in self._all():
                worker.excuse()
        if not self._hold_name():
            raise self._name_taken()
        self._kill_condemned()
        self._heed_drain()
        self._keep_worker(self._workers["copy"], wanted=not self._draining)
        self._keep_worker(self._workers["control"])
        self._keep_solo()
        node = self._announce(looks, round_trip)
        ready = all(presence.is_present(self._client, worker.name) for worker in self._working())
        if ready and not self._notifier.is_ready:
            self._notifier.ready()
            self._tell("is ready", action="ready")
        text = "drained" if self._draining else "ready" if ready else "starting workers"
        self._notifier.status(f"{text}, {node.active} batches under way, tunnel {node.tunnel.verdict}")

    def _heed_drain(self) -> None:
        drained = self.name in presence.drained(self._client)
        if drained != bool(self._draining):
            text = "is drained: what it copies ends, and nothing new begins" if drained else "takes work again"
            self._tell(text, action="drained" if drained else "resumed")
        self._draining = drained

    def _keep_worker(self, worker: Worker, *, wanted: bool = True) -> None:
        """Have it work, or end, as it should."""
        if not wanted:
            worker.ask_to_end()
            if time.monotonic() - worker.ends_since > self._settings.task_time_limit and worker.child.is_running():
                self._tell(f"{worker.name} does not end what it has: killing it", "warning", action="killed")
                worker.child.kill()
                upkeep.hand_back(self._ledger, self._jobs, [worker.name])
        elif worker.ends_since or not worker.child.pid:
            if not worker.child.is_running():
                presence.withdraw(self._client, worker.name)  # of a node that was killed
                worker.start()
        else:
            worker.supervise()

    def _keep_solo(self) -> None:
        """One process of all nodes copies what takes one client: that of the node that has the site's solo queue."""
        running = self._solo.child.is_running()
        wanted = any(upkeep.solo_site(view) == self._site for view in upkeep.active(self._jobs))
        if not running and (self._draining or not wanted):
            return
        if presence.hold(self._client, f"{self._site}.solo", self._solo.name):
            self._keep_worker(self._solo, wanted=not self._draining)
        elif running:
            self._solo.child.kill()
            self._solo.ends_since = time.monotonic()
            upkeep.hand_back(self._ledger, self._jobs, [self._solo.name])

    def _kill_condemned(self) -> None:
        for worker in self._all():
            for pid in presence.take_condemned(self._client, worker.name):
                worker.kill_process(pid)

    def _announce(self, looks: Looks, round_trip: float) -> Node:
        names = [self._workers["copy"].name, self._solo.name]
        ending = self._draining or self._stop.asked
        if ending:  # a worker that ends does not count any more, and is gone when its last task is
            copying = upkeep.under_way(self._ledger, upkeep.active(self._jobs), names)
            ends = [worker for worker in self._all() if worker.ends_since and worker.child.is_running()]
            active = max(copying, len(ends))
        else:
            active = sum(found.active for name in names if (found := presence.get_worker(self._client, name)))
        node = Node(
            name=self.name,
            site=self._site,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=self._started,
            processes=self._settings.processes,
            versions=looks.versions,
            plugins=looks.plugins,
            draining=bool(ending),
            active=active,
            round_trip=round_trip,
            rate=self._rate.count(tally.read(self._client)[0].moved_by(names)),
            tunnel=looks.tunnel,
        )
        presence.announce_node(self._client, node)
        return node

    def _end(self, looks: Looks, *, graceful: bool) -> None:
        """Let what is under way end, if there is time for that, and hand the rest back."""
        try:
            self._notifier.stopping()
            if graceful:
                self._tell(f"ends: what is under way has {STOP_SECONDS:.0f} s", action="ends")
                self._await_workers(looks)
        finally:
            self._stop.shield()
            self._kill_workers()
            self._tell("ended", action="ended")

    def _await_workers(self, looks: Looks) -> None:
        deadline = time.monotonic() + STOP_SECONDS
        for worker in self._all():
            worker.ask_to_end()
        while any(worker.child.is_running() for worker in self._all()):
            if self._stop.urgent or time.monotonic() > deadline:
                return
            if time.monotonic() - self._beaten > BEAT_SECONDS:
                self._beaten = time.monotonic()
                with suppress(InputError, *broker.Unavailable):
                    self._hold_name()
                    self._kill_condemned()
                    self._announce(looks, self._redis.measure())
            self._breathe()

    def _kill_workers(self) -> None:
        for worker in self._all():
            worker.child.kill()
        sweep(self._folder.path)
        if not self._has_name:
            return
        with suppress(InputError, *broker.Unavailable):  # then it lapses, in seconds
            if count := upkeep.hand_back(self._ledger, self._jobs, [worker.name for worker in self._all()]):
                self._tell(f"handed back {count} batches or steps", action="handed_back")
            presence.withdraw_node(self._client, self.name, missed=not self._stop.asked)
            presence.let_go(self._client, f"{self._site}.solo", self._solo.name)
            presence.let_go(self._client, f"node.{self.name}", self._folder.identity)

    def _all(self) -> Iterator[Worker]:
        yield from self._workers.values()
        yield self._solo

    def _working(self) -> list[Worker]:
        """Those that have to be there now."""
        return [worker for worker in self._workers.values() if not worker.ends_since]

    def _worker(self, role: str, queue: str, processes: int) -> Worker:
        name = f"{self.name}-{role}"

        def note(text: str) -> None:
            self._tell(f"{text} ({name})", "warning", action="restart")

        worker = Worker(name, self._redis, [queue], self._folder.path / f"{role}.log", note, Budget())
        worker.processes = processes
        return worker

    def _breathe(self) -> None:
        self._journal.pump()
        self._notifier.alive()
        time.sleep(LOOK_SECONDS)

    def _tell(self, text: str, level: str = "info", **fields: object) -> None:
        self._journal.tell(self.name, text, level, node=self.name, **fields)
