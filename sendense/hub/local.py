"""
The hub of this machine, as commands use it.

What needs no jobs starts nothing. All else takes a seat at the hub, and keeps it up while the command is there.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, cast

from sendense.beat import Beat, no_beat
from sendense.coordinator import run
from sendense.errors import NotFound
from sendense.hub.following import HERE, cancel
from sendense.hub.seat import Seat
from sendense.jobs import broker
from sendense.orders import Order, PruneOrder
from sendense.service.audit import Audit, local_user
from sendense.service.hub import Hub
from sendense.service.operations import Operations
from sendense.settings import Settings
from sendense.supervise.service import Note
from sendense.views import Cleaned, ExportView, Job, Pruning

NUDGE_SECONDS = 5.0
"""Between two reminders of a job that nobody runs, by a command that does not run the hub itself."""

SCHEDULING = {"add_schedule", "remove_schedule", "pause_schedule", "resume_schedule", "run_schedule"}

SEATLESS = {
    *("vms", "vm", "power_on", "preview", "request_of", "points", "point", "chain", "repository", "test_notices"),
    *("schedules", "schedule", *SCHEDULING),
}
"""Operations that need no jobs."""

WORKING = {"submit", "resume", "cancel", "delete", "prune", "clean"}
"""Operations that mean work for the hub's parts."""

CHANGING = {
    *WORKING,
    *SCHEDULING,
    "power_on",
    "pause",
    "drain",
    "undrain",
    "serve",
    "unserve",
    "test_notices",
    "set_throttle",
    "remove_throttle",
}
"""Operations that the audit log tells of."""

T = TypeVar("T")


@contextmanager
def open_local(settings: Settings, note: Note, *, work: bool = False, beat: Beat = no_beat) -> Iterator[Hub]:
    """
    The hub of this machine. `work`: its jobs run for as long as this is open, those of other commands included.

    `beat` is called while a site is asked, and may raise.
    """
    hub = LocalHub(settings, note, work=work, beat=beat)
    try:
        try:
            yield cast(Hub, hub)  # it has what it does not define from Operations
        finally:
            if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
                hub.stay()
    finally:
        hub.leave()


class LocalHub:
    """See `service.hub.Hub`."""

    def __init__(self, settings: Settings, note: Note, *, work: bool, beat: Beat) -> None:
        self._note, self._work, self._beat = note, work, beat
        self._seat = Seat(settings, note, work=False)
        self._is_seated = False
        self._nudged = time.monotonic()
        self._audit = Audit(settings)
        self._operations = Operations(self._seat.context, self._keep_up)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(self._operations, name)
        return lambda *args, **named: self._ask(name, lambda: operation(*args, **named), [*args, *named.values()])

    def submit(self, order: Order, key: str) -> Job:
        """Begin a job; one that is refused starts nothing."""
        found = self._ask("request_of", lambda: self._operations.request_of(order))
        return self._ask("submit", lambda: self._operations.submit(order, key, found), order)

    def job(self, job: str) -> Job:
        """A job; if nobody runs it, as whoever hosts the hub is stopped, its worker is reminded of it."""
        found = self._ask("job", lambda: self._operations.job(job))
        if self._work and not (found.has_ended or self._seat.hosts) and time.monotonic() - self._nudged > NUDGE_SECONDS:
            self._nudged = time.monotonic()
            self._seat.call(lambda: self._nudge(found.id))
        return found

    def prune(self, order: PruneOrder, key: str) -> list[Pruning]:
        """Delete the restore points that no rule keeps; to find that there are none starts nothing."""
        look = order.model_copy(update={"dry_run": True})
        found = self._operations.prune(look, key)
        if order.dry_run or not any(each.going for each in found):
            return found
        return self._ask("prune", lambda: self._operations.prune(order, key), order)

    def exports(self) -> list[ExportView]:
        """What is served over NBD: nothing, where nobody else runs the hub."""
        self._sit()
        return [] if self._seat.hosts else self._ask("exports", self._operations.exports)

    def unserve(self, export: str) -> None:
        """End what `serve` began; where nobody else runs the hub nothing is served, and it only is not put back."""
        self._sit()
        if not self._seat.hosts:
            self._ask("unserve", lambda: self._operations.unserve(export), [export])
        elif export in self._seat.call(self._seat.jobs.served):
            self._ask("unserve", lambda: self._seat.jobs.drop_served(export), [export])
        else:
            raise NotFound(f"export {export}: is of no restore point that is served", "List them: sendense exports")

    def clean(self, foreign: bool = False) -> list[Cleaned]:
        """Remove what ended jobs left; where no hub runs but this command's, also those that nobody follows."""
        self._sit()
        is_alone = self._seat.hosts and not self._seat.is_of_a_service
        abandoned = self._seat.call(self._seat.jobs.active) if is_alone else []
        cleaned = []
        for job in abandoned:
            cleaned.append(Cleaned(text=f"job {job}: nobody follows it: cancelled"))
            if not cancel(cast(Hub, self), job, HERE, self._note).has_ended:
                cleaned.append(Cleaned(text=f"job {job}: still cleans up: sendense jobs show {job}", failed=True))
        return [*cleaned, *self._ask("clean", lambda: self._operations.clean(foreign), {"foreign": foreign})]

    def stay(self) -> None:
        """Keep the hub up for jobs of other commands; they would take it over, and lose some seconds."""
        told = False
        with suppress(KeyboardInterrupt):  # then another command does
            while self._work and self._seat.hosts and (others := self._seat.call(self._seat.jobs.active)):
                if not told:
                    self._note(f"done; staying for {', '.join(others)}, which other commands follow")
                    told = True
                self._seat.go_on()
                time.sleep(HERE.look)

    def leave(self) -> None:
        """End what this process runs."""
        self._seat.leave()

    def _ask(self, name: str, ask: Callable[[], T], order: object = None) -> T:
        if name not in CHANGING:
            return self._reach(name, ask)
        with self._audit.change(local_user(), name, order) as change:
            found = self._reach(name, ask)
            change.made(found)
            return found

    def _reach(self, name: str, ask: Callable[[], T]) -> T:
        if name in SEATLESS:
            try:
                return ask()
            except broker.Unavailable as exc:
                raise self._seat.silence(exc) from exc
        self._sit()
        self._seat.go_on()
        is_work = self._work or name in WORKING
        if is_work:
            self._seat.take_repository()
        found = self._seat.call(ask)
        if is_work:  # only now: what is refused starts no more than Redis
            self._seat.work = True
        return found

    def _sit(self) -> None:
        if not self._is_seated:
            self._seat.__enter__()
            self._is_seated = True

    def _keep_up(self) -> None:
        self._beat()
        if self._is_seated:
            self._seat.go_on()

    def _nudge(self, job: str) -> None:
        view = self._seat.jobs.get(job)
        if view and not self._seat.jobs.is_leased(job):
            run.remind(self._seat.context, view)
