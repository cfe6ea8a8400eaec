"""
How much memory Flower takes after many tasks: real events through a real Redis; prints one JSON object.

    python -m tests.bench.flower [TASKS]

Events are sent as fast as Flower takes them: what Redis would buffer for it is part of no measurement.
"""

import json
import os
import sys
import time
import uuid
from typing import Any

import psutil

from sendense.jobs.broker import make_app
from sendense.jobs.queues import COPY_EXTENTS
from sendense.units import MiB
from tests.flower import Pages, open_flower
from tests.hub import open_hub

DEFAULT_TASKS = 100_000
CHECKPOINTS = (0, 10_000, 25_000, 50_000, 75_000)
NODES = 12
CHUNK = 500
EVENTS = 3
"""Of each task: received, started, succeeded."""

COUNT_SECONDS = 60.0
"""For Flower to count the events of a chunk: a tenth of a second."""


class Sender:
    """Sends what the workers of some nodes would, through the project's own application."""

    def __init__(self, redis_url: str) -> None:
        self._app = make_app(redis_url)
        self._connection = self._app.connection_for_write()
        names = [f"node{number}@node{number}" for number in range(NODES)]
        self._dispatchers: list[Any] = [
            self._app.events.Dispatcher(self._connection, hostname=name, buffer_while_offline=False) for name in names
        ]
        self.sent = 0
        """Tasks."""

    def send(self, tasks: int) -> None:
        """The events of so many tasks."""
        for number in range(self.sent, self.sent + tasks):
            send = self._dispatchers[number % NODES].send
            task, root = str(uuid.uuid4()), str(uuid.uuid4())
            send(
                "task-received",
                **{"uuid": task, "name": COPY_EXTENTS, "root_id": root, "parent_id": None, "retries": 0},
                **{"args": f"web{number % 50:02} · disk 2000 · batch {number + 1}/{10**5} · 128 MiB", "kwargs": "{}"},
                **{"eta": None, "expires": None},
            )
            send("task-started", uuid=task)
            send("task-succeeded", uuid=task, result="'recorded'", runtime=1.5)
        self.sent += tasks

    def await_hearing(self, pages: Pages) -> None:
        """Say that the workers live, until Flower hears it: it is up a moment before it listens to events."""
        deadline = time.monotonic() + COUNT_SECONDS
        while len(json.loads(pages.read("/workers?json=1"))["data"]) < NODES:
            if time.monotonic() > deadline:
                raise RuntimeError("Flower hears no events")
            for dispatcher in self._dispatchers:
                dispatcher.send("worker-heartbeat", freq=2.0, active=1)
            time.sleep(0.05)

    def close(self) -> None:
        """Close the connections."""
        for dispatcher in self._dispatchers:
            dispatcher.disable()
        self._connection.close()
        self._app.pool.force_close_all()


def feed(pages: Pages, sender: Sender, tasks: int) -> None:
    """Send the events of so many tasks, in chunks, and wait until Flower has counted them."""
    for start in range(0, tasks, CHUNK):
        sender.send(min(CHUNK, tasks - start))
        deadline = time.monotonic() + COUNT_SECONDS
        while counted(pages) < EVENTS * sender.sent:
            if time.monotonic() > deadline:
                raise RuntimeError(f"Flower counted {counted(pages)} of {EVENTS * sender.sent} events")
            time.sleep(0.005)


def counted(pages: Pages) -> int:
    """The events of tasks that Flower has seen."""
    workers = json.loads(pages.read("/workers?json=1"))["data"]
    return sum(count for worker in workers for kind, count in worker.items() if kind.startswith("task-"))


def measure(tasks: int) -> dict[str, Any]:
    """Megabytes (MiB) that Flower has resident after so many tasks, and tasks a second."""
    megabytes: dict[str, float] = {}
    with open_hub() as hub, open_flower(hub.url, hub.folder) as pages:
        sender, flower = Sender(hub.url), psutil.Process(pages.service.child.pid)
        sender.await_hearing(pages)
        began = time.monotonic()
        for checkpoint in sorted({*(count for count in CHECKPOINTS if count < tasks), tasks}):
            feed(pages, sender, checkpoint - sender.sent)
            megabytes[str(checkpoint)] = round(flower.memory_info().rss / MiB, 1)
        seconds = time.monotonic() - began
        kept = len(json.loads(pages.read("/api/tasks?limit=1000000")))
        sender.close()
    return {"resident_mib": megabytes, "tasks_kept": kept, "tasks_a_second": round(tasks / seconds)}


if __name__ == "__main__":
    for name in [name for name in os.environ if name.startswith("SENDENSE_")]:
        del os.environ[name]
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_TASKS)))
