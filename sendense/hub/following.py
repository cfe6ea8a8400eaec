"""Following a job to its end, at whichever hub."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sendense.errors import HubUnreachable, InputError
from sendense.jobs.watch import Watcher
from sendense.requests import Event
from sendense.service.hub import Hub
from sendense.views import Job

CANCEL_SECONDS = 60.0
"""For a cancelled job to clean up after itself, while the user waits for the prompt."""

TELL_SECONDS = 2.0
"""After which the user is told what a cancelled job waits for: most have ended by then."""


@dataclass(frozen=True)
class Pace:
    """Seconds between two looks at a job, and for which a hub may be silent meanwhile: it may be started again."""

    look: float
    silence: float


HERE = Pace(look=0.1, silence=0.0)
"""For the hub of this machine, which is taken over when it is silent."""

ELSEWHERE = Pace(look=1.0, silence=600.0)
"""For one over the network."""


@runtime_checkable
class Telling(Protocol):
    """A hub that tells of a job by itself (`sendense.Client`); others are asked again and again."""

    def stream(self, job: str, after: str = "-") -> Iterator[Event | Job]:
        """Events after that one, and the job at each change; the last is the job as it ended."""


def news(hub: Hub, job: str, told: str, pace: Pace, lost: Callable[[str], None]) -> Iterator[Event | Job]:
    """
    What happens in a job after the event `told`: its events, and the job itself, the last time as it ended.

    A hub that does not answer is waited for, which `lost` is told once; HubUnreachable when that takes too long.
    """
    heard, is_lost, tells = time.monotonic(), False, isinstance(hub, Telling)
    asks = not tells
    while True:
        try:
            for found in _ask(hub, job, told) if asks else _listen(hub, job, told):
                heard, is_lost = time.monotonic(), False
                if isinstance(found, Event):
                    told = found.id
                yield found
                if isinstance(found, Job) and found.has_ended:
                    return
        except HubUnreachable as exc:
            if time.monotonic() - heard > pace.silence:
                raise
            if not is_lost:
                lost(f"{exc}: trying again")
            is_lost = True
        except InputError:
            if asks:
                raise
            tells = False  # a hub of a version that does not know how
        # By turns: where all its streams are taken, it still answers who asks.
        asks = not (tells and asks)
        time.sleep(pace.look)


def follow(hub: Hub, job: str, watcher: Watcher, told: str, pace: Pace) -> Job:
    """Wait for the job's end, telling its history after the event `told`, and its progress; returns how it ended."""
    for found in news(hub, job, told, pace, watcher.note):
        if isinstance(found, Event):
            watcher.note(found.text)
        elif found.has_ended:
            return found
        elif found.progress:
            watcher.show(found.waiting or found.step, found.progress)
    raise AssertionError("news ends with the job")


def _ask(hub: Hub, job: str, told: str) -> Iterator[Event | Job]:
    found = hub.job(job)  # before its history, which then has everything until its end
    yield from hub.events(job, told)
    yield found


def _listen(hub: Hub, job: str, told: str) -> Iterator[Event | Job]:
    assert isinstance(hub, Telling)
    return hub.stream(job, told)


def cancel(hub: Hub, job: str, pace: Pace, note: Callable[[str], None]) -> Job:
    """Cancel the job and follow its cleaning, for a minute, telling what takes long; returns it as it is then."""
    began, told, found = time.monotonic(), "", hub.cancel(job)
    while not found.has_ended and (passed := time.monotonic() - began) < CANCEL_SECONDS:
        words = f"{found.step}, {found.waiting}" if found.waiting else found.step
        if passed > TELL_SECONDS and words != told:
            note(f"job {found.id} is still at: {words}")
            told = words
        time.sleep(pace.look)
        found = hub.job(found.id)
    return found
