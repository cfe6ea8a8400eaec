"""A hub in figures: what Redis, the repository and its schedules tell at one moment; each apart, as any may be away."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from sendense.coordinator import run, upkeep
from sendense.coordinator.context import Context, open_repository
from sendense.coordinator.copying import copies_of
from sendense.coordinator.outbox import Outbox
from sendense.errors import InputError
from sendense.jobs import presence, tally
from sendense.jobs.tally import Tally
from sendense.models import HUB_SITE, UNDER_WAY, Node, VmRef
from sendense.repository.catalogue import Repository
from sendense.repository.finding import all_vms, is_new
from sendense.repository.points import Point
from sendense.requests import JobView
from sendense.service import scheduling, watching
from sendense.service.watching import SiteLook
from sendense.settings import Settings

TO_DO, QUEUED, RUNNING = "to-do", "queued", "running"
"""Batches of the plan that are not sent, or wait for another attempt; those that are sent; those that are claimed."""

_FIELDS = ("state", "spec", "began", "active", "batches", "batches_done")


@dataclass(frozen=True)
class Copy:
    """A disk that is being copied or read back: what is left of it, and since when (Redis's clock) it could go on."""

    site: str
    batches: dict[str, int]
    since: float
    paused: bool


@dataclass(frozen=True)
class HubFigures:
    """What Redis tells. Times in seconds since the epoch by its clock, sizes in bytes."""

    clock: float
    tally: Tally
    moving: dict[str, float]
    """By site when its last byte was moved."""
    states: dict[str, int]
    """How many of the remembered jobs are in each state."""
    copies: list[Copy]
    unattended: list[tuple[str, float]]
    """Of the jobs that nobody is at: the site whose turn it is, and since when."""
    snapshots: list[tuple[VmRef, float]]
    """Of active jobs: the VM, and when its snapshot was made."""
    sites: dict[str, SiteLook]
    nodes: dict[str, Node]
    """Those that live, by name."""
    known: dict[str, str]
    """The sites of those that live or are missed."""
    drained: set[str]
    memory: int
    memory_limit: int
    """0 for none."""
    keys: int
    routine: float
    """Seconds since what the hub does by itself was heard of; infinite where it never was."""
    notices: dict[str, float]
    """By receiver for how many seconds the notice waits that it does not take; 0 without one."""

    def idle(self) -> dict[str, float]:
        """
        By site for how many seconds no byte was moved, though there was work all that time; 0 without work.

        A job that nobody is at has waited for so long, whatever else of its site is copied meanwhile.
        """
        found = dict.fromkeys(self.moving, 0.0)
        for site in {copy.site for copy in self.copies}:
            began = [copy.since for copy in self.copies if copy.site == site and not copy.paused]
            last = max(min(began, default=self.clock), self.moving.get(site, 0.0))
            found[site] = max(0.0, self.clock - last)
        for site, since in self.unattended:
            if since < self.clock:
                found[site] = max(found.get(site, 0.0), self.clock - since)
        return found


@dataclass(frozen=True)
class VmFigures:
    """A VM with restore points. `newest`: when the newest sound one was made, in seconds since the epoch."""

    ref: VmRef
    points: int
    """Sound ones."""
    broken: int
    newest: float | None


@dataclass(frozen=True)
class RepositoryFigures:
    """What the repository tells; sizes in bytes of its file system."""

    free: int
    size: int
    vms: list[VmFigures] = field(default_factory=list)


@dataclass(frozen=True)
class StateFigures:
    """The file system of the hub's own folder, where its Redis and its logs are; in bytes."""

    free: int
    size: int


def read_hub(context: Context) -> HubFigures:
    """What Redis tells, in some fifteen round trips and one for each active job."""
    client = context.ledger.client
    counts, moving = tally.read(client)
    views = list(upkeep.active(context.jobs))
    memory = client.info("memory")
    outbox, now = Outbox(client), context.jobs.clock()
    return HubFigures(
        clock=now,
        tally=counts,
        moving=moving,
        states=context.jobs.states(),
        copies=list(_copies(context, views)),
        unattended=[(_site(view), since) for view, since in run.unattended(context, views)],
        snapshots=[(view.work.info.ref, at) for view in views if view.work.info and (at := _frozen(view))],
        sites=watching.looks(context),
        nodes={node.name: node for node in presence.nodes(client)},
        known=presence.known_nodes(client),
        drained=presence.drained(client),
        memory=int(memory["used_memory"]),
        memory_limit=int(memory.get("maxmemory", 0)),
        keys=client.dbsize(),
        routine=presence.routine_silence(client),
        notices={one: outbox.waits(one, now) for one in context.settings.notices.receivers},
    )


def batches(hub: HubFigures) -> Counter[str]:
    """The batches of all copies, by where they are."""
    found: Counter[str] = Counter(dict.fromkeys((TO_DO, QUEUED, RUNNING), 0))
    for copy in hub.copies:
        found.update(copy.batches)
    return found


def _site(view: JobView) -> str:
    """The site that the job's step belongs to."""
    return run.site_of(view) if run.place_of(view) == "control" else HUB_SITE


def _frozen(view: JobView) -> float:
    """When the snapshot was made that the job has; 0 without one."""
    return view.work.created.timestamp() if view.work.snapshot and view.work.created else 0.0


def _copies(context: Context, views: list[JobView]) -> Iterator[Copy]:
    names = [(view, name) for view in views for name in copies_of(view)]
    with context.ledger.client.pipeline(transaction=False) as pipe:
        for _, name in names:
            key = context.ledger.key
            pipe.hmget(key(name, "job"), _FIELDS)
            pipe.zcard(key(name, "sent"))
            pipe.zcard(key(name, "claims"))
            pipe.hlen(key(name, "failed"))
        answers = pipe.execute()
    for (view, _), record, queued, running, failed in zip(
        names, answers[::4], answers[1::4], answers[2::4], answers[3::4], strict=True
    ):
        state, spec, began, active, planned, done = record
        if spec is None or state is None or state.decode() not in UNDER_WAY:
            continue
        # Before it is planned its survey says that it is at work; after that, only bytes count.
        entered = (view.started or view.created).timestamp()
        since = float(began or 0) if state == b"copying" else max(entered, float(active or 0))
        left = int(planned or 0) - int(done or 0) - queued - running - failed
        found = {TO_DO: max(0, left), QUEUED: queued, RUNNING: running}
        yield Copy(site=json.loads(spec)["site"], batches=found, since=since, paused=view.paused)


class RepositoryReader:
    """Reads a repository again and again; what did not change since is not read anew."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._repository: Repository | None = None

    def read(self) -> RepositoryFigures:
        """
        What the repository tells; InputError or OSError where it is not there, or no folder of ours.

        Once one was there, an empty folder is no new one: its file system is not mounted.
        """
        path = self._settings.repository
        if path and not self._repository and is_new(path):
            usage = shutil.disk_usage(path if path.exists() else path.absolute().parent)
            return RepositoryFigures(free=usage.free, size=usage.total)
        repository = self._repository = self._repository or open_repository(self._settings, create=False)
        if not repository.layout.marker.exists():
            raise InputError(f"{path}: is no repository any more", "Is its file system mounted?")
        usage = shutil.disk_usage(repository.layout.root)
        return RepositoryFigures(free=usage.free, size=usage.total, vms=list(_vms(repository)))


def _vms(repository: Repository) -> Iterator[VmFigures]:
    """The VMs with restore points; not those whose points were all deleted."""
    sound, unusable = repository.sound_and_broken()
    broken = Counter(point.vm for point in unusable)
    points: dict[str, list[Point]] = {}
    for point in sound:  # the oldest first
        points.setdefault(point.vm.uuid, []).append(point)
    for uuid, each in points.items():
        yield VmFigures(each[-1].vm, len(each), broken.pop(uuid, 0), each[-1].created.timestamp())
    known = {vm.ref.uuid: vm.ref for vm in all_vms(repository)} if broken else {}
    for uuid, count in broken.items():
        if ref := known.get(uuid):
            yield VmFigures(ref, 0, count, None)


def read_state(settings: Settings) -> StateFigures:
    """How full the hub's own folder is; OSError without one."""
    usage = shutil.disk_usage(settings.hub_dir)
    return StateFigures(free=usage.free, size=usage.total)


def read_overdue(context: Context) -> list[tuple[VmRef, float]]:
    """The VMs that a schedule is for, and for how many seconds each is overdue; 0 for those that are not."""
    schedules = scheduling.attended(context)
    if not schedules:
        return []
    now = context.jobs.clock()
    late = {each.vm.uuid: (each.vm, now - each.due.timestamp()) for each in scheduling.overdue(context)}
    found = {seen.vm.uuid: (seen.vm, 0.0) for _, vms in schedules for seen in vms}
    return list((found | late).values())
