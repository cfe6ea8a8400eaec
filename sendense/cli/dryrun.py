"""`sendense backup --dry-run`: what a backup would do."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sendense.cli.catalogue import is_new, open_repository
from sendense.cli.ending import Interrupted
from sendense.cli.finding import site_named
from sendense.cli.tables import Note, print_json, print_table, say
from sendense.coordinator.preview import DiskPreview, Preview, preview
from sendense.coordinator.record import Jobs
from sendense.jobs.ledger import LedgerUnavailable, connect
from sendense.models import VmInfo, VmRef
from sendense.repository.points import Point
from sendense.requests import BackupMode, BackupRequest, DeleteRequest, MigrateRequest
from sendense.settings import Settings
from sendense.supervise.redis import url_of
from sendense.units import show_bytes
from sendense.vsphere import inventory
from sendense.vsphere.session import open_session


def show_dry_run(
    settings: Settings,
    vm: str,
    site: str,
    *,
    mode: BackupMode,
    disks: list[int],
    with_snapshot: bool,
    as_json: bool,
) -> None:
    """Find out and print what a backup would do; InputError where it would refuse."""
    with _heeding_interrupts() as beat, open_session(*site_named(settings, site), beat) as session:
        info = inventory.find_vm(session, vm)
        parent = _latest(settings, info.ref)
        if with_snapshot:
            print("sendense: making a snapshot, and removing it again", file=sys.stderr, flush=True)
        request = BackupRequest(vm=info.ref, mode=mode, disks=disks)
        found = preview(session, info, request, parent, with_snapshot=with_snapshot, beat=beat)
    job = _job_at_work(settings, info.ref)
    if as_json:
        print_json(found.model_dump(mode="json") | {"job": job})
        return
    on = f" on {found.parent}" if found.parent else ""
    say(f"backup of {info.ref.name}: {'an' if on else 'a'} {found.mode}{on}")
    print()
    rows: list[list[str] | Note] = []
    for disk in found.disks:
        rows.append(_row(disk))
        if disk.reason:
            rows.append(Note(f"full, as {disk.reason}"))
    headings = ["disk", "label", "size", "allocated", "mode", "changed", "to copy"]
    print_table(headings, rows, right=("size", "allocated", "changed", "to copy"))
    print()
    for line in _notes(found, info, job):
        say(line)


def _row(disk: DiskPreview) -> list[str]:
    allocated = "unknown" if disk.allocated is None else show_bytes(disk.allocated)
    changed = "-" if disk.mode == "full" else "unknown" if disk.changed is None else show_bytes(disk.changed)
    copied = f"{'' if disk.exact else 'at most '}{show_bytes(disk.copied)}"
    return [str(disk.key), disk.label, show_bytes(disk.size), allocated, _MODES[disk.mode], changed, copied]


_MODES = {"full": "full", "incremental": "incr."}


def _notes(found: Preview, info: VmInfo, job: str) -> Iterator[str]:
    for key, reason in found.left_out.items():
        yield f"Disk {key} would be left out: {reason}."
    if found.turns_tracking_on:
        yield "Change tracking would be turned on."
    elif not info.tracking:
        why = f"the VM has {info.snapshots} snapshots" if info.tracking_possible else "its hardware is too old for it"
        yield f"Change tracking is off, and cannot be turned on: {why}. The next backup is a full as well."
    if any(disk.mode == "incremental" and disk.changed is None for disk in found.disks):
        yield (
            f"What changed is not known while the VM {'runs' if info.power == 'on' else 'is suspended'}; "
            "--with-snapshot makes a snapshot, finds out, and removes it."
        )
    if job:
        yield f"Job {job} is at work on this VM: a backup would be refused until it ends."
    yield "Nothing was changed: the snapshot is removed." if found.snapshot else "Nothing was changed."


def _latest(settings: Settings, vm: VmRef) -> Point | None:
    """The restore point to build on; None also where the first backup will make the repository."""
    if settings.repository and is_new(settings.repository):
        return None
    return open_repository(settings).latest(vm.uuid)


def _job_at_work(settings: Settings, vm: VmRef) -> str:
    """The job that has this VM, if a hub is up that knows of one: to look, none is started."""
    jobs = Jobs(connect(url_of(settings.hub_dir), retries=0))
    try:
        for view in filter(None, map(jobs.get, jobs.active())):
            request = view.request
            if isinstance(request, BackupRequest | MigrateRequest | DeleteRequest) and request.vm.uuid == vm.uuid:
                return view.id
    except LedgerUnavailable:
        pass
    return ""


@contextmanager
def _heeding_interrupts() -> Iterator[Callable[[], None]]:
    """A beat that ends the work after Ctrl-C or SIGTERM: where it is called, so never while a snapshot is made."""
    asked: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: asked.append(number)) for number in _SIGNALS}

    def beat() -> None:
        if asked:
            raise Interrupted

    try:
        yield beat
        beat()
    except Interrupted:
        print("sendense: interrupted; nothing was changed", file=sys.stderr)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
