"""The `sendense hub` command."""

from typing import Annotated

import typer

LogJson = Annotated[bool, typer.Option("--log-json", help="Log JSON objects, one a line, in place of text.")]


def hub(log_json: LogJson = False) -> None:
    """
    Run the hub in the foreground: Redis, the exports, the coordinator, the API and Flower.

    Logs to stdout. On SIGTERM or Ctrl-C what is under way has 30 seconds to end, and the rest goes on at the next
    start; a second one ends it at once. Several machines: docs/nodes.md.
    """
    import logging

    from sendense.errors import SendenseError
    from sendense.hub.service import HubService
    from sendense.settings import load_settings
    from sendense.supervise.journal import Handler, Journal, stdout
    from sendense.supervise.stopping import Stop, Urgent

    stop, settings = Stop(), load_settings()
    stop.listen()
    journal = Journal(stdout(), as_json=log_json)
    logging.getLogger().addHandler(Handler(journal, "hub"))
    try:
        HubService(settings, journal, stop).run()
    except Urgent:
        return
    except SendenseError as exc:
        if log_json:  # for people, whoever called prints it
            journal.tell("hub", str(exc), "error", action="failed", hint=exc.hint)
        raise
    finally:
        journal.close()
