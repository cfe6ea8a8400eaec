"""The survey: what the endpoints of a job are like, whether the target can hold the source, and the plan."""

import time

from sendense.beat import beating
from sendense.errors import (
    ClaimLost,
    ConnectionsTaken,
    InputError,
    SendenseError,
    SourceChanged,
    TargetReadOnly,
    TargetTooSmall,
)
from sendense.jobs.batch import Handles, HubAway, failure_of, open_target
from sendense.jobs.ledger import Ledger
from sendense.jobs.plan import plan
from sendense.models import JobSpec, Survey
from sendense.nbd.blocks import map_extents
from sendense.nbd.connect import Connection
from sendense.settings import Settings


def run_survey(ledger: Ledger, handles: Handles, settings: Settings, job: str, me: str) -> bool:
    """
    Open the endpoints, and unless it was done before, plan the job's areas, or all that the source maps.

    What is wrong ends the job with its failure recorded. Returns whether it has to be asked for again: the site has no
    connection for it now.

    The handles stay open for the copy: an export that takes one client may end when that client leaves. `me` names this
    process and this call.
    """
    spec = ledger.spec(job)
    if not spec or ledger.state(job) != "preparing":  # its message came twice
        return False
    try:
        _survey(ledger, handles, settings, spec, me)
    except ClaimLost:
        handles.drop(spec)
    except HubAway as exc:
        handles.drop(spec)
        if _is_ours(ledger, spec):
            ledger.defer_survey(job, str(exc))
            return True
    except SendenseError as exc:
        taken = exc if isinstance(exc, ConnectionsTaken) else handles.lost(spec)
        handles.drop(spec)
        if not _is_ours(ledger, spec):
            return False
        if taken:
            ledger.defer_survey(job, str(taken))
            return True
        failure = failure_of(exc)
        ledger.fail(job, failure.model_copy(update={"usage": isinstance(exc, InputError)}))
    return False


def _survey(ledger: Ledger, handles: Handles, settings: Settings, spec: JobSpec, me: str) -> None:
    said = 0.0

    def beat() -> None:
        nonlocal said
        if time.monotonic() - said > settings.renew_seconds:
            said = time.monotonic()
            if not _is_ours(ledger, spec):
                raise ClaimLost(spec.id, "its survey")
            ledger.touch(spec.id, me)

    beat()
    target = open_target(handles, spec, me, beat)
    source = handles.source(spec, beat)
    survey = Survey(
        size=source.info.size,
        multi_conn=(source.info.multi_conn or bool(spec.disk)) and (target is None or target.info.multi_conn),
        allocation=source.info.allocation,
        flush=target is None or target.info.flush,
    )
    if target:
        _check_target(spec, target, survey.size)
    if not _is_ours(ledger, spec):
        raise ClaimLost(spec.id, "its survey")
    before = ledger.survey(spec.id)
    if not before:
        extents = ledger.areas(spec.id) or map_extents(source, 0, survey.size, settings.no_progress_timeout, beat)
        ledger.write_plan(spec.id, survey, plan(beating(extents, beat), survey.size), beat)
    elif before.size != survey.size:
        raise SourceChanged(spec.source_label, before.size, survey.size)
    else:
        ledger.ready(spec.id, survey)


def _is_ours(ledger: Ledger, spec: JobSpec) -> bool:
    """Whether the survey is still asked for: another may have been done meanwhile, or another run have begun."""
    return ledger.state(spec.id) == "preparing" and ledger.spec(spec.id) == spec


def _check_target(spec: JobSpec, target: Connection, size: int) -> None:
    if target.info.read_only:
        raise TargetReadOnly(spec.target)
    if target.info.size < size:
        raise TargetTooSmall(spec.target, target.info.size, size)
