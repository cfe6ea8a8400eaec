"""
What a hub does by itself: duties, each every few seconds, by one process at a time.

Celery beat sends for them (`workers.beat`). A duty that was missed, or is sent twice, is no harm: each looks at what is
to be done, and not at when it was called.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from sendense.beat import Beat
from sendense.coordinator.context import Context
from sendense.errors import ClaimLost, SendenseError
from sendense.jobs import broker, presence
from sendense.service import delivery, lateness, scheduling, throttling, watching

log = logging.getLogger(__name__)

RENEW_SECONDS = 2.0
"""Between two signs of life of a duty: five until another process may take it over."""


@dataclass(frozen=True)
class Duty:
    """What is done every so many seconds. `run` calls the beat at least every two seconds, which may raise."""

    seconds: float
    run: Callable[[Context, Beat], None]


DUTIES: dict[str, Duty] = {
    "schedules": Duty(scheduling.LOOK_SECONDS, scheduling.attend),
    "notices": Duty(delivery.DELIVER_SECONDS, delivery.deliver),
    "overdue": Duty(lateness.LOOK_SECONDS, lateness.watch),
    "throttles": Duty(throttling.PUBLISH_SECONDS, throttling.publish),
    "snapshots": Duty(watching.WATCH_SECONDS, watching.watch),
}


def run(context: Context, name: str, owner: str) -> None:
    """Do a duty, unless another process is at it."""
    client, thing, held = context.ledger.client, f"duty.{name}", 0.0

    def beat() -> None:
        nonlocal held
        if time.monotonic() - held > RENEW_SECONDS:
            presence.say_routine(client)
            if not presence.hold(client, thing, owner):
                raise ClaimLost(name, "its duty")
            held = time.monotonic()

    try:
        beat()
        DUTIES[name].run(context, beat)
    except ClaimLost:
        pass  # of the duty, which another process is at; or of something that it does: the next look sees to that
    except (SendenseError, *broker.Unavailable) as exc:
        log.warning("duty %s: %s", name, exc, extra={"action": "duty"})
    finally:
        with suppress(*broker.Unavailable):
            presence.let_go(client, thing, owner)
