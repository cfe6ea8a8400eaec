"""
The Celery application that `celery -A workers.app` runs.

SENDENSE_REDIS is the URL of Redis, SENDENSE_WORKER the name under which this worker announces itself.
"""

import logging
import os
from typing import Any

from celery.signals import heartbeat_sent, setup_logging, worker_ready
from celery.worker.control import control_command

from sendense.jobs.broker import make_app
from sendense.jobs.ledger import LedgerUnavailable, connect
from sendense.jobs.presence import Worker, announce
from sendense.jobs.queues import FILL_POOL

REDIS_URL = os.environ["SENDENSE_REDIS"]
WORKER = os.environ["SENDENSE_WORKER"]

app = make_app(REDIS_URL)
app.set_current()
app.conf.imports = ("workers.tasks",)

log = logging.getLogger(__name__)
_redis = connect(REDIS_URL)
_itself: list[Any] = []
"""This worker, once it runs."""


@setup_logging.connect
def _log_plainly(**_: object) -> None:
    """To stderr, which whoever started the worker keeps."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s")


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
    if not _itself:
        return
    queues = [str(name) for name in _itself[0].app.amqp.queues.consume_from]
    try:
        announce(_redis, Worker(name=WORKER, queues=queues, processes=_itself[0].concurrency))
    except LedgerUnavailable as exc:
        log.warning("could not announce this worker: %s", exc, extra={"action": "announce"})
