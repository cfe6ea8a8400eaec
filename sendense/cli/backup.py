"""The `sendense backup` command."""

from typing import Annotated, Literal

import typer

from sendense.cli.running import run_job
from sendense.errors import InputError


def backup(
    vm: Annotated[str, typer.Argument(help="Name, inventory path, UUID or moref of the VM.")],
    site: Annotated[str, typer.Option(help="The VM's site; not needed where the settings have one.")] = "",
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
    from sendense.cli.finding import find_vm, keys_of
    from sendense.coordinator.site import choose_disks
    from sendense.requests import BackupRequest
    from sendense.settings import load_settings

    settings = load_settings()
    if dry_run:
        from sendense.cli.dryrun import show_dry_run

        wanted = keys_of(disks)
        show_dry_run(settings, vm, site, mode=mode, disks=wanted, with_snapshot=with_snapshot, as_json=as_json)
        return
    if with_snapshot:
        raise InputError("--with-snapshot is for --dry-run", "A backup makes a snapshot in any case.")
    info, keys = find_vm(settings, vm, site), keys_of(disks)
    choose_disks(info, keys)  # refuses what cannot be backed up, before there is a job
    request = BackupRequest(vm=info.ref, mode=mode, disks=keys, quiesce=quiesce, verify=verify)
    run_job(settings, request, f"backup of {info.ref.name}", as_json=as_json)
