"""
The driver: hands out windows of batches until the ledger has them all.

`advance` may be called by anybody, at any time, any number of times: by the body of a window's chord, by its errback,
by the tick. The ledger moves a batch to `sent` once, and refuses an epoch that is not the job's, so a call too many
does nothing, and a lost one costs a tick.
"""

from collections.abc import Callable

from sendense.jobs.ledger import Ledger
from sendense.models import JobState
from sendense.retry import MAX_ATTEMPTS

WINDOW_PER_PROCESS = 4
"""Batches of a window for each worker process. Two windows overlap, so one slow batch idles nobody; jobs that share
the queue wait for these few batches, not for a whole disk."""

SENT_PATIENCE_SECONDS = 120.0
"""A sent batch that nobody claimed for so long is sent again: its message may be lost."""

IDLE_PATIENCE_SECONDS = 4.0
"""The same, while not a single batch is claimed: then the messages are lost, or there is no worker."""

LAPSE_GRACE_SECONDS = 1.0
"""A batch whose claim lapsed rests for so long: its owner is killed, or finds the claim gone, before another writes."""

SURVEY_SILENCE_SECONDS = 20.0
"""A survey that says nothing for so long is lost with its process: its beat is every two seconds."""

Dispatch = Callable[[str, list[int], int, bool], None]
"""Sends one window: job, batches, epoch, and whether nothing else of the job is out, so that it goes ahead of others.

So a small job starts beside a huge one. The huge one is not starved: a window that nobody claims is sent again after
SENT_PATIENCE_SECONDS, and is then alone."""


def advance(ledger: Ledger, job: str, epoch: int, window: int, dispatch: Dispatch) -> JobState | None:
    """Send windows while there is room for one; returns the job's state."""
    while True:
        state, batches, alone = ledger.take(job, epoch, window)
        if not batches:
            return state
        dispatch(job, batches, epoch, alone)


def tick(
    ledger: Ledger, job: str, epoch: int, window: int, dispatch: Dispatch
) -> tuple[JobState | None, list[tuple[int, str]]]:
    """
    Put back what was lost, then advance.

    Returns the job's state and the claims that lapsed (batch, owner): who supervises those owners kills them now.
    """
    lapsed = ledger.sweep(job, epoch, MAX_ATTEMPTS, SENT_PATIENCE_SECONDS, IDLE_PATIENCE_SECONDS, LAPSE_GRACE_SECONDS)
    return advance(ledger, job, epoch, window, dispatch), lapsed
