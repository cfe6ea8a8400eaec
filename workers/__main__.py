"""
`python -m workers NAME PROCESSES QUEUE,…`: one Celery worker, as `celery -A workers.app worker` starts it.

Without Celery's command line, whose imports take as long as all the rest of the start.
"""

import socket
import sys
import warnings
from contextlib import suppress

from celery.platforms import SecurityWarning

from sendense.errors import InputError
from sendense.jobs.ledger import LedgerUnavailable, connect
from workers.app import REDIS_URL, app


def main() -> None:
    """Run until a signal ends it."""
    name, processes, queues = sys.argv[1:]
    warnings.simplefilter("ignore", SecurityWarning)  # of root, who may run what a pickle says: only JSON is taken here
    with suppress(*LedgerUnavailable):  # for which Celery waits; it would also wait for a wrong password
        try:
            connect(REDIS_URL, retries=0).ping()
        except InputError as exc:
            sys.exit(f"{exc}\n{exc.hint}")
    worker = app.Worker(
        hostname=f"{name}@{socket.gethostname()}",
        queues=queues,
        concurrency=int(processes),
        pool="prefork",
        loglevel="WARNING",
        quiet=True,
        without_mingle=True,  # with other workers, of which there are none: it takes a second
        without_gossip=True,
    )
    worker.start()
    sys.exit(worker.exitcode)


main()
