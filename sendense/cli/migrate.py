"""The `sendense migrate` command."""

from typing import Annotated

import typer

from sendense.cli.opening import target_named
from sendense.cli.running import run_order, working_hub
from sendense.errors import InputError


def migrate(
    vm: Annotated[str, typer.Argument(help="Name, inventory path, UUID or moref of the VM.")],
    to: Annotated[
        list[str], typer.Option("--to", help="NBD URI or path of an image, once for each disk: TARGET, or KEY=TARGET.")
    ],
    site: Annotated[str, typer.Option(help="The VM's site; not needed where there is one.")] = "",
    sync: Annotated[bool, typer.Option("--sync", help="Copy only what changed since the last time.")] = False,
    cutover: Annotated[
        bool, typer.Option("--cutover", help="Shut the VM down, then make the last sync: the targets are its disks.")
    ] = False,
    quiesce: Annotated[bool, typer.Option("--quiesce/--no-quiesce", help="Have the guest write out its data.")] = True,
    verify: Annotated[bool, typer.Option("--verify", help="Read the targets back and compare the digests.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Copy a VM's disks to targets of their own while it runs; then only what changed; then for good."""
    from sendense.coordinator.site import choose_disks
    from sendense.orders import MigrateOrder, make_order

    named = [_target(text) for text in to]
    keys = [key for key, _ in named if key is not None]
    if keys and len(keys) < len(named):
        raise InputError("--to names a disk in some places only", "Write KEY=TARGET everywhere, or nowhere.")
    with working_hub(as_json=as_json) as (hub, watcher):
        info = hub.vm(vm, site)
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
        order = make_order(
            MigrateOrder,
            vm=info.ref.moref,
            site=info.ref.site,
            targets=dict(zip(keys, (target for _, target in named), strict=True)),
            sync=sync,
            cutover=cutover,
            quiesce=quiesce,
            verify=verify,
        )
        run_order(hub, watcher, order, as_json=as_json)


def _target(text: str) -> tuple[int | None, str]:
    """The device key, if one is given, and the target."""
    head, equals, tail = text.partition("=")
    key, rest = (int(head), tail) if equals and head.isdigit() else (None, text)
    return key, target_named(rest)
