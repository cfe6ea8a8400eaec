"""A hub's figures as metrics: what is told, of what, and what is left out."""

import subprocess
from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sendense import errors
from sendense.errors import EndpointError, ReadStalled, SendenseError, StalledRequest
from sendense.jobs import tally
from sendense.jobs.tally import CLAIM_LAPSED, OTHER, STALLS, Tally, parse, stall_of, verdict_of
from sendense.models import Failure, Node, Tunnel, VmRef
from sendense.service.families import families
from sendense.service.figures import (
    QUEUED,
    RUNNING,
    TO_DO,
    Copy,
    HubFigures,
    RepositoryFigures,
    StateFigures,
    VmFigures,
)
from sendense.service.metrics import render
from sendense.service.watching import Orphan, SiteLook
from tests.hub import a_node

NOW = datetime(2026, 3, 1, tzinfo=UTC).timestamp()
DAY = 86_400.0


def vm(name: str, uuid: str = "") -> VmRef:
    """A VM of the site."""
    return VmRef(site="oslo", moref=f"vm-{name}", uuid=uuid or f"uuid-{name}", name=name)


def node(name: str, verdict: str = "ok") -> Node:
    """A node that copies."""
    return a_node(name, tunnel=Tunnel(verdict=verdict), active=3, rate=1e6)


def copy(site: str, since: float, *, paused: bool = False) -> Copy:
    """A disk that could go on since then (seconds ago)."""
    return Copy(site=site, batches={TO_DO: 5, QUEUED: 2, RUNNING: 1}, since=NOW - since, paused=paused)


def hub(**changes: object) -> HubFigures:
    """A hub that has little to tell."""
    known: dict[str, object] = {
        "clock": NOW,
        "tally": Tally(stalls=dict.fromkeys(STALLS, 0)),
        "moving": {},
        "states": {},
        "copies": [],
        "unattended": [],
        "snapshots": [],
        "sites": {},
        "nodes": {},
        "known": {},
        "drained": set(),
        "memory": 2**20,
        "memory_limit": 0,
        "keys": 7,
        "routine": 1.0,
        "notices": {},
    }
    return HubFigures(**{**known, **changes})  # type: ignore[arg-type]


def told(
    figures: HubFigures | None = None,
    repository: RepositoryFigures | None = None,
    overdue: list[tuple[VmRef, float]] | None = None,
    state: StateFigures | None = None,
) -> dict[str, dict[tuple[str, ...], float]]:
    """The samples by their metric and the values of their labels, by these' names; promtool has no fault to find."""
    text = render(families(figures, repository, state, overdue, "hub")).decode()
    subprocess.run(["promtool", "check", "metrics"], input=text, text=True, check=True, timeout=60)
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples = found.setdefault(sample.name, {})
            key = tuple(value for _, value in sorted(sample.labels.items()))
            assert key not in samples, sample
            samples[key] = sample.value
    return found


def test_parts_that_are_away() -> None:
    """Of a part that is away only that is told."""
    found = told()
    assert found.keys() == {"sendense_up", "sendense_build_info"}
    assert found["sendense_up"] == {("redis",): 0, ("repository",): 0}
    found = told(None, RepositoryFigures(free=1, size=2), [])
    assert found["sendense_up"] == {("redis",): 0, ("repository",): 1}
    assert "sendense_jobs" not in found
    found = told(state=StateFigures(free=3, size=4))
    assert (found["sendense_state_free_bytes"], found["sendense_state_size_bytes"]) == ({(): 3}, {(): 4})


def test_counts_that_begin_at_nothing() -> None:
    """What never happened is told as 0: a rate needs to have seen where it begins."""
    found = told(hub(known={"sna1": "oslo"}))
    assert found["sendense_jobs_ended_total"][("backup", "failed")] == 0
    assert found["sendense_stalls_total"] == {(verdict,): 0 for verdict in STALLS}
    assert found["sendense_time_limits_total"][("copy_extents",)] == 0
    assert found["sendense_copied_bytes_total"] == {("sna1", "oslo"): 0}
    assert found["sendense_retries_total"] == {(): 0}


def test_bytes_by_site_and_node() -> None:
    """A node's workers are counted together; a node whose name begins another's is not taken for it."""
    counts = {
        b"bytes/copy/oslo/sna1-copy": b"10",
        b"bytes/copy/oslo/sna1-solo": b"5",
        b"bytes/copy/oslo/sna1-b-copy": b"7",
        b"bytes/copy/oslo/forgotten-copy": b"99",
        b"bytes/verify/hub/hub-node": b"20",
    }
    found = told(hub(tally=parse(counts), known={"sna1": "oslo", "sna1-b": "oslo"}))
    assert found["sendense_copied_bytes_total"] == {("sna1", "oslo"): 15, ("sna1-b", "oslo"): 7}
    assert found["sendense_verified_bytes_total"][("hub", "hub")] == 20


def test_tally_of_another_version() -> None:
    """Counts that are not known here are left out; a verdict that is not is an other one."""
    found = parse({b"new/thing": b"1", b"stalls/new-verdict": b"2", b"stalls/other": b"1", b"retries": b"3"})
    assert (found.stalls[OTHER], found.retries) == (3, 3)
    assert found.stalls.keys() == set(STALLS)


def test_idle_site() -> None:
    """A site is idle since its last byte, or since its work came; not without work, nor where all work is paused."""
    figures = hub(
        moving={"busy": NOW - 2, "stuck": NOW - 300, "done": NOW - DAY, "new": NOW - DAY, "resting": NOW - DAY},
        copies=[
            copy("busy", 900),
            copy("stuck", 900),
            copy("stuck", 1),  # a new job does not hide that the other one is stuck
            copy("new", 7),
            copy("never", 50),
            copy("resting", 900, paused=True),
        ],
    )
    expected = {"busy": 2, "stuck": 300, "new": 7, "never": 50, "done": 0, "resting": 0}
    assert figures.idle() == pytest.approx(expected)
    found = told(figures)
    assert found["sendense_batches"] == {(TO_DO,): 30, (QUEUED,): 12, (RUNNING,): 6}


