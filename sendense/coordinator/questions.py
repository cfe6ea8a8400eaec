"""What can be asked of a site: each question takes a login at its vCenter, and is safe to ask again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, validate_call

from sendense.coordinator.preview import preview
from sendense.coordinator.site import SNAPSHOT_PREFIX
from sendense.models import SnapshotAge, VmInfo
from sendense.nbd.connect import Beat, no_beat
from sendense.orders import PreviewOrder
from sendense.repository.points import Point
from sendense.requests import BackupRequest
from sendense.settings import Settings
from sendense.views import Cleaned, Preview
from sendense.vsphere import inventory, power, snapshot
from sendense.vsphere.session import Session, open_session


@dataclass(frozen=True)
class Question:
    """What answers it, from a session, a beat and named arguments; and how the answer is written."""

    function: Callable[..., Any]
    result: TypeAdapter[Any]

    def answer(self, settings: Settings, site: str, arguments: dict[str, Any], beat: Beat) -> Any:
        """The answer; whatever the site raises."""
        with open_session(site, settings.site(site), beat) as session, session.beating(beat):
            return self.function(session, beat, **arguments)


def list_vms(session: Session, beat: Beat) -> list[VmInfo]:
    """All VMs that the site's user may see."""
    return inventory.list_vms(session)


def find_vm(session: Session, beat: Beat, vm: str) -> VmInfo:
    """The VM that was named, as it is now."""
    return inventory.find_vm(session, vm)


def power_on(session: Session, beat: Beat, vm: str) -> VmInfo:
    """Turn a VM on; returns how it was before."""
    info = inventory.find_vm(session, vm)
    power.power_on(session, info.ref.moref, no_beat)
    return info


@validate_call(config={"arbitrary_types_allowed": True})
def look_ahead(session: Session, beat: Callable[..., Any], order: PreviewOrder, parent: Point | None) -> Preview:
    """What a backup would do; `parent` is the VM's newest restore point."""
    info = inventory.find_vm(session, order.vm)
    request = BackupRequest(vm=info.ref, mode=order.mode, disks=order.disks)
    return preview(session, info, request, parent, with_snapshot=order.with_snapshot, beat=beat)


def clean_snapshots(session: Session, beat: Beat, active: list[str], known: list[str], foreign: bool) -> list[Cleaned]:
    """Remove the snapshots of known jobs that are not active; `foreign`: also those of jobs that nobody knows."""
    cleaned = []
    for vm, _, title in snapshot.find_snapshots(session, SNAPSHOT_PREFIX):
        beat()
        job = title.removeprefix(SNAPSHOT_PREFIX)
        if job in active:
            continue
        if not (foreign or job in known):
            text = f"{vm.name}: snapshot {title} is of no known job: left (--foreign removes it)"
            cleaned.append(Cleaned(text=text))
            continue
        snapshot.remove_snapshots(session, vm.moref, title, beat)
        cleaned.append(Cleaned(text=f"{vm.name}: removed snapshot {title}"))
    return cleaned


def find_snapshots(session: Session, beat: Beat) -> list[SnapshotAge]:
    """The snapshots of all jobs, also of those that nobody knows."""
    return snapshot.date_snapshots(session, SNAPSHOT_PREFIX)


QUESTIONS: dict[str, Question] = {
    "vms": Question(list_vms, TypeAdapter(list[VmInfo])),
    "vm": Question(find_vm, TypeAdapter(VmInfo)),
    "power-on": Question(power_on, TypeAdapter(VmInfo)),
    "preview": Question(look_ahead, TypeAdapter(Preview)),
    "snapshots": Question(find_snapshots, TypeAdapter(list[SnapshotAge])),
    "clean": Question(clean_snapshots, TypeAdapter(list[Cleaned])),
}
