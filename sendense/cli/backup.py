"""The `sendense backup` command."""

from typing import Annotated, Literal

import typer

from sendense.cli.running import run_order, working_hub
from sendense.errors import InputError


def backup(
    vm: Annotated[str, typer.Argument(help="Name, inventory path, UUID or moref of the VM.")],
    site: Annotated[str, typer.Option(help="The VM's site; not needed where there is one.")] = "",
    mode: Annotated[
        Literal["auto", "full", "incremental"],
        typer.Option(help="auto: an incremental where that is possible, else a full."),
    ] = "auto",
    disks: Annotated[str, typer.Option(help="Device keys of the disks, with commas; all of them otherwise.")] = "",
    quiesce: Annotated[bool, typer.Option("--quiesce/--no-quiesce", help="Have the guest write out its data.")] = True,
    verify: Annotated[bool, typer.Option("--verify", help="Read the images back and compare the digests.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be copied, and change nothing.")] = False,
    with_snapshot: Annotated[
        bool, typer.Option("--with-snapshot", help="With --dry-run: make a snapshot to know it exactly; it is removed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Back a VM up into the repository: what changed since the last restore point, or all of it."""
    from sendense.orders import BackupOrder, PreviewOrder, make_order

    keys = _keys_of(disks)
    if dry_run:
        from sendense.cli.dryrun import show_dry_run

        preview = make_order(PreviewOrder, vm=vm, site=site, mode=mode, disks=keys, with_snapshot=with_snapshot)
        show_dry_run(preview, as_json=as_json)
        return
    if with_snapshot:
        raise InputError("--with-snapshot is for --dry-run", "A backup makes a snapshot in any case.")
    order = make_order(BackupOrder, vm=vm, site=site, mode=mode, disks=keys, quiesce=quiesce, verify=verify)
    with working_hub(as_json=as_json) as (hub, watcher):
        run_order(hub, watcher, order, as_json=as_json)


def _keys_of(text: str) -> list[int]:
    """Device keys, separated by commas."""
    try:
        return [int(word) for word in text.split(",") if word.strip()]
    except ValueError as exc:
        raise InputError(
            f"--disks {text}: not device keys", "Give numbers such as 2000,2001; 'sendense vms show VM' has them."
        ) from exc
