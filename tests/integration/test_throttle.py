"""A site's throttle over processes that are stopped, killed and restarted, and over a Redis that is."""

import threading
import time
from contextlib import suppress

import psutil
import pytest

from sendense.extents import Extent
from sendense.jobs.claim import ClaimKeeper
from sendense.jobs.ledger import Ledger, connect
from sendense.jobs.plan import batch_of
from sendense.jobs.throttle import (
    CHUNK_SECONDS,
    HELD_SHARE,
    LOOK_SECONDS,
    STALE_SECONDS,
    Allowance,
    SiteThrottle,
    Throttles,
)
from sendense.models import JobSpec, Survey
from sendense.units import KiB, MiB
from tests.fleet import SITE, Fleet, Job, wait_for
from tests.hub import Hub

REQUEST = 64 * KiB
RATE = 4 * MiB
"""Bytes a second: what a busy machine copies as well."""

LONG = 3600.0
"""Seconds that a process may wait for what it is promised."""

OVER = 1.1
"""Times its limit that a site may read."""


@pytest.fixture
def throttles(hub: Hub) -> Throttles:
    """Throttles of which none is set."""
    return Throttles(hub.client)


def process(hub: Hub, name: str) -> SiteThrottle:
    """What a process of a node has."""
    return SiteThrottle(Ledger(connect(hub.url, retries=0)), SITE, name)


class Reader(threading.Thread):
    """Reads as fast as it may, until it is told to end."""

    def __init__(self, throttle: SiteThrottle) -> None:
        super().__init__(daemon=True)
        self._throttle, self._over = throttle, threading.Event()
        self.read = 0
        self.start()

    def run(self) -> None:
        """Read until told to end."""
        while not self._over.is_set():
            if wait := self._throttle.take(REQUEST, LONG):
                self._over.wait(wait)
            else:
                self.read += REQUEST

    def end(self) -> None:
        """Have it end."""
        self._over.set()
        self.join(10.0)


def ask(
    throttles: Throttles, name: str, since: str = "", useful: int = REQUEST, patience: float = LONG
) -> tuple[int, float, str]:
    """Bytes that a process is promised, in how many seconds, and the limit's name."""
    found = throttles.ask(SITE, name, 0, REQUEST, useful, since, patience)
    return found.bytes, found.wait, found.since


def test_promises_are_one_after_the_other(throttles: Throttles) -> None:
    """
    Each process is promised its request behind those of the others, who are owed no more by one that never reads it.

    Times can only be shorter than these, as time passes.
    """
    throttles.put_in_force(SITE, RATE)
    each = REQUEST / RATE
    waits = [ask(throttles, name)[1] for name in ("dead", "a", "b", "a", "b")]
    assert all(wait <= number * each for number, wait in enumerate(waits))
    assert waits[-1] > waits[0]
    assert ask(throttles, "c")[1] <= 5 * each


def test_a_chunk_is_shared(throttles: Throttles) -> None:
    """What is promised at a time is a quarter of a second's of all processes together, and a request at least."""
    throttles.put_in_force(SITE, RATE)
    assert ask(throttles, "a", useful=10**9)[0] == int(RATE * CHUNK_SECONDS)
    assert ask(throttles, "b", useful=10**9)[0] == int(RATE * CHUNK_SECONDS / 2)
    assert ask(throttles, "b", useful=REQUEST + 1)[0] == REQUEST + 1
    throttles.put_in_force(SITE, REQUEST)
    assert ask(throttles, "a", useful=10**9)[0] == REQUEST


def next_of(hub: Hub) -> bytes | None:
    """When what is promised next may be read."""
    return hub.client.hget(f"sendense:throttle:{SITE}", "next")  # type: ignore[return-value]


def lined_up(throttles: Throttles, hub: Hub) -> bytes | None:
    """The same, after so much was promised to another that it is in more than a minute."""
    for _ in range(100):
        ask(throttles, "a")
    return next_of(hub)


def test_no_promise_later_than_is_of_use(throttles: Throttles, hub: Hub) -> None:
    """
    A process whose batch may not wait for so long is promised nothing, and takes nobody's turn; it asks again, and is
    promised what comes in time.
    """
    throttles.put_in_force(SITE, REQUEST)
    line = lined_up(throttles, hub)
    hasty = process(hub, "n/1")
    for _ in range(2):
        assert 0 < hasty.take(REQUEST, 1.0) <= LOOK_SECONDS + 0.1
    assert ask(throttles, "b", patience=1.0)[0] == 0
    assert next_of(hub) == line
    assert throttles.look(SITE).holds
    throttles.put_in_force(SITE, RATE)
    reader = Reader(hasty)
    try:
        wait_for("its turn", lambda: reader.read)
    finally:
        reader.end()


