"""What a hub shows of itself: the answers to commands and to programs. Sizes in bytes, times in UTC."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sendense.models import Difference, Node, Progress, VmRef
from sendense.repository.points import Point
from sendense.requests import DiskMode, JobRequest, JobState
from sendense.schedules import Run, RunSummary, Schedule
from sendense.throttles import Band

Kind = Literal["backup", "restore", "verify", "migrate", "delete"]


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class Problem(_View):
    """Why something failed: what and where, and what to do about it. usage: the request itself was wrong."""

    message: str
    hint: str = ""
    usage: bool = False


class JobDisk(_View):
    """One disk of a job, as far as it is known."""

    key: int
    label: str
    size: int
    mode: DiskMode
    reason: str
    """Why it is a full."""
    parent: str
    """The restore point that an incremental builds on."""
    changed: int
    """Bytes that an incremental is about, or that a full knows to be allocated."""
    progress: Progress | None
    """Of its copying; None before that has begun."""
    verification: Progress | None
    """Of its reading back, while that is under way."""
    seconds: float
    digest: str
    verified: bool
    differences: list[Difference]


class Job(_View):
    """A job at one moment."""

    id: str
    kind: Kind
    name: str
    request: JobRequest
    state: JobState
    step: str
    paused: bool
    waiting: str
    """What it waits for, where that is not its own work."""
    cancelled: bool
    """It is to end, or was ended, by a user."""
    created: datetime
    started: datetime | None
    ended: datetime | None
    point: str
    """The restore point that it made, once that is there, or that it reads."""
    vm_off: bool
    """It shut the VM down."""
    disks: list[JobDisk]
    left_out: dict[int, str]
    """Disks that cannot be copied, and why."""
    progress: Progress | None
    """Of all disks together, in the copying or verifying that is under way."""
    error: Problem | None
    leftover: list[str]
    """What its cleaning could not remove."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.ended is not None


class JobPage(_View):
    """Jobs, the latest first; `following` is the `before` of the next page, empty at the end."""

    jobs: list[Job]
    following: str


class BrokenPoint(_View):
    """A restore point that cannot be used, and why."""

    id: str
    vm: str
    """The VM's UUID."""
    reason: str


class VmPoints(_View):
    """A VM in the repository and its restore points, oldest first. `path`: as the inventory had it."""

    vm: VmRef
    path: str
    points: list[Point]
    broken: list[BrokenPoint]


class PointDetails(_View):
    """A restore point, what its own files take, and the points that are built on it."""

    point: Point
    usage: int
    children: list[str]


class ChainLevel(_View):
    """One image of a disk's chain, on the hub."""

    point: str
    mode: DiskMode
    image: str
    stored: int


class DiskChain(_View):
    """The images that a disk's content comes from: the restore point's own first, the full last."""

    key: int
    label: str
    size: int
    levels: list[ChainLevel]


class Deletion(_View):
    """Broken points are gone at once; a job deletes the others."""

    deleted: list[str]
    job: Job | None


class Pruning(_View):
    """What a policy keeps of a VM's points, by which rules; what goes, and by which job."""

    vm: VmRef
    kept: dict[str, list[str]]
    going: list[str]
    points: list[Point]
    broken: list[BrokenPoint]
    job: Job | None


class Cleaned(_View):
    """One thing that was removed, or that could not be."""

    text: str
    failed: bool = False


class SiteView(_View):
    """A site that the hub knows, and the nodes that are there."""

    name: str
    nodes: list[str]
    reachable: bool
    """Somebody there speaks to its vCenter."""


class NodeView(Node):
    """A node that lives."""

    drained: bool
    """It was told to take no more work."""
    limit: int = 0
    """Bytes a second that may be read at its site now, on all nodes there together; 0: no limit."""


class ThrottleView(_View):
    """A site's throttle, and how much is read there now. Bytes a second, 0: no limit."""

    site: str
    rate: int
    """At times that are in no band."""
    bands: list[Band]
    timezone: str
    """Of the bands' times; empty: the hub's own."""
    limit: int
    """That is in force now."""
    holds: bool
    """It held somebody back in the last seconds."""
    measured: int
    """What was read in the last ten seconds."""


class ExportView(_View):
    """An image that the hub serves over NBD, for which job or of which restore point."""

    name: str
    image: str
    writable: bool
    closing: bool
    job: str
    disk: int | None
    clients: list[str]
    """Processes of a job that have it open (NODE-ROLE/PID); of others' clients qemu does not tell."""
    point: str = ""
    """The restore point that is served read-only, until it is removed."""
    uri: str = ""
    """Where this hub reaches it."""


class ServedDisk(_View):
    """A disk of a restore point that is served read-only. `uri`: as this hub reaches it."""

    key: int
    label: str
    size: int
    export: str
    uri: str


class ScheduleView(_View):
    """A schedule, when it is due next (None while it is paused), and how it stands."""

    schedule: Schedule
    following: datetime | None
    latest: RunSummary | None
    """Its latest run."""
    before: RunSummary | None
    """The run before that."""
    run: Run | None
    """The latest one with each VM; None in a list, where all VMs of all schedules would be too many."""
    asked: datetime | None
    """When a user wanted it to run now, while it has not begun."""
    trouble: str
    """What kept the hub's latest look at it from its end."""
    is_served: bool
    """A hub is up, and carries it out."""


class RepositoryUsage(_View):
    """The repository and its file system."""

    path: str
    stored: int
    free: int
    vms: int
    points: int
    broken: int


class Check(_View):
    """One thing that a hub needs, and what is wrong with it; empty when nothing is."""

    name: str
    error: str = ""


class Readiness(_View):
    """Whether the hub can do its work."""

    ready: bool
    checks: list[Check] = Field(default_factory=list)


class WhoAmI(_View):
    """Whose token a request has, and where else its bearer may look."""

    name: str
    role: Literal["operator", "reader"]
    version: str
    flower: str
    """Where the hub's Flower is; empty where there is none."""


class DiskPreview(_View):
    """What would become of one disk. Bytes; None where only a snapshot could tell."""

    key: int
    label: str
    size: int
    allocated: int | None
    mode: DiskMode
    reason: str
    """Why it would be a full."""
    changed: int | None
    """What the site calls changed, or for a full allocated."""
    copied: int
    """What would be read: whole clusters of what is changed. Zeroes among it are not moved."""
    exact: bool
    """Otherwise it is at most so much."""


class Preview(_View):
    """What a backup would do."""

    vm: VmRef
    mode: DiskMode
    parent: str
    disks: list[DiskPreview]
    left_out: dict[int, str]
    turns_tracking_on: bool
    tracking: bool
    """Change tracking is on."""
    no_tracking: str
    """Why it is off, and cannot be turned on."""
    runs: bool
    """The VM is on: what changed is known only of a snapshot."""
    snapshot: bool
    """A snapshot was made to find out, and is removed."""
    job: str = ""
    """The job that is at work on the VM: a backup would be refused."""
