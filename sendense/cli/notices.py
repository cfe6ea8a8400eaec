"""The `sendense notices` commands."""

from typing import TYPE_CHECKING, Annotated

import typer

from sendense.cli.ending import EXIT_FAILED
from sendense.cli.opening import open_hub, warn_if_alone
from sendense.cli.tables import Note, print_json, print_table, say
from sendense.errors import JobFailed

if TYPE_CHECKING:
    from sendense.notices import ReceiverView

notices_app = typer.Typer(help="Who is told of failures, by webhook and mail, and what of.")

SHOWN = 10
"""Of the notices of the past, how many are listed without --all."""

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@notices_app.callback(invoke_without_command=True)
def list_notices(
    context: typer.Context,
    show_all: Annotated[bool, typer.Option("--all", help="All that are remembered, not the latest alone.")] = False,
    as_json: _Json = False,
) -> None:
    """The notices that wait, those that were told lately, and those that were given up, with why."""
    if context.invoked_subcommand:
        return
    with open_hub() as hub:
        found = hub.notices()
    if as_json:
        print_json(found)
        return
    if not found.receivers:
        say("nobody is told of anything: set webhook or mail_to under [notices] (docs/notices.md)")
        return
    say(f"told of: {', '.join(found.on)}")
    rows: list[list[str] | Note] = []
    for receiver in found.receivers:
        say(f"{receiver.receiver}: {receiver.to}{_standing(receiver)}")
        rows += _rows(receiver, None if show_all else SHOWN)
    if rows:
        print_table(["when", "receiver", "state", "tries", "notice"], rows, right=("tries",))
    else:
        say("no notice yet; try it: sendense notices test")
    warn_if_alone()


@notices_app.command("test")
def send_test(as_json: _Json = False) -> None:
    """Send a notice to each receiver now, and say what came of it. Exit status 1 when one did not take it."""
    with open_hub() as hub:
        sent = hub.test_notices()
    if as_json:
        print_json(sent)
        if any(each.error for each in sent):
            raise typer.Exit(EXIT_FAILED)
        return
    for each in sent:
        beside = f", but {each.note}" if each.note else ""
        say(f"{each.receiver}: {each.to}: {each.error or f'took notice {each.id}{beside}'}")
    if failed := [each.receiver for each in sent if each.error]:
        raise JobFailed(f"not taken by {' and '.join(failed)}", "Correct [notices] at the hub (docs/notices.md).")


def _standing(receiver: "ReceiverView") -> str:
    if not receiver.error:
        return ""
    again = f", again at {receiver.following:%H:%M:%S} UTC" if receiver.following else ""
    return f": {receiver.error} ({receiver.attempts} attempts{again})"


def _rows(receiver: "ReceiverView", most: int | None) -> list[list[str] | Note]:
    rows: list[list[str] | Note] = []
    for number, one in enumerate(receiver.waiting):
        tries = str(receiver.attempts) if number == 0 else "0"
        rows.append([f"{one.time:%Y-%m-%d %H:%M:%S}", receiver.receiver, "waits", tries, one.subject])
    if more := receiver.count - len(receiver.waiting):
        rows.append(Note(f"and {more} more that wait"))
    for told in receiver.told[:most]:
        state = "given up" if told.given_up else "told"
        rows.append([f"{told.told:%Y-%m-%d %H:%M:%S}", receiver.receiver, state, str(told.attempts), told.subject])
        if told.error:
            rows.append(Note(told.error))
        if told.lost_before:
            rows.append(Note(f"{told.lost_before} notices before it are lost: too many waited"))
    return rows
