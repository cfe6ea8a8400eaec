"""Disks that are open at once, on all nodes together: never more than a site or a host allows, and nobody starves."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from sendense.errors import ConnectionsTaken
from sendense.jobs.ledger import Ledger, connect
from sendense.jobs.slots import Slot, Slots
from sendense.nbd.connect import no_beat
from sendense.settings import Settings
from tests.fleet import SITE, Fleet, wait_for
from tests.hub import Hub
from workers.handles import Handles

LONG = 1000.0
"""Seconds that no test lasts."""


@pytest.fixture
def slots(hub: Hub) -> Slots:
    """Slots of which none is taken."""
    return Slots(hub.client, LONG)


def slot(process: int, job: str = "a", host: str = "", site: str = SITE) -> Slot:
    """A slot where two disks may be open, one of them on each host."""
    return Slot(site, host, 2, 1, f"node/{process}", job)


def is_refused(slots: Slots, slot: Slot) -> str:
    """Why a slot is not to be had; empty when it was taken."""
    try:
        slots.take(slot)
    except ConnectionsTaken as exc:
        return str(exc)
    return ""


def test_limit_of_a_site(slots: Slots) -> None:
    """So many and no more, each counted once however often it is asked for; another site has its own."""
    for _ in range(3):
        slots.take(slot(1))
    slots.take(slot(2))
    with pytest.raises(ConnectionsTaken, match="site oslo: all of its 2 connections") as caught:
        slots.take(slot(3))
    assert "connections of the site" in caught.value.hint
    slots.take(slot(3, site="bergen"))
    slots.give_back(slot(1))
    slots.give_back(slot(1))
    slots.take(slot(3))
    assert is_refused(slots, slot(1))


def test_limit_of_a_host(slots: Slots) -> None:
    """Site and host are taken together or not at all: what a host refuses costs the site nothing."""
    slots.take(slot(1, "a", "esx1"))
    assert "host esx1 of site oslo: all of its 1 connections" in is_refused(slots, slot(2, "b", "esx1"))
    slots.take(slot(2, "c", "esx2"))
    assert "site oslo" in is_refused(slots, slot(3, "d", "esx3"))
    slots.give_back(slot(2, "c", "esx2"))
    slots.take(slot(3, "d", "esx3"))


def test_slots_lapse(hub: Hub) -> None:
    """A slot that nobody keeps is another's; its former holder has it no more, until there is room again."""
    slots, short = Slots(hub.client, LONG), Slots(hub.client, 0.2)
    short.take(slot(1, "a"))
    slots.take(slot(2, "b"))
    wait_for("the slot of the dead", lambda: not is_refused(slots, slot(3, "c")))
    assert not slots.keep(slot(1, "a"))
    assert slots.keep(slot(2, "b"))
    slots.give_back(slot(3, "c"))
    assert slots.keep(slot(1, "a")), "nobody has it"
    assert is_refused(slots, slot(3, "c"))


def test_a_lapsed_slot_that_nobody_wanted(hub: Hub) -> None:
    """After Redis was away for long, whoever still lives keeps what it has."""
    short = Slots(hub.client, 0.01)
    short.take(slot(1, "a", "esx1"))
    time.sleep(0.05)
    assert Slots(hub.client, LONG).keep(slot(1, "a", "esx1"))
    assert is_refused(short, slot(2, "b", "esx1"))


def test_first_come_first_served(slots: Slots) -> None:
    """Jobs without a slot get the next ones in the order of their wishes, ahead of those that have some."""
    slots.take(slot(1, "a"))
    slots.take(slot(2, "a"))
    assert is_refused(slots, slot(3, "b"))
    assert is_refused(slots, slot(4, "c"))
    slots.give_back(slot(2, "a"))
    assert is_refused(slots, slot(2, "a")), "it has another one"
    assert is_refused(slots, slot(4, "c")), "b was first"
    slots.take(slot(3, "b"))
    slots.give_back(slot(1, "a"))
    assert is_refused(slots, slot(1, "a")), "it has none any more, and c was first"
    slots.take(slot(4, "c"))
    slots.give_back(slot(3, "b"))
    slots.take(slot(1, "a"))


