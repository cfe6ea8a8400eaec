"""Everything that a hub does for its users, over the records, the repository and the exports that it shares."""

import re
from collections.abc import Sequence
from contextlib import suppress

from sendense.beat import Beat, no_beat
from sendense.coordinator import cleaning, submission
from sendense.coordinator.asking import ask
from sendense.coordinator.context import Context, open_repository
from sendense.coordinator.copying import copies_of
from sendense.errors import Conflict, NotFound, SendenseError
from sendense.exports import Export, hub_export, reach
from sendense.jobs import broker, presence
from sendense.jobs.throttle import Throttles
from sendense.maps import CopyMap, Part
from sendense.models import VmInfo, VmRef
from sendense.notices import NoticeSent, NoticesView
from sendense.orders import DeleteOrder, Order, PreviewOrder, PruneOrder, ScheduleOrder, ThrottleOrder
from sendense.repository import merge
from sendense.repository.catalogue import Broken, Repository
from sendense.repository.finding import find_point, find_sound, is_new
from sendense.repository.points import Point
from sendense.repository.retention import keep
from sendense.requests import (
    BackupRequest,
    DeleteRequest,
    Event,
    JobRequest,
    JobState,
    JobView,
    MigrateRequest,
)
from sendense.service import delivery, maps, readiness, throttling
from sendense.service import points as catalogue
from sendense.service.describing import describe
from sendense.service.hub import Hub
from sendense.service.ordering import request_of
from sendense.service.schedules import Schedules
from sendense.times import zone_named
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
    Readiness,
    RepositoryUsage,
    ScheduleView,
    ServedDisk,
    SiteView,
    ThrottleView,
    VmPoints,
)

LOOK_SECONDS = 120.0
"""For a site to list or find VMs: a vCenter of thousands takes some ten seconds."""

POWER_SECONDS = 300.0
"""For a VM to be turned on: it may wait for its host."""

SNAPSHOT_SECONDS = 1800.0
"""For what makes or removes snapshots."""

_OF_JOB = re.compile(r"job-([0-9a-f]+)-([0-9]+)-[0-9a-f]+")
"""Exports of jobs (`coordinator.serving.export_name`)."""

_SERVED = "point-"
"""Begins the names of the exports of `serve`."""

_OF_POINT = re.compile(rf"{_SERVED}(.+)-([0-9]+)")


