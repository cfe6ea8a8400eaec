"""The routes under /api/v1, each a call of `Operations`."""

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Header, Request
from fastapi.security import HTTPBearer
from starlette.responses import Response

from sendense.api import problems
from sendense.api.calls import ASKING, LONG, POWER, Call
from sendense.api.parameters import (
    After,
    Before,
    DiskQuery,
    ExportInPath,
    Flag,
    IdempotencyKey,
    JobInPath,
    LastEventId,
    Limit,
    NodeInPath,
    PointInPath,
    SiteQuery,
    VmInPath,
    VmQuery,
    no_others,
)
from sendense.api.problems import problem
from sendense.api.streams import MEDIA_TYPE, STREAMS, EventStream, wants_stream
from sendense.models import VmInfo
from sendense.orders import (
    BackupOrder,
    DeleteOrder,
    MigrateOrder,
    Order,
    PreviewOrder,
    PruneOrder,
    RestoreOrder,
    VerifyOrder,
)
from sendense.requests import Event, JobState
from sendense.service.tokens import Token
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
    ServedDisk,
    SiteView,
    VmPoints,
)

_bearer = HTTPBearer(auto_error=False, description="Made by `sendense token create`.")  # only for the document
guarded = [Depends(_bearer), Depends(no_others)]
"""What every route under /api/v1 has; the gate has looked at the token before."""

api = APIRouter(prefix="/api/v1", dependencies=guarded)
_points = APIRouter()


# Sites and their VMs


@api.get("/sites", tags=["sites"], response_model=list[SiteView])
async def sites(call: Call) -> Response:
    """The sites that the hub knows."""
    return await call(lambda hub: hub.sites())


@api.get("/vms", tags=["sites"], response_model=list[VmInfo])
async def vms(call: Call, site: SiteQuery = "") -> Response:
    """The VMs of a site, or of all."""
    return await call(lambda hub: hub.vms(site), ASKING)


@api.get("/vms/{vm:vm}", tags=["sites"], response_model=VmInfo)
async def vm(call: Call, vm: VmInPath, site: SiteQuery = "") -> Response:
    """A VM as it is now."""
    return await call(lambda hub: hub.vm(vm, site), ASKING)


@api.post("/vms/{vm:path}/start", tags=["sites"], response_model=VmInfo)
async def start(call: Call, vm: VmInPath, site: SiteQuery = "") -> Response:
    """Turn a VM on; the answer is how it was before."""
    return await call.change({"site": site}, lambda hub: hub.power_on(vm, site), POWER)


# What makes jobs


async def _submit(call: Call, order: Order, key: str) -> Response:
    made = call.key(key)
    return await call.change(order, lambda hub: hub.submit(order, made), ASKING, status=202)


@api.post("/backups", tags=["backups"], response_model=Job, status_code=202)
async def start_backup(call: Call, order: BackupOrder, key: IdempotencyKey = "") -> Response:
    """Back a VM up."""
    return await _submit(call, order, key)


@api.post("/backups/preview", tags=["backups"], response_model=Preview)
async def preview(call: Call, order: PreviewOrder) -> Response:
    """What a backup would do."""
    return await call.change(order, lambda hub: hub.preview(order), LONG)


@api.post("/restores", tags=["restores"], response_model=Job, status_code=202)
async def start_restore(call: Call, order: RestoreOrder, key: IdempotencyKey = "") -> Response:
    """Restore disks of a restore point."""
    return await _submit(call, order, key)


@api.post("/verifications", tags=["verifications"], response_model=Job, status_code=202)
async def start_verification(call: Call, order: VerifyOrder, key: IdempotencyKey = "") -> Response:
    """Read a restore point back, and compare it with its digests."""
    return await _submit(call, order, key)


@api.post("/migrations", tags=["migrations"], response_model=Job, status_code=202)
async def start_migration(call: Call, order: MigrateOrder, key: IdempotencyKey = "") -> Response:
    """Copy a VM's disks to targets of their own."""
    return await _submit(call, order, key)


# Jobs


@api.get("/jobs", tags=["jobs"], response_model=JobPage)
async def jobs(
    call: Call,
    state: JobState | None = None,
    kind: Kind | None = None,
    vm: VmQuery = "",
    limit: Limit = 50,
    before: Before = "",
) -> Response:
    """Jobs, those that were begun or resumed last first."""
    return await call(lambda hub: hub.jobs(state, kind, vm, limit, before))


@api.get("/jobs/{job}", tags=["jobs"], response_model=Job)
async def job(call: Call, job: JobInPath) -> Response:
    """A job, with its progress by disk and by worker."""
    return await call(lambda hub: hub.job(job))


@api.post("/jobs/{job}/cancel", tags=["jobs"], response_model=Job)
async def cancel(call: Call, job: JobInPath) -> Response:
    """Have a job end, and clean up after itself."""
    return await call.change(None, lambda hub: hub.cancel(job))


@api.post("/jobs/{job}/pause", tags=["jobs"], response_model=Job)
async def pause(call: Call, job: JobInPath) -> Response:
    """Have a job rest: what it has under way ends, nothing more begins."""
    return await call.change(None, lambda hub: hub.pause(job))


