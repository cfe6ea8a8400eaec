"""The tasks: thin shells over `sendense.jobs` and the coordinator. Arguments are ids and numbers; nothing else goes
through the broker."""

import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sendense.jobs import broker, driver, presence, queues
from sendense.jobs.batch import run_batch
from sendense.jobs.ledger import Ledger
from sendense.jobs.ledger import connect as connect_redis
from sendense.jobs.survey import run_survey
from sendense.models import JobSpec
from sendense.settings import Settings, load_settings
from workers.app import REDIS_URL, WORKER, app
from workers.handles import Handles

if TYPE_CHECKING:
    from sendense.coordinator.context import Context

STEP_SECONDS = 86_400.0
"""Celery's limit for a step: a merge of large images takes hours, and a step that hangs loses its lease long before."""


@lru_cache
def _settings() -> Settings:
    return load_settings()


@lru_cache
def _handles() -> Handles:
    watch = Ledger(connect_redis(REDIS_URL, retries=0))
    return Handles(_ledger(), watch, _settings(), WORKER)


@lru_cache
def _ledger() -> Ledger:
    return Ledger(connect_redis(REDIS_URL))


@lru_cache
def _context() -> "Context":
    # Only here: a worker that copies has no use for what these import.
    from sendense.coordinator.context import Context
    from sendense.coordinator.record import Jobs

    return Context(_settings(), _ledger(), Jobs(_ledger().client), app)


@app.task(name=queues.SURVEY, bind=True)
def survey(self: Any, job: str) -> None:
    """Look at a job's endpoints and plan it."""
    with _handles().busy:
        is_due_again = run_survey(_ledger(), _handles(), _settings(), job, _begin(self))
        _handles().tidy()
    spec = _ledger().spec(job)
    if is_due_again and spec:
        broker.send_survey(app, spec)
    else:
        _tell_coordinator(spec)


@app.task(name=queues.COPY_EXTENTS, bind=True, Request="workers.request:CopyRequest")
def copy_extents(self: Any, job: str, batch: int, epoch: int) -> str:
    """Copy one batch."""
    with _handles().busy:
        outcome = run_batch(_ledger(), _handles(), _settings(), job, batch, epoch, _begin(self))
        _handles().tidy()
    return outcome


@app.task(name=queues.SETTLE)
def settle(job: str, epoch: int, window: int) -> None:
    """Body of a window's chord: all its batches came back, so the next one goes out."""
    _advance(job, epoch, window)


@app.task(name=queues.SETTLE_AFTER_LOSS)
def settle_after_loss(task_id: str, *, job: str, epoch: int, window: int) -> None:
    """Errback of a window's chord: a process was killed under one of its batches. Queued: it takes one argument."""
    _advance(job, epoch, window)


@app.task(name=queues.ADVANCE, bind=True, time_limit=STEP_SECONDS)
def advance(self: Any, job: str, place: queues.Place) -> None:
    """Run the steps of a user's job that belong to this place, as far as they go."""
    from sendense.coordinator.run import advance

    advance(_context(), job, place, _begin(self))


@app.task(name=queues.ANSWER, time_limit=STEP_SECONDS)
def answer(question: str) -> None:
    """Answer a question about this site."""
    from sendense.coordinator.asking import answer

    answer(_context(), question)


@app.task(name=queues.ROUTINE, bind=True)
def routine(self: Any, duty: str) -> None:
    """Do what the hub does by itself."""
    from sendense.service.routine import run

    run(_context(), duty, _begin(self))


def _advance(job: str, epoch: int, window: int) -> None:
    ledger = _ledger()
    spec, progress = ledger.spec(job), ledger.progress(job)
    if not spec or not progress:
        return
    state = driver.advance(
        ledger, job, epoch, window, broker.chord_dispatch(app, ledger, spec, progress.batches, window)
    )
    if state in ("copied", "failed"):
        _tell_coordinator(spec)


def _tell_coordinator(spec: JobSpec | None) -> None:
    """The job that this was a part of has something to do, and need not wait for its tick."""
    if spec and spec.part_of:
        broker.send_advance(app, spec.part_of, spec.name, queues.HUB, queues.HUB_QUEUE)


def _begin(task: Any) -> str:
    """A name of this process and this call that no other has; it is what the process is at from now on."""
    me = f"{WORKER}/{os.getpid()}/{task.request.id}"
    presence.begin(_ledger().client, me)
    return me
