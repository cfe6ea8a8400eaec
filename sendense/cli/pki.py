"""The `sendense pki` commands: certificates for TLS between a hub and its nodes."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from sendense.cli.tables import print_json, print_table, say
from sendense.pki import CERTIFICATE_DAYS

pki_app = typer.Typer(help="Certificates for a hub and its nodes, where no tunnel joins them.", no_args_is_help=True)

SOON_DAYS = 30
"""A certificate that ends within so many days is to be renewed."""

Folder = Annotated[Path, typer.Argument(help="The authority's folder, which is the hub's tls_dir.")]
Days = Annotated[int, typer.Option(min=1, max=3650, help="Days until the certificate ends.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON in place of the lines.")]


@pki_app.callback()
def _pki() -> None:
    """Certificates for a hub and its nodes, where no tunnel joins them."""


@pki_app.command()
def init(
    folder: Folder,
    hub: Annotated[
        list[str] | None,
        typer.Option("--name", help="A host name or address that nodes reach the hub under; repeat it."),
    ] = None,
    days: Days = CERTIFICATE_DAYS,
    renew: Annotated[bool, typer.Option("--renew", help="Make the hub's certificates anew, with their keys.")] = False,
) -> None:
    """
    Make an authority, and the hub's certificates.

    Its key, ca-key.pem, stays in the folder: with it certificates for nodes are made. Nothing that is there is
    overwritten; --renew gives the hub's certificates more days, and other names where there is a --name.
    """
    from sendense import pki

    changed = pki.init(folder, hub or [], days, renew=renew)
    say(f"the hub's certificates are in {folder}: set tls_dir to it there" + (", and restart the hub" if renew else ""))
    if renew and changed:
        say(f"the authority's certificate is new as well: copy {folder / pki.CA_CERT} to every node soon")


@pki_app.command()
def node(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="The node's name.")],
    days: Days = CERTIFICATE_DAYS,
    renew: Annotated[bool, typer.Option("--renew", help="Make the node's certificate anew, with its key.")] = False,
) -> None:
    """Make a node's certificate, in a folder that has all that the node needs."""
    from sendense import pki

    own = pki.add_node(folder, name, days, renew=renew)
    say(f"copy {own} to the node, readable by its user only, and set tls_dir to the copy there")


@pki_app.command()
def show(folder: Folder, as_json: AsJson = False) -> None:
    """List a folder's certificates, and when they end; works with a node's folder, too."""
    from sendense import pki

    now = datetime.now(UTC)
    found = pki.show(folder)
    if as_json:
        print_json(
            [
                {
                    "file": str(each.file),
                    "subject": each.subject,
                    "names": list(each.names),
                    "ends": each.ends.isoformat(),
                    "days_left": each.left(now).days,
                }
                for each in found
            ]
        )
        return
    rows = [
        [
            str(each.file.relative_to(folder)),
            each.subject,
            f"{each.ends:%Y-%m-%d}",
            _left(each.left(now).days),
            ", ".join(each.names) or "-",
        ]
        for each in found
    ]
    print_table(["file", "of", "ends", "", "names"], rows)


def _left(days: int) -> str:
    if days < 0:
        return "ENDED: renew it"
    return f"in {days} days" + (": renew it" if days < SOON_DAYS else "")
