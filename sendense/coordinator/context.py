"""What every step has at hand, and what it answers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from sendense.coordinator.record import Jobs
from sendense.errors import InputError, SendenseError
from sendense.exports import Exports
from sendense.jobs.broker import App
from sendense.jobs.ledger import Ledger
from sendense.jobs.queues import Place
from sendense.nbd.connect import Beat
from sendense.repository.catalogue import Repository
from sendense.requests import JobView, Work
from sendense.settings import Settings

EXPORTS_SECONDS = 30.0
"""For one call to the exports daemon: it may be in the middle of being started again."""


@dataclass(frozen=True)
class Context:
    """The parts of a hub or a control worker."""

    settings: Settings
    ledger: Ledger
    jobs: Jobs
    app: App

    @cached_property
    def repository(self) -> Repository:
        """The restore points; InputError when the settings name no repository."""
        return open_repository(self.settings, create=True)

    def exports(self, beat: Beat, timeout: float = EXPORTS_SECONDS) -> Exports:
        """The hub's NBD exports; waiting for them beats."""
        return Exports(self.settings.qmp_socket, self.settings.exports_address, timeout, beat)


@dataclass(frozen=True)
class Run:
    """One run of one step: the job as it is, and the beat that keeps the right to run it."""

    view: JobView
    beat: Beat

    @property
    def work(self) -> Work:
        """What the steps before found out."""
        return self.view.work


@dataclass(frozen=True)
class Done:
    """The step is complete."""

    work: Work


@dataclass(frozen=True)
class Waiting:
    """The step goes on when something else has happened: it is run again at the next tick."""

    work: Work
    reason: str = ""


@dataclass(frozen=True)
class Failed:
    """The step failed, and what it found out is worth keeping; otherwise it just raises."""

    work: Work
    error: SendenseError


Answer = Done | Waiting | Failed


@dataclass(frozen=True)
class Step:
    """One step of a job. Safe to run again after a crash at any instant; `run` raises what went wrong."""

    name: str
    place: Place
    run: Callable[[Context, Run], Answer]
    cleaning: bool = False
    """Runs also when the job failed or was cancelled."""
    final: bool = False
    """Too late to cancel: it may have run before, and its effect be there."""


def open_repository(settings: Settings, *, create: bool) -> Repository:
    """The repository of the settings; with `create`, an empty or missing folder becomes one. InputError without one."""
    if not settings.repository:
        raise InputError("no repository is set", 'Name its folder: repository = "…" in the settings file.')
    return Repository.open(settings.repository, create=create)