def test_no_debt_after_a_change(throttles: Throttles) -> None:
    """
    A promise stands while its limit does, and no longer: under another, nobody waits for what the old one owed.

    To set the limit that is there, as the hub does all the time, changes nothing.
    """
    throttles.put_in_force(SITE, REQUEST)
    for _ in range(100):
        _, wait, since = ask(throttles, "a")
    assert wait > 90
    throttles.put_in_force(SITE, REQUEST)
    assert ask(throttles, "a", since)[0] == 0, "it waits for what it was promised"
    throttles.put_in_force(SITE, 2 * REQUEST)
    promised, wait, other = ask(throttles, "a", since)
    assert (promised, wait, other == since) == (REQUEST, 0.0, False)
    throttles.put_in_force(SITE, 0)
    assert ask(throttles, "a", other)[:2] == (0, 0.0)
    assert throttles.look(SITE)[:2] == (0, False)
    assert throttles.limited() == set()


def test_a_clock_that_is_put_back(throttles: Throttles, hub: Hub) -> None:
    """Promises that were made when it was later hold nobody for hours."""
    throttles.put_in_force(SITE, RATE)
    ask(throttles, "a")
    for field in ("next", "seen"):
        hub.client.hincrbyfloat(f"sendense:throttle:{SITE}", field, 3600)
    hub.client.zincrby(f"sendense:throttle:{SITE}:asking", 3600, "a")
    assert ask(throttles, "b", useful=10**9)[:2] == (int(RATE * CHUNK_SECONDS), 0.0)


def test_unused_time_is_lost(throttles: Throttles, hub: Hub) -> None:
    """After a rest of an hour, the limit is what it was: nobody may catch up."""
    throttles.put_in_force(SITE, RATE)
    hub.client.hincrbyfloat(f"sendense:throttle:{SITE}", "next", -3600)
    began = time.monotonic()
    waits = [ask(throttles, "a", useful=10**9)[1] for _ in range(40)]
    assert waits[-1] > (len(waits) - 4) * CHUNK_SECONDS - (time.monotonic() - began)


