"""Celery: the application's settings, and how a window of batches becomes a chord. Tasks are named, never imported."""

from functools import lru_cache
from typing import Any

from celery import Celery, chord
from celery.backends.redis import RedisBackend
from kombu.exceptions import OperationalError

from sendense.jobs.driver import Dispatch
from sendense.jobs.ledger import LedgerUnavailable
from sendense.jobs.queues import (
    ADVANCE,
    COPY_EXTENTS,
    FILL_POOL,
    HUB_QUEUE,
    SETTLE,
    SETTLE_AFTER_LOSS,
    SURVEY,
    Place,
    site_queue,
)
from sendense.models import JobSpec
from sendense.settings import load_settings

App = Celery

Unavailable = (*LedgerUnavailable, OperationalError)
"""What a call raises while Redis is away, as the ledger or as the broker."""


class ResultBackend(RedisBackend):  # type: ignore[misc]  # Celery has no types
    """
    Counts a chord's parts, and lets nobody wait for results: the ledger has them.

    Whoever sends a chord would otherwise subscribe to each of its parts, and keep them for ever (celery 5.7).
    """

    def add_pending_result(self, result: Any, weak: bool = False, start_drainer: bool = True) -> Any:
        """Nothing is pending."""
        return result


@lru_cache
def make_app(redis_url: str) -> Celery:
    """The Celery application on the Redis at `redis_url`."""
    settings = load_settings()
    address = redis_url.replace("unix://", "socket://", 1)  # Celery's name for it
    broker = f"redis+{address}" if address.startswith("socket://") else address
    backend = f"{ResultBackend.__module__}:{ResultBackend.__name__}+{address}"
    app = Celery("sendense", broker=broker, backend=backend, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        result_accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            # Longer than the longest task: recovery is the ledger's, a redelivery would only make duplicates.
            "visibility_timeout": 4 * settings.task_time_limit,
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
        },
        redis_socket_timeout=10,
        redis_socket_connect_timeout=5,
        result_expires=3600,
        task_time_limit=settings.task_time_limit,
        task_ignore_result=True,
        task_default_queue=HUB_QUEUE,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_soft_shutdown_on_idle=False,
        worker_send_task_events=True,
    )
    return app


def grow_pool(app: Celery, processes: int) -> None:
    """Have the workers that listen start so many more processes."""
    app.control.pool_grow(processes)
    app.control.broadcast(FILL_POOL)


def send_survey(app: Celery, spec: JobSpec) -> None:
    """Ask the job's site for a survey."""
    app.send_task(SURVEY, (spec.id,), queue=site_queue(spec.site, solo=spec.solo), argsrepr=f"{spec.name} · survey")


def send_advance(app: Celery, job: str, name: str, place: Place, queue: str, expires: float | None = None) -> None:
    """Have a job's next step run at its place; a message that nobody took for `expires` seconds is dropped."""
    app.send_task(ADVANCE, (job, place), queue=queue, argsrepr=f"{name} · job {job}", expires=expires)


def chord_dispatch(app: Celery, spec: JobSpec, total: int, window: int) -> Dispatch:
    """Sends a window as a chord whose body, or errback, drives on. `total` is the number of batches, for people."""

    def dispatch(job: str, batches: list[int], epoch: int) -> None:
        settle = {"job": job, "epoch": epoch, "window": window}
        body = app.signature(SETTLE, kwargs=settle, immutable=True, queue=HUB_QUEUE, ignore_result=True)
        body.on_error(app.signature(SETTLE_AFTER_LOSS, kwargs=settle, queue=HUB_QUEUE, ignore_result=True))
        header = [
            app.signature(
                COPY_EXTENTS,
                args=(job, batch, epoch),
                immutable=True,
                queue=site_queue(spec.site, solo=spec.solo),
                ignore_result=True,
                argsrepr=f"{spec.name} · batch {batch + 1}/{total}",
            )
            for batch in batches
        ]
        chord(header, app=app)(body)

    return dispatch
