"""The properties of a virtual machine and of its snapshots, as vCenter gives them."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from sendense.lab.disks import allocated_bytes
from sendense.lab.records import Disk, Snapshot, Vm
from sendense.lab.site import Site
from sendense.lab.vmomi import vim
from sendense.units import KiB

_CONTROLLER = 1000
_MODIFIED = datetime(2024, 1, 1, tzinfo=UTC)


class Places(Protocol):
    """Where a machine runs and lies, and what is done with it."""

    def host(self, name: str) -> Any: ...
    def pool(self, host: str) -> Any: ...
    def datastore(self, name: str) -> Any: ...
    def recent_tasks(self, vm: Vm) -> list[Any]: ...


def machine_properties(site: Site, vm: Vm, places: Places) -> Mapping[str, Callable[[], Any]]:
    """Of a machine as it is now."""
    return {
        "name": lambda: vm.name,
        "parent": lambda: vim.Folder(vm.folder),
        "config": lambda: None if site.knobs(vm).inaccessible else _config(vm, vm.disks, vm.trackers, places),
        "capability": lambda: vim.vm.Capability(
            changeTrackingSupported=vm.tracking_supported, snapshotOperationsSupported=True
        ),
        "runtime": lambda: _runtime(vm, places),
        "guest": lambda: _guest(vm),
        "guestHeartbeatStatus": lambda: "green" if _tools_run(vm) else "gray",
        "summary": lambda: _summary(site, vm, places),
        "snapshot": lambda: _tree(vm),
        "rootSnapshot": lambda: [vim.vm.Snapshot(snapshot.id) for snapshot in vm.snapshots if not snapshot.parent],
        "datastore": lambda: [places.datastore(vm.datastore)],
        "resourcePool": lambda: places.pool(vm.host),
        "network": list,
        "recentTask": lambda: places.recent_tasks(vm),
        "layoutEx": lambda: _layout(site, vm),
        "storage": lambda: _storage(site, vm, places),
    }


def snapshot_properties(vm: Vm, snapshot: Snapshot, places: Places) -> Mapping[str, Callable[[], Any]]:
    """Of a snapshot: the machine's configuration as it was, with the change ID of each disk."""
    return {
        "config": lambda: _config(vm, snapshot.disks, {}, places),
        "vm": lambda: vim.VirtualMachine(vm.id),
        "childSnapshot": lambda: [vim.vm.Snapshot(child.id) for child in vm.snapshots if child.parent == snapshot.id],
    }


def _config(vm: Vm, disks: list[Disk], trackers: Mapping[int, Any], places: Places) -> Any:
    folder = f"[{vm.datastore}] {vm.name}/"
    controller = vim.vm.device.ParaVirtualSCSIController(
        key=_CONTROLLER,
        busNumber=0,
        sharedBus="noSharing",
        device=[disk.key for disk in disks],
        deviceInfo=vim.Description(label="SCSI controller 0", summary="VMware paravirtual SCSI"),
    )
    devices = [controller]
    for disk in disks:
        change_id = disk.change_id or (trackers[disk.key].change_id if disk.key in trackers else None)
        devices.append(_device(vm, disk, change_id, places))
    return vim.vm.ConfigInfo(
        changeVersion=_MODIFIED.isoformat(),
        modified=_MODIFIED,
        name=vm.name,
        guestFullName="Debian GNU/Linux 12 (64-bit)",
        guestId="debian12_64Guest",
        version=vm.version,
        uuid=vm.uuid,
        instanceUuid=vm.instance_uuid,
        template=False,
        changeTrackingEnabled=vm.tracking_enabled,
        files=vim.vm.FileInfo(
            vmPathName=f"{folder}{vm.name}.vmx", snapshotDirectory=folder, suspendDirectory=folder, logDirectory=folder
        ),
        flags=vim.vm.FlagInfo(),
        defaultPowerOps=vim.vm.DefaultPowerOpInfo(),
        hardware=vim.vm.VirtualHardware(numCPU=2, numCoresPerSocket=1, memoryMB=2048, device=devices),
    )


def _device(vm: Vm, disk: Disk, change_id: str | None, places: Places) -> Any:
    common = {"fileName": disk.file, "datastore": places.datastore(vm.datastore), "uuid": disk.uuid}
    if disk.rdm:
        backing = vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo(
            compatibilityMode="physicalMode",
            diskMode="independent_persistent",
            lunUuid=f"0200000000{disk.uuid.replace('-', '')}",
            deviceName=f"/vmfs/devices/disks/naa.{disk.uuid.replace('-', '')}",
            **common,
        )
    else:
        backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            diskMode=disk.mode, thinProvisioned=True, split=False, writeThrough=False, changeId=change_id, **common
        )
        if disk.file != disk.base:
            backing.parent = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
                fileName=disk.base, diskMode=disk.mode, thinProvisioned=True, datastore=places.datastore(vm.datastore)
            )
    return vim.vm.device.VirtualDisk(
        key=disk.key,
        controllerKey=_CONTROLLER,
        unitNumber=disk.key - 2000,
        capacityInKB=disk.capacity // KiB,
        capacityInBytes=disk.capacity,
        deviceInfo=vim.Description(label=disk.label, summary=f"{disk.capacity // KiB:,} KB"),
        backing=backing,
        diskObjectId=f"{vm.id.rpartition('-')[2]}-{disk.key}",
    )


