"""
A command's place at the hub of this machine.

The parts of the hub are children of one command at a time: of the first that needs them, and when that ends, of the
next. So nothing has to be configured or started before, and nothing is left running; a job whose command was killed
goes on as soon as any other command is there.
"""

import fcntl
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from sendense.coordinator.context import Context
from sendense.coordinator.record import Jobs
from sendense.errors import InputError, JobFailed
from sendense.hub.folder import is_locked, prepare, service_lock
from sendense.hub.host import Host
from sendense.jobs import broker
from sendense.jobs.access import RedisFull, redis_url
from sendense.jobs.ledger import Ledger, connect
from sendense.settings import Settings
from sendense.supervise.service import Note

PATIENCE_SECONDS = 30.0
"""For another command's hub to answer, or to end so that this one can take its place."""

T = TypeVar("T")


class Seat:
    """
    Reaches the hub, and runs it when nobody else does, unless the settings say that its Redis is not its own.

    `work` is False for whoever only looks, and may become True later.
    """

    def __init__(self, settings: Settings, note: Note, *, work: bool) -> None:
        self._settings, self._note, self.work = settings, note, work
        self._host: Host | None = None
        self._lock = -1
        self._url = redis_url(settings)
        client = connect(self._url, retries=0, settings=settings)
        self.context = Context(settings, Ledger(client), Jobs(client), broker.make_app(self._url))

    @property
    def jobs(self) -> Jobs:
        """The records of all jobs."""
        return self.context.jobs

    @property
    def is_of_a_service(self) -> bool:
        """Whether `sendense hub` runs here, or did and is likely to be back: its jobs wait for it."""
        return service_lock(self._settings.hub_dir).exists()

    @property
    def hosts(self) -> bool:
        """Whether the hub's parts are children of this process."""
        return self._host is not None

    def __enter__(self) -> Self:
        prepare(self._settings)
        try:
            self.go_on()
            self.call(self.jobs.active)
        except OSError as exc:
            raise InputError(
                f"{self._settings.hub_dir}: {exc.strerror}", "Set state_dir to a folder that may be written."
            ) from exc
        except BaseException:
            self.leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def go_on(self) -> None:
        """
        To be called a few times a second: keeps the hub up, or takes it over when whoever did so is gone.

        Where `sendense hub` is there, the hub is left to that.
        """
        if is_locked(service_lock(self._settings.hub_dir)):
            if self._host:
                self.leave()
            return
        if not self._host and self._may_host():
            host = self._host = Host(self._settings, self._note)
            host.start_redis()
        if self._host:
            if self.work:
                self._host.start_all()
            self._host.supervise()

    def take_repository(self) -> None:
        """For what is work: Conflict, before any of it is noted, where this would be a second hub on a repository."""
        if self._host:
            self._host.take_repository()

    def call(self, ask: Callable[[], T]) -> T:
        """Ask the hub; JobFailed when it does not answer for PATIENCE_SECONDS."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return ask()
            except broker.Unavailable as exc:
                if time.monotonic() > deadline:
                    raise self.silence(exc) from exc
                time.sleep(0.05)
                self.go_on()

    def silence(self, exc: Exception) -> JobFailed:
        """What to say of a hub that does not answer, or has no room."""
        if isinstance(exc, RedisFull):
            return JobFailed(str(exc), exc.hint)
        if self._settings.redis:
            return JobFailed(f"the hub's Redis at {self._url} does not answer", "Look whether 'sendense hub' runs.")
        return JobFailed(
            f"the hub in {self._settings.hub_dir} does not answer",
            "Look at the command that runs it (its lock's holder), and at redis.log there.",
        )

    def leave(self) -> None:
        """End what this process runs; another command takes it over."""
        if self._host:
            self._host.close()
            self._host = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _may_host(self) -> bool:
        if self._settings.redis:
            return False
        if self._lock < 0:
            self._lock = os.open(self._settings.hub_dir / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
