"""The lab's own side door: what a person or a test does to the site, and the disks that nbdkit opens."""

import base64
import hmac
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sendense.errors import InputError
from sendense.lab.faults import fault
from sendense.lab.operations import DROP, Operations
from sendense.lab.records import Knobs, Vm
from sendense.lab.sessions import Sessions
from sendense.lab.site import Site
from sendense.wording import plain_words

_OF_THE_SITE = {"session_seconds", "connection_limit"}
"""Knobs that no single machine can have."""


class OpenRefused(Exception):
    """A disk cannot be opened; the message is for nbdkit's stderr."""


class Control:
    """Answers the JSON endpoint."""

    def __init__(self, site: Site, sessions: Sessions, operations: Operations, token: str) -> None:
        self._site, self._sessions, self._operations, self._token = site, sessions, operations, token
        self._open: list[tuple[str, str, int]] = []
        self._answers: Mapping[str, Callable[[dict[str, Any]], Any]] = {
            "status": lambda a: self._status(),
            "write": self._write,
            "write-files": self._write_files,
            "set": self._set,
            "fail-next": self._fail_next,
            "expire-sessions": lambda a: self._expire_sessions(),
            "reset-tracking": lambda a: self._site.reset_tracking(self._vm(a)),
            "power": lambda a: self._site.set_power(self._vm(a), bool(a["on"])),
            "add-disk": lambda a: {"key": self._site.add_disk(self._vm(a), int(a["size"])).key},
            "remove-disk": lambda a: self._site.remove_disk(self._vm(a), int(a["key"])),
            "grow-disk": lambda a: self._site.grow_disk(self._vm(a), int(a["key"]), int(a["size"])),
        }

    def is_allowed(self, authorization: str) -> bool:
        """Whether a request carries the token."""
        return hmac.compare_digest(authorization.encode(), f"Bearer {self._token}".encode())

    def answer(self, name: str, arguments: dict[str, Any]) -> Any:
        """Do what a request asks for; the answer fits into JSON."""
        if name not in self._answers:
            raise InputError(f"{name}: no such request")
        return self._answers[name](arguments)

    def _expire_sessions(self) -> dict[str, int]:
        with self._site.changed:
            self._site.changed.notify_all()  # who waits for updates is to learn of it
            return {"sessions": self._sessions.expire_all()}

    def _vm(self, arguments: dict[str, Any]) -> Vm:
        return self._site.find_vm(str(arguments["vm"]))

    def _status(self) -> dict[str, Any]:
        with self._site.changed:
            return {
                "vms": [self._show(vm) for vm in self._site.state.vms],
                "open_disks": dict(Counter(host for host, _, _ in self._open)),
                "sessions": len(self._sessions.all()),
                "knobs": self._site.state.knobs.model_dump(),
                "vm_knobs": self._site.state.vm_knobs,
                "fail_next": self._site.state.fail_next,
                "calls": dict(self._operations.calls),
            }

    def _show(self, vm: Vm) -> dict[str, Any]:
        return {
            "id": vm.id,
            "name": vm.name,
            "uuid": vm.uuid,
            "instance_uuid": vm.instance_uuid,
            "host": vm.host,
            "powered_on": vm.powered_on,
            "tools_running": vm.tools_running,
            "tracking_enabled": vm.tracking_enabled,
            "disks": [
                {
                    "key": disk.key,
                    "size": disk.capacity,
                    "file": disk.file,
                    "path": str(self._site.raw(vm, disk.key)),
                    "mode": "rdm" if disk.rdm else disk.mode,
                    "change_id": vm.trackers[disk.key].change_id if disk.key in vm.trackers else "",
                    "open": sum(1 for _, ref, key in self._open if (ref, key) == (vm.id, disk.key)),
                }
                for disk in vm.disks
            ],
            "snapshots": [
                {
                    "id": snapshot.id,
                    "name": snapshot.name,
                    "parent": snapshot.parent,
                    "quiesced": snapshot.quiesced,
                    "paths": {
                        str(disk.key): str(self._site.frozen(snapshot, disk.key))
                        for disk in snapshot.disks
                        if disk.in_snapshots
                    },
                }
                for snapshot in vm.snapshots
            ],
        }

    def _write(self, arguments: dict[str, Any]) -> dict[str, Any]:
        data = base64.b64decode(arguments["data"]) if "data" in arguments else None
        key, length = arguments.get("key"), int(arguments.get("length", 0))
        return {"key": self._site.write(self._vm(arguments), key, int(arguments["offset"]), data, length).key}

    def _write_files(self, arguments: dict[str, Any]) -> dict[str, Any]:
        disk, done, areas = self._site.change_files(
            self._vm(arguments), arguments.get("key"), int(arguments["files"]), int(arguments["size"])
        )
        changes = {"added": done.added, "changed": done.changed, "deleted": done.deleted}
        return {"key": disk.key, **changes, "areas": areas}

    def _set(self, arguments: dict[str, Any]) -> None:
        """Turn knobs: of the site, or of one machine, where it also has `tools_running`."""
        values = dict(arguments["values"])
        with self._site.changed:
            if arguments.get("vm"):
                vm = self._vm(arguments)
                if "tools_running" in values:
                    vm.tools_running = bool(values.pop("tools_running"))
                if strangers := values.keys() & _OF_THE_SITE:
                    raise InputError(f"{min(strangers)}: not a knob of one machine", "Set it for the whole site.")
                merged = {**self._site.state.vm_knobs.get(vm.id, {}), **values}
                _checked({**self._site.state.knobs.model_dump(), **merged})
                self._site.state.vm_knobs[vm.id] = merged
            else:
                self._site.state.knobs = _checked({**self._site.state.knobs.model_dump(), **values})
            self._site.save()
            self._site.write_knobs()

    def _fail_next(self, arguments: dict[str, Any]) -> None:
        method, kind = str(arguments["method"]).removesuffix("_Task").removesuffix("Ex"), str(arguments["fault"])
        if kind != DROP:
            try:
                fault(kind)
            except AttributeError:
                raise InputError(f"{kind}: vSphere has no such fault", f"Or give '{DROP}': no answer at all.") from None
        with self._site.changed:
            self._site.state.fail_next.setdefault(method, []).extend([kind] * int(arguments.get("times", 1)))
            self._site.save()

    @contextmanager
    def open_disk(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Open a disk as VDDK does, for as long as the context lasts: where its content is, and its knobs."""
        vm, key, path, size = self._resolve(request)
        entry = (vm.host, vm.id, key)
        with self._site.changed:
            limit = self._site.state.knobs.connection_limit
            if sum(1 for host, _, _ in self._open if host == vm.host) >= limit:
                raise OpenRefused(
                    f"VixDiskLib_Open: {request['file']}: The host {vm.host} is out of NFC connections ({limit} in use)"
                )
            self._open.append(entry)
        try:
            yield {"path": str(path), "size": size, "knobs": str(self._site.knobs_file(vm))}
        finally:
            with self._site.changed:
                self._open.remove(entry)

    def _resolve(self, request: dict[str, Any]) -> tuple[Vm, int, Path, int]:
        if not self._operations.check_login(request["user"], request["password"]):
            raise OpenRefused("VixDiskLib_ConnectEx: Cannot complete login due to an incorrect user name or password")
        with self._site.changed:
            vm = next((vm for vm in self._site.state.vms if vm.id == request["vm"]), None)
            if vm is None:
                raise OpenRefused(f"VixDiskLib_ConnectEx: The virtual machine moref={request['vm']} was not found")
            snapshot = vm.snapshot(request["snapshot"]) if request["snapshot"] else None
            if request["snapshot"] and snapshot is None:
                raise OpenRefused(f"VixDiskLib_ConnectEx: The snapshot {request['snapshot']} was not found")
            file = request["file"]
            disk = next((disk for disk in (snapshot or vm).disks if file in (disk.file, disk.base)), None)
            if disk is None:
                raise OpenRefused(f"VixDiskLib_Open: {file}: A file was not found")
            if not disk.in_snapshots:
                raise OpenRefused(f"VixDiskLib_Open: {file}: The operation is not supported: independent or raw disk")
            if snapshot is None and vm.powered_on:
                raise OpenRefused(f"VixDiskLib_Open: {file}: Failed to lock the file: {vm.name} is powered on")
            path = self._site.frozen(snapshot, disk.key) if snapshot else self._site.raw(vm, disk.key)
            return vm, disk.key, path, disk.capacity


def _checked(values: dict[str, Any]) -> Knobs:
    try:
        return Knobs.model_validate(values)
    except ValidationError as exc:
        first = exc.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise InputError(f"{name}: {plain_words(first['msg'])}", f"Knobs are: {_listed(Knobs.model_fields)}.") from exc


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))
