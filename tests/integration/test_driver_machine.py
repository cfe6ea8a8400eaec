"""
The driver and the ledger under everything that a network and its machines can do to them.

Hypothesis plays the broker, the workers and the clock: messages are lost, doubled and reordered, workers die, sleep and
come back late, drivers are called too often and with an old epoch, runs are stopped and begun again. Redis, the
ledger's scripts and the driver are the real ones.
"""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sendense.errors import ReadFailed, SendenseError, TargetFull, WriteStalled
from sendense.extents import Extent
from sendense.jobs import driver
from sendense.jobs.ledger import Claim, Rest
from sendense.jobs.plan import batch_of
from sendense.models import Failure, JobSpec, Survey
from sendense.retry import delay_before_next
from tests.hub import TIMED, Hub, age, open_hub, places

JOB = "job1"
SPEC = JobSpec(id=JOB, kind="copy", name="disk.qcow2", source="nbd://source/", target="nbd://target/")
WINDOW = 3
WORKERS = 3
CLAIM_SECONDS = 8.0
CLUSTER = 64 * 2**10

EXAMPLES, STEPS = 200, 60
"""About 20 s on two cores."""

AGES, LATER = 1e9, -1e6
"""Seconds by which what is overdue is overdue, and by which all else is not: real time plays no part in a test."""

MOST_ROUNDS = 500
"""Of ticks without faults: a job of a dozen batches needs a few dozen."""


class NeverReads(ReadFailed):
    """A sector that is not worth another attempt."""

    attempts = 1


READ_FAILURES: list[SendenseError] = [
    ReadFailed("nbd://source/", 0, 512, "Input/output error"),
    NeverReads("nbd://source/", 0, 512, "Input/output error"),
]

FAILURES: list[SendenseError] = [
    *READ_FAILURES,
    WriteStalled("nbd://target/", 0, 512, 30.0),
    TargetFull("nbd://target/", 0, 512, "No space left on device"),
]
"""Two that cost their batch, at last or at once, one that is tried more often, and one that ends the job."""


