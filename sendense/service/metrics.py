"""A hub's metrics for Prometheus: how it stands, as text. They come within a bounded time, whatever is away."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from typing import Generic, TypeVar

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sendense.coordinator.context import Context
from sendense.errors import SendenseError
from sendense.jobs import broker
from sendense.service.families import families
from sendense.service.figures import RepositoryReader, read_hub, read_overdue, read_state

log = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
"""For all of it: half of the time that Prometheus gives a target."""

HUB_SECONDS, REPOSITORY_SECONDS = 1.0, 20.0
"""What was found is told again for so long: Redis costs milliseconds, a repository of thousands of points a second."""

T = TypeVar("T")


class Metrics:
    """The metrics of a hub. `context` is of whoever would rather hear at once that Redis is away."""

    def __init__(self, context: Context) -> None:
        reader = RepositoryReader(context.settings)
        self._own = context.settings.node_name
        self._hub = _Look("redis", lambda: read_hub(context), HUB_SECONDS)
        self._repository = _Look("repository", reader.read, REPOSITORY_SECONDS)
        self._state = _Look("state folder", lambda: read_state(context.settings), HUB_SECONDS)
        self._overdue = _Look("schedules", lambda: read_overdue(context), REPOSITORY_SECONDS)

    def text(self) -> bytes:
        """What Prometheus reads, within ANSWER_SECONDS; of a part that does not answer only that it does not."""
        for look in (self._hub, self._repository, self._state, self._overdue):
            look.begin()
        found = (self._hub.found(), self._repository.found(), self._state.found(), self._overdue.found())
        return render(families(*found, self._own))


def render(found: Iterable[Metric]) -> bytes:
    """Metrics in Prometheus' text format."""
    return generate_latest(_Found(found))


class _Look(Generic[T]):
    """One look at a time at a part of the hub; one that hangs has no other begun, and nobody waits for it."""

    def __init__(self, name: str, look: Callable[[], T], seconds: float) -> None:
        self._name, self._look, self._seconds = name, look, seconds
        self._pool = ThreadPoolExecutor(1, f"metrics-{name}")
        self._lock = threading.Lock()
        self._began = 0.0
        self._future: Future[T | None] | None = None

    def begin(self) -> None:
        """Look, unless that is being done, or was done just now."""
        with self._lock:
            if not self._future or (self._future.done() and time.monotonic() - self._began > self._seconds):
                self._began = time.monotonic()
                self._future = self._pool.submit(self._try)

    def found(self) -> T | None:
        """What was found; None when the part is away, or did not answer within ANSWER_SECONDS of the look's begin."""
        assert self._future
        try:
            return self._future.result(max(0.0, self._began + ANSWER_SECONDS - time.monotonic()))
        except NotYet:
            log.warning("metrics: the %s does not answer", self._name, extra={"action": "metrics"})
            return None

    def _try(self) -> T | None:
        try:
            return self._look()
        except (SendenseError, OSError, *broker.Unavailable) as exc:
            log.warning("metrics: the %s is away: %s", self._name, exc, extra={"action": "metrics"})
        except Exception:
            log.exception("metrics: the %s cannot be looked at", self._name, extra={"action": "metrics"})
        return None


class _Found(Collector):
    def __init__(self, found: Iterable[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found
