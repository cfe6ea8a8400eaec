"""Celery: the application's settings, and how a window of batches becomes a chord. Tasks are named, never imported."""

from functools import lru_cache
from typing import Any

from celery import Celery, chord
from celery.backends.redis import RedisBackend
from kombu.exceptions import OperationalError

from sendense.jobs import access
from sendense.jobs.driver import Dispatch
from sendense.jobs.ledger import Ledger, LedgerUnavailable
from sendense.jobs.queues import (
    ADVANCE,
    ALONE_PRIORITY,
    ANSWER,
    BATCH_PRIORITY,
    COPY_EXTENTS,
    FILL_POOL,
    HUB_QUEUE,
    PRIORITY_STEPS,
    SETTLE,
    SETTLE_AFTER_LOSS,
    SURVEY,
    SURVEY_PRIORITY,
    Place,
    site_queue,
)
from sendense.models import JobSpec
from sendense.settings import load_settings
from sendense.units import show_bytes

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
    """The Celery application on the Redis at `redis_url`, with the password and the certificates of the settings."""
    settings = load_settings()
    address = redis_url.replace("unix://", "socket://", 1)  # Celery's name for it
    if access.password_file(redis_url, settings):
        address += f"?credential_provider={access.HUB_PASSWORD}"
    tls = access.tls_options(redis_url, settings) or None
    broker = f"redis+{address}" if address.startswith("socket://") else address
    backend = f"{ResultBackend.__module__}:{ResultBackend.__name__}+{address}"
    app = Celery("sendense", broker=broker, backend=backend, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        result_accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        broker_connection_retry_on_startup=True,
        broker_use_ssl=tls,
        redis_backend_use_ssl=tls,
        broker_transport_options={
            # Longer than the longest task: recovery is the ledger's, a redelivery would only make duplicates.
            "visibility_timeout": 4 * settings.task_time_limit,
            "priority_steps": PRIORITY_STEPS,
            "queue_order_strategy": "round_robin",  # the queues of one worker take turns, within each priority
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
    app.send_task(
        SURVEY,
        (spec.id,),
        queue=site_queue(spec.site, solo=spec.solo),
        argsrepr=f"{spec.name} · survey",
        priority=SURVEY_PRIORITY,
    )


def send_advance(app: Celery, job: str, name: str, place: Place, queue: str) -> None:
    """
    Have a job's next step run at its place. A message too many does nothing.

    Without Celery's expiry, which compares the clocks of two machines: an appliance's that is wrong would drop it.
    """
    app.send_task(ADVANCE, (job, place), queue=queue, argsrepr=f"{name} · job {job}")


def send_answer(app: Celery, question: str, label: str, queue: str) -> None:
    """Have a question answered by whoever reads the queue."""
    app.send_task(ANSWER, (question,), queue=queue, argsrepr=label)


def chord_dispatch(app: Celery, ledger: Ledger, spec: JobSpec, total: int, window: int) -> Dispatch:
    """Sends a window as a chord whose body, or errback, drives on. `total` is the number of batches, for people."""

    def dispatch(job: str, batches: list[int], epoch: int, alone: bool) -> None:
        settle = {"job": job, "epoch": epoch, "window": window}
        options = {"queue": HUB_QUEUE, "ignore_result": True, "argsrepr": f"{spec.name} · next window"}
        body = app.signature(SETTLE, kwargs=settle, immutable=True, **options)
        body.on_error(app.signature(SETTLE_AFTER_LOSS, kwargs=settle, **options))
        header = [
            app.signature(
                COPY_EXTENTS,
                args=(job, batch, epoch),
                immutable=True,
                queue=site_queue(spec.site, solo=spec.solo),
                priority=ALONE_PRIORITY if alone else BATCH_PRIORITY,
                ignore_result=True,
                # For people; and so is `retries`, by which Celery itself retries nothing here.
                argsrepr=_label(f"{spec.name} · batch {batch + 1}/{total}", attempt, data),
                retries=attempt - 1,
            )
            for batch, (attempt, data) in zip(batches, ledger.next_attempts(job, batches), strict=True)
        ]
        chord(header, app=app)(body)

    return dispatch


def _label(batch: str, attempt: int, data: int) -> str:
    """Of a batch in Flower, which cuts off what is long: so what matters most comes first."""
    again = f" · attempt {attempt}" if attempt > 1 else ""
    return f"{batch}{again} · {show_bytes(data) if data else 'zeroes'}"
