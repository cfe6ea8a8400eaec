"""A site in a folder: made when it is new, started again when it is not."""

import fcntl
import json
import os
import random
import re
import secrets
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from sendense.errors import InputError
from sendense.lab import disks, inventory
from sendense.lab.certificate import ensure_certificate, thumbprint
from sendense.lab.control import Control
from sendense.lab.operations import USER, Operations
from sendense.lab.records import Disk, Folder, State, Vm
from sendense.lab.server import LabServer
from sendense.lab.sessions import Sessions
from sendense.lab.site import Site
from sendense.units import MiB

_NAMES = ("web01", "db01", "app01", "mail01", "files01", "git01", "ci01", "cache01", "build01", "print01")
_SMALL = 64 * MiB
"""What the machines for special cases have at most for a disk."""
_SMALLEST = 16 * MiB
_SKIPPED_IDS = 1000
"""Ids that were given out after the last save: a client may still know them from before a crash."""
_SPACE = uuid.UUID("5e0de05e-1ab0-4000-8000-000000000000")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a new site is to have."""

    vms: int = 2
    disks: int = 2
    disk_size: int = 1024 * MiB
    fill: int | None = None
    """Bytes of files on a disk; None is a quarter of it, and 200 MiB at most."""

    def __post_init__(self) -> None:
        if self.disk_size < _SMALLEST or self.disk_size % MiB:
            raise InputError(f"a disk of {self.disk_size} bytes: give whole MiB, {_SMALLEST // MiB} or more")
        if not 0 <= self.vms <= 500 or not 1 <= self.disks <= 60:
            raise InputError("give at most 500 virtual machines, with 1 to 60 disks")

    def filled(self, size: int) -> int:
        """Bytes of files on a disk of this size."""
        wanted = min(size // 4, 200 * MiB) if self.fill is None else self.fill
        return min(wanted, size * 7 // 10 - 4 * MiB)


@dataclass(frozen=True, slots=True)
class Running:
    """A site that listens."""

    server: LabServer
    site: Site
    port: int
    config: Path
    lock: BinaryIO
    """Held open while the site runs."""


def start(folder: Path, plan: Plan, port: int | None = None) -> Running:
    """
    Make the site in `folder` unless there is one, write what its clients need, and listen on 127.0.0.1.

    The port, where none is given, is the one that it had before, or any. The caller runs `server.serve_forever()`.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    ensure_certificate(folder)
    password, token = _secret(folder / "password"), _secret(folder / "token")
    state = _load(folder)
    known_port = state.port if state else 0
    if state is None:
        state = _make(folder, plan)
    state.next_id += _SKIPPED_IDS
    site, sessions = Site(folder, state), Sessions()
    operations = Operations(site, sessions, password)
    control = Control(site, sessions, operations, token)
    try:
        server = LabServer(known_port if port is None else port, folder, operations, control)
    except OSError as exc:
        raise InputError(
            f"cannot listen on 127.0.0.1:{known_port if port is None else port}: {exc.strerror}",
            "Another program, or this site already, listens there: end it, or give another --port.",
        ) from exc
    state.port = server.server_address[1]
    site.save()
    config = _write_settings(folder, state.port)
    reach = folder / "url.partial"
    reach.write_text(f"https://127.0.0.1:{state.port}\n")
    os.replace(reach, folder / "url")
    return Running(server, site, state.port, config, lock)


def _lock(folder: Path) -> BinaryIO:
    """Two sites in one folder would delete each other's files."""
    file = (folder / "lock").open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        raise InputError(f"{folder}: a site runs here already", "End it, or give another --folder.") from exc
    return file


def _secret(path: Path) -> str:
    if not path.exists():
        path.touch(0o600)
        path.write_text(secrets.token_urlsafe(18) + "\n")
    return path.read_text().strip()


def _load(folder: Path) -> State | None:
    path = folder / "state.json"
    try:
        return State.model_validate_json(path.read_text())
    except FileNotFoundError:
        return None
    except ValidationError as exc:
        raise InputError(
            f"{path}: not the state of a site: {exc.errors()[0]['msg']}", "Give another --folder."
        ) from exc


