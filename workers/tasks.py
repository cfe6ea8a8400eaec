"""The tasks: thin shells over `sendense.jobs`. Arguments are ids and numbers; nothing else goes through the broker."""

import os
import socket
from functools import lru_cache
from typing import Any

from sendense.jobs import broker, driver, queues
from sendense.jobs.batch import run_batch
from sendense.jobs.ledger import Ledger
from sendense.jobs.ledger import connect as connect_redis
from sendense.jobs.survey import run_survey
from sendense.settings import Settings, load_settings
from workers.app import REDIS_URL, app
from workers.handles import Handles


@lru_cache
def _settings() -> Settings:
    return load_settings()


@lru_cache
def _handles() -> Handles:
    return Handles(_settings().connect_timeout)


@lru_cache
def _ledger() -> Ledger:
    return Ledger(connect_redis(REDIS_URL))


@app.task(name=queues.SURVEY)
def survey(job: str) -> None:
    """Look at a job's endpoints and plan it."""
    run_survey(_ledger(), _handles(), _settings(), job)


@app.task(name=queues.COPY_EXTENTS, bind=True)
def copy_extents(self: Any, job: str, batch: int, epoch: int) -> str:
    """Copy one batch."""
    me = f"{socket.gethostname()}/{os.getpid()}/{self.request.id}"
    return run_batch(_ledger(), _handles(), _settings(), job, batch, epoch, me)


@app.task(name=queues.SETTLE)
def settle(job: str, epoch: int, window: int) -> None:
    """Body of a window's chord: all its batches came back, so the next one goes out."""
    _advance(job, epoch, window)


@app.task(name=queues.SETTLE_AFTER_LOSS)
def settle_after_loss(task_id: str, *, job: str, epoch: int, window: int) -> None:
    """Errback of a window's chord: a process was killed under one of its batches. Queued: it takes one argument."""
    _advance(job, epoch, window)


def _advance(job: str, epoch: int, window: int) -> None:
    ledger = _ledger()
    spec, progress = ledger.spec(job), ledger.progress(job)
    if spec and progress:
        driver.advance(ledger, job, epoch, window, broker.chord_dispatch(app, spec, progress.batches, window))