def test_the_rate_is_held_and_shared(throttles: Throttles, hub: Hub) -> None:
    """Processes together read what the limit allows, those that can equally; a new limit has effect at once."""
    throttles.put_in_force(SITE, RATE)
    readers = [Reader(process(hub, f"n{number}/1")) for number in range(4)]
    try:
        for limit in (RATE, 4 * RATE, RATE // 4):
            throttles.put_in_force(SITE, limit)
            time.sleep(1.5)  # chunks of the limit before, and until everybody has looked
            before, began = [reader.read for reader in readers], time.monotonic()
            time.sleep(2.0)
            read = [reader.read - was for reader, was in zip(readers, before, strict=True)]
            seconds = time.monotonic() - began
            allowed = OVER * limit * seconds + 3 * limit * CHUNK_SECONDS + len(readers) * REQUEST
            assert sum(read) <= allowed, (limit, read, seconds)
            assert min(read) > 0
        assert throttles.look(SITE).holds
        throttles.put_in_force(SITE, 0)
        before = [reader.read for reader in readers]
        wait_for(
            "reads without a limit", lambda: min(r.read - b for r, b in zip(readers, before, strict=True)) > 10 * RATE
        )
        wait_for("what was read", lambda: throttles.look(SITE).measured > RATE)
    finally:
        for reader in readers:
            reader.end()


def test_redis_is_away(hub: Hub, throttles: Throttles) -> None:
    """Each process goes on with its share of the limit that it knows, and heeds the next one when Redis is back."""
    throttles.put_in_force(SITE, RATE)
    readers = [Reader(process(hub, f"n{number}/1")) for number in range(2)]
    try:
        wait_for("both", lambda: all(reader.read for reader in readers))
        wait_for("both know of each other", lambda: hub.client.zcard(f"sendense:throttle:{SITE}:asking") == 2)
        time.sleep(1.0)
        hub.kill()
        try:
            before, began = sum(reader.read for reader in readers), time.monotonic()
            time.sleep(3.0)
            read, seconds = sum(reader.read for reader in readers) - before, time.monotonic() - began
        finally:
            hub.start()
        assert 0 < read <= OVER * RATE * (seconds + 4 * CHUNK_SECONDS), (read, seconds)
        Throttles(hub.client).put_in_force(SITE, 0)
        was = sum(reader.read for reader in readers)
        wait_for("reads without a limit", lambda: sum(reader.read for reader in readers) - was > 20 * RATE)
    finally:
        for reader in readers:
            reader.end()


def test_what_was_promised_long_ago(throttles: Throttles, hub: Hub) -> None:
    """A process that did nothing for a while asks again: the limit may be much lower by then."""
    throttle = process(hub, "n/1")
    throttles.put_in_force(SITE, 1000 * RATE)
    while not throttle.take(REQUEST, LONG):
        pass
    throttles.put_in_force(SITE, REQUEST)
    time.sleep(STALE_SECONDS + 0.1)
    assert [bool(throttle.take(REQUEST, LONG)) for _ in range(3)] == [False, True, True]


def test_a_turn_that_is_too_short(throttles: Throttles, hub: Hub) -> None:
    """A batch that may be held for less than the others wait for ends its turn, and took nobody's."""
    ledger, survey = hub.ledger, Survey(size=MiB, multi_conn=True, allocation=True, flush=True)
    spec = JobSpec(id="job1", kind="copy", site=SITE, name="web01", source="", target="")
    ledger.prepare(spec)
    ledger.write_plan(spec.id, survey, [batch_of([Extent(0, MiB)])])
    epoch = ledger.begin(spec)
    ledger.take(spec.id, epoch, 1)
    claim = ledger.claim(spec.id, 0, epoch, "n/1/a", LONG)
    assert claim
    throttles.put_in_force(SITE, REQUEST)
    line = lined_up(throttles, hub)
    keeper = ClaimKeeper(ledger, claim, LONG, LONG, time.monotonic())
    turn = Allowance(process(hub, "n/1"), keeper, spec.id, 0.5 * HELD_SHARE)
    while wait := turn.take(REQUEST):
        time.sleep(wait)
    assert wait is None
    assert turn.why == "held to 64.0 KiB/s by the throttle of site oslo"
    assert next_of(hub) == line


def copied(job: Job) -> int:
    """Bytes that were read so far, those of batches under way as far as their processes said."""
    return job.progress.copied


def drive(fleet: Fleet, seconds: float) -> None:
    """Have the jobs go on for so long."""
    until = time.monotonic() + seconds
    fleet.tick_until("some seconds", lambda: time.monotonic() > until)


def measure(fleet: Fleet, job: Job, seconds: float) -> tuple[int, float]:
    """Bytes that were copied within so many seconds, and how many these were."""
    before, began = copied(job), time.monotonic()
    drive(fleet, seconds)
    return copied(job) - before, time.monotonic() - began


SLACK = 1.0
"""Seconds: what a process said last of its batch, and the chunks that were promised at the start."""


def test_over_two_nodes(fleet: Fleet) -> None:
    """
    Four processes of two nodes copy no faster together than their site may be read, also with a process stopped or
    killed; less and more are heeded in the middle of the job; and all is copied right.
    """
    throttles = Throttles(fleet.hub.client)
    throttles.put_in_force(SITE, RATE)
    with fleet.node("n1", 2), fleet.node("n2", 2):
        job = fleet.job("disk", 48, batch_bytes=2 * MiB)
        fleet.tick_until("both nodes", lambda: len(job.progress.by_worker) == 2)
        read, seconds = measure(fleet, job, 4.0)
        assert read <= OVER * RATE * (seconds + SLACK), (read, seconds)
        assert throttles.look(SITE).holds

        throttles.put_in_force(SITE, RATE // 4)
        drive(fleet, 1.5)
        read, seconds = measure(fleet, job, 3.0)
        assert read <= OVER * RATE // 4 * (seconds + 4 * SLACK), (read, seconds)

        throttles.put_in_force(SITE, RATE)
        victim = stop_at_work(fleet, job)
        was = copied(job)
        fleet.tick_until("the others", lambda: copied(job) - was > 2 * RATE)
        wait_for("its end, as its claim lapses", lambda: bool(job.tick()) and not alive(victim))
        stop_at_work(fleet, job).kill()
        was = copied(job)
        fleet.tick_until("the others", lambda: copied(job) - was > RATE)

        throttles.put_in_force(SITE, 0)
        fleet.copy_all()
    assert job.target_is_source()
    assert {failure.error for failure in job.ledger.failures(job.id)} == {"ClaimLapsed"}


def stop_at_work(fleet: Fleet, job: Job) -> psutil.Process:
    """Stop a process (SIGSTOP) in the middle of a batch."""
    stopped: list[psutil.Process] = []

    def stop() -> bool:
        for batch, worker in working(job):
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(worker.split("/")[1]))
                process.suspend()
                if (batch, worker) in working(job):
                    stopped.append(process)
                    return True
                process.resume()
        return False

    fleet.tick_until("a process at work", stop)
    return stopped[0]


def working(job: Job) -> list[tuple[int, str]]:
    """The batches under way, and who is at them."""
    return [(activity.batch, activity.worker) for activity in job.progress.active]


def alive(victim: psutil.Process) -> bool:
    """Whether a process is there, and no zombie."""
    with suppress(psutil.NoSuchProcess):
        return bool(victim.status() != psutil.STATUS_ZOMBIE)
    return False


def test_a_batch_that_takes_longer_than_its_task_may(fleet: Fleet) -> None:
    """
    At a limit so low that a batch would not end before its process is killed, what was read of it is recorded, and the
    rest is a batch of its own: nothing fails, no process is killed, no byte is copied twice.
    """
    Throttles(fleet.hub.client).put_in_force(SITE, MiB)
    with fleet.node("n1", 2, task_time_limit=12.0, request_bytes=REQUEST):
        job = fleet.job("disk", 2, batch_bytes=8 * MiB)
        fleet.tick_until("batches that were cut", lambda: job.progress.batches > 4)
        Throttles(fleet.hub.client).put_in_force(SITE, 0)
        fleet.copy_all()
    job.assert_copied()
    assert job.progress.copied == 16 * MiB


def test_requests_that_are_seconds_apart(fleet: Fleet) -> None:
    """At the lowest limit, one request of 1 MiB takes 16 s: it is right over time, and nothing is taken for a stall."""
    Throttles(fleet.hub.client).put_in_force(SITE, 64 * KiB)
    with fleet.node("n1", 2, no_progress_timeout=2.0):
        job = fleet.job("disk", 2, batch_bytes=4 * MiB)
        fleet.tick_until("the first request", lambda: copied(job) > 0)
        drive(fleet, 4.0)
        assert copied(job) <= 2 * MiB
        assert job.ledger.failures(job.id) == []
        Throttles(fleet.hub.client).put_in_force(SITE, 0)
        fleet.copy_all()
    job.assert_copied()


@pytest.mark.parametrize("act", ["pause", "stop"])
def test_a_job_that_is_held_heeds_its_operator(fleet: Fleet, act: str) -> None:
    """A job that is paused or cancelled while its reads are held for minutes comes to rest within a second or so."""
    Throttles(fleet.hub.client).put_in_force(SITE, 64 * KiB)
    with fleet.node("n1", 2):
        job = fleet.job("disk", 2, batch_bytes=8 * MiB)
        fleet.tick_until("the first request", lambda: copied(job) > 0 and len(job.progress.active) == 2)
        if act == "pause":
            job.ledger.pause(job.id, True)
        else:
            job.ledger.stop(job.id)
        began = time.monotonic()
        wait_for("its rest", lambda: not job.progress.active)
        assert time.monotonic() - began < 30.0, "a batch takes minutes"
        assert job.ledger.failures(job.id) == []
        if act == "pause":
            before = job.progress
            assert before.done == copied(job), "what was read is recorded"
            Throttles(fleet.hub.client).put_in_force(SITE, 0)
            job.ledger.pause(job.id, False)
            fleet.copy_all()
            job.assert_copied()
            assert copied(job) == 16 * MiB


def test_redis_is_restarted_in_the_middle(fleet: Fleet) -> None:
    """The job goes on under its limit, and is copied right."""
    throttles = Throttles(fleet.hub.client)
    throttles.put_in_force(SITE, RATE)
    with fleet.node("n1", 2):
        job = fleet.job("disk", 12, batch_bytes=2 * MiB)
        fleet.tick_until("some of it", lambda: copied(job) > RATE)
        fleet.hub.kill()
        time.sleep(1.0)
        fleet.hub.start()
        read, seconds = measure(fleet, job, 2.0)
        assert read <= OVER * RATE * (seconds + 2 * SLACK), (read, seconds)
        assert throttles.look(SITE).rate == RATE
        fleet.copy_all()
    assert job.target_is_source()
