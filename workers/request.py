"""How the end of a copy task looks to whoever watches the workers' events: to Flower."""

from typing import Any

from celery.worker.request import Request

from sendense.jobs.batch import FAILED, PARTLY, TRIED_AGAIN, WAITS

_EVENTS = {FAILED: "task-failed", TRIED_AGAIN: "task-retried", PARTLY: "task-retried", WAITS: "task-retried"}


class CopyRequest(Request):  # type: ignore[misc]  # Celery has no types
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
