"""
One batch from claim to record: what a copy task does.

Order is the invariant: write, flush, record. Whatever ends it before the record leaves the batch to be copied again;
whatever repeats it finds the batch recorded or claimed, and returns.
"""

import logging
import time
from collections import deque
from contextlib import suppress
from typing import Protocol

from sendense.beat import Beat
from sendense.errors import ClaimLost, ConnectionsTaken, EndpointError, ReadFailed, SendenseError, StalledRequest
from sendense.extents import Extent
from sendense.jobs.claim import ClaimKeeper
from sendense.jobs.ledger import Claim, Ledger, LedgerUnavailable, Rest
from sendense.jobs.plan import batch_of
from sendense.jobs.tally import verdict_of
from sendense.jobs.throttle import Allowance, SiteThrottle
from sendense.models import HUB_EXPORT, Failure, JobSpec
from sendense.nbd.blocks import map_extents
from sendense.nbd.connect import Connection
from sendense.nbd.probe import diagnose
from sendense.nbd.transfer import Limits, Outcome, Take, Transfer
from sendense.nbd.uri import is_uri, parse
from sendense.retry import delay_before_next
from sendense.settings import Settings

log = logging.getLogger(__name__)

DIAGNOSIS_SECONDS = 5.0
"""Time for the doctor's look at a server that stalled: it answers within milliseconds, or not at all."""

DEFER_SECONDS = 1.0
"""Until a batch that found no connection is asked for again: the tick of two seconds sees to it."""

FAILED, TRIED_AGAIN, WAITS = "failed", "to be tried again", "waits for a connection"
PARTLY = "recorded, but for what could not be read"
"""How the words begin that say what came of a batch, where not all of it was stored; the reason follows."""

CUT, HELD = "recorded as far as it was read", "nothing was read"
"""The same of a batch that was read in part, and not at all, though nothing failed."""

AWAY_SECONDS, BEAT_SECONDS = 2.0, 0.2
"""A process that cannot reach the hub's exports rests for so long, holding its batch: so it leaves the others to nodes
that can. It is no failure of the batch: a tunnel is cut, or the hub is being restarted."""


class HubAway(Exception):
    """This node has no way to the hub's exports, now."""


class Handles(Protocol):
    """A process's open connections."""

    def source(self, spec: JobSpec, beat: Beat) -> Connection:
        """The job's connection to its source, opened if need be."""

    def target(self, spec: JobSpec, beat: Beat) -> Connection:
        """The same to its target."""

    def throttle(self, spec: JobSpec) -> SiteThrottle | None:
        """What this process may read of the job's source; None where no site is read."""

    def drop(self, spec: JobSpec) -> None:
        """Forget the job's connections."""

    def words(self, spec: JobSpec) -> str:
        """What the source's server said last, where it is a child of this process."""

    def lost(self, spec: JobSpec) -> ConnectionsTaken | None:
        """What to say of a source that was closed while it was used, as its connection is another's by now."""


def run_batch(ledger: Ledger, handles: Handles, settings: Settings, job: str, batch: int, epoch: int, me: str) -> str:
    """
    Claim, copy, flush, record. Returns in words what came of it, for operators; ordinary failures are recorded.

    `me` names this process and this call, and no other.
    """
    began = time.monotonic()
    claim = ledger.claim(job, batch, epoch, me, settings.claim_seconds)
    spec = ledger.spec(job)
    if not claim or not spec:
        return "not ours"
    keeper = ClaimKeeper(ledger, claim, settings.claim_seconds, settings.renew_seconds, began)
    try:
        try:
            outcome, why = _transfer(handles, settings, spec, claim, keeper)
        except (ClaimLost, ConnectionsTaken, HubAway):
            handles.drop(spec)
            raise
        except SendenseError as exc:
            said, taken = handles.words(spec), handles.lost(spec)
            handles.drop(spec)
            raise taken or _diagnosed(exc, keeper, said) from exc
    except ClaimLost:
        with suppress(*LedgerUnavailable):  # then it lapses
            ledger.abandon(claim, keeper.copied)
        return "claim lost"
    except (ConnectionsTaken, HubAway) as exc:
        ledger.defer(claim, keeper.copied, DEFER_SECONDS, str(exc))
        return f"{WAITS}: {exc}"
    except SendenseError as exc:
        return _give_back(ledger, settings, claim, exc, keeper.copied)
    if outcome.left:
        return _record_part(ledger, settings, spec, claim, outcome, why)
    return _record(ledger, settings, spec, claim, outcome)


