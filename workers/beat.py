"""`python -m workers.beat FOLDER`: Celery beat, which sends for the hub's duties when they are due."""

import sys
from pathlib import Path

from sendense.jobs.queues import ROUTINE, ROUTINE_QUEUE
from sendense.service.routine import DUTIES
from workers.app import app


def main() -> None:
    """Run until a signal ends it."""
    app.conf.beat_schedule = {
        name: {
            "task": ROUTINE,
            "schedule": duty.seconds,
            "args": (name,),
            # Beat and worker are on one machine, so they agree on the time.
            "options": {"queue": ROUTINE_QUEUE, "argsrepr": name, "expires": 2 * duty.seconds},
        }
        for name, duty in DUTIES.items()
    }
    app.conf.beat_max_loop_interval = min((duty.seconds for duty in DUTIES.values()), default=60.0)
    app.Beat(schedule=str(Path(sys.argv[1]) / "beat"), loglevel="WARNING", quiet=True).run()


main()