def test_one_makes_way_for_one(slots: Slots) -> None:
    """For each job without a slot one holder is told to close its disk; an idle holder also for one that has some."""
    slots.take(slot(1, "a"))
    slots.take(slot(2, "a"))
    assert is_refused(slots, slot(3, "a"))
    assert not slots.should_yield(slot(1, "a"), idle=False)
    assert slots.should_yield(slot(2, "a"), idle=True)
    slots.give_back(slot(2, "a"))
    slots.take(slot(2, "a"))
    assert is_refused(slots, slot(4, "b"))
    assert slots.should_yield(slot(1, "a"), idle=False)
    assert slots.should_yield(slot(1, "a"), idle=False), "the answer was lost"
    assert not slots.should_yield(slot(2, "a"), idle=False)
    slots.give_back(slot(1, "a"))
    slots.take(slot(4, "b"))
    assert not slots.should_yield(slot(2, "a"), idle=False)


def test_a_host_that_is_full_blocks_no_other(slots: Slots) -> None:
    """Whoever waits for a full host takes no slot of the site away from others."""
    slots.take(slot(1, "a", "esx1"))
    for job in "bcd":
        assert is_refused(slots, slot(2, job, "esx1"))
    slots.take(slot(3, "e", "esx2"))


@contextmanager
def handles(fleet: Fleet, settings: Settings, name: str) -> Iterator[Handles]:
    """The handles of a process, as a node's worker has them."""
    found = Handles(fleet.hub.ledger, Ledger(connect(fleet.hub.url, retries=0)), settings, name)
    yield found
    for job in fleet.jobs:
        found.drop(job.spec)


def nbdkits() -> set[int]:
    """The nbdkits that are children of this process, and run."""
    children = psutil.Process().children()
    return {each.pid for each in children if "plugin.py" in " ".join(_argv(each))}


