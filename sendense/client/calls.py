"""Every call of a hub's API as a value (docs/api.md has the routes); functions are named as in `service.hub.Hub`."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter

from sendense.errors import NotFound
from sendense.maps import CopyMap, Part
from sendense.models import VmInfo
from sendense.notices import NoticeSent, NoticesView
from sendense.orders import (
    BackupOrder,
    DeleteOrder,
    MigrateOrder,
    Order,
    PreviewOrder,
    PruneOrder,
    RestoreOrder,
    ScheduleOrder,
    ThrottleOrder,
    VerifyOrder,
    make_order,
)
from sendense.requests import BackupMode, Event, JobState
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

QUICK_SECONDS = 30.0
"""For an answer that the hub has at hand, or finds in its repository. Each limit is longer than the hub's own."""

SILENT_SECONDS = 5.0
"""For which a hub that tells of a job may say nothing: it says each second what changed, or that it is there."""

SITE_SECONDS = 150.0
"""For one that a site has to give."""

POWER_SECONDS = 330.0
"""For a VM to be turned on."""

LONG_SECONDS = 1830.0
"""For what makes or removes snapshots."""

T = TypeVar("T")
Text = str | int | bool | None


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, how its answer is read, and how many seconds that may be silent."""

    method: str
    path: str
    answer: TypeAdapter[T]
    query: Mapping[str, str] = field(default_factory=dict)
    body: BaseModel | None = None
    key: str = ""
    """Sent again with it, the request makes no second job."""
    seconds: float = QUICK_SECONDS

    @property
    def may_be_repeated(self) -> bool:
        """Whether sending it twice does what sending it once does."""
        return self.method == "GET" or bool(self.key)


def sites() -> Call[list[SiteView]]:
    """The sites that the hub knows."""
    return _get("/sites", TypeAdapter(list[SiteView]))


def vms(site: str = "") -> Call[list[VmInfo]]:
    """The VMs of a site, or of all."""
    return _get("/vms", TypeAdapter(list[VmInfo]), SITE_SECONDS, site=site)


def vm(vm: str, site: str = "") -> Call[VmInfo]:
    """A VM by name, inventory path, UUID or moref; without a site, of the only one there is."""
    return _get(f"/vms/{_part('VM', vm)}", TypeAdapter(VmInfo), SITE_SECONDS, site=site)


def power_on(vm: str, site: str = "") -> Call[VmInfo]:
    """Turn a VM on; how it was before."""
    return _post(f"/vms/{_part('VM', vm)}/start", TypeAdapter(VmInfo), POWER_SECONDS, site=site)


def preview(order: PreviewOrder) -> Call[Preview]:
    """What a backup would do."""
    answer = TypeAdapter(Preview)
    return Call("POST", "/backups/preview", answer, body=order, seconds=LONG_SECONDS)


_ROUTES = {"backup": "/backups", "restore": "/restores", "verify": "/verifications", "migrate": "/migrations"}


def submit(order: Order, key: str = "") -> Call[Job]:
    """Begin a job; with a key that was given before, the one that it began."""
    return _order(_ROUTES[order.kind], TypeAdapter(Job), order, key, SITE_SECONDS)


def backup(
    vm: str,
    *,
    site: str = "",
    mode: BackupMode = "auto",
    disks: list[int] | None = None,
    quiesce: bool = True,
    verify: bool = False,
    key: str = "",
) -> Call[Job]:
    """Back a VM up."""
    fields = {"site": site, "mode": mode, "disks": disks or [], "quiesce": quiesce, "verify": verify}
    return submit(make_order(BackupOrder, vm=vm, **fields), key)


def restore(
    point: str, targets: Mapping[int, str], *, verify: bool = False, force: bool = False, key: str = ""
) -> Call[Job]:
    """Restore disks of a restore point, by device key, each onto an NBD URI or a new image at a path on the hub."""
    wanted = dict(targets)
    return submit(make_order(RestoreOrder, point=point, targets=wanted, verify=verify, force=force), key)


def verify(point: str, *, own: bool = False, key: str = "") -> Call[Job]:
    """Read a restore point back and compare it; `own`: not what it is built on."""
    return submit(make_order(VerifyOrder, point=point, own=own), key)


def migrate(
    vm: str,
    targets: Mapping[int, str],
    *,
    site: str = "",
    sync: bool = False,
    cutover: bool = False,
    quiesce: bool = True,
    verify: bool = False,
    key: str = "",
) -> Call[Job]:
    """Copy a VM's disks, by device key, each onto a target of its own; then what changed; then for good."""
    fields = {"site": site, "sync": sync, "cutover": cutover, "quiesce": quiesce, "verify": verify}
    return submit(make_order(MigrateOrder, vm=vm, targets=dict(targets), **fields), key)