@api.post("/jobs/{job}/resume", tags=["jobs"], response_model=Job)
async def resume(call: Call, job: JobInPath) -> Response:
    """Have a job go on: one that is paused, or one that failed or was cancelled."""
    return await call.change(None, lambda hub: hub.resume(job))


@api.get(
    "/jobs/{job}/events",
    tags=["jobs"],
    response_model=list[Event],
    responses={200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}},
)
async def events(
    request: Request,
    call: Call,
    job: JobInPath,
    after: After = "",
    progress: Flag = "false",
    last: LastEventId = "",
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> Response:
    """
    A job's history, oldest first; with `Accept: text/event-stream` as it happens.

    A stream's messages are Events, each with its id. The last one is named `end`, and has the Job as it ended. With
    `progress` there are messages named `job` as well, with the Job whenever something of it changed.
    """
    after = last or after or "-"
    if not wants_stream(accept):
        return await call(lambda hub: hub.events(job, after))
    id = await call.calls.run(lambda hub: hub.job(job).id, ASKING)
    if call.calls.streams >= STREAMS:
        return problem(request, problems.UNAVAILABLE, f"{STREAMS} event streams are open", "Close some, or poll.")
    token = cast(Token, request.scope["state"]["token"])
    return EventStream(call.calls, token, id, after, progress=progress == "true")


# Restore points, which are what backups make: under both names


@_points.get("", response_model=list[VmPoints])
async def points(call: Call, vm: VmQuery = "") -> Response:
    """The restore points of a VM, or of all, oldest first."""
    return await call(lambda hub: hub.points(vm))


@_points.get("/{point:path}/chain", response_model=list[DiskChain])
async def chain(call: Call, point: PointInPath) -> Response:
    """The images that the disks of a restore point are made of."""
    return await call(lambda hub: hub.chain(point))


@_points.get("/{point:point}", response_model=PointDetails)
async def point(call: Call, point: PointInPath) -> Response:
    """A restore point."""
    return await call(lambda hub: hub.point(point))


@_points.delete("/{point:point}", response_model=Deletion, status_code=202)
async def delete_point(call: Call, point: PointInPath, merge: Flag = "false", key: IdempotencyKey = "") -> Response:
    """Delete a restore point; with `merge` also one that others are built on."""
    return await _delete(call, DeleteOrder(points=[point], merge=merge == "true"), key)


async def _delete(call: Call, order: DeleteOrder, key: str) -> Response:
    made = call.key(key)
    return await call.change(order, lambda hub: hub.delete(order, made), status=202)


@api.post("/points/delete", tags=["points"], response_model=Deletion, status_code=202)
async def delete_points(call: Call, order: DeleteOrder, key: IdempotencyKey = "") -> Response:
    """Delete restore points of one VM: broken ones at once, the others by a job."""
    return await _delete(call, order, key)


@api.post("/points/prune", tags=["points"], response_model=list[Pruning])
async def prune(call: Call, order: PruneOrder, key: IdempotencyKey = "") -> Response:
    """Delete the restore points that no rule keeps, by a job for each VM; the newest stays."""
    made = call.key(key)
    return await call.change(order, lambda hub: hub.prune(order, made))


@api.post("/points/{point:path}/serve", tags=["points"], response_model=list[ServedDisk])
async def serve(call: Call, point: PointInPath, disk: DiskQuery = None) -> Response:
    """Serve disks of a restore point over NBD, read-only, until their exports are deleted."""
    return await call.change({"disk": disk}, lambda hub: hub.serve(point, disk))


api.include_router(_points, prefix="/points", tags=["points"])
api.include_router(_points, prefix="/backups", tags=["backups"])


# The hub itself


@api.get("/exports", tags=["hub"], response_model=list[ExportView])
async def exports(call: Call) -> Response:
    """What is served over NBD, and to whom."""
    return await call(lambda hub: hub.exports())


@api.delete("/exports/{export}", tags=["hub"], status_code=204)
async def unserve(call: Call, export: ExportInPath) -> Response:
    """End the export of a disk of a restore point."""
    return await call.change(None, lambda hub: hub.unserve(export))


@api.get("/nodes", tags=["nodes"], response_model=list[NodeView])
async def nodes(call: Call) -> Response:
    """The nodes that live."""
    return await call(lambda hub: hub.nodes())


@api.post("/nodes/{node}/drain", tags=["nodes"], response_model=NodeView)
async def drain(call: Call, node: NodeInPath) -> Response:
    """Have a node take no more work."""
    return await call.change(None, lambda hub: hub.drain(node))


@api.post("/nodes/{node}/resume", tags=["nodes"], response_model=NodeView)
async def undrain(call: Call, node: NodeInPath) -> Response:
    """Have a drained node take work again."""
    return await call.change(None, lambda hub: hub.undrain(node))


@api.get("/repository", tags=["hub"], response_model=RepositoryUsage)
async def repository(call: Call) -> Response:
    """What the repository takes, and what is left."""
    return await call(lambda hub: hub.repository())


@api.post("/clean", tags=["hub"], response_model=list[Cleaned])
async def clean(call: Call, foreign: Flag = "false") -> Response:
    """Remove whatever ended jobs left; `foreign`: also snapshots of jobs that nobody knows."""
    return await call.change({"foreign": foreign}, lambda hub: hub.clean(foreign == "true"), LONG)
