"""
Running a job's steps: whoever gets the job's lease, at the place where its step belongs, runs it and those that follow.

Called for every job at every tick and after every event, by any process, any number of times: the lease lets one in. A
process that is killed, or stops, in mid-step loses its lease, and the step runs again from what the record has.
"""

import logging
from collections.abc import Iterator

from sendense.coordinator import copying
from sendense.coordinator.context import Context, Done, Failed, Run, Step, Waiting
from sendense.coordinator.pipelines import pipeline
from sendense.coordinator.record import Lease, Value
from sendense.errors import Cancelled, ClaimLost, Different, InputError, InternalError, SendenseError, StepLost
from sendense.jobs import broker, presence
from sendense.jobs.batch import failure_of
from sendense.jobs.queues import HUB_QUEUE, SLOW_QUEUE, Place, control_queue
from sendense.models import HUB_SITE
from sendense.requests import BackupRequest, JobView, MigrateRequest
from sendense.retry import MAX_ATTEMPTS, delay_before_next

log = logging.getLogger(__name__)

CLEANING_ATTEMPTS = 5
"""Times that a cleaning step is tried before its job ends with something left over."""


PAUSED = "paused by a user"

REMIND_SECONDS = 30
"""Between two messages about a job whose queue is not read for now: one is enough, unless it was lost."""

_UNREAD, _BUSY = "no worker reads the queue {}", "all processes of the queue {} are busy"


def send(app: broker.App, view: JobView) -> None:
    """Have the job's next step run where it belongs."""
    place = _step(view).place
    broker.send_advance(app, view.id, view.name, place, _queue(view, place))


def remind(context: Context, view: JobView) -> None:
    """The same at each tick, while nobody is at it; where nobody is there to take the message, the job says so."""
    place, client = place_of(view), context.ledger.client
    if not place:
        context.jobs.note_waiting(view.id, f"this hub's version has no step {view.step}")
        return
    queue = _queue(view, place)
    readers = _readers(presence.present(client), queue)
    if not _are_busy(readers):
        send(context.app, view)
        return
    if not view.paused:
        context.jobs.note_waiting(view.id, (_BUSY if readers else _UNREAD).format(queue))
    if readers and client.set(_reminded(view.id, place), 1, nx=True, ex=REMIND_SECONDS):
        send(context.app, view)


def unattended(context: Context, views: list[JobView]) -> Iterator[tuple[JobView, float]]:
    """
    The jobs that might go on and that nobody is at, each with since when (Redis's clock).

    Where all who read its queue are at something, a job only has to wait for its turn.
    """
    workers = presence.present(context.ledger.client)
    for view, since in zip(views, context.jobs.alone(view.id for view in views), strict=True):
        place = place_of(view)
        readers = _readers(workers, _queue(view, place)) if place else []
        if since is not None and not view.paused and not (readers and _are_busy(readers)):
            yield view, since


def place_of(view: JobView) -> Place | None:
    """Where the job's step runs; None for a step of another version."""
    return next((step.place for step in pipeline(view.request) if step.name == view.step), None)


def site_of(view: JobView) -> str:
    """The site whose vCenter the job speaks to; HUB_SITE for one that speaks to none."""
    return view.request.vm.site if isinstance(view.request, BackupRequest | MigrateRequest) else HUB_SITE


def advance(context: Context, job: str, place: Place, owner: str) -> None:
    """Run the job's steps that belong to this place, as far as they go now."""
    seconds, renew = context.settings.claim_seconds, context.settings.renew_seconds
    context.ledger.client.delete(_reminded(job, place))
    view = context.jobs.get(job)
    if not view or place_of(view) != place:
        return
    lease, lapsed = context.jobs.lease(job, owner, seconds, renew)
    if lapsed:
        presence.condemn(context.ledger.client, lapsed)
    if not lease:
        return
    try:
        view = context.jobs.get(job)
        if lapsed and view and not _step_lost(context, view, lease, lapsed):
            return
        while view := context.jobs.get(job):
            if view.paused and not view.cancelled and not (_step(view).cleaning or _step(view).final):
                copying.hold(context, view)
                lease.write({"waiting": PAUSED}, release=True)
                return
            if _step(view).place != place:
                lease.write({}, release=True)
                send(context.app, view)
                return
            if not _run_step(context, view, lease):
                return
    except (ClaimLost, *broker.Unavailable) as exc:  # whoever gets the lease next runs the step again
        log.warning("a step was given up: %s", exc, extra={"action": "lease_lost", "job_id": job})


