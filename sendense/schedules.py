"""Schedules: which VMs are backed up by themselves, when, and what is kept of them."""

from datetime import datetime

from pydantic import Field

from sendense.models import Record, VmRef


class Kept(Record):
    """How many restore points stay of each VM after a backup that succeeded (`repository.retention.Policy`)."""

    last: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0


class Schedule(Record):
    """A standing order of backups. Times of day are HH:MM on the clocks of `timezone`, an IANA name."""

    name: str
    vm: VmRef | None = None
    """None: all VMs of `site`."""
    site: str = ""
    """Empty: all sites."""
    days: list[int] = Field(default_factory=list)
    """ISO weekdays, 1 is Monday; empty for all."""
    at: str
    until: str = ""
    """The end of the window that begins at `at`: nothing begins later, and what still runs is cancelled, to be gone on
    with in the next one. Empty: no window."""
    every_hours: int = 24
    """Between two runs, from `at` on."""
    timezone: str = "UTC"
    at_once: int = 2
    """Backups of this schedule under way at one time."""
    keep: Kept | None = None
    quiesce: bool = True
    verify: bool = False
    notify_success: bool = False
    paused: bool = False
    created: datetime