def _transfer(
    handles: Handles, settings: Settings, spec: JobSpec, claim: Claim, keeper: ClaimKeeper
) -> tuple[Outcome, str]:
    """What was done, and why not all of it was read that can be."""
    target = open_target(handles, spec, claim.owner, keeper.beat)
    source = handles.source(spec, keeper.beat)
    extents = claim.extents
    if not target:
        extents = _to_verify(source, extents, settings.no_progress_timeout, keeper.beat)
    limits = Limits(settings.request_bytes, settings.requests_in_flight, settings.no_progress_timeout)
    throttle = handles.throttle(spec)
    allowance = Allowance(throttle, keeper, spec.id, settings.task_time_limit) if throttle else None
    options: dict[str, Take] = {"take": allowance.take} if allowance else {}
    transfer = Transfer(source, target, limits, target_is_zero=spec.target_is_zero, beat=keeper.beat, **options)
    outcome = transfer.run(extents)
    if outcome.failed:
        outcome.failed.sort()
        extent, reason = outcome.failed[0]
        count, said = len(outcome.failed), handles.words(spec)
        first = f", the first of {count} places" if count > 1 else ""
        which = "said last, of one of them: " if count > 1 else ""
        outcome.failed[0] = (extent, f"{reason}{first}" + (f"; {which}{said}" if said else ""))
    return outcome, allowance.why if allowance else ""


def open_target(handles: Handles, spec: JobSpec, me: str, beat: Beat) -> Connection | None:
    """The target, opened ahead of the source: where HubAway is raised, no disk need be opened."""
    if not spec.target:
        return None
    try:
        return handles.target(spec, beat)
    except EndpointError as exc:
        if not spec.target.startswith(HUB_EXPORT):
            raise
        until = time.monotonic() + AWAY_SECONDS
        while time.monotonic() < until:
            beat()
            time.sleep(BEAT_SECONDS)
        raise HubAway(f"{me.partition('/')[0]} cannot reach the hub's exports: {exc}") from exc


def _to_verify(stored: Connection, extents: list[Extent], timeout: float, beat: Beat) -> list[Extent]:
    """What has to be read of a stored image: all data, and of the zeroes whatever the server does not know as zero."""
    found: list[Extent] = []
    for extent in extents:
        if extent.zero:
            found += map_extents(stored, extent.offset, extent.length, timeout, beat)
        else:
            found.append(extent)
    return found


def _record(ledger: Ledger, settings: Settings, spec: JobSpec, claim: Claim, outcome: Outcome) -> str:
    rest = _rest(settings, spec, claim, outcome) if outcome.failed else None
    if rest and (not rest.stored.packed or spec.kind == "verify"):
        # A verification's batches are compared with the copy's, so they stay whole.
        return _give_back(ledger, settings, claim, _read_error(spec, outcome), outcome.copied)
    data = rest.stored.data if rest else batch_of(claim.extents).data
    ours = ledger.record(claim, outcome.digest, outcome.copied, data, outcome.retries, rest)
    if not ours:
        return "claim lost"
    return f"{PARTLY}: {rest.failure.error}: {rest.failure.message}" if rest and rest.failure else "recorded"


