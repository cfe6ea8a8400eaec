"""The ledger on a real Redis: every script, what it moves, what it counts, and what a second call does."""

import os
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from sendense.extents import Extent
from sendense.jobs.ledger import Claim, Ledger, Rest, connect
from sendense.jobs.plan import Batch, batch_of
from sendense.models import Activity, Failure, JobSpec, Progress, Survey
from tests.hub import Hub, age, places

KiB = 2**10
JOB = "job1"
SPEC = JobSpec(id=JOB, kind="copy", name="disk.qcow2", source="nbd://source/", target="nbd://target/")
BATCH_BYTES = 256 * KiB
BATCHES = 6
SURVEY = Survey(size=BATCHES * BATCH_BYTES, multi_conn=True, allocation=True, flush=True)
DIGEST = bytes(range(32))
ATTEMPTS = 3
GRACE = 1.0
LONG = 1e6
"""Seconds that no test lasts."""


@pytest.fixture
def ledger(hub: Hub) -> Ledger:
    """An empty ledger."""
    return hub.ledger


def extent_of(batch: int) -> Extent:
    """The part of the disk that a batch of the plan holds: all of it data, but for the last batch."""
    return Extent(batch * BATCH_BYTES, BATCH_BYTES, zero=batch == BATCHES - 1)


def begin(ledger: Ledger) -> int:
    """A job of six batches, planned and begun; returns its epoch."""
    ledger.prepare(SPEC)
    ledger.write_plan(JOB, SURVEY, (batch_of([extent_of(batch)]) for batch in range(BATCHES)))
    return ledger.begin(SPEC)


def claim_first(ledger: Ledger, owner: str = "host/1/a", seconds: float = LONG) -> tuple[int, Claim]:
    """Begin a job and claim its batch 0; returns the epoch and the claim."""
    epoch = begin(ledger)
    ledger.take(JOB, epoch, 2)
    claim = ledger.claim(JOB, 0, epoch, owner, seconds)
    assert claim
    return epoch, claim


def lapse(hub: Hub, epoch: int) -> list[tuple[int, str]]:
    """Have every claim lapse, and the grace after it pass."""
    age(hub.client, JOB, 2 * LONG)
    lapsed = hub.ledger.sweep(JOB, epoch, ATTEMPTS, 1e9, 1e9, GRACE)
    age(hub.client, JOB, 2 * GRACE)
    hub.ledger.sweep(JOB, epoch, ATTEMPTS, 1e9, 1e9, GRACE)
    return lapsed


def failure(batch: int = 0, *, stalled: bool = False) -> Failure:
    """A failed attempt."""
    return Failure(batch=batch, error="ReadFailed", message="read: Input/output error", stalled=stalled)


def record(ledger: Ledger, claim: Claim, rest: Rest | None = None) -> bool:
    """Record a batch of which all data was moved."""
    stored = rest.stored if rest else batch_of(claim.extents)
    return ledger.record(claim, DIGEST, stored.data, stored.data, 0, rest)


def progress(ledger: Ledger) -> Progress:
    """The job's counters."""
    found = ledger.progress(JOB)
    assert found
    return found


def snapshot(hub: Hub) -> dict[bytes, object]:
    """Everything in Redis but for times."""
    found: dict[bytes, object] = {}
    for key in hub.client.scan_iter():
        kind = hub.client.type(key)
        if kind == b"hash":
            found[key] = {k: v for k, v in hub.client.hgetall(key).items() if k not in (b"active", b"began", b"ended")}
        elif kind == b"zset":
            found[key] = sorted(hub.client.zrange(key, 0, -1))
        elif kind == b"stream":
            found[key] = [change for _, change in cast(Any, hub.client.xrange(key))]
        else:
            found[key] = hub.client.lrange(key, 0, -1)
    return found


def where(hub: Hub) -> dict[int, str]:
    """The one place of each batch."""
    found = places(hub.client, JOB)
    assert all(len(held) == 1 for held in found.values()), found
    return {batch: held[0] for batch, held in found.items()}


def count(hub: Hub, place: str) -> int:
    """Batches in a place."""
    return list(where(hub).values()).count(place)


def test_unknown_job(ledger: Ledger) -> None:
    """A job that is not there has nothing, gets nothing and cannot begin."""
    assert (ledger.spec(JOB), ledger.state(JOB), ledger.survey(JOB), ledger.progress(JOB)) == (None,) * 4
    assert (ledger.records(JOB), ledger.failures(JOB), ledger.given_up(JOB)) == ([], [], [])
    assert ledger.begin(SPEC) == 0
    assert ledger.take(JOB, 1, 4)[:2] == (None, [])
    assert ledger.claim(JOB, 0, 1, "host/1/a", 8) is None
    assert ledger.sweep(JOB, 1, ATTEMPTS, 0, 0, GRACE) == []
    assert ledger.state(JOB) is None


