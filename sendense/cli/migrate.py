"""The `sendense migrate` command."""

from pathlib import Path
from typing import Annotated

import typer

from sendense.cli.running import run_job
from sendense.errors import InputError


def migrate(
    vm: Annotated[str, typer.Argument(help="Name, inventory path, UUID or moref of the VM.")],
    to: Annotated[
        list[str], typer.Option("--to", help="NBD URI or path of an image, once for each disk: TARGET, or KEY=TARGET.")
    ],
    site: Annotated[str, typer.Option(help="The VM's site; not needed where the settings have one.")] = "",
    sync: Annotated[bool, typer.Option("--sync", help="Copy only what changed since the last time.")] = False,
    cutover: Annotated[
        bool, typer.Option("--cutover", help="Shut the VM down, then make the last sync: the targets are its disks.")
    ] = False,
    quiesce: Annotated[bool, typer.Option("--quiesce/--no-quiesce", help="Have the guest write out its data.")] = True,
    verify: Annotated[bool, typer.Option("--verify", help="Read the targets back and compare the digests.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Copy a VM's disks to targets of their own while it runs; then only what changed; then for good."""
    from sendense.cli.finding import find_vm
    from sendense.coordinator.site import choose_disks
    from sendense.requests import MigrateRequest
    from sendense.settings import load_settings

    settings = load_settings()
    info = find_vm(settings, vm, site)
    named = [_target(text) for text in to]
    keys = [key for key, _ in named if key is not None]
    if keys and len(keys) < len(named):
        raise InputError("--to names a disk in some places only", "Write KEY=TARGET everywhere, or nowhere.")
    chosen, left_out = choose_disks(info, keys)
    if not keys:
        keys = [disk.key for disk in chosen]
    if len(keys) != len(named):
        names = ", ".join(f"{disk.key} ({disk.label})" for disk in chosen)
        raise InputError(
            f"{info.ref.name} has {len(keys)} disks to copy ({names}), and --to names {len(named)} targets",
            "Give --to once for each disk, or --to KEY=TARGET for those that are to be copied.",
        )
    for key, reason in left_out.items():
        typer.echo(f"disk {key} is left out: {reason}", err=True)
    targets = dict(zip(keys, (target for _, target in named), strict=True))
    request = MigrateRequest(vm=info.ref, targets=targets, sync=sync, cutover=cutover, quiesce=quiesce, verify=verify)
    what = "cutover" if cutover else "sync" if sync else "migration"
    run_job(settings, request, f"{what} of {info.ref.name}", as_json=as_json)


def _target(text: str) -> tuple[int | None, str]:
    """The device key, if one is given, and an NBD URI or an absolute path."""
    from sendense.nbd.uri import is_uri, parse

    head, equals, tail = text.partition("=")
    key, rest = (int(head), tail) if equals and head.isdigit() else (None, text)
    return key, parse(rest).uri if is_uri(rest) else str(Path(rest).absolute())
