"""Following a job to its end, at whichever hub."""

import time
from dataclasses import dataclass

from sendense.errors import HubUnreachable
from sendense.jobs.watch import Watcher
from sendense.service.hub import Hub
from sendense.views import Job

CANCEL_SECONDS = 60.0
"""For a cancelled job to clean up after itself, while the user waits for the prompt."""


@dataclass(frozen=True)
class Pace:
    """Seconds between two looks at a job, and for which a hub may be silent meanwhile: it may be started again."""

    look: float
    silence: float


HERE = Pace(look=0.1, silence=0.0)
"""For the hub of this machine, which is taken over when it is silent."""

ELSEWHERE = Pace(look=1.0, silence=600.0)
"""For one over the network."""


def follow(hub: Hub, job: str, watcher: Watcher, told: str, pace: Pace) -> Job:
    """Wait for the job's end, telling its history after the event `told`, and its progress; returns how it ended."""
    heard, is_lost = time.monotonic(), False
    while True:
        try:
            found = hub.job(job)  # before its history, which then has everything until its end
            for event in hub.events(job, told):
                told = event.id
                watcher.note(event.text)
        except HubUnreachable as exc:
            if time.monotonic() - heard > pace.silence:
                raise
            if not is_lost:
                watcher.note(f"{exc}: trying again")
            is_lost = True
        else:
            heard, is_lost = time.monotonic(), False
            if found.has_ended:
                return found
            if found.progress:
                watcher.show(found.waiting or found.step, found.progress)
        time.sleep(pace.look)


def cancel(hub: Hub, job: str, pace: Pace) -> Job:
    """Cancel the job and follow its cleaning, for a minute; returns it as it is then."""
    found, deadline = hub.cancel(job), time.monotonic() + CANCEL_SECONDS
    while not found.has_ended and time.monotonic() < deadline:
        time.sleep(pace.look)
        found = hub.job(found.id)
    return found
