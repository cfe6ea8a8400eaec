"""Snapshots of VMs: change tracking turned on, made once, read, removed, found again."""

# pyVmomi's constructors have no types.
# mypy: allow-untyped-calls

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from pyVmomi import vim, vmodl

from sendense.errors import QuiesceFailed, SiteFault, SnapshotFailed, SnapshotGone, VmGone
from sendense.models import SnapshotAge, SnapshotDisk, VmRef
from sendense.units import show_seconds
from sendense.vsphere.faults import moref_of
from sendense.vsphere.inventory import disks_of, plain_name, size_of, snapshot_tree
from sendense.vsphere.properties import gather, read
from sendense.vsphere.session import Beat, Session, no_beat
from sendense.vsphere.vim_tasks import (
    POLL_SECONDS,
    Progress,
    VimTaskFailed,
    error_of,
    no_progress,
    perform,
    wait_for,
)

DESCRIPTION = "Made by Sendense to copy the VM's disks; it is removed afterwards."

_CREATES = "VirtualMachine.createSnapshot"
"""How TaskInfo.descriptionId begins for CreateSnapshot_Task, and for CreateSnapshotEx_Task."""

_IN_THE_WAY = (vim.fault.TaskInProgress, vim.fault.ConcurrentAccess)
_QUIESCING = (vim.fault.ApplicationQuiesceFault, vim.fault.FilesystemQuiesceFault, vim.fault.ToolsUnavailable)


def enable_tracking(session: Session, moref: str, beat: Beat = no_beat) -> bool:
    """
    Turn change tracking on; True when it was turned on now. It begins with the VM's next snapshot.

    Does nothing where it is on, is not possible, or where snapshots exist: vSphere does not support that.
    Raises VmGone, PermissionMissing, SiteBusy, or SnapshotFailed where vCenter refuses otherwise.
    """
    what, vm = f"turn on change tracking of {moref}", session.vm(moref)
    wanted = vim.vm.ConfigSpec(changeTrackingEnabled=True)
    paths = ("capability.changeTrackingSupported", "config.changeTrackingEnabled", "snapshot")
    deadline = time.monotonic() + session.site.snapshot_seconds
    with session.beating(beat):
        while True:
            now = read(session, what, vm, paths)
            possible = now.get("capability.changeTrackingSupported") and not any(snapshot_tree(now.get("snapshot")))
            if now.get("config.changeTrackingEnabled") or not possible:
                return False
            if _attempt(session, what, partial(vm.Reconfigure, wanted), deadline):
                return True


def create_snapshot(
    session: Session, moref: str, name: str, quiesce: bool, beat: Beat, progress: Progress = no_progress
) -> str:
    """
    Moref of the VM's snapshot of that name: the one that is there, or is just being made, or else a new one.

    `progress` gets percents. Raises QuiesceFailed where quiescing was the trouble; otherwise SnapshotFailed, VmGone,
    PermissionMissing or SiteBusy.
    """
    what, vm = f"make snapshot '{name}' of {moref}", session.vm(moref)
    deadline = time.monotonic() + session.site.snapshot_seconds
    with session.beating(beat):
        while not (found := _named(session, what, moref, name)):
            # What is in the way may be this very snapshot, asked for before a crash: so look again after it.
            _attempt(session, what, lambda: vm.CreateSnapshot(name, DESCRIPTION, False, quiesce), deadline, progress)
        return found[0]


def snapshot_disks(session: Session, snapshot_moref: str) -> list[SnapshotDisk]:
    """
    The disks of a VM as a snapshot has them, in the order of their keys, those that no snapshot freezes included.

    Only here are the change IDs of the frozen content: the running VM's own move on. Raises SnapshotGone.
    """
    path = "config.hardware.device"
    found = read(session, f"read {snapshot_moref}", session.snapshot(snapshot_moref), (path,))
    return [
        SnapshotDisk(
            key=disk.key,
            file=getattr(disk.backing, "fileName", None) or "",
            size=size_of(disk),
            change_id=getattr(disk.backing, "changeId", None) or "",
        )
        for disk in disks_of(found.get(path) or [])
    ]


