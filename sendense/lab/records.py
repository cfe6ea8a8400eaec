"""The state of the site as it is kept in the folder: virtual machines, disks, snapshots, and the knobs."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from sendense.lab.tracking import Tracker
from sendense.units import GiB


class Record(BaseModel):
    """A part of the state: changed in place, and checked when it is read from its file."""

    model_config = ConfigDict(extra="forbid")


class Disk(Record):
    """A virtual disk; its content is a raw file of the site's, its `file` only a name on a datastore."""

    key: int
    label: str
    file: str
    """As VMware names it: "[datastore] folder/name.vmdk"; snapshots move it on to name-000001.vmdk."""
    base: str
    capacity: int
    mode: str = "persistent"
    rdm: bool = False
    uuid: str
    change_id: str = ""
    """Only within a snapshot: where the changes after it begin."""

    @property
    def in_snapshots(self) -> bool:
        """Whether a snapshot freezes this disk."""
        return self.mode == "persistent" and not self.rdm


class Snapshot(Record):
    """A snapshot of a virtual machine, with the disks as they were."""

    id: str
    number: int
    name: str
    description: str
    created: datetime
    quiesced: bool
    powered_on: bool
    parent: str = ""
    disks: list[Disk]


class Vm(Record):
    """A virtual machine."""

    id: str
    name: str
    folder: str
    host: str
    datastore: str
    uuid: str
    instance_uuid: str
    version: str = "vmx-19"
    powered_on: bool = True
    tools_running: bool = True
    tracking_enabled: bool = False
    tracking_supported: bool = True
    disks: list[Disk]
    trackers: dict[int, Tracker] = {}
    """By device key; a disk has one once tracking was enabled and the machine was stunned."""
    snapshots: list[Snapshot] = []
    current: str = ""
    """The snapshot that the present state descends from."""
    next_file: int = 1

    def disk(self, key: int) -> Disk | None:
        """The disk with this device key."""
        return next((disk for disk in self.disks if disk.key == key), None)

    def snapshot(self, ref: str) -> Snapshot | None:
        """The snapshot with this managed object id."""
        return next((snapshot for snapshot in self.snapshots if snapshot.id == ref), None)


class ReadErrors(Record):
    """Reads that fail: in any of the areas, or at random."""

    areas: list[tuple[int, int]] = []
    percent: float = Field(default=0.0, ge=0, le=100)


class Knobs(Record):
    """What can be turned while the site runs; a virtual machine may have other values than the site."""

    snapshot_seconds: float = Field(default=0.0, ge=0)
    """A snapshot takes at least so long."""
    task_seconds: float = Field(default=0.0, ge=0)
    """Any other task takes at least so long."""
    shutdown_seconds: float = Field(default=0.5, ge=0)
    """A guest needs so long to shut down."""
    session_seconds: float = Field(default=1800.0, gt=0)
    """A session that was idle for so long has expired: vCenter's default."""
    window_bytes: int = Field(default=64 * GiB, ge=0)
    """One answer about changed areas covers at most so much of the disk; 0 is no limit."""
    area_limit: int = Field(default=2000, ge=1)
    """One answer about changed areas has at most so many, as vCenter's."""
    connection_limit: int = Field(default=52, ge=0)
    """Disks open on one host at once: VDDK's limit through vCenter."""
    read_rate: int = Field(default=0, ge=0)
    """Bytes per second and open disk; 0 is no limit."""
    latency_ms: float = Field(default=0.0, ge=0)
    """Each read waits so long."""
    read_errors: ReadErrors = ReadErrors()
    inaccessible: bool = False
    """vCenter does not have the machine's configuration, as when its datastore is away."""


class Folder(Record):
    """A folder of virtual machines."""

    id: str
    name: str
    parent: str


class State(Record):
    """All that outlives the process."""

    format: int = 1
    port: int
    next_id: int = 100
    folders: list[Folder] = []
    vms: list[Vm] = []
    knobs: Knobs = Knobs()
    vm_knobs: dict[str, dict[str, object]] = {}
    fail_next: dict[str, list[str]] = {}
    """Faults by method name without "_Task" and "Ex", for the calls to come."""
