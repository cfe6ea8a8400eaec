"""The VMs of a site: which there are, where, and which of their disks can be backed up."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from pyVmomi import vim

from sendense.errors import Conflict, NotFound, SiteFault
from sendense.models import VmDisk, VmInfo, VmRef
from sendense.vsphere.properties import Found, gather, read
from sendense.vsphere.session import Session

_PLACES: dict[type, tuple[str, ...]] = {
    vim.Datacenter: ("name", "parent"),
    vim.Folder: ("name", "parent"),
    vim.HostSystem: ("name",),
    vim.VirtualApp: ("name", "parentFolder", "parentVApp"),
}
"""What paths and hosts' names are made from."""

_IDENTITY = ("name", "parent", "parentVApp", "config.instanceUuid", "config.uuid")

_VM = (
    *_IDENTITY,
    "capability.changeTrackingSupported",
    "config.changeTrackingEnabled",
    "config.hardware.device",
    "config.template",
    "guest.toolsRunningStatus",
    "layoutEx",
    "runtime.connectionState",
    "runtime.host",
    "runtime.powerState",
    "snapshot",
)

_POWER: dict[str, Literal["on", "off", "suspended"]] = {
    "poweredOn": "on",
    "poweredOff": "off",
    "suspended": "suspended",
}

_ESCAPED = {"%2f": "/", "%5c": "\\", "%25": "%"}
"""Characters that vCenter keeps escaped in names (vSphere API, ManagedEntity.name)."""

_SHOWN = 10
"""Candidates in a message."""


def list_vms(session: Session) -> list[VmInfo]:
    """All VMs that the site's user may see, in the order of their paths."""
    found = gather(session, "list the VMs", {**_PLACES, vim.VirtualMachine: _VM})
    places = _Places(found)
    return sorted((_describe(session, vm, places) for vm in _vms(found)), key=lambda vm: (vm.path, vm.ref.moref))


def vm_info(session: Session, moref: str) -> VmInfo:
    """
    One VM as it is now.

    Raises VmGone; SiteFault where vCenter has lost sight of its configuration.
    """
    what = f"read {moref}"
    properties = read(session, what, session.vm(moref), _VM)
    if not properties.get("config.instanceUuid"):
        state = properties.get("runtime.connectionState", "unknown")
        raise SiteFault(session.name, f"{what}: vCenter does not have its configuration (state: {state})")
    places = _Places(gather(session, what, _PLACES))
    return _describe(session, Found(vim.VirtualMachine, moref, properties), places)


def find_vm(session: Session, text: str) -> VmInfo:
    """
    The VM that `text` means: its moref, instance or BIOS UUID, inventory path, or name.

    Raises InputError where there is none, or more than one.
    """
    found = gather(session, f"look for VM '{text}'", {**_PLACES, vim.VirtualMachine: _IDENTITY})
    places = _Places(found)
    known = [_Identity(vm, places) for vm in _vms(found)]
    for matches in (_Identity.is_moref, _Identity.is_uuid, _Identity.is_path, _Identity.is_name, _Identity.is_similar):
        hits = [identity for identity in known if matches(identity, text)]
        if len(hits) == 1:
            return vm_info(session, hits[0].moref)
        if hits:
            hint = f"Say which by its path or moref: {_listed(hits)}."
            raise Conflict(f"site {session.name} has {len(hits)} VMs that '{text}' can mean", hint)
    close = difflib.get_close_matches(text.casefold(), {identity.name.casefold() for identity in known}, n=_SHOWN)
    similar = [identity for identity in known if identity.name.casefold() in close]
    hint = f"Did you mean {_listed(similar)}?" if similar else "List them with: sendense vms"
    raise NotFound(f"site {session.name} has no VM '{text}'", hint)


def snapshot_tree(snapshot: Any) -> Iterator[Any]:
    """All entries of a VM's property `snapshot`, parents first; none where it has none."""
    todo = list(snapshot.rootSnapshotList) if snapshot else []
    while todo:
        entry = todo.pop()
        yield entry
        todo.extend(entry.childSnapshotList or [])


def disks_of(devices: Iterable[Any]) -> list[vim.vm.device.VirtualDisk]:
    """The disks of a configuration's devices, in the order of their keys."""
    return sorted((device for device in devices if isinstance(device, vim.vm.device.VirtualDisk)), key=_key)


def size_of(disk: Any) -> int:
    """Bytes; only since vSphere 5.5 exactly."""
    return int(disk.capacityInBytes or disk.capacityInKB * 1024)


def plain_name(name: str) -> str:
    """A name as people typed it."""
    return re.sub("%2f|%5c|%25", lambda match: _ESCAPED[match[0].lower()], name, flags=re.IGNORECASE)


class _Places:
    """Folders, datacenters, vApps and hosts."""

    def __init__(self, found: Iterable[Found]) -> None:
        places = {item.moref: item.properties for item in found if item.kind is not vim.VirtualMachine}
        self.names: dict[str, str] = {moref: properties.get("name", "") for moref, properties in places.items()}
        self._parents = {moref: _parent(properties) for moref, properties in places.items()}

    def path(self, vm: Found) -> str:
        """Its inventory path, with names as vCenter escapes them: as FindByInventoryPath takes it, and unambiguous."""
        parts, moref = [vm.properties.get("name", "")], _parent(vm.properties)
        while moref in self.names and len(parts) < 100:
            parts.append(self.names[moref])
            moref = self._parents[moref]
        return "/" + "/".join(reversed(parts))


