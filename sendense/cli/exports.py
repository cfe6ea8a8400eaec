"""The `sendense exports` command."""

from typing import TYPE_CHECKING, Annotated

import typer

from sendense.cli.opening import open_hub
from sendense.cli.tables import Note, print_json, print_table, say

if TYPE_CHECKING:
    from sendense.views import ExportView


def exports(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """What the hub serves over NBD: which image, for which job, and who has it open."""
    with open_hub() as hub:
        found = hub.exports()
    if as_json:
        print_json([export.model_dump(mode="json") for export in found])
        return
    if not found:
        say("nothing is served")
        return
    rows: list[list[str] | Note] = []
    for export in found:
        disk = "" if export.disk is None else str(export.disk)
        rows.append([export.job, disk, _mode(export), ", ".join(export.clients)])
        rows += [Note(f"export {export.name}"), Note(f"image {export.image}")]
    print_table(["job", "disk", "mode", "clients"], rows)


def _mode(export: "ExportView") -> str:
    if export.closing:
        return "closing"
    return "writable" if export.writable else "read-only"
