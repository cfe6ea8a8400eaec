"""The site's virtual machines: what they do to their disks, and what is remembered of it across restarts."""

import copy
import os
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sendense.errors import InputError
from sendense.lab import disks, guest
from sendense.lab.faults import fault, file_fault, invalid_argument, not_found, wrong_power_state
from sendense.lab.records import Disk, Knobs, Snapshot, State, Vm
from sendense.lab.tracking import BLOCK, Area, new_tracker, page
from sendense.lab.vmomi import vim

_BUSY_SECONDS = 300.0
"""The longest that a guest's write waits for a snapshot, or a snapshot for a write."""


class Site:
    """
    Owner of the state and of the raw files in the folder.

    `changed` guards the state, and is notified of each change. What takes long holds only its machine's own lock.
    """

    def __init__(self, folder: Path, state: State) -> None:
        self.folder, self.state = folder, state
        self.changed = threading.Condition(threading.RLock())
        self._busy: dict[str, threading.Lock] = {}
        for name in ("disks", "snapshots", "knobs"):
            (folder / name).mkdir(exist_ok=True)
        self._forget_unfinished()
        self.write_knobs()

    # State

    def save(self) -> None:
        """
        Store the state, and wake whoever waits for a change.

        Nothing is synced, here as for the disks: a killed process loses nothing by it, and a power cut is not meant.
        """
        with self.changed:
            partial = self.folder / "state.json.partial"
            partial.write_text(self.state.model_dump_json())
            os.replace(partial, self.folder / "state.json")
            self.changed.notify_all()

    def new_id(self, kind: str) -> str:
        """A managed object id that no object has had."""
        with self.changed:
            self.state.next_id += 1
            return f"{kind}-{self.state.next_id}"

    def knobs(self, vm: Vm) -> Knobs:
        """The knobs as they stand for one machine."""
        with self.changed:
            return Knobs.model_validate({**self.state.knobs.model_dump(), **self.state.vm_knobs.get(vm.id, {})})

    def write_knobs(self) -> None:
        """Tell the disks that are open: each reads the file of its machine when that changes."""
        with self.changed:
            for vm in self.state.vms:
                path = self.knobs_file(vm)
                partial = path.with_suffix(".partial")
                partial.write_text(self.knobs(vm).model_dump_json(include={"read_rate", "latency_ms", "read_errors"}))
                os.replace(partial, path)

    def knobs_file(self, vm: Vm) -> Path:
        """Where a machine's open disks find how fast, and how badly, they are to read."""
        return self.folder / "knobs" / f"{vm.id}.json"

    def _forget_unfinished(self) -> None:
        """Remove what a killed process left of a snapshot or of a guest's write."""
        known = {self.frozen(snap, disk.key) for vm in self.state.vms for snap in vm.snapshots for disk in snap.disks}
        known |= {self.raw(vm, disk.key) for vm in self.state.vms for disk in vm.disks}
        for path in [*self.folder.glob("snapshots/*"), *self.folder.glob("disks/*")]:
            if path.is_dir():
                shutil.rmtree(path)
            elif path not in known:
                path.unlink()

    # Finding

    def vm(self, ref: str) -> Vm:
        """The machine with this managed object id."""
        with self.changed:
            found = next((vm for vm in self.state.vms if vm.id == ref), None)
        if found is None:
            raise not_found(vim.VirtualMachine(ref))
        return found

    def find_vm(self, name: str) -> Vm:
        """The machine with this name or managed object id, for a person."""
        found = [vm for vm in self.state.vms if name in (vm.name, vm.id)]
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"{name}: {len(found)} machines have this name", f"Name one of {_listed(found)}.")
        raise InputError(f"{name}: no such machine", f"There are: {_listed(self.state.vms)}.")

    def find_disk(self, vm: Vm, key: int | None) -> Disk:
        """The machine's disk with this device key, or its first one."""
        found = vm.disks[0] if key is None else vm.disk(key)
        if found is None:
            raise InputError(f"{vm.name} has no disk {key}", f"It has: {', '.join(str(d.key) for d in vm.disks)}.")
        return found

    def snapshot(self, ref: str) -> tuple[Vm, Snapshot]:
        """The snapshot with this managed object id, and whose it is."""
        with self.changed:
            for vm in self.state.vms:
                if found := vm.snapshot(ref):
                    return vm, found
        raise not_found(vim.vm.Snapshot(ref))

    def raw(self, vm: Vm, key: int) -> Path:
        """The present content of a disk."""
        return self.folder / "disks" / f"{vm.id}-{key}.raw"

    def frozen(self, snapshot: Snapshot, key: int) -> Path:
        """The content of a disk as a snapshot holds it."""
        return self.folder / "snapshots" / f"{snapshot.id}-{key}.raw"

    # Snapshots

    def create_snapshot(self, vm: Vm, name: str, description: str, quiesce: bool) -> Snapshot:
        """Freeze all disks that snapshots take in; the present change IDs go into the snapshot."""
        if quiesce and vm.powered_on and not vm.tools_running:
            raise fault("ApplicationQuiesceFault", "An error occurred while quiescing the virtual machine.")
        with self._alone(vm):
            snapshot = Snapshot(
                id=self.new_id("snapshot"),
                number=1 + max((old.number for old in vm.snapshots), default=0),
                name=name,
                description=description,
                created=datetime.now(UTC),
                quiesced=quiesce and vm.powered_on,
                powered_on=vm.powered_on,
                parent=vm.current,
                disks=copy.deepcopy(vm.disks),
            )
            with _discard_on_failure(self.frozen(snapshot, disk.key) for disk in snapshot.disks):
                for disk in snapshot.disks:
                    if disk.in_snapshots:
                        disks.freeze(self.raw(vm, disk.key), self.frozen(snapshot, disk.key))
            with self.changed:
                self._stun(vm)
                for disk in snapshot.disks:
                    if tracker := vm.trackers.get(disk.key):
                        disk.change_id = tracker.freeze()
                self._new_files(vm)
                vm.snapshots.append(snapshot)
                vm.current = snapshot.id
                self.save()
        return snapshot

    def remove_snapshot(self, vm: Vm, snapshot: Snapshot, *, children: bool) -> None:
        """Give a snapshot up, with all below it if asked; the disks that are open stay readable."""
        with self._alone(vm):
            with self.changed:
                gone = [snapshot, *(self._below(vm, snapshot) if children else [])]
                for old in gone:
                    self._unlink_snapshot(vm, old)
                self._stun(vm)
                self.save()
            for old in gone:
                for disk in old.disks:
                    self.frozen(old, disk.key).unlink(missing_ok=True)

    def revert(self, vm: Vm, snapshot: Snapshot) -> None:
        """Bring a machine back to a snapshot: powered off, its change tracking begun anew."""
        with self._alone(vm):
            for disk in snapshot.disks:
                if disk.in_snapshots:
                    fresh = self.raw(vm, disk.key).with_suffix(".new")
                    disks.freeze(self.frozen(snapshot, disk.key), fresh)
                    os.replace(fresh, self.raw(vm, disk.key))
            with self.changed:
                vm.disks = [disk.model_copy(update={"change_id": ""}) for disk in snapshot.disks]
                vm.current = snapshot.id
                vm.powered_on = False
                vm.trackers = {}
                self._new_files(vm)
                self._stun(vm)
                self.save()

    def _unlink_snapshot(self, vm: Vm, old: Snapshot) -> None:
        """What came after it takes its place, and the names of its files."""
        vm.snapshots.remove(old)
        heirs = [snapshot for snapshot in vm.snapshots if snapshot.parent == old.id]
        for heir in heirs:
            heir.parent = old.parent
        if vm.current == old.id:
            vm.current = old.parent
            heirs_disks = vm.disks
        else:
            heirs_disks = heirs[0].disks if heirs else []
        for disk in heirs_disks:
            before = next((entry for entry in old.disks if entry.key == disk.key), None)
            if before is not None and disk.in_snapshots:
                disk.file = before.file

    def _below(self, vm: Vm, snapshot: Snapshot) -> Iterator[Snapshot]:
        for child in vm.snapshots:
            if child.parent == snapshot.id:
                yield from self._below(vm, child)
                yield child

    def _new_files(self, vm: Vm) -> None:
        """From now on the guest writes to files of their own, beside those of the snapshot."""
        for disk in vm.disks:
            if disk.in_snapshots:
                disk.file = f"{disk.base.removesuffix('.vmdk')}-{vm.next_file:06}.vmdk"
        vm.next_file += 1

    # Change tracking

    def _stun(self, vm: Vm) -> None:
        """Where change tracking really begins, or ends: the machine stands still for a moment."""
        wanted = {disk.key for disk in vm.disks if disk.in_snapshots and vm.tracking_enabled}
        vm.trackers = {key: vm.trackers.get(key) or new_tracker() for key in sorted(wanted)}

    def reset_tracking(self, vm: Vm) -> None:
        """Lose the change log, as a crash of the host or a move of the files does."""
        with self._alone(vm), self.changed:
            vm.trackers = {}
            self._stun(vm)
            self.save()

    def changed_areas(
        self, vm: Vm, snapshot: Snapshot | None, key: int, start: int, change_id: str
    ) -> tuple[int, list[Area]]:
        """One answer of QueryChangedDiskAreas: bytes covered from `start`, and the areas in them."""
        with self.changed:
            if snapshot is None and vm.powered_on:
                raise wrong_power_state(vm.powered_on)
            disk = next((entry for entry in (snapshot or vm).disks if entry.key == key), None)
            if disk is None:
                raise invalid_argument("deviceKey")
            if not 0 <= start < disk.capacity:
                raise invalid_argument("startOffset")
            tracker = vm.trackers.get(key)
            until = disk.change_id if snapshot else tracker.change_id if tracker else ""
            if not until:
                raise file_fault(disk.file, "change tracking is not active on this disk")
            if change_id == "*":
                path = self.frozen(snapshot, key) if snapshot else self.raw(vm, key)
                areas = disks.allocated_areas(path, disk.capacity)
            else:
                own, last = _parse(until)
                try:
                    asked, first = _parse(change_id)
                except ValueError:
                    raise invalid_argument("changeId") from None
                if asked != own or tracker is None or tracker.uuid != own:
                    raise file_fault(disk.file, "the change ID belongs to another change tracking file")
                if first > last:
                    raise invalid_argument("changeId")
                areas = tracker.between(first, last, disk.capacity)
            knobs = self.knobs(vm)
            return page(areas, start, disk.capacity, knobs.window_bytes, knobs.area_limit)

    # The guest

    def write(self, vm: Vm, key: int | None, offset: int, data: bytes | None, length: int = 0) -> Disk:
        """Write bytes, or without data make `length` bytes a hole that reads as zeroes."""
        disk, size = self.find_disk(vm, key), length if data is None else len(data)
        if offset < 0 or size <= 0 or offset + size > disk.capacity:
            raise InputError(f"{vm.name} disk {disk.key} has {disk.capacity} bytes: cannot write {size} at {offset}")
        with self._alone(vm):
            self._need_power(vm)
            self._mark(vm, disk, [(offset, size)])
            if data is None:
                disks.punch(self.raw(vm, disk.key), offset, size)
            else:
                with self.raw(vm, disk.key).open("r+b") as file:
                    file.seek(offset)
                    file.write(data)
        return disk

    def change_files(
        self, vm: Vm, key: int | None, files: int, size: int
    ) -> tuple[Disk, guest.FileChanges, list[Area]]:
        """Files added, changed and deleted in a disk's file system; also returns the blocks that this wrote."""
        disk = self.find_disk(vm, key)
        with self._alone(vm):
            self._need_power(vm)
            raw = self.raw(vm, disk.key)
            fresh = raw.with_suffix(".new")
            with _discard_on_failure([fresh]):
                disks.freeze(raw, fresh)
                seed = int(self.new_id("write").rpartition("-")[2])
                done = guest.change_files(fresh, files=files, size=size, seed=seed)
                areas = disks.differences(raw, fresh, disk.capacity)
            self._mark(vm, disk, areas)
            os.replace(fresh, raw)
        return disk, done, areas

    def _mark(self, vm: Vm, disk: Disk, areas: list[Area]) -> None:
        """Before the write itself: whatever kills the process in between, no change goes unnoticed."""
        with self.changed:
            if tracker := vm.trackers.get(disk.key):
                for offset, length in areas:
                    tracker.mark(offset, length, disk.capacity)
            self.save()

    def _need_power(self, vm: Vm) -> None:
        if not vm.powered_on:
            raise InputError(
                f"{vm.name} is powered off: its guest cannot write", "Turn it on: sendense lab power VM on."
            )

    # Hardware and power

    def set_power(self, vm: Vm, on: bool) -> None:
        """Turn a machine on or off; starting it is a stun."""
        with self._alone(vm), self.changed:
            if vm.powered_on == on:
                raise wrong_power_state(vm.powered_on)
            vm.powered_on = on
            if on:
                self._stun(vm)
            self.save()

    def enable_tracking(self, vm: Vm, on: bool) -> None:
        """Take effect at the next stun."""
        if on and not vm.tracking_supported:
            raise fault("NotSupported", "Changed block tracking is not supported by this virtual hardware version.")
        with self.changed:
            vm.tracking_enabled = on
            self.save()

    def add_disk(self, vm: Vm, size: int) -> Disk:
        """Give a machine one more, empty disk."""
        if size < BLOCK or size % 512:
            raise InputError(f"a disk of {size} bytes: give a multiple of 512, {BLOCK} or more")
        with self._alone(vm), self.changed:
            key = 1 + max(disk.key for disk in vm.disks)
            number = key - 2000
            base = f"[{vm.datastore}] {vm.name}/{vm.name}_{number}.vmdk"
            label = f"Hard disk {number + 1}"
            disk = Disk(key=key, label=label, file=base, base=base, capacity=size, uuid=str(uuid.uuid4()))
            with self.raw(vm, key).open("wb") as file:
                file.truncate(size)
            vm.disks.append(disk)
            self._stun(vm)
            self.save()
        return disk

    def remove_disk(self, vm: Vm, key: int) -> None:
        """Take a disk from a machine; snapshots keep theirs."""
        disk = self.find_disk(vm, key)
        if len(vm.disks) == 1:
            raise InputError(f"disk {key} is the only one of {vm.name}", "Add another one first.")
        with self._alone(vm), self.changed:
            vm.disks.remove(disk)
            vm.trackers.pop(key, None)
            self.save()
            self.raw(vm, key).unlink()

    def grow_disk(self, vm: Vm, key: int, size: int) -> None:
        """Make a disk larger, which vCenter allows only without snapshots."""
        disk = self.find_disk(vm, key)
        if vm.snapshots or size <= disk.capacity or size % 512:
            raise InputError(
                f"{vm.name} disk {key} cannot grow to {size} bytes", "Remove its snapshots; give more bytes."
            )
        with self._alone(vm), self.changed:
            self._mark(vm, disk.model_copy(update={"capacity": size}), [(disk.capacity, size - disk.capacity)])
            os.truncate(self.raw(vm, key), size)
            disk.capacity = size
            self.save()

    @contextmanager
    def _alone(self, vm: Vm) -> Iterator[None]:
        """Nobody else writes to the machine's disks, or freezes them."""
        with self.changed:
            lock = self._busy.setdefault(vm.id, threading.Lock())
        if not lock.acquire(timeout=_BUSY_SECONDS):
            raise RuntimeError(f"{vm.name} was busy for {_BUSY_SECONDS:.0f} s")
        try:
            yield
        finally:
            lock.release()


@contextmanager
def _discard_on_failure(files: Iterable[Path]) -> Iterator[None]:
    """Files that are worth nothing unless the block succeeds."""
    try:
        yield
    except BaseException:
        for path in files:
            path.unlink(missing_ok=True)
        raise


def _parse(change_id: str) -> tuple[str, int]:
    """The UUID and the number of a change ID; ValueError when it is none."""
    own, slash, number = change_id.rpartition("/")
    if not own or not slash:
        raise ValueError(change_id)
    return own, int(number)


def _listed(vms: list[Vm]) -> str:
    return ", ".join(f"{vm.name} ({vm.id})" for vm in vms)
