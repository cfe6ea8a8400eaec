"""The one shape of a hub: `Operations` in this process, `sendense.Client` over HTTP. Commands know nothing else."""

from typing import Protocol

from sendense.maps import CopyMap, Part
from sendense.models import VmInfo
from sendense.notices import NoticeSent, NoticesView
from sendense.orders import DeleteOrder, Order, PreviewOrder, PruneOrder, ScheduleOrder, ThrottleOrder
from sendense.requests import Event, JobState
from sendense.views import (
    Cleaned,
    Deletion,
    DiskChain,
    ExportView,
    Job,
    JobPage,
    Kind,
    NodeView,
    PointDetails,
    Preview,
    Pruning,
    RepositoryUsage,
    ScheduleView,
    ServedDisk,
    SiteView,
    ThrottleView,
    VmPoints,
)


class Hub(Protocol):
    """
    Every call raises InputError (NotFound, Conflict) for a wrong request, and JobFailed or SiteError where it failed.

    `key` names an order: given again, it makes no second job. Jobs and points are named by their ids, or the beginning
    of one.
    """

    def sites(self) -> list[SiteView]:
        """The sites that the hub knows."""

    def vms(self, site: str = "") -> list[VmInfo]:
        """The VMs of a site, or of all."""

    def vm(self, vm: str, site: str = "") -> VmInfo:
        """A VM by name, inventory path, UUID or moref; without a site, of the only one there is."""

    def power_on(self, vm: str, site: str = "") -> VmInfo:
        """Turn a VM on; how it was before."""

    def preview(self, order: PreviewOrder) -> Preview:
        """What a backup would do."""

    def submit(self, order: Order, key: str) -> Job:
        """Begin a job."""

    def jobs(
        self,
        state: JobState | None = None,
        kind: Kind | None = None,
        vm: str = "",
        limit: int = 50,
        before: str = "",
    ) -> JobPage:
        """Jobs, the latest first, from behind the job `before`."""

    def job(self, job: str) -> Job:
        """A job."""

    def events(self, job: str, after: str = "-") -> list[Event]:
        """The job's history after that event, oldest first."""

    def disk_map(self, job: str, disk: int, part: Part = "copying", after: str = "") -> CopyMap:
        """The map of a job's disk, by its place among them, or what changed on it since the cursor `after`."""

    def cancel(self, job: str) -> Job:
        """Have a job end and clean up after itself."""

    def pause(self, job: str) -> Job:
        """Have a job rest."""

    def resume(self, job: str) -> Job:
        """Have a job go on: one that is paused, or one that failed or was cancelled."""

    def points(self, vm: str = "") -> list[VmPoints]:
        """The restore points of a VM, or of all."""

    def point(self, point: str) -> PointDetails:
        """A restore point, also VM@latest."""

    def chain(self, point: str) -> list[DiskChain]:
        """The images behind each disk of a restore point."""

    def delete(self, order: DeleteOrder, key: str) -> Deletion:
        """Delete restore points."""

    def prune(self, order: PruneOrder, key: str) -> list[Pruning]:
        """Delete the restore points that no rule keeps."""

    def schedules(self) -> list[ScheduleView]:
        """The schedules, and how they stand."""

    def schedule(self, name: str) -> ScheduleView:
        """A schedule, with each VM of its latest run."""

    def add_schedule(self, order: ScheduleOrder) -> ScheduleView:
        """Make a schedule; one that orders the same is left as it is."""

    def remove_schedule(self, name: str) -> None:
        """Delete a schedule: nothing more begins, what runs goes on."""

    def pause_schedule(self, name: str) -> ScheduleView:
        """Have a schedule begin nothing more."""

    def resume_schedule(self, name: str) -> ScheduleView:
        """Have it begin again, with its next time."""

    def run_schedule(self, name: str) -> ScheduleView:
        """Have it run now."""

    def clean(self, foreign: bool = False) -> list[Cleaned]:
        """Remove whatever ended jobs left."""

    def nodes(self) -> list[NodeView]:
        """The nodes that live."""

    def drain(self, node: str) -> NodeView:
        """Have a node take no more work."""

    def undrain(self, node: str) -> NodeView:
        """Have it take work again."""

    def throttles(self) -> list[ThrottleView]:
        """What may be read at each site, and what is read there now."""

    def set_throttle(self, site: str, order: ThrottleOrder) -> ThrottleView:
        """Limit what is read at a site, at a time of day or at all others; for jobs that run, too."""

    def remove_throttle(self, site: str, band: str = "") -> ThrottleView:
        """Lift the limit of a site: wholly, or at the times of a band, HH:MM-HH:MM."""

    def exports(self) -> list[ExportView]:
        """What is served over NBD, and to whom."""

    def serve(self, point: str, disk: int | None = None) -> list[ServedDisk]:
        """Serve disks of a restore point read-only over NBD, until told otherwise."""

    def unserve(self, export: str) -> None:
        """End what `serve` began."""

    def repository(self) -> RepositoryUsage:
        """What the repository takes, and what is left."""

    def notices(self) -> NoticesView:
        """Who is told of failures, and how far that has got."""

    def test_notices(self) -> list[NoticeSent]:
        """Send a notice to each receiver now; what came of it."""
