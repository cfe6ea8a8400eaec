"""The names of tasks and queues, which the senders and the workers agree on."""

from typing import Literal

SURVEY = "sendense.survey"
COPY_EXTENTS = "sendense.copy_extents"
SETTLE = "sendense.settle"
SETTLE_AFTER_LOSS = "sendense.settle_after_loss"

FILL_POOL = "fill_pool"
"""Remote control command of the project's own worker."""

ADVANCE = "sendense.advance"

Place = Literal["hub", "control"]
"""Where a step of a user's job runs: at the hub, or by the control worker of the job's site."""

HUB: Place = "hub"
HUB_QUEUE = "hub"


def site_queue(site: str, *, solo: bool = False) -> str:
    """The queue that a site's copy workers read; solo: that of a worker with one process."""
    return f"site.{site}.solo" if solo else f"site.{site}"


def control_queue(site: str) -> str:
    """The queue of a site's control worker, which speaks to its vCenter."""
    return f"control.{site}"
