"""Celery beat as a child: it sends for what a hub does by itself (`workers.beat`)."""

import sys
from pathlib import Path

from sendense.supervise.child import Child
from sendense.supervise.service import Budget, Note, Service

END_SECONDS = 3.0
"""It waits for nothing but its next message."""


class BeatService(Service):
    """One beat for the Redis at `redis_url`."""

    def __init__(self, redis_url: str, folder: Path, note: Note, budget: Budget) -> None:
        argv = [sys.executable, "-m", "workers.beat", str(folder)]
        environment = {"SENDENSE_REDIS": redis_url, "SENDENSE_WORKER": "beat"}
        super().__init__(Child("beat", argv, folder / "beat.log", environment), note, budget)

    def end(self) -> None:
        """End it."""
        self.child.end(END_SECONDS)
