"""The names of tasks and queues, which the senders and the workers agree on."""

from typing import Literal

SURVEY = "sendense.survey"
COPY_EXTENTS = "sendense.copy_extents"
SETTLE = "sendense.settle"
SETTLE_AFTER_LOSS = "sendense.settle_after_loss"

FILL_POOL = "fill_pool"
"""Remote control command of the project's own worker."""

ADVANCE = "sendense.advance"
ANSWER = "sendense.answer"
ROUTINE = "sendense.routine"

Place = Literal["hub", "slow", "control"]
"""Where a step of a user's job runs: at the hub; there too, apart, as it takes minutes to hours and no other step may
wait for it; or by the control worker of the job's site."""

PRIORITY_STEPS = [0, 3, 6]
"""Priorities within a queue; 0 goes first (kombu keeps a list for each in Redis, and asks them in this order)."""

SURVEY_PRIORITY, ALONE_PRIORITY, BATCH_PRIORITY = PRIORITY_STEPS
"""Of surveys, which are short and somebody waits for; of a job's batches when nothing else of it is out, as at its
start; and of all other batches. What has no priority, as all that goes to the hub, has the first."""

HUB: Place = "hub"
SLOW: Place = "slow"
HUB_QUEUE, SLOW_QUEUE = "hub", "hub.slow"
ROUTINE_QUEUE = "hub.routine"
"""Of what a hub does by itself: some of it waits for sites, and no job may wait for that."""


def site_queue(site: str, *, solo: bool = False) -> str:
    """The queue that a site's copy workers read; solo: that of a worker with one process."""
    return f"site.{site}.solo" if solo else f"site.{site}"


def control_queue(site: str) -> str:
    """The queue of a site's control worker, which speaks to its vCenter."""
    return f"control.{site}"
