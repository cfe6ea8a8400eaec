"""What a user can ask for, and how the job that does it stands: what programs send and get."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from sendense.models import Difference, Failure, Progress, Record, VmInfo, VmRef

BackupMode = Literal["auto", "full", "incremental"]
DiskMode = Literal["full", "incremental"]

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled", "different"]


class BackupRequest(Record):
    """A restore point of a VM. `disks` are device keys; empty for all that can be backed up."""

    kind: Literal["backup"] = "backup"
    vm: VmRef
    mode: BackupMode = "auto"
    disks: list[int] = Field(default_factory=list)
    quiesce: bool = True
    verify: bool = False
    schedule: str = ""
    """The name of the schedule that began it."""


class RestoreRequest(Record):
    """Disks of a restore point, each onto a target of its own: an NBD URI, or the absolute path of a new image."""

    kind: Literal["restore"] = "restore"
    point: str
    name: str
    targets: dict[int, str]
    verify: bool = False
    force: bool = False


class VerifyRequest(Record):
    """Stored images of a restore point, and of those that it builds on, read back and compared with their digests."""

    kind: Literal["verify"] = "verify"
    point: str
    name: str
    own: bool = False
    """Only the point's own images: those below them are verified as well, by jobs of their own."""


class MigrateRequest(Record):
    """Disks of a VM, each onto a target of its own, without a repository; again and again, then once for good."""

    kind: Literal["migrate"] = "migrate"
    vm: VmRef
    targets: dict[int, str]
    sync: bool = False
    """Copy only what changed since the last time; otherwise start anew."""
    cutover: bool = False
    """Shut the VM down before its last sync."""
    quiesce: bool = True
    verify: bool = False


class DeleteRequest(Record):
    """Restore points of one VM to delete, in this order; merge: a child takes over what it needs."""

    kind: Literal["delete"] = "delete"
    vm: VmRef
    points: list[str]
    merge: bool = False


JobRequest = Annotated[
    BackupRequest | RestoreRequest | VerifyRequest | MigrateRequest | DeleteRequest, Field(discriminator="kind")
]


class DiskWork(Record):
    """One disk of a job, as far as it is known. Sizes in bytes."""

    key: int
    label: str = ""
    file: str = ""
    size: int = 0
    mode: DiskMode = "full"
    reason: str = ""
    """Why it is a full."""
    parent: str = ""
    """The restore point that an incremental builds on."""
    since: str = ""
    """The change ID at which an incremental starts."""
    change_id: str = ""
    """The change ID at which the next one can start."""
    changed: int = 0
    """Bytes that an incremental is about, or that a full knows to be allocated."""
    copy_id: str = ""
    """The ledger's name for the copying of this disk."""
    image: str = ""
    """Path of the image that is written, or read back."""
    inode: int = 0
    """Of the image that the job made, where another job could make one of the same name."""
    export: str = ""
    """The name under which the hub exports it."""
    source_export: str = ""
    source: str = ""
    """NBD URI, where the source is no VM's disk."""
    target: str = ""
    """NBD URI."""
    blank: bool = False
    """The target reads as zeroes where nothing was written yet."""
    surveys: int = 0
    """Times that its survey was sent, when it last gave a sign of life (seconds since the epoch), and which."""
    heard: float = 0.0
    beats: int = -1
    failures: int = 0
    """Failed attempts that the job's history has already."""
    resumed_from: str = ""
    """The change ID of the earlier run's snapshot, which its stored batches are of."""
    progress: Progress | None = None
    """How the copying ended."""
    seconds: float = 0.0
    digest: str = ""
    verified: bool = False
    differences: list[Difference] = Field(default_factory=list)


class Work(Record):
    """What a job found out and did so far: everything that a step needs to be run again after a crash."""

    disks: list[DiskWork] = Field(default_factory=list)
    left_out: dict[int, str] = Field(default_factory=dict)
    """Disks that cannot be backed up, and why."""
    info: VmInfo | None = None
    snapshot: str = ""
    quiesced: bool = False
    thumbprint: str = ""
    """Of vCenter's certificate."""
    point: str = ""
    """The restore point that is made, or is read."""
    created: datetime | None = None
    """When the snapshot was taken."""
    off: bool = False
    """The job shut the VM down."""
    resumed: bool = False
    """The ledger is still as the job's earlier run left it."""


class JobView(Record):
    """A job as its record has it at one moment."""

    id: str
    request: JobRequest
    name: str
    state: JobState
    step: str
    waiting: str = ""
    """What it waits for, where that is not its own work."""
    cancelled: bool = False
    paused: bool = False
    outcome: Literal["succeeded", "failed", "cancelled", "different"] = "succeeded"
    """How it ends once it is cleaned; different: what is stored is not what was copied."""
    created: datetime
    started: datetime | None = None
    ended: datetime | None = None
    attempts: int = 0
    error: Failure | None = None
    leftover: str = ""
    """What its cleaning could not remove; `sendense jobs clean` tries again."""
    work: Work


class Event(Record):
    """A line of a job's history."""

    id: str
    time: datetime
    text: str
