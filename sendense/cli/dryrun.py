"""`sendense backup --dry-run`: what a backup would do."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from sendense.beat import Beat, no_beat
from sendense.cli.ending import Interrupted
from sendense.cli.opening import is_remote, open_hub, to_stderr
from sendense.cli.tables import Note, print_json, print_table, say
from sendense.orders import PreviewOrder
from sendense.units import show_bytes
from sendense.views import DiskPreview, Preview


def show_dry_run(order: PreviewOrder, *, as_json: bool) -> None:
    """Find out and print what a backup would do; InputError where it would refuse."""
    if order.with_snapshot:
        to_stderr("making a snapshot, and removing it again")
    with _heeding_interrupts() as beat, open_hub(beat=beat) as hub:
        found = hub.preview(order)
    if as_json:
        print_json(found)
        return
    on = f" on {found.parent}" if found.parent else ""
    say(f"backup of {found.vm.name}: {'an' if on else 'a'} {found.mode}{on}")
    print()
    rows: list[list[str] | Note] = []
    for disk in found.disks:
        rows.append(_row(disk))
        if disk.reason:
            rows.append(Note(f"full, as {disk.reason}"))
    headings = ["disk", "label", "size", "allocated", "mode", "changed", "to copy"]
    print_table(headings, rows, right=("size", "allocated", "changed", "to copy"))
    print()
    for line in _notes(found):
        say(line)


def _row(disk: DiskPreview) -> list[str]:
    allocated = "unknown" if disk.allocated is None else show_bytes(disk.allocated)
    changed = "-" if disk.mode == "full" else "unknown" if disk.changed is None else show_bytes(disk.changed)
    copied = f"{'' if disk.exact else 'at most '}{show_bytes(disk.copied)}"
    return [str(disk.key), disk.label, show_bytes(disk.size), allocated, _MODES[disk.mode], changed, copied]


_MODES = {"full": "full", "incremental": "incr"}


def _notes(found: Preview) -> Iterator[str]:
    for key, reason in found.left_out.items():
        yield f"Disk {key} would be left out: {reason}."
    if found.turns_tracking_on:
        yield "Change tracking would be turned on."
    elif found.no_tracking:
        yield f"Change tracking is off, and cannot be turned on: {found.no_tracking}."
        yield "The next backup is a full as well."
    if any(disk.mode == "incremental" and disk.changed is None for disk in found.disks):
        yield (
            f"What changed is not known while the VM {'runs' if found.runs else 'is suspended'}; "
            "--with-snapshot makes a snapshot, finds out, and removes it."
        )
    if found.job:
        yield f"Job {found.job} is at work on this VM: a backup would be refused until it ends."
    yield "Nothing was changed: the snapshot is removed." if found.snapshot else "Nothing was changed."


@contextmanager
def _heeding_interrupts() -> Iterator[Beat]:
    """
    A beat that ends the work after Ctrl-C or SIGTERM: where it is called, so never while a snapshot is made.

    A hub elsewhere removes the snapshot whatever happens here.
    """
    if is_remote():
        yield no_beat
        return
    asked: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: asked.append(number)) for number in _SIGNALS}

    def beat() -> None:
        if asked:
            raise Interrupted

    try:
        yield beat
        beat()
    except Interrupted:
        to_stderr("interrupted; nothing was changed")
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