def jobs(
    state: JobState | None = None, kind: Kind | None = None, vm: str = "", limit: int = 50, before: str = ""
) -> Call[JobPage]:
    """Jobs, the latest first, from behind the job `before`."""
    return _get("/jobs", TypeAdapter(JobPage), state=state, kind=kind, vm=vm, limit=limit, before=before)


def job(job: str) -> Call[Job]:
    """A job."""
    return _get(f"/jobs/{_part('job', job)}", TypeAdapter(Job))


def events(job: str, after: str = "-") -> Call[list[Event]]:
    """The job's history after that event, oldest first."""
    return _get(f"/jobs/{_part('job', job)}/events", TypeAdapter(list[Event]), after="" if after == "-" else after)


def stream(job: str, after: str = "-") -> Call[None]:
    """The same as it happens, with the job's progress: server-sent events (`client.streams`)."""
    query = _given({"after": "" if after == "-" else after, "progress": "true"})
    path = f"/jobs/{_part('job', job)}/events"
    return Call("GET", path, TypeAdapter(type(None)), query, seconds=SILENT_SECONDS)


def disk_map(job: str, disk: int, part: Part = "copying", after: str = "") -> Call[CopyMap]:
    """The map of a job's disk, by its place among them, or what changed on it since the cursor `after`."""
    return _get(f"/jobs/{_part('job', job)}/map", TypeAdapter(CopyMap), disk=disk, part=part, after=after)


def cancel(job: str) -> Call[Job]:
    """Have a job end and clean up after itself."""
    return _post(f"/jobs/{_part('job', job)}/cancel", TypeAdapter(Job))


def pause(job: str) -> Call[Job]:
    """Have a job rest."""
    return _post(f"/jobs/{_part('job', job)}/pause", TypeAdapter(Job))


def resume(job: str) -> Call[Job]:
    """Have a job go on: one that is paused, or one that failed or was cancelled."""
    return _post(f"/jobs/{_part('job', job)}/resume", TypeAdapter(Job))


def points(vm: str = "") -> Call[list[VmPoints]]:
    """The restore points of a VM, or of all."""
    return _get("/points", TypeAdapter(list[VmPoints]), vm=vm)


def point(point: str) -> Call[PointDetails]:
    """A restore point, also VM@latest."""
    return _get(f"/points/{_part('restore point', point)}", TypeAdapter(PointDetails))


def chain(point: str) -> Call[list[DiskChain]]:
    """The images behind each disk of a restore point."""
    return _get(f"/points/{_part('restore point', point)}/chain", TypeAdapter(list[DiskChain]))


def delete(order: DeleteOrder, key: str = "") -> Call[Deletion]:
    """Delete restore points."""
    return _order("/points/delete", TypeAdapter(Deletion), order, key)


def prune(order: PruneOrder, key: str = "") -> Call[list[Pruning]]:
    """Delete the restore points that no rule keeps."""
    return _order("/points/prune", TypeAdapter(list[Pruning]), order, key)


def clean(foreign: bool = False) -> Call[list[Cleaned]]:
    """Remove whatever ended jobs left."""
    return _post("/clean", TypeAdapter(list[Cleaned]), LONG_SECONDS, foreign="true" if foreign else "")


def schedules() -> Call[list[ScheduleView]]:
    """The schedules, and how they stand."""
    return _get("/schedules", TypeAdapter(list[ScheduleView]))


def schedule(name: str) -> Call[ScheduleView]:
    """A schedule, with each VM of its latest run."""
    return _get(f"/schedules/{_part('schedule', name)}", TypeAdapter(ScheduleView))


def add_schedule(order: ScheduleOrder) -> Call[ScheduleView]:
    """Make a schedule; one that orders the same is left as it is."""
    return Call("POST", "/schedules", TypeAdapter(ScheduleView), body=order, seconds=SITE_SECONDS)