class _Identity:
    """What a VM can be called."""

    def __init__(self, vm: Found, places: _Places) -> None:
        self.moref, self.path = vm.moref, places.path(vm)
        self.name = plain_name(vm.properties.get("name", ""))
        self._uuids = {vm.properties.get("config.instanceUuid", ""), vm.properties.get("config.uuid", "")} - {""}

    def is_moref(self, text: str) -> bool:
        return text == self.moref

    def is_uuid(self, text: str) -> bool:
        return text.lower() in self._uuids

    def is_path(self, text: str) -> bool:
        return "/" in text and text.strip("/") in (self.path.strip("/"), plain_name(self.path).strip("/"))

    def is_name(self, text: str) -> bool:
        return text == self.name

    def is_similar(self, text: str) -> bool:
        return text.casefold() == self.name.casefold()


def _listed(identities: Sequence[_Identity]) -> str:
    shown = [f"{identity.path} ({identity.moref})" for identity in sorted(identities, key=lambda each: each.path)]
    more = len(shown) - _SHOWN
    return ", ".join(shown[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _vms(found: Iterable[Found]) -> Iterator[Found]:
    return (item for item in found if item.kind is vim.VirtualMachine)


def _parent(properties: dict[str, Any]) -> str:
    """Moref of what an object lies in; a VM in a vApp has no other parent."""
    for name in ("parentVApp", "parentFolder", "parent"):
        if parent := properties.get(name):
            return str(parent._moId)
    return ""


def _describe(session: Session, vm: Found, places: _Places) -> VmInfo:
    properties = vm.properties
    devices = properties.get("config.hardware.device") or []
    host = properties.get("runtime.host")
    general = refusal_of_all(properties, devices)
    return VmInfo(
        ref=VmRef(
            site=session.name,
            moref=vm.moref,
            uuid=properties.get("config.instanceUuid") or "",
            name=plain_name(properties.get("name", "")),
        ),
        path=places.path(vm),
        power=_POWER.get(properties.get("runtime.powerState", ""), "off"),
        host=places.names.get(host._moId, "") if host else "",
        tools=properties.get("guest.toolsRunningStatus") == "guestToolsRunning",
        tracking=bool(properties.get("config.changeTrackingEnabled")),
        tracking_possible=bool(properties.get("capability.changeTrackingSupported")),
        snapshots=sum(1 for _ in snapshot_tree(properties.get("snapshot"))),
        disks=[
            VmDisk(
                key=disk.key,
                label=disk.deviceInfo.label if disk.deviceInfo else f"disk {disk.key}",
                file=getattr(disk.backing, "fileName", None) or "",
                size=size_of(disk),
                refusal=refusal(disk) or general,
            )
            for disk in disks_of(devices)
        ],
        allocated=_allocated(properties.get("layoutEx")),
    )


def refusal_of_all(properties: dict[str, Any], devices: Sequence[Any]) -> str:
    """Why no snapshot of the VM can be had (vSphere: a template, and a shared SCSI bus, cannot have one)."""
    if properties.get("config.template"):
        return "the VM is a template: turn it into a VM, or back up a VM made from it"
    buses = (getattr(device, "sharedBus", "noSharing") for device in devices)
    if any(bus not in (None, "noSharing") for bus in buses):
        return "a SCSI controller shares its bus between VMs: vSphere makes no snapshots of such a VM"
    return ""


def refusal(disk: Any) -> str:
    """Why a disk cannot be read from a snapshot; empty when it can."""
    backing, kinds = disk.backing, vim.vm.device.VirtualDisk
    mode = getattr(backing, "diskMode", None) or "persistent"
    if isinstance(backing, kinds.RawDiskMappingVer1BackingInfo) and backing.compatibilityMode == "physicalMode":
        return "a raw device mapping in physical mode is not in snapshots: change it to virtual mode"
    if mode.startswith("independent"):
        return f"an independent disk ({mode}) is not in snapshots: change its mode to dependent"
    if mode != "persistent":
        return f"a disk in mode {mode} is not in snapshots: change its mode to dependent"
    if getattr(backing, "sharing", None) == "sharingMultiWriter":
        return "a disk shared between VMs (multi-writer) is not in snapshots"
    if isinstance(backing, kinds.LocalPMemBackingInfo):
        return "a disk in persistent memory is not in snapshots"
    if not getattr(backing, "fileName", None):
        return f"no file on a datastore stands behind it ({type(backing).__name__.rpartition('.')[2]})"
    return ""


def _allocated(layout: Any) -> dict[int, int]:
    """Bytes that the files of each disk's chain take."""
    if not layout:
        return {}
    sizes = {file.key: file.size for file in layout.file}
    return {
        disk.key: sum(sizes.get(key, 0) for link in disk.chain for key in link.fileKey) for disk in layout.disk or []
    }


def _key(disk: Any) -> int:
    return int(disk.key)