def _argv(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() if process.status() != psutil.STATUS_ZOMBIE else []
    except psutil.NoSuchProcess:
        return []


def open_within(handles: Handles, fleet: Fleet, job: int) -> Callable[[], bool]:
    """Tries to have a job's disk open."""

    def look() -> bool:
        try:
            with handles.busy:
                handles.source(fleet.jobs[job].spec, no_beat)
        except ConnectionsTaken:
            return False
        return True

    return look


def test_an_idle_process_makes_way(fleet: Fleet) -> None:
    """A disk that a process keeps for its next batch is closed when another job has none; its own idle ones as well."""
    settings = fleet.configure(connections=1)
    first, _, third = (fleet.job(name, 1).spec for name in ("a", "b", "c"))
    with handles(fleet, settings, "n1") as one, handles(fleet, settings, "n2") as two:
        one.source(first, no_beat)
        wait_for("the slot of the idle one", open_within(two, fleet, 1))
        assert len(nbdkits()) == 1
        two.source(third, no_beat)
        assert len(nbdkits()) == 1
    assert nbdkits() == set()
    assert [sum(count.values()) for count in fleet.opened()] == [1, 1, 1]


def test_a_busy_process_makes_way_after_its_turn(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that goes from batch to batch keeps its disk for a turn, and then lets others have it."""
    settings = fleet.configure(connections=1)
    first, second = (fleet.job(name, 1).spec for name in ("a", "b"))
    with handles(fleet, settings, "n1") as one, handles(fleet, settings, "n2") as two:
        with one.busy:
            connection = one.source(first, no_beat)
            with pytest.raises(ConnectionsTaken):
                two.source(second, no_beat)
            one.tidy()
            assert one.source(first, no_beat) is connection
            monkeypatch.setattr("workers.disks.TURN_SECONDS", 0.0)
            one.tidy()
            with pytest.raises(ConnectionsTaken):
                one.source(first, no_beat)
            two.source(second, no_beat)


def test_an_ended_job_is_let_go_under_a_task(fleet: Fleet) -> None:
    """A process that is at a long batch of another job closes the ended one's disk meanwhile, and not its own."""
    settings, ledger = fleet.configure(), fleet.hub.ledger
    first, second = (fleet.job(name, 1).spec for name in ("a", "b"))
    with handles(fleet, settings, "n1") as one:
        with one.busy:
            one.source(first, no_beat)
            connection = one.source(second, no_beat)
            assert len(nbdkits()) == 2
            ledger.close("b")
            ledger.close("a")
            wait_for("the end of the first", lambda: not ledger.holders("a"))
            assert len(nbdkits()) == 1
            assert one.source(second, no_beat) is connection
        wait_for("the end of the second", lambda: not ledger.holders("b"))
        assert not nbdkits()


def test_a_lost_slot_ends_the_disk(fleet: Fleet) -> None:
    """A process that was stopped for so long that its slot is another's loses its disk, also amid a batch."""
    settings = fleet.configure(connections=1)
    first = fleet.job("a", 1).spec
    others = Slots(fleet.hub.client, LONG)
    with handles(fleet, settings, "n1") as one:
        with one.busy:
            connection = one.source(first, no_beat)
            assert nbdkits()
            fleet.hub.client.delete(f"sendense:slots:{SITE}:held")
            others.take(Slot(SITE, "", 1, 1, "n2/1", "b"))
            wait_for("the end of nbdkit", lambda: not nbdkits())
            assert isinstance(one.lost(first), ConnectionsTaken)
            with pytest.raises(ConnectionsTaken):
                one.source(first, no_beat)
            others.give_back(Slot(SITE, "", 1, 1, "n2/1", "b"))
            assert one.source(first, no_beat) is not connection
            assert one.lost(first) is None


def test_redis_is_away(fleet: Fleet) -> None:
    """A process that cannot keep its slot closes its disk before the slot is another's, and opens it again later."""
    settings = fleet.configure(connections=1)
    first = fleet.job("a", 1).spec
    with handles(fleet, settings, "n1") as one:
        one.source(first, no_beat)
        fleet.hub.kill()
        wait_for("the end of nbdkit", lambda: not nbdkits())
        fleet.hub.start()
        one.source(first, no_beat)
        assert len(nbdkits()) == 1


def test_two_nodes_and_two_connections(fleet: Fleet) -> None:
    """
    Six processes on two nodes, and a site of two connections: never more are open, not even for the surveys, and three
    disks are copied without a failure. One of the jobs says meanwhile what it waits for.
    """
    fleet.configure(connections=2, read_delay="50ms")
    with fleet.node("n1", 3), fleet.node("n2", 3):
        jobs = [fleet.job(name, 12) for name in ("a", "b", "c")]
        fleet.tick_until("a wait", lambda: any("all of its 2 conn" in job.ledger.shortage(job.id) for job in jobs))
        fleet.copy_all()
    for job in jobs:
        job.assert_copied()
        assert sum(job.progress.by_worker.values()) == job.progress.copied
    assert max(sum(count.values()) for count in fleet.opened()) == 2
    assert {name for count in fleet.opened() for name in count} == {"a", "b", "c"}


def test_a_host_of_one_connection(fleet: Fleet) -> None:
    """Two disks of one host take turns, while a third, of another host, is copied beside them."""
    fleet.configure(host_connections=1, read_delay="50ms")
    with fleet.node("n1", 4):
        for name, host in (("a", "esx1"), ("b", "esx1"), ("c", "esx2")):
            fleet.job(name, 12, host)
        fleet.copy_all()
    for job in fleet.jobs:
        job.assert_copied()
    opened = fleet.opened()
    assert max(count["a"] + count["b"] for count in opened) == 1
    assert max(count["c"] for count in opened) == 1
    assert max(sum(count.values()) for count in opened) == 2


def test_a_stopped_process(fleet: Fleet) -> None:
    """What a stopped node has open comes back by itself, and not before its nbdkit has ended with its process."""
    fleet.configure(connections=1, read_delay="50ms")
    with fleet.node("n1", 1) as first:
        job = fleet.job("a", 40)
        fleet.tick_until("the first batches", lambda: job.done > 3)
        with fleet.node("n2", 1):
            wait_for("a batch under way", lambda: any("n1/" in each.worker for each in job.progress.active), 0.0)
            (child,) = first.children()
            first.suspend()
            child.suspend()
            fleet.copy_all()
    lapses = len(job.ledger.failures(job.id))
    assert lapses <= 1  # none, if that batch ended meanwhile
    job.assert_copied(lapses)
    assert job.progress.by_worker["n2"] > 0
    assert max(sum(count.values()) for count in fleet.opened()) == 1
