"""What jobs are made of, as they are stored in the ledger and shown to programs."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

JobState = Literal["preparing", "ready", "copying", "copied", "failed", "stopped"]
"""ready: surveyed and planned. copied: every batch is recorded. stopped: interrupted, may be resumed."""

UNDER_WAY: tuple[JobState, ...] = ("preparing", "ready", "copying")
"""The states of a copy that still goes on."""

SummaryState = Literal["succeeded", "failed", "interrupted", "different"]
"""different: copied, but what was read back is not what was written."""

HUB_SITE, LOCAL_SITE = "hub", "local"
"""Sites of our own: where a hub copies for restores and verifications, and where `sendense copy` does."""

HUB_EXPORT = "hub:"
"""What the name of an export of the hub begins with, where a job names it as an endpoint (`sendense.exports`)."""

TIME_OF_DAY = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"

TimeOfDay = Annotated[str, Field(pattern=TIME_OF_DAY)]
"""HH:MM."""

Weekday = Annotated[int, Field(ge=1, le=7)]
"""ISO: 1 is Monday."""


class Record(BaseModel):
    """Something in Redis: a newer version may have written it, with fields that this one passes over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class VmRef(Record):
    """A VM as a site names it: `uuid` (vCenter's instance UUID) is its identity, `moref` how vCenter is spoken to."""

    site: str
    moref: str
    uuid: str
    name: str


class VmDisk(Record):
    """A disk of a VM as its configuration has it. Size in bytes."""

    key: int
    """VMware's device key: the disk's identity within its VM."""
    label: str
    file: str
    """`[datastore] path.vmdk`, as the running VM has it."""
    size: int
    refusal: str = ""
    """Why it cannot be backed up (independent, physical RDM, …); empty when it can."""


class VmInfo(Record):
    """A VM as `sendense vms show` has it."""

    ref: VmRef
    path: str
    """Inventory path, `/datacenter/vm/folder/name`."""
    power: Literal["on", "off", "suspended"]
    host: str
    tools: bool
    """VMware Tools run in the guest: it can be quiesced and shut down."""
    tracking: bool
    """Change tracking is turned on."""
    tracking_possible: bool
    snapshots: int
    disks: list[VmDisk]
    allocated: dict[int, int] = Field(default_factory=dict)
    """Bytes that each disk takes on its datastore, by key, where the site says so."""


class SnapshotDisk(Record):
    """A disk as a snapshot froze it: `change_id` says up to where its changes are known, empty without tracking."""

    key: int
    file: str
    size: int
    change_id: str


class SnapshotAge(Record):
    """A snapshot at a site. `age` in seconds."""

    vm: VmRef
    name: str
    age: float


class DiskSource(Record):
    """What a node needs to open a VM's disk at a snapshot; the site's settings on that node have the rest."""

    site: str
    vm: str
    """The VM's moref."""
    snapshot: str
    """The snapshot's moref."""
    file: str
    thumbprint: str
    """Of vCenter's certificate, as it was accepted at login."""
    host: str = ""
    """The ESXi host that the VM ran on when its snapshot was made."""

    def __str__(self) -> str:
        return f"{self.file} of {self.vm} at {self.snapshot}"


def verification_id(job: str) -> str:
    """The name in the ledger of what reads back what `job` wrote."""
    return f"{job}-verify"


