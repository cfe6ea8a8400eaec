"""Schedules: which VMs are backed up by themselves, when, and what is kept of them; and how their runs stand."""

from collections import Counter
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, field_validator

from sendense.models import TIME_OF_DAY, Record, TimeOfDay, VmRef, Weekday

EveryHours = Literal[1, 2, 3, 4, 6, 8, 12, 24]
"""What a day is a multiple of, so that the times are the same each day."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"


class Kept(Record):
    """How many restore points stay of each VM after a backup that succeeded (`repository.retention.Policy`)."""

    last: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0


class Schedule(Record):
    """A standing order of backups. Times of day are HH:MM on the clocks of `timezone`, an IANA name."""

    name: Annotated[str, Field(pattern=NAME)]
    vm: VmRef | None = None
    """None: all VMs of `site`."""
    site: str = ""
    """Empty: all sites."""
    days: list[Weekday] = Field(default_factory=list)
    """Empty for all."""
    at: TimeOfDay
    until: Annotated[str, Field(pattern=rf"^$|{TIME_OF_DAY}")] = ""
    """The end of the window that begins at `at`, the next day where it is no later: nothing begins after it, and what
    still runs is cancelled, to be gone on with in the next one. Empty: no window."""
    every_hours: EveryHours = 24
    """Between two runs, from `at` on, each day anew."""
    timezone: str = "UTC"
    at_once: Annotated[int, Field(ge=1)] = 2
    """Backups of this schedule under way at one time."""
    keep: Kept | None = None
    quiesce: bool = True
    verify: bool = False
    notify_success: bool = False
    paused: bool = False
    since: datetime
    """When it was made, changed or resumed: no run before that is missed."""

    @field_validator("since")
    @classmethod
    def _in_a_zone(cls, value: datetime) -> datetime:
        if value.tzinfo is None:
            raise ValueError("has no time zone")
        return value

    def is_as(self, other: "Schedule") -> bool:
        """Whether both order the same."""
        return self.model_copy(update={"since": other.since, "paused": other.paused}) == other

    def covers(self, vm: VmRef) -> bool:
        """Whether this VM is one of its own, also while it is paused."""
        return self.vm.uuid == vm.uuid if self.vm else self.site in ("", vm.site)

    def is_for(self, vm: VmRef) -> bool:
        """Whether it has this VM backed up: nothing while it is paused."""
        return not self.paused and self.covers(vm)

    def may_share(self, other: "Schedule") -> bool:
        """Whether there may be a VM that both cover."""
        if self.vm:
            return other.covers(self.vm)
        return self.covers(other.vm) if other.vm else not self.site or other.site in ("", self.site)


TurnState = Literal[
    "waiting", "begun", "ending", "pruning", "succeeded", "failed", "cancelled", "cut", "not begun", "left out"
]
"""begun: a job is at it, or about to be. ending: its job is being cancelled, as the window is over; cut: it was."""


class Turn(Record):
    """One VM in a run."""

    vm: VmRef
    state: TurnState = "waiting"
    job: str = ""
    """Its backup; of a VM that waits, the one of an earlier run that is gone on with."""
    again: datetime | None = None
    """`job` is to be resumed, if it is still the one that ended at this time."""
    failed_before: bool = False
    """`job` failed in the run before: if it fails again, the next one begins anew."""
    dropped: bool = False
    """It is left out, though the schedule had it until now and it has restore points: that is told."""
    prune: str = ""
    """The job that deletes what is not to be kept."""
    note: str = ""
    """What it waits for, or why it ended so."""

    @property
    def is_open(self) -> bool:
        """Whether there is still something to be done."""
        return self.state in ("waiting", "begun", "ending", "pruning")

    @property
    def is_under_way(self) -> bool:
        """Whether it is one of those at once."""
        return self.state in ("begun", "ending")


class RunSummary(Record):
    """A run: its VMs by how they stand, and what did not come to pass. `ended`: None while it is under way."""

    start: datetime
    ended: datetime | None
    count: dict[TurnState, int]
    troubles: list[str]


MOST_TROUBLES = 20
"""Of a run that are kept, and told."""


class Run(Record):
    """One run of a schedule: all its VMs, once. It is carried through as the schedule was when it began."""

    schedule: Schedule
    start: datetime
    """The time that it is of: when it was due, or was asked for."""
    end: datetime | None = None
    """Of its window."""
    began: datetime
    ended: datetime | None = None
    asked: bool = False
    """By a user, now, whatever the window."""
    sites: dict[str, str] = Field(default_factory=dict)
    """Sites that have yet to say which VMs they have, and what keeps them from it."""
    turns: list[Turn] = Field(default_factory=list)

    def summary(self) -> RunSummary:
        """How it stands, without each VM."""
        return RunSummary(
            start=self.start,
            ended=self.ended,
            count=Counter(turn.state for turn in self.turns),
            troubles=self.troubles()[:MOST_TROUBLES],
        )

    def troubles(self) -> list[str]:
        """What did not come to pass, other than by a job, which has its own history."""
        unknown = [f"the VMs of {f'site {site}' if site else 'all sites'}: {why}" for site, why in self.sites.items()]
        turns = [
            f"{turn.vm.name}: {turn.note or 'its turn did not come before the end'}"
            for turn in self.turns
            if turn.state == "not begun" or (turn.state == "failed" and not turn.job)
        ]
        dropped = [f"{turn.vm.name}: is backed up no more: {turn.note}" for turn in self.turns if turn.dropped]
        return unknown + turns + dropped


class Seen(Record):
    """A VM that a schedule is for, and since when."""

    vm: VmRef
    since: datetime


class Standing(Record):
    """How a schedule stands."""

    run: Run | None = None
    """The latest one."""
    before: RunSummary | None = None
    """The one before."""
    asked: datetime | None = None
    """When a user wanted it to run now."""
    trouble: str = ""
    """What kept the hub's latest look at it from its end."""
