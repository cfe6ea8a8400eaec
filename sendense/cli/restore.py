"""The `sendense restore` and `sendense verify` commands."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sendense.cli.ending import EXIT_DIFFERENT
from sendense.cli.opening import is_remote, new_key, target_named
from sendense.cli.running import follow_all, follow_job, run_order, show_result, working_hub
from sendense.errors import InputError
from sendense.nbd.uri import is_uri

if TYPE_CHECKING:
    from sendense.views import Job


def restore(
    point: Annotated[str, typer.Argument(help="Restore point: its id, the beginning of it, or VM@latest.")],
    target: Annotated[str, typer.Argument(help="Path of a new image (.qcow2, .raw), NBD URI, or an existing folder.")],
    disk: Annotated[int | None, typer.Option(help="Device key of the disk; needed where there are several.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read the target back and compare the digests.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing image.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Copy a restore point's disk to a new image or an NBD server."""
    from sendense.orders import RestoreOrder, make_order

    named = target_named(target)
    with working_hub(as_json=as_json) as (hub, watcher):
        found = hub.point(point).point
        keys = [found.disk(disk).key] if disk is not None else [each.key for each in found.disks]
        folder = not is_uri(named) and (target.endswith("/") or _is_folder(named))
        targets = [f"{named.rstrip('/')}/disk-{key}.qcow2" for key in keys] if folder else [named]
        if len(targets) != len(keys):
            names = ", ".join(f"{each.key} ({each.label})" for each in found.disks)
            raise InputError(
                f"{found.id} has {len(keys)} disks: {names}",
                "Name one with --disk, or give an existing folder for all.",
            )
        wanted = dict(zip(keys, targets, strict=True))
        order = make_order(RestoreOrder, point=found.id, targets=wanted, verify=verify, force=force)
        run_order(hub, watcher, order, as_json=as_json)


def verify(
    point: Annotated[str, typer.Argument(help="Restore point: its id, the beginning of it, or VM@latest.")] = "",
    every: Annotated[bool, typer.Option("--all", help="All restore points.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each point.")] = False,
) -> None:
    """Read a restore point's stored images back, and compare them with the digests that were taken while copying."""
    from sendense.orders import VerifyOrder, make_order

    if bool(point) == every:
        raise InputError(
            f"{point} and --all exclude each other" if point else "name a restore point, or give --all",
            "'sendense points' lists them.",
        )
    with working_hub(as_json=as_json) as (hub, watcher):
        if point:
            run_order(hub, watcher, make_order(VerifyOrder, point=point), as_json=as_json)
            return
        vms = hub.points()
        orders = [VerifyOrder(point=each.id, own=True) for vm in vms for each in vm.points]
        broken = [each for vm in vms for each in vm.broken]
        for each in broken:
            typer.echo(f"restore point {each.id}: broken: {each.reason}", err=True)

        def start(order: VerifyOrder) -> "Callable[[], Job]":
            return lambda: follow_job(hub, watcher, hub.submit(order, new_key()))

        worst, failed = follow_all(map(start, orders), show_result(as_json=as_json))
    if not as_json:
        typer.echo(f"{len(orders) - failed} of {len(orders) + len(broken)} restore points are what was copied")
    if worst or broken:
        raise typer.Exit(worst or EXIT_DIFFERENT)


def _is_folder(path: str) -> bool:
    """Whether a path is a folder, or names no image: the hub says if it is not there."""
    return not Path(path).suffix or (not is_remote() and Path(path).is_dir())
