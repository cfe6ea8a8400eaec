"""The names of tasks and queues, which the senders and the workers agree on."""

SURVEY = "sendense.survey"
COPY_EXTENTS = "sendense.copy_extents"
SETTLE = "sendense.settle"
SETTLE_AFTER_LOSS = "sendense.settle_after_loss"

FILL_POOL = "fill_pool"
"""Remote control command of the project's own worker."""

HUB_QUEUE = "hub"


def site_queue(site: str) -> str:
    """The queue that a site's copy workers read."""
    return f"site.{site}"
