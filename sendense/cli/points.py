"""The `sendense points` commands."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from sendense.cli.opening import open_hub
from sendense.cli.tables import Note, print_fields, print_json, print_table, say
from sendense.errors import InputError
from sendense.units import show_bytes, show_seconds

if TYPE_CHECKING:
    from sendense.repository.points import Point
    from sendense.views import VmPoints

_LIST = "list"


class _ListingGroup(TyperGroup):
    """Takes what is no command's name for an argument of `list`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [_LIST, *args]
        return super().parse_args(ctx, args)


points_app = typer.Typer(
    cls=_ListingGroup,
    help="Restore points of VMs: which there are, what they are made of, and which may go.",
    subcommand_metavar="[VM] | COMMAND [ARGS]...",
)

_Point = Annotated[str, typer.Argument(metavar="POINT", help="The restore point's id, or the beginning of it.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_VM_HELP = "Name, UUID or moref of a VM in the repository."


@points_app.command(_LIST)
def list_points(
    vm: Annotated[str, typer.Argument(metavar="[VM]", help=_VM_HELP, show_default=False)] = "",
    as_json: _Json = False,
) -> None:
    """The restore points of a VM, or of all, oldest first; 'list' may be left out."""
    with open_hub() as hub:
        vms = hub.points(vm)
    if as_json:
        print_json(vms)
        return
    shown = 0
    for each in vms:
        rows = _rows(each)
        if rows:
            print("\n" * bool(shown), end="")
            say(_title(each))
            headings = ["point", "time", "mode", "disks", "size", "data", "verified"]
            print_table(headings, rows, right=("disks", "size", "data"))
            shown += 1
    if not shown:
        say("there are no restore points yet")


@points_app.command()
def show(point: _Point, as_json: _Json = False) -> None:
    """All that a restore point's manifest says."""
    with open_hub() as hub:
        details = hub.point(point)
    if as_json:
        print_json(details)
        return
    found = details.point
    say(f"restore point {found.id} of {found.vm.name}")
    why = f" ({found.reason})" if found.reason else ""
    print_fields(
        [
            ("time", f"{_local(found.created):%Y-%m-%d %H:%M:%S %Z}"),
            ("vm", f"{found.vm.uuid}, {found.vm.moref} of site {found.vm.site}"),
            ("mode", f"{found.mode}{why}"),
            ("quiesced", "yes" if found.quiesced else "no"),
            ("data", f"{show_bytes(found.copied)}, made in {show_seconds(found.seconds)}"),
            ("stored", f"{show_bytes(details.usage)} of its own on the repository's disk"),
            ("verified", f"{_local(found.verified):%Y-%m-%d %H:%M:%S %Z}" if found.verified else "never"),
            *([("damaged", found.damaged)] if found.damaged else []),
            ("job", found.job),
            ("children", ", ".join(details.children)),
        ]
    )
    rows: list[list[str] | Note] = []
    for disk in found.disks:
        sizes = [show_bytes(disk.size), show_bytes(disk.data), show_bytes(disk.changed)]
        rows.append([str(disk.key), disk.label, _MODES[disk.mode], *sizes, disk.parent or "-"])
        rows.append(Note(f"file {disk.file}"))
        rows += [Note(f"full, as {disk.reason}")] if disk.reason and disk.reason != found.reason else []
        rows.append(Note(f"change ID {disk.change_id or 'unknown: it had no change tracking'}"))
        rows.append(Note(f"digest {disk.digest}"))
    print()
    print_table(["disk", "label", "mode", "size", "data", "changed", "parent"], rows, right=("size", "data", "changed"))
    for key, reason in found.left_out.items():
        say(f"disk {key} was left out: {reason}")


@points_app.command()
def chain(point: _Point, as_json: _Json = False) -> None:
    """The images that each disk's content comes from: the restore point's own first, the full last."""
    with open_hub() as hub:
        chains = hub.chain(point)
    if as_json:
        print_json(chains)
        return
    for disk in chains:
        say(f"disk {disk.key}, {disk.label}, {show_bytes(disk.size)}")
        rows = [[level.point, level.mode, show_bytes(level.stored)] for level in disk.levels]
        print_table(["point", "mode", "stored"], rows, right=("stored",))
        print()
    folder = Path(chains[0].levels[0].image).parents[1]
    say("images:")
    say(f"{folder}/POINT/disk-KEY.qcow2", indent=2)


@points_app.command()
def delete(
    points: Annotated[list[str], typer.Argument(metavar="POINT...", help="Ids, or the beginnings of them.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="A point that is built on one of these takes over what it needs.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Delete restore points of a VM."""
    from sendense.cli.deleting import delete_points

    delete_points(points, merge=merge, as_json=as_json)


@points_app.command()
def prune(
    vm: Annotated[str, typer.Argument(metavar="[VM]", help=_VM_HELP, show_default=False)] = "",
    every: Annotated[bool, typer.Option("--all", help="The points of all VMs, each by itself.")] = False,
    keep_last: Annotated[int, typer.Option(metavar="N", min=0, help="Keep the N newest.")] = 0,
    keep_daily: Annotated[int, typer.Option(metavar="N", min=0, help="And the newest of each of N days.")] = 0,
    keep_weekly: Annotated[int, typer.Option(metavar="N", min=0, help="And of each of N weeks.")] = 0,
    keep_monthly: Annotated[int, typer.Option(metavar="N", min=0, help="And of each of N months.")] = 0,
    keep_yearly: Annotated[int, typer.Option(metavar="N", min=0, help="And of each of N years.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")] = False,
    as_json: _Json = False,
) -> None:
    """
    Delete the restore points that no rule keeps.

    Only days (weeks, …) that have a point count. The newest point stays in any case, and those that stay take over
    what they need of those that go.
    """
    from sendense.cli.deleting import prune_points
    from sendense.orders import PruneOrder, make_order

    if bool(vm) == every:
        raise InputError(
            f"{vm} and --all exclude each other" if vm else "name a VM, or give --all",
            "'sendense points' lists the VMs that have restore points.",
        )
    order = make_order(
        PruneOrder,
        vm=vm,
        last=keep_last,
        daily=keep_daily,
        weekly=keep_weekly,
        monthly=keep_monthly,
        yearly=keep_yearly,
        dry_run=dry_run,
    )
    prune_points(order, as_json=as_json)


def _title(vm: "VmPoints") -> str:
    where = f"{vm.vm.moref} of site {vm.vm.site}, " if vm.vm.moref else ""
    return f"{vm.vm.name} ({where}{vm.vm.uuid})" if where else vm.vm.name


def _rows(vm: "VmPoints") -> list[list[str] | Note]:
    """Sound and broken, oldest first: an id begins with its time."""
    from sendense.views import BrokenPoint

    rows: list[list[str] | Note] = []
    found: list[Point | BrokenPoint] = [*vm.points, *vm.broken]
    for point in sorted(found, key=lambda point: point.id):
        if isinstance(point, BrokenPoint):
            rows += [[point.id, "", "broken", "", "", "", ""], Note(point.reason)]
            continue
        row = [point.id, _short(point.created), _MODES[point.mode], str(len(point.disks))]
        verified = f"{_local(point.verified):%Y-%m-%d}" if point.verified else "never"
        verified = "damaged" if point.damaged else verified
        rows.append([*row, show_bytes(sum(disk.size for disk in point.disks)), show_bytes(point.copied), verified])
        rows += [Note(text) for text in _why_full(point)]
    return rows


_MODES = {"full": "full", "incremental": "incr"}
"""Eighty columns are few."""


def _why_full(point: "Point") -> list[str]:
    """The reasons why disks are fulls, once where they are the same."""
    reasons: dict[str, list[int]] = {}
    for disk in point.disks:
        if disk.reason:
            reasons.setdefault(disk.reason, []).append(disk.key)
    if list(map(len, reasons.values())) == [len(point.disks)]:
        return [f"full, as {next(iter(reasons))}"]
    return [
        f"disk{'s' * (len(keys) > 1)} {', '.join(map(str, keys))} full, as {reason}" for reason, keys in reasons.items()
    ]


def _local(time: datetime) -> datetime:
    return time.astimezone()


def _short(time: datetime) -> str:
    """The id has the year."""
    return f"{_local(time):%d %b %H:%M}"