def _write_settings(folder: Path, port: int) -> Path:
    """Settings for the product; those that are there keep all but the port and the thumbprint."""
    path, vcenter, print_ = folder / "sendense.toml", f"127.0.0.1:{port}", thumbprint(folder)
    if path.exists():
        text = re.sub(r'(?m)^(vcenter = )".*"$', rf'\g<1>"{vcenter}"', path.read_text())
        text = re.sub(r'(?m)^(thumbprint = )".*"$', rf'\g<1>"{print_}"', text)
    else:
        script = Path(__file__).with_name("nbdkit_plugin.py")
        text = (
            f"repository = {_quoted(folder / 'repository')}\nstate_dir = {_quoted(folder / 'state')}\n\n"
            f'[sites.lab]\nvcenter = "{vcenter}"\nuser = "{USER}"\npassword_file = {_quoted(folder / "password")}\n'
            f'thumbprint = "{print_}"\nnbdkit_plugin = "python"\nnbdkit_options = {{ script = {_quoted(script)} }}\n'
        )
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)
    return path


def _quoted(value: Path) -> str:
    """A TOML string: JSON's is one."""
    return json.dumps(str(value), ensure_ascii=False)


# A new site


def _make(folder: Path, plan: Plan) -> State:
    state = State(port=0)
    production = _add_folder(state, "production", inventory.VM_ROOT)
    databases = _add_folder(state, "databases", production)
    teams = [_add_folder(state, name, inventory.VM_ROOT) for name in ("team-a", "team-b")]
    homes = {"web01": production, "db01": databases}
    small = min(plan.disk_size, _SMALL)
    for number in range(plan.vms):
        name = _NAMES[number] if number < len(_NAMES) else f"vm{number + 1:02}"
        _add_vm(state, name, homes.get(name, inventory.VM_ROOT), [plan.disk_size] * plan.disks)
    mixed = _add_vm(state, "mixed01", inventory.VM_ROOT, [small] * 3)
    mixed.disks[1].mode = mixed.disks[2].mode = "independent_persistent"
    mixed.disks[2].rdm = True
    legacy = _add_vm(state, "legacy01", inventory.VM_ROOT, [small])
    legacy.version, legacy.tracking_supported, legacy.tools_running = "vmx-04", False, False
    for team in teams:
        _add_vm(state, "test01", team, [small])
    (folder / "disks").mkdir(exist_ok=True)
    jobs = [(vm, disk) for vm in state.vms for disk in vm.disks]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for made in [pool.submit(_make_disk, folder, plan, vm, disk) for vm, disk in jobs]:
            made.result()
    return state


def _add_folder(state: State, name: str, parent: str) -> str:
    state.next_id += 1
    state.folders.append(Folder(id=f"group-v{state.next_id}", name=name, parent=parent))
    return state.folders[-1].id


def _add_vm(state: State, name: str, home: str, sizes: list[int]) -> Vm:
    state.next_id += 1
    ref, number = f"vm-{state.next_id}", len(state.vms)
    datastore = inventory.DATASTORES[number % 2]
    folder = name if all(vm.name != name for vm in state.vms) else f"{name}_1"
    machine_disks = []
    for place, size in enumerate(sizes):
        file = f"[{datastore}] {folder}/{folder}{f'_{place}' if place else ''}.vmdk"
        label, own = f"Hard disk {place + 1}", str(uuid.uuid5(_SPACE, f"{ref} {place}"))
        machine_disks.append(Disk(key=2000 + place, label=label, file=file, base=file, capacity=size, uuid=own))
    vm = Vm(
        id=ref,
        name=name,
        folder=home,
        host=inventory.HOSTS[number % 2],
        datastore=datastore,
        uuid=str(uuid.uuid5(_SPACE, ref)),
        instance_uuid=str(uuid.uuid5(_SPACE, f"{ref} instance")),
        disks=machine_disks,
    )
    state.vms.append(vm)
    return vm


def _make_disk(folder: Path, plan: Plan, vm: Vm, disk: Disk) -> None:
    path = folder / "disks" / f"{vm.id}-{disk.key}.raw"
    seed = random.Random(f"{vm.name} {vm.id} {disk.key}").getrandbits(64)
    first = disk.key == vm.disks[0].key
    disks.make_disk(path, disk.capacity, fill=plan.filled(disk.capacity), partitioned=first, seed=seed)
