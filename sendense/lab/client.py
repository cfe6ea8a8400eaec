"""A client of the lab's own endpoint, for the `sendense lab` commands and for tests."""

import base64
import http.client
import json
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sendense.errors import InputError
from sendense.units import MiB

_SECONDS = 300.0
"""A write waits for a snapshot under way."""


@dataclass(frozen=True, slots=True)
class LabDisk:
    """A disk of a machine: `path` is its present content, `open` how many clients read it now."""

    key: int
    size: int
    file: str
    path: Path
    mode: str
    change_id: str
    open: int


@dataclass(frozen=True, slots=True)
class LabSnapshot:
    """A snapshot: `paths` are its frozen disks by device key."""

    id: str
    name: str
    parent: str
    quiesced: bool
    paths: dict[int, Path]


@dataclass(frozen=True, slots=True)
class LabVm:
    """A machine of the site; `id` is its managed object id."""

    id: str
    name: str
    uuid: str
    instance_uuid: str
    host: str
    powered_on: bool
    tools_running: bool
    tracking_enabled: bool
    disks: list[LabDisk]
    snapshots: list[LabSnapshot] = field(default_factory=list)

    def disk(self, key: int) -> LabDisk:
        """The disk with this device key."""
        return next(disk for disk in self.disks if disk.key == key)


@dataclass(frozen=True, slots=True)
class Written:
    """What a guest's write did: files by what happened to them, and the 64 KiB blocks that changed, as byte ranges."""

    key: int
    added: list[str]
    changed: list[str]
    deleted: list[str]
    areas: list[tuple[int, int]]

    @property
    def bytes(self) -> int:
        """Bytes in all changed blocks."""
        return sum(length for _, length in self.areas)


class LabClient:
    """Speaks to the site that runs in a folder. A machine is named by its name or its managed object id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def vms(self) -> list[LabVm]:
        """All machines."""
        return [_vm(entry) for entry in self.status()["vms"]]

    def vm(self, name: str) -> LabVm:
        """One machine; InputError when there is none of this name, or there are several."""
        found = [vm for vm in self.vms() if name in (vm.name, vm.id)]
        if len(found) != 1:
            raise InputError(f"{name}: {len(found)} machines have this name", "See: sendense lab status.")
        return found[0]

    def disk_path(self, vm: str, key: int = 2000) -> Path:
        """The raw file with the present content of a disk."""
        return self.vm(vm).disk(key).path

    def snapshots(self, vm: str) -> list[LabSnapshot]:
        """The snapshots of a machine, the oldest first."""
        return self.vm(vm).snapshots

    def status(self) -> dict[str, Any]:
        """Everything: machines, open disks by host, number of sessions, knobs, faults to come, calls."""
        found: dict[str, Any] = self._ask("status")
        return found

    def open_disks(self) -> int:
        """How many disks are open now."""
        return sum(self.status()["open_disks"].values())

    def calls(self) -> dict[str, int]:
        """How often each vSphere method was called since the site was started; `Fetch` reads a property."""
        found: dict[str, int] = self.status()["calls"]
        return found

    def write_files(self, vm: str, key: int | None = None, *, files: int = 8, size: int = 4 * MiB) -> Written:
        """Change the disk's file system: files added, changed and deleted."""
        done = self._ask("write-files", vm=vm, key=key, files=files, size=size)
        areas = [(start, length) for start, length in done["areas"]]
        return Written(done["key"], done["added"], done["changed"], done["deleted"], areas)

    def write(self, vm: str, offset: int, data: bytes, key: int | None = None) -> None:
        """Write bytes to a disk, as the guest would; without a key to the first one."""
        self._ask("write", vm=vm, key=key, offset=offset, data=base64.b64encode(data).decode())

    def zero(self, vm: str, offset: int, length: int, key: int | None = None) -> None:
        """Make a range of a disk zero, as the guest's trim would."""
        self._ask("write", vm=vm, key=key, offset=offset, length=length)

    def set(self, vm: str | None = None, **values: object) -> None:
        """Turn knobs (see `records.Knobs`) of the site, or of one machine."""
        self._ask("set", vm=vm, values=values)

    def fail_next(self, method: str, fault: str = "SystemError", times: int = 1) -> None:
        """The next calls of a vSphere method end in this fault; "drop" ends their connection without an answer."""
        self._ask("fail-next", method=method, fault=fault, times=times)

    def expire_sessions(self) -> int:
        """End all vSphere sessions at once; returns how many there were."""
        return int(self._ask("expire-sessions")["sessions"])

    def reset_tracking(self, vm: str) -> None:
        """Begin the machine's change tracking anew: older change IDs are worth nothing."""
        self._ask("reset-tracking", vm=vm)

    def power(self, vm: str, on: bool) -> None:
        """Turn a machine on or off."""
        self._ask("power", vm=vm, on=on)

    def add_disk(self, vm: str, size: int) -> int:
        """Give a machine one more empty disk; returns its device key."""
        return int(self._ask("add-disk", vm=vm, size=size)["key"])

    def remove_disk(self, vm: str, key: int) -> None:
        """Take a disk from a machine."""
        self._ask("remove-disk", vm=vm, key=key)

    def grow_disk(self, vm: str, key: int, size: int) -> None:
        """Make a disk larger; the machine may have no snapshots."""
        self._ask("grow-disk", vm=vm, key=key, size=size)

    def _ask(self, name: str, **arguments: object) -> Any:
        try:
            address = urlsplit((self.folder / "url").read_text().strip())
            token = (self.folder / "token").read_text().strip()
            context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        except OSError as exc:
            raise InputError(f"{self.folder}: no site of the lab here", "Start one: sendense lab up.") from exc
        connection = http.client.HTTPSConnection(
            address.hostname or "", address.port, timeout=_SECONDS, context=context
        )
        try:
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            connection.request("POST", f"/lab/{name}", json.dumps(arguments), headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException) as exc:
            raise InputError(
                f"the site in {self.folder} does not answer: {exc}", "Start it: sendense lab up --folder FOLDER."
            ) from exc
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise InputError(answer["error"], answer["hint"])
        return answer


def _vm(entry: dict[str, Any]) -> LabVm:
    disks = [LabDisk(**{**disk, "path": Path(disk["path"])}) for disk in entry["disks"]]
    snapshots = [
        LabSnapshot(**{**snapshot, "paths": {int(key): Path(path) for key, path in snapshot["paths"].items()}})
        for snapshot in entry["snapshots"]
    ]
    return LabVm(**{**entry, "disks": disks, "snapshots": snapshots})
