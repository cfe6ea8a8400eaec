"""What a user typed, found in the repository: its restore points and the VMs that they are of. Needs no vCenter."""

import errno
import os
from pathlib import Path

from sendense.errors import Conflict, NotFound
from sendense.models import VmRef
from sendense.repository.catalogue import NO_CONTENT, Broken, KnownVm, Repository
from sendense.repository.points import Point

_SHOWN = 8
"""Candidates in a message."""


def is_new(path: Path) -> bool:
    """Whether the first backup makes the repository there. Where that cannot be seen, opening it says why."""
    try:
        return set(os.listdir(path)) <= NO_CONTENT
    except OSError as exc:
        return exc.errno == errno.ENOENT


def all_vms(repository: Repository) -> list[KnownVm]:
    """The VMs in the repository; one that only broken points tell of is called by its UUID."""
    known = repository.vms()
    found = {vm.ref.uuid for vm in known}
    lost = [uuid for uuid in repository.layout.vm_uuids() if uuid not in found and repository.broken(uuid)]
    return known + [KnownVm(ref=VmRef(site="", moref="", uuid=uuid, name=uuid)) for uuid in lost]


def find_vm(repository: Repository, text: str) -> KnownVm:
    """The VM of that UUID, inventory path, moref or name; InputError when that is none or several."""
    known = all_vms(repository)
    hits = [vm for vm in known if text.lower() == vm.ref.uuid]
    hits = hits or [vm for vm in known if text and text in (vm.path, vm.ref.moref)]
    hits = hits or [vm for vm in known if text == vm.ref.name]
    hits = hits or [vm for vm in known if text.casefold() == vm.ref.name.casefold()]
    if len(hits) == 1:
        return hits[0]
    if hits:
        raise Conflict(
            f"the repository has {len(hits)} VMs that '{text}' can mean", f"Say which by its UUID: {_listed(hits)}."
        )
    hint = f"It has those of {_listed(known)}." if known else "It has none yet."
    raise NotFound(f"the repository has no restore points of a VM '{text}'", hint)


LATEST = "@latest"
"""Behind a VM: its newest restore point."""


def find_sound(repository: Repository, text: str) -> Point:
    """The point of that id, of that beginning of one, or VM@latest; InputError as Repository.find."""
    if not text.endswith(LATEST):
        return repository.find(text)
    vm = find_vm(repository, text.removesuffix(LATEST)).ref
    points = repository.points(vm.uuid)
    if not points:
        raise Conflict(
            f"{vm.name} has no sound restore point", "'sendense points' shows what is wrong with those it has."
        )
    return points[-1]


def find_point(repository: Repository, text: str) -> Point | Broken:
    """As `find_sound`; also one that is broken."""
    if text.endswith(LATEST):
        return find_sound(repository, text)
    points, unusable = repository.sound_and_broken()
    broken = [point for point in unusable if text and point.id.startswith(text)]
    sound = [point for point in points if text and point.id.startswith(text)]
    return broken[0] if len(broken) == 1 and not sound else repository.find(text)


def _listed(vms: list[KnownVm]) -> str:
    names = [vm.ref.name for vm in vms]
    shown = [
        vm.ref.name if names.count(vm.ref.name) == 1 else f"{vm.ref.uuid} ({vm.path or vm.ref.name})" for vm in vms
    ]
    return ", ".join(shown[:_SHOWN]) + (", …" if len(shown) > _SHOWN else "")
