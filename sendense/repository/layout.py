"""Where things are in a repository. Names that come from outside are checked here before they become paths."""

import re
import secrets
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sendense.errors import InputError
from sendense.files import locked
from sendense.nbd.connect import Beat, no_beat

MANIFEST = "point.json"
LEAVING = "point.deleted"
"""A manifest's name while its point's data is being merged into the next point."""

HUB_LOCK = "hub.lock"
"""What the hub holds whose repository this is; it says which one that is."""

REMOVED = "removed-"
"""What begins the name of a folder that is no point any more and only has to be emptied."""

LOCK_SECONDS = 30.0
"""Only a merge and a commit hold a VM's lock for longer than an instant."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_POINT = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{4}")
_IMAGE = re.compile(r"disk-(\d{1,10})\.qcow2")


def new_point_id(now: datetime) -> str:
    """An id that sorts by time, as `20261122T225012Z-3f9a`; `now` is aware of its time zone."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def is_point_id(text: str) -> bool:
    """Whether it has the form of a restore point's id."""
    return bool(_POINT.fullmatch(text))


def vm_uuid(text: str) -> str:
    """The UUID in lower case; InputError when it is none."""
    if not _UUID.fullmatch(text.lower()):
        raise InputError(f"{text!r} is not the UUID of a VM", "'sendense vms' shows them.")
    return text.lower()


def is_vm_uuid(text: str) -> bool:
    """Whether a VM's folder may be named so."""
    return bool(_UUID.fullmatch(text))


def image_name(key: int) -> str:
    """The file of a disk's image within its point's folder."""
    return f"disk-{_checked_key(key)}.qcow2"


def batches_name(key: int) -> str:
    """The file of a disk's batches within its point's folder."""
    return f"disk-{_checked_key(key)}.batches"


def backing_path(parent: str, key: int) -> str:
    """What a disk's overlay has as its backing file: relative, so that the repository may be moved."""
    return f"../{_checked_id(parent)}/{image_name(key)}"


def disk_keys(folder: Path) -> list[int]:
    """Keys of the disks that a point's folder has images of."""
    return sorted(int(found[1]) for path in folder.iterdir() if (found := _IMAGE.fullmatch(path.name)))


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths below a repository's root, which is absolute."""

    root: Path

    @property
    def marker(self) -> Path:
        """The file that makes a folder a repository."""
        return self.root / "repository.json"

    @property
    def settings(self) -> Path:
        """What a hub does by itself with the repository."""
        return self.root / "settings.json"

    @property
    def hub_lock(self) -> Path:
        """Held by whoever hosts the parts of a hub."""
        return self.root / HUB_LOCK

    @property
    def vms(self) -> Path:
        """The folder of the VMs' folders."""
        return self.root / "vms"

    def vm(self, uuid: str) -> Path:
        """A VM's folder."""
        return self.vms / vm_uuid(uuid)

    def vm_file(self, uuid: str) -> Path:
        """What is known of a VM."""
        return self.vm(uuid) / "vm.json"

    def points(self, uuid: str) -> Path:
        """The folder of a VM's points."""
        return self.vm(uuid) / "points"

    def point(self, uuid: str, point: str) -> Path:
        """A point's folder."""
        return self.points(uuid) / _checked_id(point)

    def image(self, uuid: str, point: str, key: int) -> Path:
        """A disk's image in a point."""
        return self.point(uuid, point) / image_name(key)

    def batches(self, uuid: str, point: str, key: int) -> Path:
        """The extents and digests of a disk in a point."""
        return self.point(uuid, point) / batches_name(key)

    def vm_uuids(self) -> list[str]:
        """The VMs that have a folder."""
        return sorted(path.name for path in _entries(self.vms) if is_vm_uuid(path.name))

    def point_ids(self, uuid: str) -> list[str]:
        """Ids of the VM's folders: points, and unfinished work."""
        return sorted(path.name for path in _entries(self.points(uuid)) if is_point_id(path.name))

    def lock(self, uuid: str, beat: Beat = no_beat, seconds: float = LOCK_SECONDS) -> AbstractContextManager[None]:
        """Whoever makes a point's image, commits or deletes a point holds this; not to be taken twice."""
        busy = f"VM {uuid}: another process works on its restore points"
        return locked(self.vm(uuid) / ".lock", seconds, busy, beat)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _checked_id(point: str) -> str:
    if not is_point_id(point):
        raise InputError(f"{point!r} is not the id of a restore point", "'sendense points' lists them.")
    return point


def _checked_key(key: int) -> int:
    if key < 0:
        raise InputError(f"{key} is not a disk's key", "'sendense vms show VM' shows them.")
    return key
