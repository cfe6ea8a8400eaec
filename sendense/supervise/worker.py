"""A Celery worker as a child: kept up, kept present, and rid of processes that stopped."""

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from sendense.jobs import presence
from sendense.jobs.ledger import LedgerUnavailable
from sendense.supervise.child import Child
from sendense.supervise.service import Budget, Note, Service

PRESENCE_GRACE_SECONDS = 20.0
"""A worker that was started this long ago has to be present."""


class Reached(Protocol):
    """The Redis that a worker is for, of this machine or of another: its URL, and a client for the supervisor."""

    @property
    def url(self) -> str:
        """Without a password."""

    @property
    def client(self) -> Any:
        """Gives up soon."""


class Worker(Service):
    """One worker main process with its pool. `name` has to be its alone among all that use this Redis."""

    def __init__(self, name: str, redis: Reached, queues: Sequence[str], log: Path, note: Note, budget: Budget) -> None:
        environment = {"SENDENSE_REDIS": redis.url, "SENDENSE_WORKER": name}
        super().__init__(Child("worker", [], log, environment), note, budget)
        self.name, self._client, self._queues = name, redis.client, ",".join(queues)
        self.processes = 1
        """Processes that it is started with from now on."""
        self._began = 0.0
        self.ends_since = 0.0
        """When it was asked to end; 0 while it is to work."""

    def prepare(self) -> None:
        """Its size may have changed since the last start, and nothing that was said of its former processes counts."""
        with suppress(*LedgerUnavailable):  # then it is forgotten soon
            presence.pardon(self._client, self.name)
        self.child.argv = [sys.executable, "-m", "workers", self.name, str(self.processes), self._queues]
        self._began, self.ends_since = time.monotonic(), 0.0

    def ask_to_end(self) -> None:
        """Have it take no more work, end what it has, and then end itself."""
        if not self.ends_since:
            self.ends_since = time.monotonic()
            self.child.ask_to_end()

    def excuse(self) -> None:
        """Give it time to be present again: it could not say so, and may have ended of that."""
        self._began = time.monotonic()
        self._budget.forgive()

    def supervise(self) -> None:
        """
        Start it again if it ended, or if its main process stopped; nothing once it was asked to end.

        LedgerUnavailable when Redis does not answer.
        """
        if self.ends_since:
            return
        super().supervise()
        if time.monotonic() - self._began > PRESENCE_GRACE_SECONDS:
            if not presence.is_present(self._client, self.name):
                self.restart("the worker stopped: killing it and starting another")

    def claim_lapsed(self, owner: str) -> None:
        """Kill the process that let its claim lapse, if it is ours: it is stopped, or Python cannot wake it."""
        self.kill_process(int(owner.split("/")[1]))

    def kill_process(self, pid: int) -> None:
        """Kill a process of this worker, if it is one; what it did is done again by another."""
        if self.child.kill_own_child(pid):
            self.note(f"worker process {pid} stopped: killed, its work is done again")
