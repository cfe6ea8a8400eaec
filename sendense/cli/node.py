"""The `sendense node` command."""

from typing import Annotated

import typer

from sendense.cli.hub import LogJson


def node(
    site: Annotated[str, typer.Option("--site", help="Whose disks it copies: one of the settings' sites.")],
    name: Annotated[
        str | None, typer.Option("--name", help="What it is called; node_name of the settings, if not given.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, max=64, help="That copy; the settings', if not given.")
    ] = None,
    log_json: LogJson = False,
) -> None:
    """
    Run a node of a site in the foreground: what copies its disks, and what speaks to its vCenter.

    Works for the hub whose Redis the settings name. Logs to stdout. On SIGTERM or Ctrl-C batches under way have 30
    seconds to end, and the rest is handed to other nodes; a second one ends it at once. More: docs/nodes.md.
    """
    import logging

    from sendense.errors import SendenseError
    from sendense.node.service import NodeService
    from sendense.settings import give, load_settings
    from sendense.supervise.journal import Handler, Journal, stdout
    from sendense.supervise.stopping import Stop, Urgent

    # By the environment, so that its workers have the same.
    for setting, value, option in (("node_name", name, "--name"), ("processes", processes, "--processes")):
        if value is not None:
            give(setting, str(value), option)
    stop, settings = Stop(), load_settings()
    stop.listen()
    journal = Journal(stdout(), as_json=log_json)
    logging.getLogger().addHandler(Handler(journal, settings.node_name))
    try:
        NodeService(settings, site, journal, stop).run()
    except Urgent:
        return
    except SendenseError as exc:
        if log_json:  # for people, whoever called prints it
            journal.tell(settings.node_name, str(exc), "error", action="failed", hint=exc.hint)
        raise
    finally:
        journal.close()
