"""Notices: what is told to people and programs elsewhere, and how far that has got."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sendense.models import Record, VmRef
from sendense.receivers import Occasion, Receiver
from sendense.views import Job

NOTICE_VERSION = 1
"""Counts up only when a reader of the old one would be wrong about a notice; what else is new is an unknown field."""

Kind = Literal[
    "job.failed", "job.different", "job.leftover", "job.succeeded", "schedule.failed", "vm.overdue", "vm.well", "test"
]


class OverdueVm(Record):
    """A VM that has, or had, no restore point for longer than its schedule allows. `newest`: its last one, if any."""

    vm: VmRef
    schedule: str
    newest: datetime | None = None


class Told(Record):
    """What the hub noticed by itself, as the outbox has it: all that is not the end of a job."""

    subject: str
    text: str = ""
    hint: str = ""
    commands: list[str] = Field(default_factory=list)
    vms: list[OverdueVm] = Field(default_factory=list)
    schedule: str = ""


class Notice(BaseModel):
    """What a receiver gets. `id` is the same at every attempt; times are in UTC. The texts are for people."""

    model_config = ConfigDict(frozen=True)

    version: int = NOTICE_VERSION
    id: str
    kind: Kind
    time: datetime
    """When it happened."""
    hub: str
    subject: str
    text: str
    """What happened, and where."""
    hint: str
    """What to do, as far as is known."""
    commands: list[str]
    """Commands, to be run at the hub, that show more or go on."""
    job: Job | None = None
    """The job that it is about, as it was at its end."""
    vms: list[OverdueVm] = Field(default_factory=list)
    """The VMs that it is about, where it is about no job."""
    schedule: str = ""
    """The schedule that it is about, by its name."""


class WaitingNotice(Record):
    """A notice that a receiver is still to get."""

    id: str
    kind: Kind
    subject: str
    time: datetime


class DeliveredNotice(WaitingNotice):
    """What became of a notice."""

    told: datetime
    """When the receiver took it, or it was given up."""
    attempts: int
    given_up: bool
    error: str
    """Why it was given up; of one that was taken, what went wrong beside."""
    lost_before: int = 0
    """Notices before it that are lost, as too many waited."""


class ReceiverView(Record):
    """One receiver. `to`: where notices go, as far as everybody may see it."""

    receiver: Receiver
    to: str
    count: int
    """Notices that wait."""
    waiting: list[WaitingNotice]
    """The first of them."""
    attempts: int
    """Attempts at the first of them that failed."""
    following: datetime | None
    """When it is tried again."""
    error: str
    """Why the last attempt failed."""
    told: list[DeliveredNotice]
    """The latest first."""


class NoticesView(Record):
    """Who is told of what, and how far that has got."""

    on: list[Occasion]
    receivers: list[ReceiverView]


class NoticeSent(Record):
    """What came of a test. `error`: empty when the receiver took it; `note`: what went wrong beside."""

    receiver: Receiver
    to: str
    id: str
    error: str
    note: str