def _run_step(context: Context, view: JobView, lease: Lease) -> bool:
    """Run one step, and enter what came of it; False when the lease is given back."""
    step, jobs = _step(view), context.jobs
    lease.heeds_cancel = not (step.cleaning or step.final)
    if view.state == "queued":
        lease.write({"state": "running", "started": jobs.now()})
    if view.waiting in {text.format(_queue(view, step.place)) for text in (_UNREAD, _BUSY)}:
        lease.write({"waiting": ""})
    try:
        if view.cancelled and lease.heeds_cancel:
            raise Cancelled(view.id)
        if view.work.resumed:
            work = copying.reopen(context, Run(view, lease.beat))
            lease.write({"work": work.model_dump_json()})
            view = view.model_copy(update={"work": work})
        answer = step.run(context, Run(view, lease.beat))
    except (ClaimLost, *broker.Unavailable):
        raise
    except SendenseError as exc:
        return _step_failed(context, view, lease, exc)
    except Exception as exc:
        log.exception("a step failed", extra={"action": "step_failed", "job_id": view.id, "step": step.name})
        return _step_failed(context, view, lease, InternalError(exc))
    fields: dict[str, Value] = {"work": answer.work.model_dump_json()}
    match answer:
        case Waiting(reason=reason):
            lease.write({**fields, "waiting": reason, "attempts": 0}, release=True)
            return False
        case Done():
            return _next(context, view, lease, fields)
        case Failed(error=error):
            lease.write(fields)
            return _step_failed(context, view, lease, error)


def _step_lost(context: Context, view: JobView, lease: Lease, owner: str) -> bool:
    """Count a step whose process was killed or stopped as a failed attempt; False when nothing more can be done now."""
    if view.attempts + 1 < MAX_ATTEMPTS:
        context.jobs.event(view.id, f"{view.step}: its process {owner} was killed or stopped: run again")
        lease.write({"attempts": view.attempts + 1})
        return True
    return _step_failed(context, view, lease, StepLost(view.step, owner))


def _next(context: Context, view: JobView, lease: Lease, fields: dict[str, Value]) -> bool:
    """Go on to the step behind this one, or end the job."""
    steps = pipeline(view.request)
    number = steps.index(_step(view))
    if number + 1 < len(steps):
        following = steps[number + 1].name
        context.jobs.event(view.id, following)
        lease.write({**fields, "step": following, "attempts": 0, "waiting": ""})
        return True
    lease.write(fields)
    context.jobs.event(view.id, view.outcome)
    if not context.jobs.finish(view.id, lease.owner, view.outcome):
        raise ClaimLost(view.id, "its lease")
    return False


def _step_failed(context: Context, view: JobView, lease: Lease, exc: SendenseError) -> bool:
    step, attempt = _step(view), view.attempts + 1
    failure = failure_of(exc, attempt=attempt, worker=lease.owner)
    failure = failure.model_copy(update={"usage": isinstance(exc, InputError)})
    context.jobs.event(view.id, f"{step.name}: {failure.message}")
    if step.cleaning:
        if attempt < CLEANING_ATTEMPTS:
            delay = context.settings.retry_seconds * attempt
            lease.write({"attempts": attempt, "waiting": failure.message}, release=True, delay=delay)
            return False
        context.jobs.note_leftover(view.id, f"{view.leftover}{step.name}: {failure.message}\n")
        return _next(context, view, lease, {})
    delay_or_none = delay_before_next(attempt, exc, context.settings.retry_seconds)
    if delay_or_none is not None:
        lease.write({"attempts": attempt, "waiting": failure.message}, release=True, delay=delay_or_none)
        return False
    outcome = {Cancelled: "cancelled", Different: "different"}.get(type(exc), "failed")
    first = next(each for each in pipeline(view.request) if each.cleaning)
    fields: dict[str, Value] = {"outcome": outcome, "step": first.name, "attempts": 0, "waiting": ""}
    if outcome != "cancelled":
        fields["error"] = failure.model_dump_json()
    lease.write(fields)
    return True


def _step(view: JobView) -> Step:
    return next(step for step in pipeline(view.request) if step.name == view.step)


def _queue(view: JobView, place: Place) -> str:
    if place == "hub":
        return HUB_QUEUE
    if place == "slow":
        return SLOW_QUEUE
    assert isinstance(view.request, BackupRequest | MigrateRequest)
    return control_queue(view.request.vm.site)


def _readers(workers: list[presence.Worker], queue: str) -> list[presence.Worker]:
    return [worker for worker in workers if queue in worker.queues]


def _are_busy(readers: list[presence.Worker]) -> bool:
    return sum(worker.active for worker in readers) >= sum(worker.processes for worker in readers)


def _reminded(job: str, place: Place) -> str:
    return f"sendense:reminded:{job}:{place}"
