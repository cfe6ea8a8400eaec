"""
`python -m workers NAME PROCESSES QUEUE,…`: one Celery worker, as `celery -A workers.app worker` starts it.

Without Celery's command line, whose imports take as long as all the rest of the start.
"""

import socket
import sys

from workers.app import app


def main() -> None:
    """Run until a signal ends it."""
    name, processes, queues = sys.argv[1:]
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