def remove_snapshots(session: Session, moref: str, name: str, beat: Beat, progress: Progress = no_progress) -> int:
    """
    Remove all of a VM's snapshots of that name, not their children; how many there were.

    None at all, and no such VM, are fine. Raises SnapshotFailed, PermissionMissing or SiteBusy.
    """
    what = f"remove snapshot '{name}' of {moref}"
    seen: set[str] = set()
    with session.beating(beat), suppress(VmGone):
        _let_creations_end(session, what, moref)
        while found := _named(session, what, moref, name):
            if found[0] not in seen:
                deadline = time.monotonic() + session.site.snapshot_seconds
            seen.add(found[0])
            remove = partial(session.snapshot(found[0]).Remove, False, True)
            with suppress(SnapshotGone):
                _attempt(session, what, remove, deadline, progress)
    return len(seen)


def _let_creations_end(session: Session, what: str, moref: str) -> None:
    """Wait for snapshots that are being made: whoever asked for one may have died, and it would be nobody's."""
    recent = read(session, what, session.vm(moref), ("recentTask",)).get("recentTask") or []
    deadline = time.monotonic() + session.site.snapshot_seconds
    for vim_task in recent:
        with suppress(VimTaskFailed, SiteFault):  # vCenter has forgotten it, or it made none
            info = session.call(what, lambda: vim_task.info)  # noqa: B023
            is_open = info.state in (vim.TaskInfo.State.queued, vim.TaskInfo.State.running)
            if is_open and info.descriptionId.startswith(_CREATES):
                wait_for(session, what, vim_task, deadline)


def find_snapshots(session: Session, prefix: str) -> list[tuple[VmRef, str, str]]:
    """VM, moref and name of every snapshot at the site whose name begins with `prefix`."""
    return [(vm, moref_of(entry.snapshot), entry.name) for vm, entry in _entries(session, prefix)]


def date_snapshots(session: Session, prefix: str) -> list[SnapshotAge]:
    """The same with their ages, by vCenter's clock."""
    found, now = list(_entries(session, prefix)), session.clock()
    return [
        SnapshotAge(vm=vm, name=entry.name, age=max(0.0, (now - entry.createTime).total_seconds()))
        for vm, entry in found
    ]


def _entries(session: Session, prefix: str) -> Iterator[tuple[VmRef, Any]]:
    """VM and entry in its tree of every snapshot whose name begins with `prefix`."""
    paths = ("name", "config.instanceUuid", "snapshot")
    for vm in gather(session, "look for snapshots", {vim.VirtualMachine: paths}):
        ref = VmRef(
            site=session.name,
            moref=vm.moref,
            uuid=vm.properties.get("config.instanceUuid") or "",
            name=plain_name(vm.properties.get("name", "")),
        )
        for entry in snapshot_tree(vm.properties.get("snapshot")):
            if entry.name.startswith(prefix):
                yield ref, entry


def _named(session: Session, what: str, moref: str, name: str) -> list[str]:
    """Morefs of the VM's snapshots of that name."""
    found = read(session, what, session.vm(moref), ("snapshot",))
    return [moref_of(entry.snapshot) for entry in snapshot_tree(found.get("snapshot")) if entry.name == name]


def _attempt(
    session: Session, what: str, start: Callable[[], vim.Task], deadline: float, progress: Progress = no_progress
) -> bool:
    """True when the vim_task ended well; False when another one was in the way, and has ended or been given time."""
    try:
        perform(session, what, start, deadline, progress)
    except VimTaskFailed as exc:
        if isinstance(exc.fault, _IN_THE_WAY):
            _let_pass(session, what, exc.fault, deadline, progress)
            return False
        if exc.fault is not None and _is_quiescing(exc.fault):
            raise QuiesceFailed(session.name, f"{what}: {exc}") from exc
        raise error_of(session, what, exc, SnapshotFailed) from exc
    return True


def _let_pass(session: Session, what: str, fault: vmodl.MethodFault, deadline: float, progress: Progress) -> None:
    other = getattr(fault, "task", None)
    if other is not None:
        try:
            wait_for(session, what, other, deadline, progress)
        except VimTaskFailed:
            pass  # how it ends is its own starter's affair
        except SiteFault:
            pass  # it ended long ago, and vCenter has forgotten it
    if time.monotonic() >= deadline:
        waited = show_seconds(session.site.snapshot_seconds)
        name = f"vim_task {moref_of(other)}" if other is not None else "another vim_task"
        raise SnapshotFailed(session.name, f"{what}: {name} of the same VM is in the way, for {waited} already")
    session.pause(min(POLL_SECONDS, 0.2))


def _is_quiescing(fault: vmodl.MethodFault) -> bool:
    """Also hosts' general faults, which say it by the key of a message: msg.snapshot.error-QUIESCINGERROR."""
    return isinstance(fault, _QUIESCING) or any("quiesc" in said.key.lower() for said in fault.faultMessage or [])
