"""`python -m workers.beat`: Celery beat, which sends for the hub's duties when they are due."""

from contextlib import suppress

from sendense.jobs import broker
from sendense.jobs.queues import ROUTINE, ROUTINE_QUEUE
from sendense.service.routine import DUTIES
from workers.app import app


def main() -> None:
    """Run until a signal ends it."""
    # Beat and worker are on one machine, so they agree on the time.
    options = {name: {"queue": ROUTINE_QUEUE, "argsrepr": name, "expires": 2 * DUTIES[name].seconds} for name in DUTIES}
    app.conf.beat_schedule = {
        name: {"task": ROUTINE, "schedule": duty.seconds, "args": (name,), "options": options[name]}
        for name, duty in DUTIES.items()
    }
    app.conf.beat_max_loop_interval = min(duty.seconds for duty in DUTIES.values())
    for name in DUTIES:  # at once: beat would send for each only when its time has passed
        with suppress(*broker.Unavailable):
            app.send_task(ROUTINE, (name,), **options[name])
    # Without a file of when each was sent last: a power cut could damage it, and no duty goes by that.
    app.Beat(scheduler="celery.beat:Scheduler", loglevel="WARNING", quiet=True).run()


main()
