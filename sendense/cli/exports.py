"""The `sendense exports` commands."""

from typing import TYPE_CHECKING, Annotated

import typer

from sendense.cli.opening import open_hub
from sendense.cli.tables import Note, print_json, print_table, say

if TYPE_CHECKING:
    from sendense.views import ExportView

exports_app = typer.Typer(help="What the hub serves over NBD.", no_args_is_help=False)


@exports_app.callback(invoke_without_command=True)
def list_exports(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """What the hub serves over NBD: for which job, or of which restore point, and who has it open."""
    if context.invoked_subcommand:
        return
    with open_hub() as hub:
        found = hub.exports()
    if as_json:
        print_json(found)
        return
    if not found:
        say("nothing is served")
        return
    rows: list[list[str] | Note] = []
    for export in found:
        disk = "" if export.disk is None else str(export.disk)
        rows.append([_of(export), disk, _mode(export), ", ".join(export.clients)])
        rows += [Note(f"export {export.name}"), Note(f"image {export.image}")]
        rows += [Note(f"at {export.uri}")] if export.point else []
    print_table(["of", "disk", "mode", "clients"], rows)


@exports_app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The export's name, as 'sendense exports' has it.")],
) -> None:
    """End an export that 'sendense serve' began: its clients are cut off."""
    with open_hub() as hub:
        hub.unserve(name)
    say(f"export {name} is removed")


def _of(export: "ExportView") -> str:
    if export.job:
        return f"job {export.job}"
    return f"point {export.point}" if export.point else "no job"


def _mode(export: "ExportView") -> str:
    if export.closing:
        return "closing"
    return "writable" if export.writable else "read-only"