def remove_schedule(name: str) -> Call[None]:
    """Delete a schedule: nothing more begins, what runs goes on."""
    return Call("DELETE", f"/schedules/{_part('schedule', name)}", TypeAdapter(type(None)))


def pause_schedule(name: str) -> Call[ScheduleView]:
    """Have a schedule begin nothing more."""
    return _post(f"/schedules/{_part('schedule', name)}/pause", TypeAdapter(ScheduleView))


def resume_schedule(name: str) -> Call[ScheduleView]:
    """Have it begin again, with its next time."""
    return _post(f"/schedules/{_part('schedule', name)}/resume", TypeAdapter(ScheduleView))


def run_schedule(name: str) -> Call[ScheduleView]:
    """Have it run now."""
    return _post(f"/schedules/{_part('schedule', name)}/run", TypeAdapter(ScheduleView))


def nodes() -> Call[list[NodeView]]:
    """The nodes that live."""
    return _get("/nodes", TypeAdapter(list[NodeView]))


def drain(node: str) -> Call[NodeView]:
    """Have a node take no more work."""
    return _post(f"/nodes/{_part('node', node)}/drain", TypeAdapter(NodeView))


def undrain(node: str) -> Call[NodeView]:
    """Have it take work again."""
    return _post(f"/nodes/{_part('node', node)}/resume", TypeAdapter(NodeView))


def throttles() -> Call[list[ThrottleView]]:
    """What may be read at each site, and what is read there now."""
    return _get("/throttles", TypeAdapter(list[ThrottleView]))


def set_throttle(site: str, order: ThrottleOrder) -> Call[ThrottleView]:
    """Limit what is read at a site, at a time of day or at all others; for jobs that run, too."""
    return Call("POST", f"/throttles/{_part('site', site)}", TypeAdapter(ThrottleView), body=order)


def remove_throttle(site: str, band: str = "") -> Call[ThrottleView]:
    """Lift the limit of a site: wholly, or at the times of a band, HH:MM-HH:MM."""
    query = _given({"band": band})
    return Call("DELETE", f"/throttles/{_part('site', site)}", TypeAdapter(ThrottleView), query)


def exports() -> Call[list[ExportView]]:
    """What is served over NBD, and to whom."""
    return _get("/exports", TypeAdapter(list[ExportView]))


def serve(point: str, disk: int | None = None) -> Call[list[ServedDisk]]:
    """Serve disks of a restore point read-only over NBD, until told otherwise."""
    return _post(f"/points/{_part('restore point', point)}/serve", TypeAdapter(list[ServedDisk]), disk=disk)


def unserve(export: str) -> Call[None]:
    """End what `serve` began."""
    return Call("DELETE", f"/exports/{_part('export', export)}", TypeAdapter(type(None)))


def repository() -> Call[RepositoryUsage]:
    """What the repository takes, and what is left."""
    return _get("/repository", TypeAdapter(RepositoryUsage))


def notices() -> Call[NoticesView]:
    """Who is told of failures, and how far that has got."""
    return _get("/notices", TypeAdapter(NoticesView))


def test_notices() -> Call[list[NoticeSent]]:
    """Send a notice to each receiver now; what came of it."""
    return _post("/notices/test", TypeAdapter(list[NoticeSent]), SITE_SECONDS)


def _get(path: str, answer: TypeAdapter[T], seconds: float = QUICK_SECONDS, **query: Text) -> Call[T]:
    return Call("GET", path, answer, _given(query), seconds=seconds)


def _post(path: str, answer: TypeAdapter[T], seconds: float = QUICK_SECONDS, **query: Text) -> Call[T]:
    return Call("POST", path, answer, _given(query), seconds=seconds)


def _order(path: str, answer: TypeAdapter[T], order: BaseModel, key: str, seconds: float = QUICK_SECONDS) -> Call[T]:
    return Call("POST", path, answer, body=order, key=key or uuid.uuid4().hex, seconds=seconds)


def _given(query: Mapping[str, Text]) -> dict[str, str]:
    """What says something: the API takes no empty words for nothing."""
    return {name: str(value) for name, value in query.items() if value not in (None, "")}


def _part(what: str, name: str) -> str:
    """A name as a part of a path, whatever is in it."""
    if name in ("", ".", ".."):
        raise NotFound(f"{what} '{name}': is no name", "Give it by its name or id.")
    return quote(name, safe="")
