"""A hub's API as a process: `python -m sendense.api`, on `settings.api_listen`, until SIGTERM."""

import logging
import os
import sys

from sendense.api.app import make_app
from sendense.api.calls import Calls
from sendense.api.limits import Limits
from sendense.api.server import serve
from sendense.coordinator.context import Context
from sendense.coordinator.record import Jobs
from sendense.errors import InputError, SendenseError
from sendense.jobs import access, broker
from sendense.jobs.ledger import Ledger, connect
from sendense.service.audit import Audit
from sendense.service.tokens import Tokens
from sendense.settings import Settings, load_settings

EXIT_FAILED, EXIT_USAGE = 1, 2

TRIES = 2
"""More of one call of Redis, 2 s each: less than a client waits, more than a Redis needs that is started again."""


def main() -> int:
    """Serve; the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        if given := sys.argv[1:]:
            hint = "A hub starts this by itself: sendense hub. What it serves, and where, is in the settings."
            raise InputError(f"takes no arguments: {' '.join(given)}", hint)
        settings = load_settings()
        if not settings.api_listen:
            raise InputError("api_listen is empty: no API is wanted", "Set api_listen to HOST:PORT.")
        calls = Calls(_context(settings, TRIES), _context(settings, 0), Tokens(settings), Audit(settings))
        serve(make_app(calls, Limits(settings.api_rate)), calls, settings)
    except SendenseError as exc:
        print(f"sendense: {exc}\n  {exc.hint}".rstrip(), file=sys.stderr)
        return EXIT_USAGE if isinstance(exc, InputError) else EXIT_FAILED
    return 0


def _context(settings: Settings, tries: int) -> Context:
    url = access.redis_url(settings)
    client = connect(url, tries, settings)
    return Context(settings, Ledger(client), Jobs(client), broker.make_app(url))


if __name__ == "__main__":
    status = main()
    # Threads whose answers nobody awaits any more may wait for minutes: they end here, as in a crash.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
