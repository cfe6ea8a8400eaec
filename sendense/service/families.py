"""The metrics that a hub tells Prometheus, made of how it stands. docs/metrics.md lists them."""

import time
from collections.abc import Iterable, Iterator
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from sendense import __version__
from sendense.jobs import queues
from sendense.models import VmRef
from sendense.requests import JobState
from sendense.service.figures import HubFigures, RepositoryFigures, StateFigures, batches
from sendense.views import Kind

_TASKS = (queues.SURVEY, queues.COPY_EXTENTS, queues.SETTLE, queues.ADVANCE, queues.ANSWER, queues.ROUTINE)
_ENDS = ("succeeded", "failed", "cancelled", "different")
_VM = ("vm", "uuid")

Samples = Iterable[tuple[tuple[str, ...], float]]


def families(
    hub: HubFigures | None,
    repository: RepositoryFigures | None,
    state: StateFigures | None,
    overdue: list[tuple[VmRef, float]] | None,
    own: str,
) -> Iterator[Metric]:
    """All metrics; those of a part that is away (None) are left out. `own`: what this machine's workers are called."""
    yield _gauge(
        "sendense_up",
        "1 while this part of the hub answers.",
        ("part",),
        [(("redis",), hub is not None), (("repository",), repository is not None)],
    )
    yield _gauge("sendense_build_info", "1, with the hub's version.", ("version",), [((__version__,), 1)])
    if hub:
        yield from _of_jobs(hub)
        yield from _of_copying(hub, own)
        yield from _of_sites(hub)
        yield from _of_nodes(hub)
        yield from _of_routine(hub)
    if repository:
        yield from _of_repository(repository, hub.clock if hub else time.time())
    if state:
        yield _gauge("sendense_state_free_bytes", "Free on the state folder's file system.", (), [((), state.free)])
        yield _gauge("sendense_state_size_bytes", "Size of the state folder's file system.", (), [((), state.size)])
    if overdue is not None:
        yield _gauge(
            "sendense_vm_overdue_seconds",
            "Time since the VM should have had a newer restore point by its schedule; 0 if it has one.",
            _VM,
            (((vm.name, vm.uuid), seconds) for vm, seconds in overdue),
        )


def _of_jobs(hub: HubFigures) -> Iterator[Metric]:
    states = {state: hub.states.get(state, 0) for state in get_args(JobState)}
    yield _gauge(
        "sendense_jobs",
        "Jobs that the hub remembers, by state; the oldest ended ones are forgotten.",
        ("state",),
        (((state,), count) for state, count in states.items()),
    )
    ends = {(kind, state): 0 for kind in get_args(Kind) for state in _ENDS}
    yield _counter(
        "sendense_jobs_ended",
        "Ends of jobs; a job that is resumed ends again.",
        ("kind", "state"),
        (ends | hub.tally.jobs).items(),
    )
    yield _gauge("sendense_ledger_memory_bytes", "Memory that Redis uses.", (), [((), hub.memory)])
    yield _gauge(
        "sendense_ledger_memory_limit_bytes", "Memory that Redis may use; 0 for no limit.", (), [((), hub.memory_limit)]
    )
    yield _gauge("sendense_ledger_keys", "Keys in Redis: some twenty for each disk of a job.", (), [((), hub.keys)])


def _of_copying(hub: HubFigures, own: str) -> Iterator[Metric]:
    # From the beginning, as a rate needs to have seen the 0.
    moved: dict[str, dict[tuple[str, ...], float]] = {
        kind: {(site, node): 0.0 for node, site in hub.known.items()} for kind in ("copy", "verify")
    }
    for (kind, site, worker), count in hub.tally.moved.items():
        node = _node_of(worker, {own, *hub.known})
        if node and kind in moved:
            moved[kind][site, node] = moved[kind].get((site, node), 0) + count
    labels = ("site", "node")
    yield _counter(
        "sendense_copied_bytes", "Bytes that were copied, those copied twice included.", labels, moved["copy"].items()
    )
    yield _counter("sendense_verified_bytes", "Bytes that were read back.", labels, moved["verify"].items())
    yield _gauge(
        "sendense_batches",
        "Batches of active jobs that are not stored: not sent yet, sent, or under way.",
        ("state",),
        (((state,), count) for state, count in batches(hub).items()),
    )
    yield _gauge(
        "sendense_no_progress_seconds",
        "Time for which work of the site stands still: since its last byte, or since nobody is at one of its jobs.",
        ("site",),
        (((site,), seconds) for site, seconds in hub.idle().items()),
    )
    yield _counter(
        "sendense_retries", "Attempts of requests and batches that were made again.", (), [((), hub.tally.retries)]
    )
    yield _counter(
        "sendense_stalls",
        "Attempts that made no progress, by the doctor's verdict.",
        ("verdict",),
        (((verdict,), count) for verdict, count in hub.tally.stalls.items()),
    )
    limits = dict.fromkeys(_TASKS, 0) | hub.tally.limits
    yield _counter(
        "sendense_time_limits",
        "Processes that were killed at their task's time limit.",
        ("task",),
        (((task.removeprefix("sendense."),), count) for task, count in limits.items()),
    )


