"""The `sendense` command: registers the commands, and turns errors into one or two lines and an exit status."""

import sys
import traceback
from typing import Annotated, Any

import typer

from sendense import __version__
from sendense.cli.backup import backup
from sendense.cli.config import config_app
from sendense.cli.copy import copy
from sendense.cli.doctor import doctor
from sendense.cli.ending import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from sendense.cli.exports import exports_app
from sendense.cli.hub import hub
from sendense.cli.jobs import jobs_app
from sendense.cli.lab import lab_app
from sendense.cli.migrate import migrate
from sendense.cli.node import node
from sendense.cli.nodes import nodes_app
from sendense.cli.notices import notices_app
from sendense.cli.pki import pki_app
from sendense.cli.points import points_app
from sendense.cli.restore import restore, verify
from sendense.cli.schedule import schedule_app
from sendense.cli.serve import serve
from sendense.cli.state import state_app
from sendense.cli.throttle import throttle_app
from sendense.cli.token import token_app
from sendense.cli.vms import vms_app
from sendense.errors import InputError, InternalError, SendenseError
from sendense.wording import plain_words

# Its base is what Typer raises for wrong usage, and exports only as this subclass of it.
_UsageError: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="sendense",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(copy)
app.command()(doctor)
app.command()(backup)
app.command()(restore)
app.command()(verify)
app.command()(migrate)
app.command()(serve)
app.command()(hub)
app.command()(node)
app.add_typer(vms_app, name="vms")
app.add_typer(points_app, name="points")
app.add_typer(jobs_app, name="jobs")
app.add_typer(nodes_app, name="nodes")
app.add_typer(schedule_app, name="schedule")
app.add_typer(notices_app, name="notices")
app.add_typer(throttle_app, name="throttle")
app.add_typer(exports_app, name="exports")
app.add_typer(config_app, name="config")
app.add_typer(pki_app, name="pki")
app.add_typer(lab_app, name="lab")
app.add_typer(token_app, name="token")
app.add_typer(state_app, name="state")


HERE_ONLY = {"copy", "doctor", "config", "pki", "lab", "hub", "node", "token", "state"}
"""Commands that are about this machine."""


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"sendense {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
    hub: Annotated[
        str, typer.Option(metavar="URL", help="Ask the hub whose API is there; its token: SENDENSE_TOKEN_FILE.")
    ] = "",
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Copies disks over NBD into QCOW2: in parallel, resumable, verified, and never hanging silently."""
    context.obj = debug
    if hub and context.invoked_subcommand in HERE_ONLY:
        raise InputError(
            f"{context.invoked_subcommand} is about this machine, so it takes no --hub",
            "Leave --hub out, or run it on the machine that it is to be about.",
        )
    if hub:
        from sendense.settings import give

        give("hub", hub, "--hub")


def main() -> None:
    """Entry point of the `sendense` command."""
    debug = "--debug" in sys.argv
    try:
        sys.argv = [sys.argv[0], *_options_first(sys.argv[1:])]
        sys.exit(app(standalone_mode=False))
    except _UsageError as exc:
        usage, command = (exc.ctx.get_usage(), exc.ctx.command_path) if exc.ctx else ("", app.info.name)
        if message := exc.format_message():  # without any argument the help was printed, and says it all
            fail(InputError(plain_words(message), f"{usage}   (more: {command} --help)".lstrip()))
        sys.exit(EXIT_USAGE)
    except SendenseError as exc:
        if debug:
            traceback.print_exc()
        fail(exc)
        sys.exit(EXIT_USAGE if isinstance(exc, InputError) else EXIT_FAILED)
    except Exception as exc:
        if debug:
            traceback.print_exc()
        fail(InternalError(exc))
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _options_first(words: list[str]) -> list[str]:
    """The options of all commands are also taken behind the command's name."""
    first: list[str] = []
    rest: list[str] = []
    left = iter(words)
    for word in left:
        is_doctors = rest[:1] == ["doctor"]  # it has a --hub of its own
        if word == "--debug" or (word.startswith("--hub=") and not is_doctors):
            first.append(word)
        elif word == "--hub" and not is_doctors:
            url = next(left, "")
            if not url:
                raise InputError("--hub names no hub", "Give the URL of its API: --hub https://HOST:PORT")
            first += [word, url]
        else:
            rest.append(word)
    return [*first, *rest]


def fail(exc: SendenseError) -> None:
    """Say on stderr what went wrong, where, and what to do."""
    print(f"sendense: {exc}", file=sys.stderr)
    if exc.hint:
        print(f"  {exc.hint}", file=sys.stderr)
