"""Celery beat as a child: it sends for what a hub does by itself (`workers.beat`), and is judged by what is done."""

import math
import sys
import time
from pathlib import Path

from sendense.jobs import presence
from sendense.supervise.child import Child
from sendense.supervise.service import Budget, Note, Service
from sendense.supervise.worker import Reached, Worker

END_SECONDS = 3.0
"""It waits for nothing but its next message."""

SILENCE_SECONDS = 40.0
"""Without any duty begun or going on, beat or its worker is stopped, or hangs: there is one every few seconds."""


class BeatService(Service):
    """One beat for this Redis, and the worker that does what it sends for."""

    def __init__(self, redis: Reached, worker: Worker, folder: Path, note: Note, budget: Budget) -> None:
        environment = {"SENDENSE_REDIS": redis.url, "SENDENSE_WORKER": "beat"}
        argv = [sys.executable, "-m", "workers.beat"]
        super().__init__(Child("beat", argv, folder / "beat.log", environment), note, budget)
        self._client, self._worker = redis.client, worker
        self._began = math.inf

    def prepare(self) -> None:
        """From now on it has its time to do something."""
        self._began = time.monotonic()

    def excuse(self) -> None:
        """Give it time again: Redis was away, and it may have ended of that."""
        self._began = time.monotonic()
        self._budget.forgive()

    def is_heard(self) -> bool:
        """Whether the routine goes on; LedgerUnavailable when Redis does not answer."""
        return presence.routine_silence(self._client) < SILENCE_SECONDS

    def supervise(self) -> None:
        """
        Start it again if it ended, and with its worker if nothing comes of it; LedgerUnavailable without Redis.

        That nothing comes of it may be either's fault: one is stopped, all processes of the worker hang, or the
        machine's clock was set back, after which beat waits for the time when it would have sent next. Then what was
        heard last is of the future, which counts as silence.
        """
        super().supervise()
        if time.monotonic() - self._began > SILENCE_SECONDS and not self.is_heard():
            self.restart(f"the hub's routine stood still for {SILENCE_SECONDS:.0f} s: starting it anew")
            self._worker.restart()

    def end(self) -> None:
        """End it."""
        self.child.end(END_SECONDS)