def _of_sites(hub: HubFigures) -> Iterator[Metric]:
    sites = hub.sites.items()
    yield _gauge(
        "sendense_site_up",
        "1 if the site's vCenter answered when the hub asked it last.",
        ("site",),
        (((site,), not look.error) for site, look in sites),
    )
    yield _gauge(
        "sendense_site_asked_seconds",
        "Time since the hub asked the site last: it does every five minutes.",
        ("site",),
        (((site,), max(0.0, hub.clock - look.asked)) for site, look in sites),
    )
    frozen = (((vm.site, vm.name, vm.uuid), hub.clock - made) for vm, made in hub.snapshots)
    labels = ("site", *_VM)
    yield _gauge("sendense_snapshot_age_seconds", "Age of the snapshot of an active job.", labels, _oldest(frozen))
    orphans = (
        ((site, each.vm.name, each.vm.uuid, "ended" if each.known else "unknown"), hub.clock - each.made)
        for site, look in sites
        for each in look.orphans
    )
    yield _gauge(
        "sendense_orphaned_snapshot_age_seconds",
        "Age of the VM's oldest snapshot that an ended job, or one that this hub does not know, left.",
        (*labels, "left_by"),
        _oldest(orphans),
    )


def _of_nodes(hub: HubFigures) -> Iterator[Metric]:
    labels = ("node", "site")
    known = hub.known | {name: node.site for name, node in hub.nodes.items()}
    up = [(node, (name, node.site)) for name, node in hub.nodes.items()]
    yield _gauge(
        "sendense_node_up",
        "1 while the node lives; 0 for a day if it did not end in good order.",
        labels,
        (((name, site), name in hub.nodes) for name, site in known.items()),
    )
    yield _gauge(
        "sendense_node_drained",
        "1 if the node was told to take no more work.",
        labels,
        (((name, site), name in hub.drained) for name, site in known.items()),
    )
    yield _gauge(
        "sendense_node_tunnel_up",
        "1 if the node reaches the hub's exports.",
        labels,
        ((key, node.tunnel.verdict == "ok") for node, key in up),
    )
    yield _gauge(
        "sendense_node_processes",
        "Processes of the node that copy.",
        labels,
        ((key, node.processes) for node, key in up),
    )
    yield _gauge(
        "sendense_node_batches",
        "Batches that the node has under way.",
        labels,
        ((key, node.active) for node, key in up),
    )
    yield _gauge(
        "sendense_node_round_trip_seconds",
        "Time from the node to Redis and back.",
        labels,
        ((key, node.round_trip) for node, key in up),
    )


def _of_routine(hub: HubFigures) -> Iterator[Metric]:
    yield _gauge(
        "sendense_routine_silence_seconds",
        "Time since what the hub does by itself was heard of: it is every few seconds.",
        (),
        [((), hub.routine)],
    )
    yield _gauge(
        "sendense_notices_waiting_seconds",
        "Age of the notice that the receiver does not take; 0 without one.",
        ("receiver",),
        (((receiver,), seconds) for receiver, seconds in hub.notices.items()),
    )
    given_up = dict.fromkeys(hub.notices, 0) | hub.tally.given_up
    yield _counter(
        "sendense_notices_given_up",
        "Notices that the receiver never got.",
        ("receiver",),
        (((receiver,), count) for receiver, count in given_up.items()),
    )


def _of_repository(repository: RepositoryFigures, clock: float) -> Iterator[Metric]:
    yield _gauge("sendense_repository_free_bytes", "Free on the repository's file system.", (), [((), repository.free)])
    yield _gauge("sendense_repository_size_bytes", "Size of the repository's file system.", (), [((), repository.size)])
    vms = [((vm.ref.name, vm.ref.uuid), vm) for vm in repository.vms]
    yield _gauge(
        "sendense_points", "Restore points of the VM that can be used.", _VM, ((key, vm.points) for key, vm in vms)
    )
    yield _gauge(
        "sendense_repository_broken_points",
        "Restore points of the VM that cannot be used.",
        _VM,
        ((key, vm.broken) for key, vm in vms),
    )
    yield _gauge(
        "sendense_point_age_seconds",
        "Age of the VM's newest restore point that can be used.",
        _VM,
        ((key, max(0.0, clock - vm.newest)) for key, vm in vms if vm.newest is not None),
    )


def _node_of(worker: str, nodes: set[str]) -> str:
    """The node that a worker, NODE-ROLE, is of; empty when it is of none that is known."""
    return max((node for node in nodes if worker.startswith(f"{node}-")), key=len, default="")


def _oldest(samples: Samples) -> Samples:
    found: dict[tuple[str, ...], float] = {}
    for key, age in samples:
        found[key] = max(0.0, age, found.get(key, 0.0))
    return found.items()


def _gauge(name: str, help: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    return _filled(GaugeMetricFamily(name, help, labels=labels), samples)


def _counter(name: str, help: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    return _filled(CounterMetricFamily(name, help, labels=labels), samples)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, samples: Samples) -> Metric:
    for values, number in samples:
        family.add_metric(values, float(number))
    return family