def _power(on: bool) -> str:
    return "poweredOn" if on else "poweredOff"


def _runtime(vm: Vm, places: Places) -> Any:
    return vim.vm.RuntimeInfo(
        host=places.host(vm.host),
        connectionState="connected",
        powerState=_power(vm.powered_on),
        faultToleranceState="notConfigured",
        recordReplayState="inactive",
        toolsInstallerMounted=False,
    )


def _tools_run(vm: Vm) -> bool:
    return vm.powered_on and vm.tools_running


def _guest(vm: Vm) -> Any:
    running = _tools_run(vm)
    return vim.vm.GuestInfo(
        toolsStatus="toolsOk" if running else "toolsNotRunning",
        toolsRunningStatus="guestToolsRunning" if running else "guestToolsNotRunning",
        toolsVersionStatus2="guestToolsCurrent",
        guestState="running" if running else "notRunning",
        guestId="debian12_64Guest",
        hostName=vm.name if running else None,
    )


def _summary(site: Site, vm: Vm, places: Places) -> Any:
    return vim.vm.Summary(
        vm=vim.VirtualMachine(vm.id),
        runtime=_runtime(vm, places),
        config=vim.vm.Summary.ConfigSummary(
            name=vm.name,
            template=False,
            vmPathName=f"[{vm.datastore}] {vm.name}/{vm.name}.vmx",
            uuid=vm.uuid,
            instanceUuid=vm.instance_uuid,
            guestId="debian12_64Guest",
            guestFullName="Debian GNU/Linux 12 (64-bit)",
            numVirtualDisks=len(vm.disks),
        ),
        storage=vim.vm.Summary.StorageSummary(
            committed=_used(site, vm),
            uncommitted=sum(disk.capacity for disk in vm.disks) - _used(site, vm),
            unshared=_used(site, vm),
            timestamp=datetime.now(UTC),
        ),
        quickStats=vim.vm.Summary.QuickStats(guestHeartbeatStatus="gray"),
        overallStatus="green",
    )


def _tree(vm: Vm) -> Any:
    if not vm.snapshots:
        return None
    return vim.vm.SnapshotInfo(
        currentSnapshot=vim.vm.Snapshot(vm.current) if vm.current else None, rootSnapshotList=_branches(vm, "")
    )


def _branches(vm: Vm, parent: str) -> list[Any]:
    return [
        vim.vm.SnapshotTree(
            snapshot=vim.vm.Snapshot(snapshot.id),
            vm=vim.VirtualMachine(vm.id),
            id=snapshot.number,
            name=snapshot.name,
            description=snapshot.description,
            createTime=snapshot.created,
            state=_power(snapshot.powered_on),
            quiesced=snapshot.quiesced,
            childSnapshotList=_branches(vm, snapshot.id),
        )
        for snapshot in vm.snapshots
        if snapshot.parent == parent
    ]


def _used(site: Site, vm: Vm) -> int:
    return sum(allocated_bytes(site.raw(vm, disk.key)) for disk in vm.disks)


def _layout(site: Site, vm: Vm) -> Any:
    """For each disk a descriptor and an extent; the extent has the size of what is allocated."""
    files, layouts = [], []
    for number, disk in enumerate(vm.disks):
        descriptor, extent = 2 * number, 2 * number + 1
        size = allocated_bytes(site.raw(vm, disk.key))
        flat = f"{disk.file.removesuffix('.vmdk')}-flat.vmdk"
        files.append(vim.vm.FileLayoutEx.FileInfo(key=descriptor, name=disk.file, type="diskDescriptor", size=512))
        files.append(vim.vm.FileLayoutEx.FileInfo(key=extent, name=flat, type="diskExtent", size=size))
        chain = [vim.vm.FileLayoutEx.DiskUnit(fileKey=[descriptor, extent])]
        layouts.append(vim.vm.FileLayoutEx.DiskLayout(key=disk.key, chain=chain))
    return vim.vm.FileLayoutEx(file=files, disk=layouts, timestamp=datetime.now(UTC))


def _storage(site: Site, vm: Vm, places: Places) -> Any:
    used = _used(site, vm)
    usage = vim.vm.StorageInfo.UsageOnDatastore(
        datastore=places.datastore(vm.datastore),
        committed=used,
        uncommitted=sum(disk.capacity for disk in vm.disks) - used,
        unshared=used,
    )
    return vim.vm.StorageInfo(perDatastoreUsage=[usage], timestamp=datetime.now(UTC))
