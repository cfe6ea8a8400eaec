"""The `sendense restore` and `sendense verify` commands."""

from pathlib import Path
from typing import Annotated

import typer

from sendense.cli.ending import EXIT_DIFFERENT
from sendense.cli.running import run_job, run_jobs
from sendense.errors import InputError


def restore(
    point: Annotated[str, typer.Argument(help="Restore point: its id, the beginning of it, or VM@latest.")],
    target: Annotated[
        str, typer.Argument(help="Path of a new image (.qcow2, .raw), NBD URI, or for several disks a folder.")
    ],
    disk: Annotated[int | None, typer.Option(help="Device key of the disk; needed where there are several.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read the target back and compare the digests.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing image.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Copy a restore point's disk to a new image or an NBD server."""
    from sendense.cli.catalogue import find_sound, open_repository
    from sendense.coordinator.restore import check_new_image
    from sendense.nbd.uri import is_uri, parse
    from sendense.requests import RestoreRequest
    from sendense.settings import load_settings

    settings = load_settings()
    found = find_sound(open_repository(settings), point)
    keys = [found.disk(disk).key] if disk is not None else [each.key for each in found.disks]
    if is_uri(target):
        targets = [parse(target).uri]
    elif Path(target).is_dir() and len(keys) > 1:
        targets = [str(Path(target).absolute() / f"disk-{key}.qcow2") for key in keys]
    else:
        targets = [str(Path(target).absolute())]
    if len(targets) != len(keys):
        names = ", ".join(f"{each.key} ({each.label})" for each in found.disks)
        raise InputError(
            f"{found.id} has {len(keys)} disks: {names}", "Name one with --disk, or give an existing folder for all."
        )
    for path in (Path(each) for each in targets if not is_uri(each)):
        check_new_image(path, force=force, resumed=False)
    name = f"restore of {found.vm.name}"
    request = RestoreRequest(
        point=found.id, name=found.vm.name, targets=dict(zip(keys, targets, strict=True)), verify=verify, force=force
    )
    run_job(settings, request, name, as_json=as_json)


def verify(
    point: Annotated[str, typer.Argument(help="Restore point: its id, the beginning of it, or VM@latest.")] = "",
    every: Annotated[bool, typer.Option("--all", help="All restore points.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each point.")] = False,
) -> None:
    """Read a restore point's stored images back, and compare them with the digests that were taken while copying."""
    from sendense.cli.catalogue import find_sound, open_repository
    from sendense.requests import VerifyRequest
    from sendense.settings import load_settings

    if bool(point) == every:
        raise InputError("name a restore point, or give --all", "'sendense points' lists them.")
    settings = load_settings()
    repository = open_repository(settings)
    points = repository.points() if every else [find_sound(repository, point)]
    requests = [
        (VerifyRequest(point=each.id, name=each.vm.name, own=every), f"verify {each.vm.name}") for each in points
    ]
    if len(requests) == 1:
        run_job(settings, *requests[0], as_json=as_json)
        return
    broken = repository.broken()
    for each in broken:
        typer.echo(f"restore point {each.id}: broken: {each.reason}", err=True)
    worst, failed = run_jobs(settings, requests, as_json=as_json)
    if not as_json:
        typer.echo(f"{len(points) - failed} of {len(points) + len(broken)} restore points are what was copied")
    if worst or broken:
        raise typer.Exit(worst or EXIT_DIFFERENT)