def _record_part(ledger: Ledger, settings: Settings, spec: JobSpec, claim: Claim, outcome: Outcome, why: str) -> str:
    """
    Record what was read; the rest, and what could not be read, becomes a batch that nobody began.

    Where nothing was stored, an error makes it a failed attempt: otherwise a bad sector would be read for ever.
    """
    stored, left = _without(claim.extents, [*outcome.left, *(extent for extent, _ in outcome.failed)])
    if not any(not extent.zero for extent in stored):
        if outcome.failed:
            return _give_back(ledger, settings, claim, _read_error(spec, outcome), outcome.copied)
        ledger.defer(claim, outcome.copied, DEFER_SECONDS, why)
        return f"{HELD}: {why}"
    rest = Rest(batch_of(stored), batch_of(left))
    ours = ledger.record(claim, outcome.digest, outcome.copied, rest.stored.data, outcome.retries, rest)
    return f"{CUT}: {why}" if ours else "claim lost"


def _rest(settings: Settings, spec: JobSpec, claim: Claim, outcome: Outcome) -> Rest:
    """Split the batch into what is stored and what could not be read."""
    stored, left = _without(claim.extents, [extent for extent, _ in outcome.failed])
    error = _read_error(spec, outcome)
    delay = delay_before_next(claim.attempt, error, settings.retry_seconds)
    return Rest(batch_of(stored), batch_of(left), _failure(claim, error), delay)


def _without(extents: list[Extent], missing: list[Extent]) -> tuple[list[Extent], list[Extent]]:
    """A batch's extents without what is missing of its data, and that; neighbours of the latter as one."""
    stored, left, holes = list[Extent](), list[Extent](), deque(sorted(missing))
    for extent in extents:
        at = extent.offset
        while holes and holes[0].offset < extent.end:
            hole = holes.popleft()
            if extent.zero:
                continue
            if hole.offset > at:
                stored.append(Extent(at, hole.offset - at))
            if left and left[-1].end == hole.offset:
                hole = Extent(left[-1].offset, hole.end - left.pop().offset)
            left.append(hole)
            at = hole.end
        if at < extent.end:
            stored.append(Extent(at, extent.end - at, extent.zero))
    return stored, left


def _read_error(spec: JobSpec, outcome: Outcome) -> ReadFailed:
    extent, reason = outcome.failed[0]
    return ReadFailed(spec.source_label, extent.offset, extent.length, reason)


def _give_back(ledger: Ledger, settings: Settings, claim: Claim, exc: SendenseError, copied: int) -> str:
    delay = delay_before_next(claim.attempt, exc, settings.retry_seconds)
    end_job = delay is None and not exc.spares_job
    log.warning(
        "a batch failed", extra={"action": "batch_failed", "job_id": claim.job, "batch": claim.batch, "error": str(exc)}
    )
    ledger.release(claim, _failure(claim, exc), copied, delay, end_job=end_job)
    return f"{FAILED if delay is None else TRIED_AGAIN}: {type(exc).__name__}: {exc}"


def _failure(claim: Claim, exc: SendenseError) -> Failure:
    limit = exc.attempts or None
    attempt = f"attempt {claim.attempt}" + (f" of {limit}" if limit else "")
    return failure_of(exc, batch=claim.batch, attempt=claim.attempt, worker=claim.owner, note=f" [{attempt}]")


def failure_of(
    exc: SendenseError, *, batch: int | None = None, attempt: int = 1, worker: str = "", note: str = ""
) -> Failure:
    """An error as the ledger keeps it."""
    return Failure(
        batch=batch,
        attempt=attempt,
        error=type(exc).__name__,
        message=f"{exc}{note}",
        hint=exc.hint,
        uri=getattr(exc, "uri", ""),
        stalled=exc.stalled,
        verdict=verdict_of(exc),
        retryable=exc.retryable,
        worker=worker,
    )


def _diagnosed(exc: SendenseError, keeper: ClaimKeeper, said: str) -> SendenseError:
    """A stall with the doctor's verdict on its server, or with what that said last; other errors as they are."""
    if not isinstance(exc, StalledRequest):
        return exc
    verdict = said
    if is_uri(exc.uri):
        try:
            verdict = diagnose(parse(exc.uri), DIAGNOSIS_SECONDS, keeper.beat)
        except EndpointError as found:
            verdict = found.verdict
    return type(exc)(exc.uri, exc.offset, exc.length, exc.waited, verdict)
