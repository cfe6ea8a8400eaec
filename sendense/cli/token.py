"""The `sendense token` commands: who may use this machine's hub over its API."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from sendense.cli.tables import print_json, print_table, say

if TYPE_CHECKING:
    from sendense.service.tokens import Token, Tokens

token_app = typer.Typer(help="Who may use this hub over its API.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON in place of the lines.")]


class Role(StrEnum):
    """What a token's bearer may do."""

    OPERATOR = "operator"
    READER = "reader"


@token_app.callback()
def _token() -> None:
    """Who may use this hub over its API."""


@token_app.command()
def create(
    role: Annotated[Role, typer.Option(help="A reader may look, an operator may do everything.")],
    name: Annotated[str, typer.Option(help="What the token is called in lists and in the audit log.")] = "",
    days: Annotated[int | None, typer.Option(min=1, max=3650, help="Days until it ends; never without.")] = None,
    as_json: AsJson = False,
) -> None:
    """
    Make a token, and print it.

    It is shown this once, and nowhere kept: only its hash is. A hub that runs takes it at once.
    """
    token, secret = _tokens().create(role.value, name, days)
    if as_json:
        print_json(_plain(token) | {"token": secret})
        return
    print(secret)
    # What stands alone on stdout can be sent into a file.
    typer.echo(f"This is token {token.name}, and is not shown again: keep it in a file with mode 0600.", err=True)


@token_app.command("list")
def list_tokens(as_json: AsJson = False) -> None:
    """List the tokens, which are known by their names."""
    tokens = _tokens().all()
    if as_json:
        print_json([_plain(token) for token in tokens])
    elif tokens:
        rows = [
            [token.name, token.role, f"{token.created.astimezone():%Y-%m-%d %H:%M}", _ends(token)] for token in tokens
        ]
        print_table(["token", "role", "made", "ends"], rows)
    else:
        say("no tokens: sendense token create --role operator")


@token_app.command()
def revoke(name: Annotated[str, typer.Argument(help="The token's name.")]) -> None:
    """Have a token no longer be taken, by a hub that runs neither."""
    _tokens().revoke(name)
    say(f"token {name} is revoked")


def _tokens() -> "Tokens":
    from sendense.service.tokens import Tokens
    from sendense.settings import load_settings

    return Tokens(load_settings())


def _plain(token: "Token") -> dict[str, object]:
    return token.model_dump(mode="json", exclude={"digest"}) | {"expired": token.has_expired}


def _ends(token: "Token") -> str:
    if token.has_expired:
        return "has expired"
    return f"{token.expires.astimezone():%Y-%m-%d %H:%M}" if token.expires else "never"