def test_prepare_and_plan(hub: Hub, ledger: Ledger) -> None:
    """A planned job is ready, with its counts, and every batch to do."""
    ledger.prepare(SPEC)
    assert (ledger.state(JOB), ledger.spec(JOB)) == ("preparing", SPEC)
    ledger.write_plan(JOB, SURVEY, (batch_of([extent_of(batch)]) for batch in range(BATCHES)))
    assert (ledger.state(JOB), ledger.survey(JOB)) == ("ready", SURVEY)
    assert where(hub) == dict.fromkeys(range(BATCHES), "todo")
    found = progress(ledger)
    assert (found.size, found.data, found.zero) == (BATCHES * BATCH_BYTES, 5 * BATCH_BYTES, BATCH_BYTES)
    assert (found.batches, found.batches_done, found.done) == (BATCHES, 0, 0)


def test_plan_of_many_batches(hub: Hub, ledger: Ledger) -> None:
    """A plan that takes several round trips is whole."""
    ledger.prepare(SPEC)
    ledger.write_plan(JOB, SURVEY, (batch_of([Extent(batch * 512, 512)]) for batch in range(1000)))
    assert where(hub) == dict.fromkeys(range(1000), "todo")
    assert (progress(ledger).batches, progress(ledger).data) == (1000, 512_000)


def test_plan_after_half_a_plan(hub: Hub, ledger: Ledger) -> None:
    """A plan whose writer was killed leaves nothing behind in the next one."""

    def dying() -> Iterator[Batch]:
        for batch in range(600):
            yield batch_of([Extent(batch * 512, 512)])
        raise KeyboardInterrupt

    ledger.prepare(SPEC)
    with pytest.raises(KeyboardInterrupt):
        ledger.write_plan(JOB, SURVEY, dying())
    assert ledger.state(JOB) == "preparing"
    assert ledger.survey(JOB) is None
    ledger.write_plan(JOB, SURVEY, [batch_of([Extent(0, SURVEY.size)])])
    assert where(hub) == {0: "todo"}


def test_empty_plan(ledger: Ledger) -> None:
    """A job without batches is copied as soon as it is driven."""
    ledger.prepare(SPEC)
    ledger.write_plan(JOB, SURVEY, [])
    assert ledger.take(JOB, ledger.begin(SPEC), 4)[:2] == ("copied", [])


def test_take(hub: Hub, ledger: Ledger) -> None:
    """Batches go out in disk order, window by window, and no more than two windows at a time."""
    epoch = begin(ledger)
    assert ledger.take(JOB, epoch, 2)[:2] == ("copying", [0, 1])
    assert ledger.take(JOB, epoch, 2)[:2] == ("copying", [2, 3])
    assert ledger.take(JOB, epoch, 2)[:2] == ("copying", [])
    assert where(hub) == {0: "sent", 1: "sent", 2: "sent", 3: "sent", 4: "todo", 5: "todo"}
    claim = ledger.claim(JOB, 0, epoch, "host/1/a", 8)
    assert claim
    assert ledger.take(JOB, epoch, 2)[:2] == ("copying", []), "a claimed batch is still out"
    record(ledger, claim)
    assert ledger.take(JOB, epoch, 2)[:2] == ("copying", [])
    claim = ledger.claim(JOB, 1, epoch, "host/1/b", 8)
    assert claim
    record(ledger, claim)
    assert ledger.take(JOB, epoch, 2)[:2] == ("copying", [4, 5])


def test_take_with_stale_epoch(hub: Hub, ledger: Ledger) -> None:
    """A driver of an earlier run moves nothing."""
    stale = begin(ledger)
    epoch = ledger.begin(SPEC)
    assert epoch == stale + 1
    assert ledger.take(JOB, stale, 2)[:2] == ("copying", [])
    assert count(hub, "todo") == BATCHES


def test_claim(hub: Hub, ledger: Ledger) -> None:
    """A claim moves its batch, counts an attempt, and carries the extents."""
    _, claim = claim_first(ledger)
    assert claim == Claim(JOB, 0, "host/1/a", 1, [extent_of(0)])
    assert where(hub)[0] == "claims"
    assert progress(ledger).active == [Activity(batch=0, worker="host/1/a", done=0)]


def test_claim_is_exclusive(hub: Hub, ledger: Ledger) -> None:
    """Whoever comes second gets nothing, and changes nothing."""
    epoch, _ = claim_first(ledger)
    before = snapshot(hub)
    assert ledger.claim(JOB, 0, epoch, "host/2/b", LONG) is None
    assert snapshot(hub) == before


def test_claim_twice(hub: Hub, ledger: Ledger) -> None:
    """An owner that claims again, its answer being lost, gets the same claim; no attempt is counted."""
    epoch, claim = claim_first(ledger)
    before = snapshot(hub)
    assert ledger.claim(JOB, 0, epoch, claim.owner, LONG) == claim
    assert snapshot(hub) == before