def test_job_that_nobody_is_at() -> None:
    """It is told whatever else of its site is copied; the one that waits longest counts, one that begins does not."""
    figures = hub(
        moving={"oslo": NOW - 2},
        copies=[copy("oslo", 900)],
        unattended=[("oslo", NOW - 200), ("oslo", NOW - 100), ("bergen", NOW - 300), ("hub", NOW + 5)],
    )
    assert figures.idle() == pytest.approx({"oslo": 200, "bergen": 300})


def test_nodes() -> None:
    """A node that is missed is down; its tunnel and its work are not told."""
    found = told(
        hub(
            nodes={"sna1": node("sna1"), "sna2": node("sna2", "refused")},
            known={"sna1": "oslo", "sna2": "oslo", "sna3": "oslo"},
            drained={"sna2", "long-gone"},
        )
    )
    up = {("sna1", "oslo"): 1, ("sna2", "oslo"): 1, ("sna3", "oslo"): 0}
    assert found["sendense_node_up"] == up
    assert found["sendense_node_drained"] == {("sna1", "oslo"): 0, ("sna2", "oslo"): 1, ("sna3", "oslo"): 0}
    assert found["sendense_node_tunnel_up"] == {("sna1", "oslo"): 1, ("sna2", "oslo"): 0}


def test_snapshots() -> None:
    """Of several snapshots of a VM the oldest counts; those of ended and of unknown jobs are apart."""
    orphans = [
        Orphan(vm=vm("web01"), name="sendense-a", known=True, made=NOW - 10),
        Orphan(vm=vm("web01"), name="sendense-b", known=True, made=NOW - 20),
        Orphan(vm=vm("web01"), name="sendense-c", known=False, made=NOW - 30),
    ]
    look = SiteLook(asked=NOW - 5, answered=NOW - 400, error="no answer", orphans=orphans)
    found = told(hub(sites={"oslo": look}, snapshots=[(vm("db01"), NOW - 60)]))
    labels = ("oslo", "uuid-web01", "web01")
    ages = {("ended", *labels): 20, ("unknown", *labels): 30}
    assert found["sendense_orphaned_snapshot_age_seconds"] == ages
    assert found["sendense_snapshot_age_seconds"] == {("oslo", "uuid-db01", "db01"): 60}
    assert found["sendense_site_up"] == {("oslo",): 0}
    assert found["sendense_site_asked_seconds"] == {("oslo",): 5}


def test_points() -> None:
    """Two VMs of one name are told apart; any name can be told; no age is below 0."""
    odd = 'we"b\\01\nä'
    repository = RepositoryFigures(
        free=10,
        size=100,
        vms=[
            VmFigures(ref=vm("web01", "1"), points=2, broken=1, newest=NOW - DAY),
            VmFigures(ref=vm("web01", "2"), points=1, broken=0, newest=NOW - 1),
            VmFigures(ref=vm(odd, "3"), points=1, broken=0, newest=NOW + 5),  # by a clock that was set back
            VmFigures(ref=vm("web02", "5"), points=0, broken=2, newest=None),
        ],
    )
    found = told(hub(), repository, [(vm("web01", "1"), 0.0), (vm("db01", "4"), 60.0)])
    assert found["sendense_point_age_seconds"] == {("1", "web01"): DAY, ("2", "web01"): 1, ("3", odd): 0}
    assert found["sendense_points"] == {("1", "web01"): 2, ("2", "web01"): 1, ("3", odd): 1, ("5", "web02"): 0}
    assert found["sendense_vm_overdue_seconds"] == {("1", "web01"): 0, ("4", "db01"): 60}
    broken = {key: count for key, count in found["sendense_repository_broken_points"].items() if count}
    assert broken == {("1", "web01"): 1, ("5", "web02"): 2}


STALLING = [
    each
    for each in vars(errors).values()
    if isinstance(each, type)
    and issubclass(each, EndpointError | StalledRequest)
    and each not in (EndpointError, StalledRequest)
    and each.stalled
]


@pytest.mark.parametrize("error", STALLING)
def test_every_stall_has_a_verdict(error: type[EndpointError | StalledRequest]) -> None:
    """None that is named counts as other."""
    assert error.verdict in STALLS


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (ReadStalled("nbd://x/", 0, 1, 30.0, "doctor: no-greeting in stage greeting: silent"), "no-greeting"),
        (ReadStalled("nbd://x/", 0, 1, 30.0, "doctor: ok, a new connection works and reads"), "read-stalled"),
        (ReadStalled("nbd://x/", 0, 1, 30.0, "nbdkit: error: lost"), "read-stalled"),
        (errors.InputError("no"), ""),
    ],
)
def test_verdict(error: SendenseError, verdict: str) -> None:
    """A stalled request counts as what the doctor found, where it found more than that it stalls."""
    assert verdict_of(error) == verdict


def test_what_counts_as_a_stall() -> None:
    """What did not stall counts as none; the ledger of another version may name a verdict that is new."""
    assert stall_of(Failure(error="ReadFailed", message="", verdict="read-error")) == ""
    assert stall_of(Failure(error="ReadStalled", message="", stalled=True, verdict="read-stalled")) == "read-stalled"
    assert stall_of(Failure(error="ReadStalled", message="", stalled=True)) == OTHER
    assert CLAIM_LAPSED in tally.STALLS
