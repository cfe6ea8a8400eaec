"""How a task's end is told: its time limit to the hub's metrics, and a copy task's to Flower."""

import logging
import os
from typing import Any

from celery.worker.request import Request

from sendense.errors import InputError
from sendense.jobs.batch import FAILED, HELD, PARTLY, TRIED_AGAIN, WAITS
from sendense.jobs.ledger import LedgerUnavailable, connect
from sendense.jobs.tally import count_limit

log = logging.getLogger(__name__)

_EVENTS = {FAILED: "task-failed", **dict.fromkeys((TRIED_AGAIN, PARTLY, WAITS, HELD), "task-retried")}


class TimedRequest(Request):  # type: ignore[misc]  # Celery has no types
    """Counts the processes that are killed at their task's hard time limit."""

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Called once for each limit, by the main process, which no Redis that is away may hold up: one try."""
        super().on_timeout(soft, timeout)
        if soft:
            return
        try:
            with connect(os.environ["SENDENSE_REDIS"], retries=0) as client:
                count_limit(client, self.name)
        except (InputError, *LedgerUnavailable) as exc:
            log.warning("a time limit is not counted: %s", exc, extra={"action": "count"})


class CopyRequest(TimedRequest):
    """
    Says of a batch that was not stored, or not all of it, that it was not, and why.

    Its task returns all the same, as a chord is lost with a task that raises; so Celery takes it for a success.
    """

    def send_event(self, type: str, **fields: Any) -> None:
        """Send the event of the task's outcome instead of `task-succeeded`."""
        outcome = str(fields.get("result", "")).strip("'\"")  # the representation of what the task returned
        what, _, why = outcome.partition(": ")
        event = _EVENTS.get(what)
        if type == "task-succeeded" and event:
            super().send_event(event, exception=why, runtime=fields["runtime"])
        else:
            super().send_event(type, **fields)
