"""The `sendense vms` commands."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sendense.cli.opening import open_hub
from sendense.cli.tables import Note, print_fields, print_json, print_table, say
from sendense.units import show_bytes

if TYPE_CHECKING:
    from sendense.models import VmInfo

vms_app = typer.Typer(help="The VMs of a site, and whether they can be backed up.", no_args_is_help=False)

_NO_CONFIGURATION = "vCenter does not have its configuration: look at the VM and its host there"

_Vm = Annotated[str, typer.Argument(metavar="VM", help="Name, inventory path, UUID or moref of the VM.")]
_Site = Annotated[str, typer.Option(help="The VM's site; not needed where there is one.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@vms_app.callback(invoke_without_command=True)
def list_vms(
    context: typer.Context,
    site: Annotated[str, typer.Option(help="Only this site's; otherwise all sites'.")] = "",
    as_json: _Json = False,
) -> None:
    """All VMs that the sites' users may see, and whether they can be backed up."""
    if context.invoked_subcommand:
        return
    with open_hub() as hub:
        found = hub.vms(site)
    if as_json:
        print_json([_as_json(info) for info in found])
        return
    several = len({info.ref.site for info in found}) > 1
    headings = ["vm", "id", "power", "disks", "size", "tracking", "snapshots", "backup"]
    rows: list[list[str] | Note] = []
    for info in found:
        row = [
            info.ref.name,
            info.ref.moref,
            info.power,
            str(len(info.disks)),
            show_bytes(_size(info)),
            _tracking(info),
            str(info.snapshots),
            _standing(info),
        ]
        rows.append([info.ref.site, *row] if several else row)
        rows += [Note(reason) for reason in _reasons(info)]
    print_table(["site", *headings] if several else headings, rows, right=("disks", "size", "snapshots"))


@vms_app.command()
def show(vm: _Vm, site: _Site = "", as_json: _Json = False) -> None:
    """All that there is to know of a VM and its disks."""
    with open_hub() as hub:
        info = hub.vm(vm, site)
    if as_json:
        print_json(_as_json(info))
        return
    say(info.ref.name)
    print_fields(
        [
            ("path", info.path),
            ("id", f"{info.ref.moref} of site {info.ref.site}"),
            ("uuid", info.ref.uuid),
            ("host", info.host),
            ("power", f"{info.power}, VMware Tools {'run' if info.tools else 'do not run'}"),
            ("tracking", _tracking(info)),
            ("snapshots", str(info.snapshots)),
            ("backup", _standing(info)),
        ]
    )
    rows: list[list[str] | Note] = []
    for disk in info.disks:
        allocated = info.allocated.get(disk.key)
        size = "unknown" if allocated is None else show_bytes(allocated)
        rows.append([str(disk.key), disk.label, show_bytes(disk.size), size, disk.file])
        if disk.refusal:
            rows.append(Note(f"cannot be backed up: {disk.refusal}"))
    if rows:
        print()
        print_table(["disk", "label", "size", "allocated", "file"], rows, right=("size", "allocated"))


@vms_app.command()
def start(vm: _Vm, site: _Site = "", as_json: _Json = False) -> None:
    """Turn a VM on, say after a cutover that failed."""
    with open_hub() as hub:
        info = hub.power_on(vm, site)
    if as_json:
        print_json({"vm": info.ref.model_dump(), "power": "on", "before": info.power})
    else:
        say(f"{info.ref.name} is on{' already' if info.power == 'on' else ''}")


def refusals(info: "VmInfo") -> dict[int, str]:
    """By key the disks that cannot be backed up, and why."""
    return {disk.key: disk.refusal for disk in info.disks if disk.refusal}


def _why_not(info: "VmInfo") -> str:
    """Why nothing of the VM can be backed up; empty when something can."""
    if not info.ref.uuid:
        return _NO_CONFIGURATION
    if not info.disks:
        return "it has no disks"
    reasons = set(refusals(info).values())
    if len(refusals(info)) < len(info.disks):
        return ""
    return reasons.pop() if len(reasons) == 1 else "none of its disks can be"


def _standing(info: "VmInfo") -> str:
    if _why_not(info):
        return "no"
    possible, disks = len(info.disks) - len(refusals(info)), len(info.disks)
    some = "yes" if possible == disks else f"{possible} of {disks} disks"
    return some if info.tracking or info.tracking_possible else f"{some}, only fulls"


def _reasons(info: "VmInfo") -> list[str]:
    """What stands in the way of a backup, in sentences."""
    why = _why_not(info)
    each = [f"disk {key}: {reason}" for key, reason in refusals(info).items() if reason != why]
    return [why, *each] if why else each


def _tracking(info: "VmInfo") -> str:
    return "on" if info.tracking else "off" if info.tracking_possible else "impossible"


def _size(info: "VmInfo") -> int:
    return sum(disk.size for disk in info.disks)


def _as_json(info: "VmInfo") -> dict[str, Any]:
    why = _why_not(info)
    backup = {"possible": not why, "reason": why, "left_out": refusals(info)}
    return info.model_dump(mode="json") | {"size": _size(info), "backup": backup}
