"""The `sendense nodes` commands."""

from typing import TYPE_CHECKING, Annotated

import typer

from sendense.cli.opening import open_hub
from sendense.cli.tables import Note, print_json, print_table, say
from sendense.units import show_bytes

if TYPE_CHECKING:
    from sendense.views import NodeView

nodes_app = typer.Typer(help="The nodes that copy, and how they reach the hub.", no_args_is_help=False)

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The node's name.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@nodes_app.callback(invoke_without_command=True)
def list_nodes(context: typer.Context, as_json: _Json = False) -> None:
    """The nodes that live: processes, batches under way, rate lately, round trip to the hub's Redis, and the tunnel."""
    if context.invoked_subcommand:
        return
    with open_hub() as hub:
        nodes = hub.nodes()
    if as_json:
        print_json(nodes)
        return
    if not nodes:
        say("no node is up; start one at a site: sendense node --site NAME")
        return
    rows: list[list[str] | Note] = []
    for node in nodes:
        counts = [
            str(node.processes),
            str(node.active),
            f"{show_bytes(node.rate)}/s",
            f"{node.round_trip * 1000:.1f} ms",
        ]
        rows.append([node.name, node.site, node.host, _state(node), *counts, node.tunnel.verdict])
        if node.limit:
            rows.append(Note(f"all nodes of {node.site} together may read {show_bytes(node.limit)}/s"))
        if node.tunnel.verdict != "ok" and node.tunnel.detail:
            rows.append(Note(f"tunnel: {node.tunnel.detail}"))
    headings = ["node", "site", "host", "state", "procs", "active", "rate", "trip", "tunnel"]
    print_table(headings, rows, right=("procs", "active", "rate", "trip"))


@nodes_app.command()
def drain(name: _Name, as_json: _Json = False) -> None:
    """Have a node take no more work: what it has under way ends. It stays so until 'resume'."""
    with open_hub() as hub:
        _show(hub.drain(name), f"{name} takes no more work; take it back with: sendense nodes resume {name}", as_json)


@nodes_app.command()
def resume(name: _Name, as_json: _Json = False) -> None:
    """Have a node take work again."""
    with open_hub() as hub:
        _show(hub.undrain(name), f"{name} takes work again", as_json)


def _show(node: "NodeView", text: str, as_json: bool) -> None:
    if as_json:
        print_json(node)
    else:
        say(text)


def _state(node: "NodeView") -> str:
    if node.drained:
        return "draining" if node.active else "drained"
    return "draining" if node.draining else "up"