class JobSpec(Record):
    """What a job was asked to do. Stored as it was submitted; `target` follows once its server is up."""

    id: str
    kind: Literal["copy", "verify"]
    site: str = "local"
    name: str
    """How operators know the job: the target's file name, say."""
    source: str
    """NBD URI that is read, or hub:EXPORT: the disk to copy, or the stored image to verify; empty when `disk` is."""
    disk: DiskSource | None = None
    """The VM's disk that is read, through an nbdkit of each process's own."""
    target: str = ""
    """NBD URI that is written, or hub:EXPORT; empty for verify, and until the target's server is up."""
    target_is_zero: bool = False
    """The target is known to read as zeroes, so zeroes are skipped."""
    of: str = ""
    """verify: the job whose digests the source is compared with."""
    part_of: str = ""
    """The user's job that this is one disk of; it is told when the copying ends."""
    solo: bool = False
    """An endpoint may take one client only: everything goes through one process."""

    def verification(self) -> "JobSpec":
        """The job that reads back what this one wrote: at the hub, where that is there, and not through a tunnel."""
        update = {"id": verification_id(self.id), "kind": "verify", "source": self.target, "disk": None, "target": ""}
        site = HUB_SITE if self.target.startswith(HUB_EXPORT) else self.site
        return self.model_copy(update={**update, "of": self.id, "site": site})

    @property
    def source_label(self) -> str:
        """The source, for messages."""
        return str(self.disk) if self.disk else self.source


class Survey(Record):
    """What was found out about a job's endpoints. Sizes in bytes."""

    size: int
    multi_conn: bool
    """Every endpoint takes several connections; otherwise the job works through one."""
    allocation: bool
    """The source says which parts of it are zero."""
    flush: bool
    """The target can be told to make its writes durable."""


class Failure(Record):
    """One failed attempt, as it is kept in the ledger."""

    batch: int | None = None
    attempt: int = 1
    error: str
    """Name of the error's class."""
    message: str
    hint: str = ""
    uri: str = ""
    """The endpoint that the error is about, where it is about one."""
    stalled: bool = False
    verdict: str = ""
    """The doctor's word for it, where there is one."""
    retryable: bool = False
    """Trying again may help."""
    usage: bool = False
    """The request was wrong: trying again without changing it is pointless."""
    worker: str = ""


class Tunnel(Record):
    """How a node reaches the hub's exports. `verdict`: the doctor's word, `ok` when all is well."""

    verdict: str
    detail: str = ""


class Node(Record):
    """A node as it announces itself."""

    name: str
    site: str
    host: str
    """What the machine calls itself."""
    pid: int
    started: float
    """Seconds since the epoch."""
    processes: int
    versions: dict[str, str]
    plugins: list[str]
    """nbdkit's plugins that read VMs' disks, or what is wrong with them."""
    draining: bool
    """It takes no more work; what it has under way ends."""
    active: int
    """Batches under way."""
    round_trip: float
    """Seconds to the hub's Redis and back."""
    rate: float
    """Bytes a second that it copied lately."""
    tunnel: Tunnel


class Activity(Record):
    """A batch under way: who copies it and how far it is, in bytes."""

    batch: int
    worker: str
    done: int


class Progress(Record):
    """A job's counters at one moment. Bytes; `copied` counts what this run moved, twice-moved bytes included."""

    state: JobState
    size: int = 0
    data: int = 0
    zero: int = 0
    done: int = 0
    already_done: int = 0
    copied: int = 0
    again: int = 0
    """Of `copied`, what was of attempts that ended early: it has to be moved once more."""
    batches: int = 0
    batches_done: int = 0
    waiting: int = 0
    """Batches that were sent and that no worker has claimed yet."""
    failed: int = 0
    retries: int = 0
    stalls: int = 0
    active: list[Activity] = Field(default_factory=list)
    by_worker: dict[str, int] = Field(default_factory=dict)
    """`copied`, by the names of the workers that moved it."""

    @property
    def moved(self) -> int:
        """Bytes stored, by earlier runs too, and those under way."""
        return min(self.data, self.done + sum(activity.done for activity in self.active))


class Difference(Record):
    """A range of the disk whose stored content is not what was copied."""

    offset: int
    length: int


class CopySummary(Record):
    """What `sendense copy --json` prints."""

    job: str
    state: SummaryState
    size: int
    data: int
    zero: int
    copied: int
    already_done: int
    batches: int
    retries: int
    stalls: int
    seconds: float
    digest: str
    verified: bool = False
    differences: list[Difference] = Field(default_factory=list)
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Only what says something: the optional fields are left out when empty."""
        optional = {"verified", "differences", "error"}
        return {key: value for key, value in self.model_dump().items() if value or key not in optional}
