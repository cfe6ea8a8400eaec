"""The `sendense state` commands: a copy of what a hub knows, and bringing it back."""

from pathlib import Path
from typing import Annotated

import typer

state_app = typer.Typer(name="state", no_args_is_help=True, help="A copy of what a hub knows beside its repository.")

_RedisFolder = Annotated[
    Path | None,
    typer.Option("--redis-folder", metavar="DIR", help="The data of a Redis that the hub does not run itself."),
]


@state_app.command()
def save(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new one, for this copy alone.")],
    redis_folder: _RedisFolder = None,
) -> None:
    """
    Copy jobs, tokens, audit log, passwords, certificates and settings; the hub may run meanwhile.

    Not the restore points: these are files, to be copied as such. Run it as the hub's user.
    """
    from sendense.hub import keeping
    from sendense.settings import load_settings

    settings = load_settings()
    saved = keeping.save(settings, folder.absolute(), redis_folder)
    print(f"saved {saved.files} files{' and the jobs' if saved.jobs else ''} in {folder}")
    if not saved.jobs:
        print("without jobs: no Redis of this hub is here; name its folder with --redis-folder")
    print("It has passwords and keys: keep it where nobody else reads it.")
    if settings.repository:
        print(f"Not in it: the repository, {settings.repository}")


@state_app.command()
def restore(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="That 'sendense state save' made.")],
    redis_folder: _RedisFolder = None,
) -> None:
    """
    Bring a copy back, on a machine that has its settings, an empty state_dir, and no hub that runs.

    Jobs that were under way when the copy was made are cancelled when the hub starts; they can be resumed.
    """
    from sendense.hub import keeping
    from sendense.settings import load_settings

    restored = keeping.restore(load_settings(), folder.absolute(), redis_folder)
    print(f"brought back as of {restored.time:%Y-%m-%d %H:%M} UTC")
    for job in restored.cancelled:
        print(f"job {job} was under way then: it is cancelled when the hub starts")
    print("Tokens that were revoked since are good again: sendense token list")