def test_claim_race(hub: Hub, ledger: Ledger) -> None:
    """Of many that claim one batch at once, exactly one gets it."""
    epoch = begin(ledger)
    ledger.take(JOB, epoch, 1)
    start, won = threading.Barrier(8), []

    def race(name: str) -> None:
        mine = Ledger(connect(hub.url))
        start.wait(10)
        if mine.claim(JOB, 0, epoch, name, LONG):
            won.append(name)

    threads = [threading.Thread(target=race, args=(f"host/{number}/x",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(won) == 1
    assert [activity.worker for activity in progress(ledger).active] == won


def test_claim_of_what_was_not_sent(hub: Hub, ledger: Ledger) -> None:
    """A message for a batch that is to do, done or not of this job gets no claim."""
    epoch, claim = claim_first(ledger)
    record(ledger, claim)
    before = snapshot(hub)
    for batch in (0, BATCHES - 1, 1000):
        assert ledger.claim(JOB, batch, epoch, "host/2/b", LONG) is None
    assert ledger.claim(JOB, 0, epoch, claim.owner, LONG) is None, "not even its own owner does a batch twice"
    assert snapshot(hub) == before


def test_claim_with_stale_epoch(hub: Hub, ledger: Ledger) -> None:
    """A message of an earlier run gets no claim on a batch that was sent again."""
    stale = begin(ledger)
    ledger.take(JOB, stale, 2)
    epoch = ledger.begin(SPEC)
    ledger.take(JOB, epoch, 2)
    assert ledger.claim(JOB, 0, stale, "host/1/a", LONG) is None
    assert where(hub)[0] == "sent"
    assert ledger.claim(JOB, 0, epoch, "host/1/a", LONG)


def test_renew(hub: Hub, ledger: Ledger) -> None:
    """A renewed claim does not lapse, and what it moved is counted once."""
    epoch, claim = claim_first(ledger, seconds=8)
    for _ in range(2):
        assert ledger.renew(claim, LONG, 4096)
    assert (progress(ledger).copied, progress(ledger).active[0].done) == (4096, 4096)
    age(hub.client, JOB, 60)
    assert ledger.sweep(JOB, epoch, ATTEMPTS, 1e9, 1e9, GRACE) == []
    assert ledger.renew(claim, LONG, 8192)
    assert progress(ledger).copied == 8192


def test_late_owner_is_refused(hub: Hub, ledger: Ledger) -> None:
    """An owner whose claim lapsed can neither renew nor record nor release, and another one can."""
    epoch, late = claim_first(ledger)
    assert lapse(hub, epoch) == [(0, late.owner)]
    ledger.take(JOB, epoch, 2)
    heir = ledger.claim(JOB, 0, epoch, "host/2/b", LONG)
    assert heir
    assert heir.attempt == 2
    before = snapshot(hub)
    assert not ledger.renew(late, LONG, BATCH_BYTES)
    assert not record(ledger, late)
    assert not ledger.release(late, failure(), BATCH_BYTES, 1.0, end_job=True)
    assert not ledger.abandon(late, BATCH_BYTES)
    assert snapshot(hub) == before
    assert record(ledger, heir)


def test_record(hub: Hub, ledger: Ledger) -> None:
    """A recorded batch is done, counted, and kept with its digest and extents."""
    _, claim = claim_first(ledger)
    assert ledger.record(claim, DIGEST, BATCH_BYTES, BATCH_BYTES, 2, None)
    assert where(hub)[0] == "done"
    found = progress(ledger)
    assert (found.done, found.copied, found.again) == (BATCH_BYTES, BATCH_BYTES, 0)
    assert (found.batches_done, found.retries) == (1, 2)
    assert found.active == []
    (kept,) = ledger.records(JOB)
    assert (kept.batch, kept.data, kept.digest, kept.extents) == (0, BATCH_BYTES, DIGEST, [extent_of(0)])


def test_record_twice(hub: Hub, ledger: Ledger) -> None:
    """An owner that records again is told yes, and nothing is counted twice."""
    _, claim = claim_first(ledger)
    assert record(ledger, claim)
    before = snapshot(hub)
    assert record(ledger, claim)
    assert snapshot(hub) == before


def test_record_of_another(hub: Hub, ledger: Ledger) -> None:
    """Nobody but the owner of the claim can record a batch, before or after."""
    _, claim = claim_first(ledger)
    stranger = claim._replace(owner="host/2/b")
    assert not record(ledger, stranger)
    assert record(ledger, claim)
    assert not record(ledger, stranger)
    assert progress(ledger).batches_done == 1


def rest_of(claim: Claim, delay: float | None) -> Rest:
    """The last quarter of a batch could not be read."""
    offset, length, _ = claim.extents[0]
    stored = batch_of([Extent(offset, length * 3 // 4)])
    left = batch_of([Extent(offset + length * 3 // 4, length // 4)])
    return Rest(stored, left, failure(), delay)


def test_record_with_a_rest(hub: Hub, ledger: Ledger) -> None:
    """What could not be read becomes a batch of its own, due later, with the attempts that it has behind it."""
    epoch, claim = claim_first(ledger)
    assert record(ledger, claim, rest_of(claim, 5.0))
    assert where(hub) == {0: "done", 1: "sent", 2: "todo", 3: "todo", 4: "todo", 5: "todo", 6: "later"}
    found = progress(ledger)
    assert (found.batches, found.batches_done, found.done) == (BATCHES + 1, 1, BATCH_BYTES * 3 // 4)
    assert (found.retries, found.failed) == (1, 0)
    assert ledger.failures(JOB) == [failure()]
    assert ledger.records(JOB)[0].extents == [Extent(0, BATCH_BYTES * 3 // 4)]

    assert ledger.sweep(JOB, epoch, ATTEMPTS, 1e9, 1e9, GRACE) == []
    assert where(hub)[6] == "later", "not due yet"
    age(hub.client, JOB, 6)
    ledger.sweep(JOB, epoch, ATTEMPTS, 1e9, 1e9, GRACE)
    assert where(hub)[6] == "todo"
    ledger.take(JOB, epoch, 10)
    rest = ledger.claim(JOB, 6, epoch, "host/1/c", LONG)
    assert rest
    assert (rest.attempt, rest.extents) == (2, [Extent(BATCH_BYTES * 3 // 4, BATCH_BYTES // 4)])
    record(ledger, rest)
    assert progress(ledger).done == BATCH_BYTES


def test_record_with_a_rest_twice(hub: Hub, ledger: Ledger) -> None:
    """A second call does not split the batch again."""
    _, claim = claim_first(ledger)
    rest = rest_of(claim, 5.0)
    assert record(ledger, claim, rest)
    before = snapshot(hub)
    assert record(ledger, claim, rest)
    assert snapshot(hub) == before


def test_record_with_a_rest_that_is_given_up(hub: Hub, ledger: Ledger) -> None:
    """A rest that is not worth another attempt fails its job, once all else is done."""
    epoch, claim = claim_first(ledger)
    record(ledger, claim, rest_of(claim, None))
    assert where(hub)[BATCHES] == "failed"
    assert (progress(ledger).failed, ledger.state(JOB)) == (1, "copying")
    assert finish(ledger, epoch) == "failed"
    assert ledger.given_up(JOB) == [failure()]
    assert progress(ledger).done == 5 * BATCH_BYTES - BATCH_BYTES // 4


def finish(ledger: Ledger, epoch: int) -> str | None:
    """Copy all that is to do; returns the state in which that ends."""
    while True:
        for batch in range(progress(ledger).batches):
            claim = ledger.claim(JOB, batch, epoch, f"host/9/{os.urandom(4).hex()}", LONG)
            if claim:
                stored = batch_of(claim.extents)
                ledger.record(claim, DIGEST, stored.data, stored.data, 0, None)
        state, batches, _ = ledger.take(JOB, epoch, 2)
        if not batches:
            return state


def test_copied(hub: Hub, ledger: Ledger) -> None:
    """A job whose batches are all done is copied, and hands out nothing more."""
    epoch = begin(ledger)
    assert ledger.seconds(JOB) == 0
    assert finish(ledger, epoch) == "copied"
    found = progress(ledger)
    assert (found.state, found.done, found.batches_done) == ("copied", found.data, BATCHES)
    assert [kept.batch for kept in ledger.records(JOB)] == list(range(BATCHES))
    assert ledger.seconds(JOB) > 0
    before = snapshot(hub)
    assert ledger.take(JOB, epoch, 2)[:2] == ("copied", [])
    assert ledger.sweep(JOB, epoch, ATTEMPTS, 0, 0, GRACE) == []
    assert snapshot(hub) == before


def test_release(hub: Hub, ledger: Ledger) -> None:
    """A failed attempt is kept, its batch waits for its time, and the next attempt has the next number."""
    epoch, claim = claim_first(ledger)
    assert ledger.release(claim, failure(stalled=True), 1024, 5.0, end_job=False)
    assert where(hub)[0] == "later"
    found = progress(ledger)
    assert (found.retries, found.stalls, found.copied, found.again, found.failed) == (1, 1, 1024, 1024, 0)
    assert found.active == []
    assert ledger.failures(JOB) == [failure(stalled=True)]
    assert ledger.failures(JOB, 1) == []
    age(hub.client, JOB, 6)
    ledger.sweep(JOB, epoch, ATTEMPTS, 1e9, 1e9, GRACE)
    ledger.take(JOB, epoch, 2)
    again = ledger.claim(JOB, 0, epoch, "host/2/b", LONG)
    assert again
    assert again.attempt == 2


def test_release_twice(hub: Hub, ledger: Ledger) -> None:
    """A second call of the same owner, or one of a stranger, changes nothing."""
    _, claim = claim_first(ledger)
    assert not ledger.release(claim._replace(owner="host/2/b"), failure(), 0, 5.0, end_job=True)
    assert ledger.release(claim, failure(), 0, 5.0, end_job=False)
    before = snapshot(hub)
    assert not ledger.release(claim, failure(), 0, 5.0, end_job=False)
    assert snapshot(hub) == before


def test_release_for_good(hub: Hub, ledger: Ledger) -> None:
    """A batch that is given up is not tried again in this run; the others are copied, and the job has failed."""
    epoch, claim = claim_first(ledger)
    ledger.release(claim, failure(), 0, None, end_job=False)
    assert (where(hub)[0], ledger.state(JOB)) == ("failed", "copying")
    assert progress(ledger).failed == 1
    assert finish(ledger, epoch) == "failed"
    assert count(hub, "done") == BATCHES - 1


def test_release_that_ends_the_job(hub: Hub, ledger: Ledger) -> None:
    """A failure that the other batches would only meet as well ends the job at once."""
    epoch, claim = claim_first(ledger)
    ledger.release(claim, failure(), 0, None, end_job=True)
    assert ledger.state(JOB) == "failed"
    assert ledger.claim(JOB, 1, epoch, "host/2/b", LONG) is None
    assert ledger.take(JOB, epoch, 2)[:2] == ("failed", [])
    assert where(hub)[1] == "sent"


def test_abandon(hub: Hub, ledger: Ledger) -> None:
    """A batch that is given back without a failure is to do again at once; a second call changes nothing."""
    _, claim = claim_first(ledger)
    assert ledger.abandon(claim, 1024)
    assert where(hub)[0] == "todo"
    assert (progress(ledger).copied, progress(ledger).again, ledger.failures(JOB)) == (1024, 1024, [])
    before = snapshot(hub)
    assert not ledger.abandon(claim, 2048)
    assert snapshot(hub) == before


def test_defer(hub: Hub, ledger: Ledger) -> None:
    """What waits for a connection is due again in a moment: no attempt, no failure, no retry; the job says why."""
    epoch, claim = claim_first(ledger)
    assert ledger.defer(claim, 4096, 60.0, "all are taken")
    assert not ledger.defer(claim, 4096, 60.0, "all are taken")
    assert where(hub)[0] == "later"
    assert (progress(ledger).copied, progress(ledger).retries, ledger.failures(JOB)) == (4096, 0, [])
    assert ledger.shortage(JOB) == "all are taken"

    age(hub.client, JOB, 61.0, {"later"})
    assert ledger.sweep(JOB, epoch, ATTEMPTS, 1e9, 1e9, GRACE) == []
    ledger.take(JOB, epoch, 2)
    again = ledger.claim(JOB, 0, epoch, "host/1/b", LONG)
    assert again
    assert again.attempt == 1
    assert ledger.shortage(JOB) == ""


def test_defer_of_a_survey(ledger: Ledger) -> None:
    """The process that could not survey is not taken for one that fell silent."""
    ledger.prepare(SPEC)
    ledger.touch(JOB, "host/1/a")
    ledger.defer_survey(JOB, "all are taken")
    assert ledger.take_surveyor(JOB) == ""
    assert ledger.shortage(JOB) == "all are taken"


def test_disown(hub: Hub, ledger: Ledger) -> None:
    """A worker that ends hands back what it had: at once, and not as attempts that failed. Others keep theirs."""
    epoch = begin(ledger)
    ledger.take(JOB, epoch, 4)
    claims = [ledger.claim(JOB, batch, epoch, f"{name}/1/a", LONG) for batch, name in enumerate(("w", "w2", "w"))]
    assert ledger.disown(JOB, "w") == 2
    assert ledger.disown(JOB, "w") == 0
    assert where(hub) == {0: "todo", 1: "claims", 2: "todo", 3: "sent", 4: "todo", 5: "todo"}
    assert ledger.failures(JOB) == []
    assert claims[0]
    assert not ledger.renew(claims[0], LONG, 0)
    ledger.take(JOB, epoch, 4)
    again = ledger.claim(JOB, 0, epoch, "w2/1/b", LONG)
    assert again
    assert again.attempt == 1


def test_pause(hub: Hub, ledger: Ledger) -> None:
    """A paused job gives nothing out, and what is under way ends; going on, lost messages are sent again at once."""
    epoch, claim = claim_first(ledger)
    ledger.pause(JOB, True)
    assert ledger.is_paused(JOB)
    assert ledger.take(JOB, epoch, 8) == ("copying", [], False)
    assert ledger.claim(JOB, 1, epoch, "host/2/a", LONG) is None
    assert ledger.claim(JOB, 0, epoch, claim.owner, LONG), "the answer to this one was lost"
    assert ledger.renew(claim, LONG, 4096)
    assert record(ledger, claim)
    ledger.pause(JOB, True)
    assert where(hub) == {0: "done", 1: "sent", **dict.fromkeys(range(2, 6), "todo")}
    ledger.pause(JOB, False)
    assert not ledger.is_paused(JOB)
    assert ledger.take(JOB, epoch, 8) == ("copying", [1, 2, 3, 4, 5], True)
    ledger.pause(JOB, False)
    assert where(hub)[1] == "sent", "it was not paused"


def test_pause_at_the_end(ledger: Ledger) -> None:
    """A paused job does not end, not even when nothing is left to do; a new run is not paused."""
    ledger.prepare(SPEC)
    ledger.write_plan(JOB, SURVEY, [])
    epoch = ledger.begin(SPEC)
    ledger.pause(JOB, True)
    assert ledger.take(JOB, epoch, 4).state == "copying"
    assert ledger.take(JOB, ledger.begin(SPEC), 4).state == "copied"
    ledger.pause("no such job", True)
    assert ledger.state("no such job") is None
    assert not ledger.is_paused("no such job")


def test_bytes_by_worker(ledger: Ledger) -> None:
    """What each worker moved in this run, also in attempts that failed, and each byte once."""
    epoch = begin(ledger)
    ledger.take(JOB, epoch, 4)
    first, second = (ledger.claim(JOB, batch, epoch, f"host{batch}/1/a", LONG) for batch in range(2))
    assert first
    assert second
    ledger.renew(first, LONG, 4096)
    ledger.renew(first, LONG, 4096)
    record(ledger, first)
    ledger.release(second, failure(1), 8192, 0.0, end_job=False)
    assert progress(ledger).by_worker == {"host0": BATCH_BYTES, "host1": 8192}
    ledger.begin(SPEC)
    assert progress(ledger).by_worker == {}


def test_sweep_of_lapsed_claims(hub: Hub, ledger: Ledger) -> None:
    """A claim that is not renewed lapses: its owner is named, and its batch is to do again once that is surely gone."""
    epoch, claim = claim_first(ledger, seconds=8)
    assert ledger.sweep(JOB, epoch, ATTEMPTS, 1e9, 1e9, GRACE) == []
    age(hub.client, JOB, 9)
    assert ledger.sweep(JOB, epoch, ATTEMPTS, 1e9, 1e9, GRACE) == [(0, claim.owner)]
    assert where(hub)[0] == "later"
    (found,) = ledger.failures(JOB)
    assert (found.batch, found.attempt, found.error, found.worker) == (0, 1, "ClaimLapsed", claim.owner)
    assert claim.owner in found.message
    assert (progress(ledger).retries, progress(ledger).stalls) == (1, 1)
    before = snapshot(hub)
    assert ledger.sweep(JOB, epoch, ATTEMPTS, 1e9, 1e9, GRACE) == []
    assert snapshot(hub) == before
    age(hub.client, JOB, 2 * GRACE)
    assert ledger.sweep(JOB, epoch, ATTEMPTS, 1e9, 1e9, GRACE) == []
    assert where(hub)[0] == "todo"


def test_sweep_gives_up(hub: Hub, ledger: Ledger) -> None:
    """A batch under which every worker dies is given up after its last attempt."""
    epoch = begin(ledger)
    for attempt in range(1, ATTEMPTS + 1):
        ledger.take(JOB, epoch, 10)
        claim = ledger.claim(JOB, 0, epoch, f"host/{attempt}/a", LONG)
        assert claim
        assert claim.attempt == attempt
        lapse(hub, epoch)
    assert where(hub)[0] == "failed"
    assert finish(ledger, epoch) == "failed"
    assert [found.attempt for found in ledger.failures(JOB)] == [1, 2, 3]
    assert ledger.given_up(JOB)[0].worker == "host/3/a"


def test_sweep_of_lost_messages(hub: Hub, ledger: Ledger) -> None:
    """A batch that was sent and never claimed is sent again once patience is at its end."""
    epoch = begin(ledger)
    ledger.take(JOB, epoch, 2)
    age(hub.client, JOB, 60)
    ledger.sweep(JOB, epoch, ATTEMPTS, 120, 1e9, GRACE)
    assert count(hub, "sent") == 2
    age(hub.client, JOB, 61)
    ledger.sweep(JOB, epoch, ATTEMPTS, 120, 1e9, GRACE)
    assert count(hub, "sent") == 0
    assert ledger.take(JOB, epoch, 2)[:2] == ("copying", [0, 1])
    assert progress(ledger).retries == 0


def test_sweep_while_nothing_is_claimed(hub: Hub, ledger: Ledger) -> None:
    """Patience with sent batches is short while nobody works on any; one claim shows that they are just waiting."""
    epoch, claim = claim_first(ledger)
    age(hub.client, JOB, 60)
    ledger.sweep(JOB, epoch, ATTEMPTS, 120, 4, GRACE)
    assert where(hub)[1] == "sent"
    record(ledger, claim)
    ledger.sweep(JOB, epoch, ATTEMPTS, 120, 4, GRACE)
    assert where(hub)[1] == "sent", "the record was a sign of life"
    age(hub.client, JOB, 5)
    ledger.sweep(JOB, epoch, ATTEMPTS, 120, 4, GRACE)
    assert where(hub)[1] == "todo"


def test_sweep_with_stale_epoch(hub: Hub, ledger: Ledger) -> None:
    """A tick of an earlier run puts nothing back."""
    stale = begin(ledger)
    epoch = ledger.begin(SPEC)
    ledger.take(JOB, epoch, 2)
    age(hub.client, JOB, LONG)
    assert ledger.sweep(JOB, stale, ATTEMPTS, 0, 0, GRACE) == []
    assert count(hub, "sent") == 2


def test_stopped(hub: Hub, ledger: Ledger) -> None:
    """A stopped job hands out, gives and renews nothing; a batch that is stored by then is still recorded."""
    epoch, claim = claim_first(ledger)
    ledger.stop(JOB)
    assert ledger.take(JOB, epoch, 2)[:2] == ("stopped", [])
    assert ledger.claim(JOB, 1, epoch, "host/2/b", LONG) is None
    assert not ledger.renew(claim, LONG, 4096)
    assert not record(ledger, claim._replace(owner="host/2/b"))
    assert record(ledger, claim)
    assert (where(hub)[0], where(hub)[1]) == ("done", "sent")
    assert progress(ledger).state == "stopped"


def test_resume(hub: Hub, ledger: Ledger) -> None:
    """A new run has all to do that is not done, counts anew, and leaves the old run's workers behind."""
    stale = begin(ledger)
    ledger.take(JOB, stale, 3)
    claims = [ledger.claim(JOB, batch, stale, f"host/1/{batch}", LONG) for batch in range(3)]
    done, failed, late = claims
    assert done
    assert failed
    assert late
    record(ledger, done)
    ledger.release(failed, failure(1), 1024, None, end_job=False)
    ledger.take(JOB, stale, 1)
    ledger.stop(JOB)

    epoch = ledger.begin(SPEC)
    assert where(hub) == {0: "done", 1: "todo", 2: "todo", 3: "todo", 4: "todo", 5: "todo"}
    found = progress(ledger)
    assert (found.state, found.failed, found.active) == ("copying", 0, [])
    assert (found.done, found.already_done, found.copied) == (BATCH_BYTES, BATCH_BYTES, 0)
    assert (found.retries, found.stalls) == (0, 0)
    assert not ledger.renew(late, LONG, 4096)
    assert not record(ledger, late)
    ledger.take(JOB, epoch, 10)
    again = ledger.claim(JOB, 1, epoch, "host/2/b", LONG)
    assert again
    assert again.attempt == 1
    record(ledger, again)
    assert finish(ledger, epoch) == "copied"
    assert progress(ledger).done == progress(ledger).data


def test_begin_twice(hub: Hub, ledger: Ledger) -> None:
    """A second begin only raises the epoch."""
    epoch = begin(ledger)
    before = where(hub), progress(ledger)
    assert ledger.begin(SPEC) == epoch + 1
    assert (where(hub), progress(ledger)) == before


def test_prepare_again(hub: Hub, ledger: Ledger) -> None:
    """An unfinished job that is entered again keeps what is recorded of it."""
    _, claim = claim_first(ledger)
    record(ledger, claim)
    moved = SPEC.model_copy(update={"target": "nbd://elsewhere/"})
    ledger.prepare(moved)
    ledger.ready(JOB, SURVEY)
    assert (ledger.state(JOB), ledger.spec(JOB)) == ("ready", moved)
    ledger.begin(moved)
    assert where(hub)[0] == "done"
    assert progress(ledger).already_done == BATCH_BYTES


def test_reopen(hub: Hub, ledger: Ledger) -> None:
    """Batches whose stored content is wrong are copied again in the next run, and counted once in the end."""
    finish(ledger, begin(ledger))
    wrong = [kept for kept in ledger.records(JOB) if kept.batch in (1, 5)]
    ledger.reopen(JOB, wrong)
    assert where(hub) == {0: "done", 1: "todo", 2: "done", 3: "done", 4: "done", 5: "todo"}
    assert (progress(ledger).done, progress(ledger).batches_done) == (4 * BATCH_BYTES, 4)
    epoch = ledger.begin(SPEC)
    assert progress(ledger).already_done == 4 * BATCH_BYTES
    assert finish(ledger, epoch) == "copied"
    assert (progress(ledger).done, progress(ledger).batches_done) == (5 * BATCH_BYTES, BATCHES)
    assert progress(ledger).copied == BATCH_BYTES


def test_reopen_twice(hub: Hub, ledger: Ledger) -> None:
    """A second call, the answer to the first being lost, counts nothing down again."""
    finish(ledger, begin(ledger))
    wrong = ledger.records(JOB)[1:3]
    ledger.reopen(JOB, wrong)
    before = snapshot(hub)
    ledger.reopen(JOB, wrong)
    ledger.reopen(JOB, [])
    assert snapshot(hub) == before


def test_reopen_a_split_batch(hub: Hub, ledger: Ledger) -> None:
    """Of a batch that was split, each part is reopened by itself."""
    epoch, claim = claim_first(ledger)
    record(ledger, claim, rest_of(claim, 0.0))
    ledger.sweep(JOB, epoch, ATTEMPTS, 1e9, 1e9, GRACE)
    assert finish(ledger, epoch) == "copied"
    assert [kept.batch for kept in ledger.records(JOB)] == [0, 6, 1, 2, 3, 4, 5], "in disk order"
    ledger.reopen(JOB, [kept for kept in ledger.records(JOB) if kept.batch == 6])
    assert where(hub)[6] == "todo"
    assert progress(ledger).done == 5 * BATCH_BYTES - BATCH_BYTES // 4


def test_fail(ledger: Ledger) -> None:
    """A job that fails outside of its batches says why."""
    ledger.prepare(SPEC)
    wrong = Failure(error="TargetReadOnly", message="it is read-only", usage=True)
    ledger.fail(JOB, wrong)
    assert (ledger.state(JOB), ledger.failures(JOB)) == ("failed", [wrong])


def test_beats(ledger: Ledger) -> None:
    """Signs of life during a survey can be told apart, and who gave the last one is told once."""
    ledger.prepare(SPEC)
    before = ledger.beats(JOB)
    ledger.touch(JOB, "host/1/a")
    assert ledger.beats(JOB) > before
    assert [ledger.take_surveyor(JOB), ledger.take_surveyor(JOB)] == ["host/1/a", ""]


def test_delete(hub: Hub, ledger: Ledger) -> None:
    """A deleted job leaves nothing in Redis but what its workers moved, and others alone."""
    epoch, claim = claim_first(ledger)
    record(ledger, claim, rest_of(claim, 5.0))
    ledger.take(JOB, epoch, 2)
    other = ledger.claim(JOB, 1, epoch, "host/1/b", LONG)
    assert other
    ledger.renew(other, LONG, 4096)
    ledger.release(other, failure(1), 4096, None, end_job=False)
    ledger.take(JOB, epoch, 2)
    ledger.claim(JOB, 2, epoch, "host/1/c", LONG)
    ledger.touch(JOB, "host/1/a")
    ledger.prepare(SPEC.model_copy(update={"id": f"{JOB}-verify"}))
    ledger.delete(JOB)
    kept = [b"sendense:moving", b"sendense:tally"]
    assert sorted(hub.client.keys()) == [f"sendense:{JOB}-verify:job".encode(), *kept]


def test_jobs_do_not_meet(hub: Hub, ledger: Ledger) -> None:
    """Two jobs in one ledger have nothing in common."""
    epoch, claim = claim_first(ledger)
    other = SPEC.model_copy(update={"id": "job2"})
    ledger.prepare(other)
    ledger.write_plan("job2", SURVEY, [batch_of([extent_of(0)])])
    other_epoch = ledger.begin(other)
    assert ledger.claim("job2", 0, other_epoch, claim.owner, LONG) is None, "not sent yet"
    ledger.take("job2", other_epoch, 1)
    assert not record(ledger, claim._replace(job="job2"))
    assert record(ledger, claim)
    assert places(hub.client, "job2") == {0: ["sent"]}
    assert finish(ledger, epoch) == "copied"
    assert ledger.state("job2") == "copying"


def test_clock_of_redis_decides(ledger: Ledger) -> None:
    """A claim lapses by Redis's clock, after the seconds that it was given and not before."""
    epoch, claim = claim_first(ledger, seconds=0.05)
    lapsed: list[tuple[int, str]] = []
    waited = threading.Event()
    for _ in range(200):
        lapsed = ledger.sweep(JOB, epoch, ATTEMPTS, 1e9, 1e9, GRACE)
        if lapsed:
            break
        waited.wait(0.02)
    assert lapsed == [(0, claim.owner)]


def test_redis_is_killed(hub: Hub, ledger: Ledger) -> None:
    """SIGKILL of Redis loses nothing that was answered, and the same client goes on with the same claim."""
    epoch, claim = claim_first(ledger)
    ledger.take(JOB, epoch, 2)
    second = ledger.claim(JOB, 1, epoch, "host/1/b", LONG)
    assert second
    record(ledger, second, rest_of(second, 5.0))
    ledger.renew(claim, LONG, 4096)
    before = snapshot(hub)
    hub.kill()
    hub.start()
    assert snapshot(hub) == before
    assert ledger.renew(claim, LONG, 8192), "its scripts are loaded again as well"
    assert record(ledger, claim)
    age(hub.client, JOB, 6)
    ledger.sweep(JOB, epoch, ATTEMPTS, 1e9, 1e9, GRACE)
    assert finish(ledger, epoch) == "copied"
    assert progress(ledger).done == progress(ledger).data