class Operations:
    """See `service.hub.Hub`. While a site answers, `beat` is called, and may raise."""

    def __init__(self, context: Context, beat: Beat = no_beat) -> None:
        self._context, self._jobs, self._beat = context, context.jobs, beat

    # Sites and their VMs

    def sites(self) -> list[SiteView]:
        """The sites that the hub knows."""
        nodes, own, living = (
            presence.nodes(self._context.ledger.client),
            self._context.settings.sites,
            self._living_sites(),
        )
        names = sorted({*own, *living, *(node.site for node in nodes)})
        return [
            SiteView(
                name=name,
                nodes=[node.name for node in nodes if node.site == name],
                reachable=name in living or name in own,
            )
            for name in names
        ]

    def vms(self, site: str = "") -> list[VmInfo]:
        """The VMs of a site, or of all."""
        sites = [self._site(site)] if site else self._sites() or [self._site("")]
        return [vm for name in sites for vm in self._ask(name, "vms", LOOK_SECONDS)]

    def vm(self, vm: str, site: str = "") -> VmInfo:
        """A VM as it is now."""
        found: VmInfo = self._ask(self._site(site), "vm", LOOK_SECONDS, vm=vm)
        return found

    def power_on(self, vm: str, site: str = "") -> VmInfo:
        """Turn a VM on; how it was before."""
        before: VmInfo = self._ask(self._site(site), "power-on", POWER_SECONDS, vm=vm)
        return before

    def preview(self, order: PreviewOrder) -> Preview:
        """What a backup would do."""
        site = self._site(order.site)
        info = self.vm(order.vm, site)
        order = order.model_copy(update={"vm": info.ref.moref, "site": site})
        parent = None if self._is_new() else self._repository().latest(info.ref.uuid)
        found: Preview = self._ask(site, "preview", SNAPSHOT_SECONDS, order=order, parent=parent)
        return found.model_copy(update={"job": self._job_at_work(info.ref)})

    # Jobs

    def submit(self, order: Order, key: str, found: tuple[JobRequest, str] | None = None) -> Job:
        """Begin a job, or show the one that this key began; `found`: what `request_of` says of it, if known."""
        job = self._jobs.id_for(key, order.model_dump_json())
        if not (view := self._jobs.get(job)):
            request, name = found or self.request_of(order)
            submission.submit(self._context, job, request, name)
            view = self._view(job)
        return self._described(view)

    def request_of(self, order: Order) -> tuple[JobRequest, str]:
        """What the order comes to, with everything named found; refuses what the job would refuse."""
        return request_of(order, self.vm, self._repository)

    def jobs(
        self,
        state: JobState | None = None,
        kind: Kind | None = None,
        vm: str = "",
        limit: int = 50,
        before: str = "",
    ) -> JobPage:
        """Jobs, the latest first, from behind the job `before`. `vm`: a name or UUID."""
        ids = self._jobs.ids()
        if before:
            if before not in ids:
                raise NotFound(f"job {before}: no such job", "Begin with the first page again.")
            ids = ids[ids.index(before) + 1 :]
        found: list[Job] = []
        for view in filter(None, map(self._jobs.get, ids)):
            if (state and view.state != state) or (kind and view.request.kind != kind) or (vm and vm not in _vms(view)):
                continue
            if len(found) == limit:
                return JobPage(jobs=found, following=found[-1].id)
            found.append(self._described(view))
        return JobPage(jobs=found, following="")

    def job(self, job: str) -> Job:
        """A job."""
        return self._described(self._jobs.find(job))

    def events(self, job: str, after: str = "-") -> list[Event]:
        """The job's history after that event, oldest first."""
        return self._jobs.events(self._jobs.find(job).id, after)

    def disk_map(self, job: str, disk: int, part: Part = "copying", after: str = "") -> CopyMap:
        """The map of a job's disk, by its place among them, or what changed on it since the cursor `after`."""
        return maps.disk_map(self._context.ledger, self._jobs.find(job), disk, part, after)

    def cancel(self, job: str) -> Job:
        """Have a job end and clean up after itself."""
        view = self._active(job, "cancel")
        self._jobs.cancel(view.id)
        return self._nudged(view)

    def pause(self, job: str) -> Job:
        """Have a job rest: what it has under way ends, nothing more begins."""
        view = self._active(job, "pause")
        if view.cancelled:
            raise Conflict(f"job {view.id}: is being cancelled", "It cleans up, which cannot wait.")
        self._jobs.pause(view.id, True)
        return self._nudged(view)

    def resume(self, job: str) -> Job:
        """Have a job go on: one that is paused, or one that failed or was cancelled."""
        view = self._jobs.find(job)
        if view.paused and not view.ended:
            self._jobs.pause(view.id, False)
            return self._nudged(view)
        submission.resume(self._context, view.id)
        return self._described(self._view(view.id))

    def clean(self, foreign: bool = False) -> list[Cleaned]:
        """Remove whatever ended jobs left."""
        found: list[Cleaned] = []
        active = self._jobs.active()
        known = self._jobs.ids()
        for site in self._sites():
            try:
                found += self._ask(site, "clean", SNAPSHOT_SECONDS, active=active, known=known, foreign=foreign)
            except SendenseError as exc:
                found.append(Cleaned(text=f"site {site}: not cleaned: {exc}", failed=True))
        return [*found, *cleaning.clean(self._context)]

    # Restore points

    def points(self, vm: str = "") -> list[VmPoints]:
        """The restore points of a VM, or of all."""
        return catalogue.list_points(self._repository(), vm)

    def point(self, point: str) -> PointDetails:
        """A restore point, also VM@latest."""
        return catalogue.details(self._repository(), point)

    def chain(self, point: str) -> list[DiskChain]:
        """The images behind each disk of a restore point."""
        return catalogue.chain(self._repository(), point)

    def delete(self, order: DeleteOrder, key: str) -> Deletion:
        """Delete restore points: broken ones at once, the others by a job."""
        job = self._jobs.id_for(key, order.model_dump_json())
        if view := self._jobs.get(job):
            return Deletion(deleted=[], job=self._described(view))
        repository = self._repository()
        found = [find_point(repository, name) for name in order.points]
        uuid = catalogue.vm_of(found)
        sound = list({point.id: point for point in found if isinstance(point, Point)}.values())
        if not order.merge:
            catalogue.must_be_free(repository, sound)
        broken = {point.id: point for point in found if isinstance(point, Broken)}
        for id in sorted(broken, reverse=True):  # what is built on another is newer
            merge.delete_broken(repository, broken[id])
        ordered = catalogue.in_order(sound, repository.points(uuid))
        begun = self._delete(job, sound[0].vm, ordered, merge=order.merge) if ordered else None
        return Deletion(deleted=list(broken), job=begun)

    def prune(self, order: PruneOrder, key: str, beside: Sequence[PruneOrder] = ()) -> list[Pruning]:
        """Delete the restore points that no rule keeps, also none of those `beside`, by a job for each VM."""
        repository = self._repository()
        rules = [(catalogue.policy_of(each), zone_named(each.timezone)) for each in (order, *beside)]
        found = []
        for known in catalogue.named_vms(repository, order.vm):
            points = repository.points(known.ref.uuid)
            if not points:
                continue
            kept = dict[str, list[str]]()
            for policy, zone in rules:
                kept |= keep([(point.id, point.created) for point in points], policy, zone)
            going = catalogue.in_order([point for point in points if point.id not in kept], points)
            begun = None
            if going and not order.dry_run:
                job = self._jobs.id_for(f"{key} {known.ref.uuid}", order.model_dump_json())
                begun = self._delete(job, points[-1].vm, going, merge=True)
            shown = catalogue.points_of(repository, known)
            found.append(Pruning(vm=known.ref, kept=kept, going=going, points=points, broken=shown.broken, job=begun))
        return found

    def repository(self) -> RepositoryUsage:
        """What the repository takes, and what is left."""
        return catalogue.usage(self._repository())

    # Schedules

    def schedules(self) -> list[ScheduleView]:
        """The schedules, and how they stand."""
        return self._schedules.all()

    def schedule(self, name: str) -> ScheduleView:
        """A schedule, with each VM of its latest run."""
        return self._schedules.one(name)

    def add_schedule(self, order: ScheduleOrder) -> ScheduleView:
        """Make a schedule; one that orders the same is left as it is."""
        return self._schedules.add(order, self.request_of, self._sites())

    def remove_schedule(self, name: str) -> None:
        """Delete a schedule: nothing more begins, what runs goes on."""
        self._schedules.remove(name)

    def pause_schedule(self, name: str) -> ScheduleView:
        """Have a schedule begin nothing more."""
        return self._schedules.pause(name, True)

    def resume_schedule(self, name: str) -> ScheduleView:
        """Have it begin again, with its next time."""
        return self._schedules.pause(name, False)

    def run_schedule(self, name: str) -> ScheduleView:
        """Have it run now."""
        return self._schedules.run(name)

    # Nodes and exports

    def nodes(self) -> list[NodeView]:
        """The nodes that live."""
        client = self._context.ledger.client
        nodes, drained, throttles = presence.nodes(client), presence.drained(client), Throttles(client)
        limits = {site: throttles.look(site).rate for site in {node.site for node in nodes}}
        return [NodeView(**node.model_dump(), drained=node.name in drained, limit=limits[node.site]) for node in nodes]

    def drain(self, node: str) -> NodeView:
        """Have a node take no more work."""
        return self._set_drained(node, True)

    def undrain(self, node: str) -> NodeView:
        """Have it take work again."""
        return self._set_drained(node, False)

    def throttles(self) -> list[ThrottleView]:
        """What may be read at each site, and what is read there now."""
        return throttling.show(self._context, self._known_sites())

    def set_throttle(self, site: str, order: ThrottleOrder) -> ThrottleView:
        """Limit what is read at a site, at a time of day or at all others; for jobs that run, too."""
        return throttling.set_rate(self._context, site, order, self._known_sites(), self._beat)

    def remove_throttle(self, site: str, band: str = "") -> ThrottleView:
        """Lift the limit of a site: wholly, or at the times of a band, HH:MM-HH:MM."""
        return throttling.remove(self._context, site, band, self._beat)

    def exports(self) -> list[ExportView]:
        """What is served over NBD, and to whom."""
        return [self._export(export) for export in self._context.exports(self._beat).list()]

    def serve(self, point: str, disk: int | None = None) -> list[ServedDisk]:
        """Serve disks of a restore point read-only over NBD, until `unserve`."""
        repository, exports = self._repository(), self._context.exports(self._beat)
        found = find_sound(repository, point)
        served = []
        for each in [found.disk(disk)] if disk is not None else found.disks:
            name = f"{_SERVED}{found.id}-{each.key}"
            image = repository.levels(found, each.key)[0].image
            self._jobs.keep_served(name, str(image))
            exports.add(name, image, writable=False)
            if name not in self._jobs.served():
                exports.remove(name)
                raise Conflict(f"export {name}: was ended by somebody at the same moment", "Serve it again.")
            uri = reach(hub_export(name), self._context.settings)
            served.append(ServedDisk(key=each.key, label=each.label, size=each.size, export=name, uri=uri))
        return served

    def unserve(self, export: str) -> None:
        """End what `serve` began."""
        exports = self._context.exports(self._beat)
        known = export in self._jobs.served() or any(each.name == export for each in exports.list())
        if known and (match := _OF_JOB.fullmatch(export)):
            hint = f"It ends with that: sendense jobs cancel {match[1]}"
            raise Conflict(f"export {export}: is of job {match[1]}", hint)
        if not export.startswith(_SERVED) or not known:
            raise NotFound(f"export {export}: is of no restore point that is served", "List them: sendense exports")
        self._jobs.drop_served(export)  # first, or it is put back
        exports.remove(export)

    def flower_url(self) -> str:
        """Where the hub's Flower is; empty where it has none."""
        settings = self._context.settings
        return settings.flower_listen and f"{'https' if settings.tls_dir else 'http'}://{settings.flower_listen}/"

    def notices(self) -> NoticesView:
        """Who is told of failures, and how far that has got."""
        return delivery.show(self._context)

    def test_notices(self) -> list[NoticeSent]:
        """Send a notice to each receiver now; what came of it."""
        return delivery.test(self._context)

    def readiness(self) -> Readiness:
        """Whether the hub can do its work: whatever it needs is there and answers."""
        checks = list(readiness.checks(self._context))
        return Readiness(ready=not any(check.error for check in checks), checks=checks)

    # Behind them

    @property
    def _schedules(self) -> Schedules:
        return Schedules(self._context, self._beat)

    def _repository(self) -> Repository:
        return open_repository(self._context.settings, create=False)

    def _is_new(self) -> bool:
        path = self._context.settings.repository
        return path is not None and is_new(path)

    def _ask(self, site: str, question: str, seconds: float, **arguments: object):  # type: ignore[no-untyped-def]
        return ask(self._context, site, question, seconds=seconds, beat=self._beat, **arguments)

    def _living_sites(self) -> set[str]:
        """Those whose control workers are there; none while no hub runs."""
        with suppress(*broker.Unavailable):
            return presence.controlled_sites(self._context.ledger.client)
        return set()

    def _sites(self) -> list[str]:
        return sorted({*self._context.settings.sites, *self._living_sites()})

    def _site(self, name: str) -> str:
        """The site of that name; without a name the only one there is."""
        if name in self._context.settings.sites:
            return name
        known = self._sites()
        if name in known:
            return name
        if not known:
            hint = "Describe it in the settings file under [sites.NAME] (docs/settings.md), or start a node there."
            raise Conflict("no site is set", hint)
        if name:
            raise NotFound(f"site {name}: not known here", f"Known are: {', '.join(known)}.")
        if len(known) > 1:
            raise Conflict("there are several sites", f"Name one with --site: {', '.join(known)}.")
        return known[0]

    def _known_sites(self) -> list[str]:
        return [site.name for site in self.sites()]

    def _view(self, job: str) -> JobView:
        view = self._jobs.get(job)
        if not view:
            raise NotFound(f"job {job}: is not remembered any more", "'sendense jobs' lists those that are.")
        return view

    def _described(self, view: JobView) -> Job:
        return describe(self._context.ledger, view)

    def _active(self, job: str, verb: str) -> JobView:
        view = self._jobs.find(job)
        if view.ended:
            raise Conflict(f"job {view.id}: {view.state} already", f"There is nothing to {verb}.")
        return view

    def _nudged(self, view: JobView) -> Job:
        submission.send(self._context, view.id)
        return self._described(self._view(view.id))

    def _delete(self, job: str, vm: VmRef, points: list[str], *, merge: bool) -> Job:
        plural = "s" * (len(points) > 1)
        name = f"deletion of {len(points)} restore point{plural} of {vm.name}"
        if not self._jobs.get(job):
            submission.submit(self._context, job, DeleteRequest(vm=vm, points=points, merge=merge), name)
        return self._described(self._view(job))

    def _job_at_work(self, vm: VmRef) -> str:
        """The job that has this VM, if a hub is up that knows of one."""
        with suppress(*broker.Unavailable):
            for view in filter(None, map(self._jobs.get, self._jobs.active())):
                if vm.uuid in _vms(view):
                    return view.id
        return ""

    def _set_drained(self, name: str, drained: bool) -> NodeView:
        node = next((node for node in self.nodes() if node.name == name), None)
        if not node:
            raise NotFound(f"node {name}: no such node is up", "List them: sendense nodes")
        presence.set_drained(self._context.ledger.client, name, drained)
        return node.model_copy(update={"drained": drained})

    def _export(self, export: Export) -> ExportView:
        of_job, of_point = _OF_JOB.fullmatch(export.name), _OF_POINT.fullmatch(export.name)
        match, job = of_job or of_point, of_job[1] if of_job else ""
        view = self._jobs.get(job) if job else None
        clients = {each for copy in copies_of(view) for each in self._context.ledger.holders(copy)} if view else set()
        return ExportView(
            name=export.name,
            image=str(export.image),
            writable=export.writable,
            closing=export.closing,
            job=job,
            disk=int(match[2]) if match else None,
            clients=sorted(clients),
            point=of_point[1] if of_point else "",
            uri=reach(hub_export(export.name), self._context.settings),
        )


def _vms(view: JobView) -> tuple[str, ...]:
    """The name and the UUID of the VM that a job is about."""
    request = view.request
    if isinstance(request, BackupRequest | MigrateRequest | DeleteRequest):
        return request.vm.name, request.vm.uuid
    return (request.name,)


def as_hub(operations: Operations) -> Hub:
    """The types' proof that it is one."""
    return operations
