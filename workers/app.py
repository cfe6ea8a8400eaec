"""
The Celery application that `celery -A workers.app` runs.

SENDENSE_REDIS is the URL of Redis, SENDENSE_WORKER the name under which this worker announces itself.
"""

import logging
import os
import threading
import time
from contextlib import suppress
from typing import Any

from celery.signals import heartbeat_sent, setup_logging, worker_ready, worker_shutting_down
from celery.worker.control import control_command
from celery.worker.state import active_requests

from sendense.jobs.broker import make_app
from sendense.jobs.ledger import LedgerUnavailable, connect
from sendense.jobs.presence import Worker, announce
from sendense.jobs.queues import FILL_POOL
from workers.logs import log_plainly

REDIS_URL = os.environ["SENDENSE_REDIS"]
WORKER = os.environ["SENDENSE_WORKER"]

app = make_app(REDIS_URL)
app.set_current()
app.conf.imports = ("workers.tasks",)
app.Task.Request = "workers.request:TimedRequest"

LEAVING_SECONDS = 2.0
"""Between two signs of life of a worker that ends the work it has: as often as Celery's heartbeat."""

log = logging.getLogger(__name__)
_redis = connect(REDIS_URL)
_itself: list[Any] = []
"""This worker, once it runs."""
_leaving = threading.Event()


@setup_logging.connect
def _log_plainly(**_: object) -> None:
    """Not as Celery does."""
    log_plainly()


@control_command(name=FILL_POOL)
def _fill_pool(state: Any) -> None:
    """Start at once the processes that `pool_grow` allowed: Celery's own timer takes up to five seconds to."""
    state.consumer.pool.maintain_pool()


@worker_ready.connect
def _learn_itself(sender: Any, **_: object) -> None:
    _itself.append(sender.controller)
    _say_present()


@heartbeat_sent.connect
def _say_present(**_: object) -> None:
    """From the main process's own loop, so that a stopped worker is missed."""
    if _itself and not _leaving.is_set():
        _announce([str(name) for name in _itself[0].app.amqp.queues.consume_from], len(active_requests))


def _announce(queues: list[str], active: int) -> None:
    try:
        announce(_redis, Worker(name=WORKER, queues=queues, processes=_itself[0].concurrency, active=active))
    except LedgerUnavailable as exc:
        log.warning("could not announce this worker: %s", exc, extra={"action": "announce"})


@worker_shutting_down.connect
def _leave(**_: object) -> None:
    """The main process waits for its pool from now on, and its loop stands still; called within a signal handler."""
    if _itself and not _leaving.is_set():
        _leaving.set()
        threading.Thread(target=_hand_back, name="leaving", daemon=True).start()


def _hand_back() -> None:
    """
    Give messages that no process began back at once, and show that this worker reads no queue any more.

    Celery gives them back when the last task has ended, and one that is killed before never does (measured, 5.7.0).
    """
    while True:
        _announce([], 0)
        with suppress(Exception):  # Celery's own thread is at it, or at the end, where it does the same
            _itself[0].consumer.task_consumer.channel.qos.restore_unacked()
        time.sleep(LEAVING_SECONDS)  # and again: until its loop stops, Celery may fetch some anew