class Machine(RuleBasedStateMachine):
    """One job. `owners` and `done` are what the ledger has to agree with."""

    messages: Bundle[tuple[int, int]] = Bundle("messages")
    claims: Bundle[Claim] = Bundle("claims")

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        hub.client.flushall()
        self.hub, self.ledger = hub, hub.ledger
        self.sent: list[tuple[int, int]] = []
        self.owners: dict[int, str] = {}
        self.done: dict[int, tuple[str, int]] = {}
        self.attempts: Counter[int] = Counter()
        self.epoch = self.calls = 0

    @initialize(
        target=messages, clusters=st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=6, max_size=12)
    )
    def begin(self, clusters: list[tuple[int, bool]]) -> Any:
        """Plan a disk of a few batches, of data or of zeroes, begin, and send the first windows."""
        self.batches, self.size = len(clusters), 0
        batches = []
        for length, zero in clusters:
            batches.append(batch_of([Extent(self.size, length * CLUSTER, zero)]))
            self.size += length * CLUSTER
        survey = Survey(size=self.size, multi_conn=True, allocation=True, flush=True)
        self.ledger.prepare(SPEC)
        self.ledger.write_plan(JOB, survey, batches)
        self.epoch = self.ledger.begin(SPEC)
        return self.advance_once()

    # The driver.

    @rule(target=messages)
    def advance(self) -> Any:
        """A window's body or errback comes back, or does so twice."""
        return self.advance_once()

    @rule(target=messages, overdue=st.sets(st.sampled_from(sorted(TIMED))))
    def tick(self, overdue: set[str]) -> Any:
        """Time passes: claims lapse, retries come due, messages are overdue; the tick puts them back, and advances."""
        age(self.hub.client, JOB, AGES, overdue)
        age(self.hub.client, JOB, LATER, TIMED - overdue)

        def call(dispatch: driver.Dispatch) -> None:
            _, lapsed = driver.tick(self.ledger, JOB, self.epoch, WINDOW, dispatch)
            for batch, owner in lapsed:
                assert self.owners.pop(batch) == owner

        return self._drive(call)

    @precondition(lambda self: self.epoch > 1)
    @rule(back=st.integers(1, 3))
    def stale_driver(self, back: int) -> None:
        """A body and a tick of an earlier run do nothing, however much is overdue."""
        before = places(self.hub.client, JOB)

        def refuse(job: str, batches: list[int], epoch: int, alone: bool) -> None:
            raise AssertionError(f"epoch {epoch} sent {batches}")

        age(self.hub.client, JOB, AGES)
        driver.advance(self.ledger, JOB, self.epoch - back, WINDOW, refuse)
        assert driver.tick(self.ledger, JOB, self.epoch - back, WINDOW, refuse)[1] == []
        age(self.hub.client, JOB, -AGES)
        assert places(self.hub.client, JOB) == before

    @precondition(lambda self: self.owners and self.ledger.state(JOB) == "copying")
    @rule()
    def stop(self) -> None:
        """An operator stops the job while batches are under way."""
        self.ledger.stop(JOB)

    @precondition(lambda self: len(self.owners) > 1 or self.ledger.state(JOB) in ("stopped", "failed"))
    @rule(target=messages)
    def resume(self) -> Any:
        """An operator begins the job again, though nobody stopped it; the workers of the last run know nothing."""
        self.begin_again()
        return self.advance_once()

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        """An operator pauses the job, or has it go on; whatever was sent is then to do again."""
        was = self.ledger.is_paused(JOB)
        self.ledger.pause(JOB, paused)
        assert self.ledger.is_paused(JOB) == paused
        if was and not paused:
            assert ["sent"] not in places(self.hub.client, JOB).values()

    @rule(number=st.integers(0, WORKERS - 1))
    def disown(self, number: int) -> None:
        """A worker ends, and its batches are put back at once. The processes that it had may still be heard of."""
        theirs = [batch for batch, owner in self.owners.items() if owner.startswith(f"host{number}/")]
        assert self.ledger.disown(JOB, f"host{number}") == len(theirs)
        for batch in theirs:
            del self.owners[batch]
            self.attempts[batch] -= 1
        found = places(self.hub.client, JOB)
        assert all(found[batch] == ["todo"] for batch in theirs)

    # The broker.

    @rule(message=messages, target=messages)
    def duplicate(self, message: tuple[int, int]) -> tuple[int, int]:
        """A message comes twice."""
        return message

    @rule(message=consumes(messages))
    def lose(self, message: tuple[int, int]) -> None:
        """A message is lost."""

    @rule(message=consumes(messages), target=claims)
    def deliver(self, message: tuple[int, int]) -> Any:
        """A message, any of those under way, reaches a worker, which claims."""
        claim = self._claim(message)
        return claim if claim else multiple()

    @rule(message=consumes(messages), target=claims)
    def copy(self, message: tuple[int, int]) -> Any:
        """A message reaches a worker, and nothing goes wrong. That worker's claim is kept: it may be heard of again."""
        claim = self._claim(message)
        if not claim:
            return multiple()
        self._record(claim, None)
        return claim

    # The workers. A claim of the bundle may have lapsed long ago: its worker is late and does not know.

    @rule(claim=claims)
    def claim_again(self, claim: Claim) -> None:
        """The answer to a claim was lost, so it is made again; late, it gets nothing."""
        held = self.owners.get(claim.batch) == claim.owner
        again = self.ledger.claim(JOB, claim.batch, self.epoch - 1, claim.owner, CLAIM_SECONDS)
        assert (again is not None) == held
        if again:
            assert again.attempt == claim.attempt

    @rule(claim=claims, share=st.floats(0, 1))
    def renew(self, claim: Claim, share: float) -> None:
        """A worker says how far it is; it goes on only when the claim is its own and the job runs."""
        mine = self.owners.get(claim.batch) == claim.owner and self.ledger.state(JOB) == "copying"
        moved = int(share * batch_of(claim.extents).data)
        assert self.ledger.renew(claim, CLAIM_SECONDS, moved) == mine

    @rule(claim=claims)
    def record(self, claim: Claim) -> None:
        """A worker records its batch, perhaps for the second time."""
        self._record(claim, None)

    @rule(claim=claims, error=st.sampled_from(READ_FAILURES))
    def record_with_a_rest(self, claim: Claim, error: SendenseError) -> None:
        """A worker could read only the first half of its batch."""
        offset, length, zero = claim.extents[0]
        if zero or length < 2 * CLUSTER:
            return
        half = length // 2
        stored, left = batch_of([Extent(offset, half)]), batch_of([Extent(offset + half, length - half)])
        self._record(claim, Rest(stored, left, self._failure(claim, error), delay_before_next(claim.attempt, error)))

    @rule(claim=claims)
    def record_as_far_as_it_was_read(self, claim: Claim) -> None:
        """A worker was held back, and read only the first half of its batch: nothing failed."""
        offset, length, zero = claim.extents[0]
        if zero or length < 2 * CLUSTER:
            return
        half, failures = length // 2, len(self.ledger.failures(JOB))
        self._record(claim, Rest(batch_of([Extent(offset, half)]), batch_of([Extent(offset + half, length - half)])))
        assert len(self.ledger.failures(JOB)) == failures

    @rule(claim=consumes(claims), error=st.sampled_from(FAILURES))
    def release(self, claim: Claim, error: SendenseError) -> None:
        """A worker's attempt fails, as an ordinary error does."""
        delay = delay_before_next(claim.attempt, error)
        end_job = delay is None and not error.spares_job
        mine = self.owners.get(claim.batch) == claim.owner
        assert self.ledger.release(claim, self._failure(claim, error), 0, delay, end_job=end_job) == mine
        if mine:
            del self.owners[claim.batch]

    @rule(claim=consumes(claims))
    def abandon(self, claim: Claim) -> None:
        """A worker gives its batch back, as it does when its job is stopped."""
        mine = self.owners.get(claim.batch) == claim.owner
        assert self.ledger.abandon(claim, 0) == mine
        if mine:
            del self.owners[claim.batch]

    @rule(claim=consumes(claims))
    def defer(self, claim: Claim) -> None:
        """A worker gets no connection for its batch: no attempt, and no failure."""
        mine = self.owners.get(claim.batch) == claim.owner
        failures = len(self.ledger.failures(JOB))
        assert self.ledger.defer(claim, 0, 1.0, "all are taken") == mine
        assert len(self.ledger.failures(JOB)) == failures
        if mine:
            del self.owners[claim.batch]
            self.attempts[claim.batch] -= 1

    @rule(claim=consumes(claims))
    def die(self, claim: Claim) -> None:
        """A worker is killed: nothing more is heard of it."""

    # What holds after every step.

    @invariant()
    def every_batch_is_in_one_place(self) -> None:
        """Exactly one, and the batches with an owner are the claimed ones: those that this test knows of."""
        found = places(self.hub.client, JOB)
        assert all(len(held) == 1 for held in found.values()), found
        claimed = {batch for batch, held in found.items() if held == ["claims"]}
        assert claimed == self.owners.keys()
        assert {batch for batch, held in found.items() if held == ["done"]} == self.done.keys()
        out = sum(held[0] in ("sent", "claims") for held in found.values())
        assert out <= 2 * WINDOW
        held_by = cast(dict[bytes, bytes], self.hub.client.hgetall(f"sendense:{JOB}:owners"))
        assert {int(batch): owner.decode() for batch, owner in held_by.items()} == self.owners

    @invariant()
    def counts_are_right(self) -> None:
        """What counts as done is the sum of what is recorded, each batch once; only what was moved counts as copied."""
        progress = self.ledger.progress(JOB)
        records = self.ledger.records(JOB)
        if not progress:
            return
        assert progress.done == sum(record.data for record in records) == sum(data for _, data in self.done.values())
        assert progress.batches_done == len(records) == len(self.done)
        assert progress.done <= progress.data
        assert progress.copied >= progress.done - progress.already_done
        assert sum(progress.by_worker.values()) == progress.copied
        assert progress.batches == self.batches == self.hub.client.hlen(f"sendense:{JOB}:plan")

    @invariant()
    def the_end_is_the_end(self) -> None:
        """A job is copied only when all of it is, and nothing of it is under way then."""
        if self.ledger.state(JOB) == "copied":
            self._check_copied()

    def teardown(self) -> None:
        """When the faults stop, ticks alone bring the job to its end."""
        if not self.epoch:
            return
        if self.ledger.state(JOB) not in ("copying", "copied"):
            self.begin_again()
        self.ledger.pause(JOB, False)
        for _ in range(MOST_ROUNDS):
            self.sent.clear()
            self.tick({*TIMED})
            if self.ledger.state(JOB) != "copying":
                break
            for message in self.sent:
                claim = self._claim(message)
                if claim:
                    self._record(claim, None)
        given_up = self.ledger.given_up(JOB)
        assert self.ledger.state(JOB) == ("failed" if given_up else "copied")
        assert not self.owners
        if not given_up:
            self._check_copied()
        super().teardown()

    def advance_once(self) -> Any:
        """One call of the driver; the messages that it sent."""
        return self._drive(lambda dispatch: driver.advance(self.ledger, JOB, self.epoch, WINDOW, dispatch))

    def begin_again(self) -> None:
        """A new run: all claims of the last one are void."""
        self.epoch = self.ledger.begin(SPEC)
        self.owners.clear()
        self.attempts.clear()

    def _drive(self, call: Callable[[driver.Dispatch], object]) -> Any:
        found: list[tuple[int, int]] = []

        def dispatch(job: str, batches: list[int], epoch: int, alone: bool) -> None:
            assert (job, epoch) == (JOB, self.epoch)
            held = places(self.hub.client, JOB).values()
            out = sum(place in (["sent"], ["claims"]) for place in held) - len(batches)
            assert alone == (out == 0), "what goes ahead of others is what was alone"
            assert len(batches) <= WINDOW
            assert not self.done.keys() & set(batches), "a batch that is done is never handed out again"
            found.extend((batch, epoch) for batch in batches)

        call(dispatch)
        self.sent.extend(found)
        return multiple(*found)

    def _claim(self, message: tuple[int, int]) -> Claim | None:
        batch, epoch = message
        self.calls += 1
        claim = self.ledger.claim(JOB, batch, epoch, f"host{self.calls % WORKERS}/{self.calls}/task", CLAIM_SECONDS)
        if claim:
            assert not self.ledger.is_paused(JOB)
            assert (epoch, self.ledger.state(JOB)) == (self.epoch, "copying")
            assert batch not in self.owners, "two claims on one batch"
            assert batch not in self.done
            self.attempts[batch] += 1
            assert claim.attempt == self.attempts[batch]
            self.owners[batch] = claim.owner
        return claim

    def _record(self, claim: Claim, rest: Rest | None) -> None:
        mine = self.owners.get(claim.batch) == claim.owner
        before = self.done.get(claim.batch, ("", 0))[0] == claim.owner
        data = rest.stored.data if rest else batch_of(claim.extents).data
        digest = claim.batch.to_bytes(32, "big")
        assert self.ledger.record(claim, digest, data, data, 0, rest) == (mine or before)
        if mine:
            del self.owners[claim.batch]
            self.done[claim.batch] = (claim.owner, data)
            if rest:
                self.attempts[self.batches] = self.attempts[claim.batch] if rest.failure else 0
                self.batches += 1

    def _failure(self, claim: Claim, error: SendenseError) -> Failure:
        return Failure(batch=claim.batch, attempt=claim.attempt, error=type(error).__name__, message=str(error))

    def _check_copied(self) -> None:
        records = self.ledger.records(JOB)
        assert all(held == ["done"] for held in places(self.hub.client, JOB).values())
        extents = [extent for record in records for extent in record.extents]
        assert all(first.end == second.offset for first, second in pairwise(extents))
        assert sum(extent.length for extent in extents) == self.size


@pytest.mark.timeout(600)  # a failure is first made as short as possible
def test_no_order_of_events_breaks_a_job() -> None:
    """Whatever happens in whatever order, each batch is in one place, is counted once, and is copied in the end."""
    with open_hub() as hub:

        class OnHub(Machine):
            def __init__(self) -> None:
                super().__init__(hub)

        run_state_machine_as_test(
            OnHub,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
