"""What a restore point says of itself: its manifest, `point.json`, whose rename into place is the backup."""

import re
from collections.abc import Iterable
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import pydantic_core
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    computed_field,
    model_validator,
)

from sendense.errors import InputError, NotFound
from sendense.models import VmRef
from sendense.repository.layout import is_point_id, is_vm_uuid
from sendense.wording import plain_words

FORMAT = 1
"""Counts up only when a reader of the old one would be wrong about a point; what else is new is an unknown key."""

Mode = Literal["full", "incremental"]

_Content = TypeVar("_Content", bound=BaseModel)


def _vm_of_a_point(vm: VmRef) -> VmRef:
    if not is_vm_uuid(vm.uuid):
        raise ValueError("the VM's uuid is none, or not in lower case")
    return vm


def _point_id(text: str) -> str:
    if not is_point_id(text):
        raise ValueError("not a restore point's id")
    return text


PointId = Annotated[str, AfterValidator(_point_id)]
_Time = Annotated[AwareDatetime, AfterValidator(lambda time: time.astimezone(UTC))]


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class PointDisk(_Manifest):
    """One disk of a restore point. Sizes in bytes."""

    key: int = Field(ge=0)
    """VMware's device key: the disk's identity within its VM."""
    label: str
    file: str
    """`[datastore] path.vmdk`, as the running VM had it."""
    size: int = Field(ge=0)
    mode: Mode
    reason: str = ""
    """Why it is a full."""
    parent: PointId | Literal[""] = ""
    """The point whose image is this one's backing file; empty for a full."""
    change_id: str = ""
    """Where the next incremental's interval starts; empty without change tracking."""
    data: int = Field(default=0, ge=0)
    """In the batches: what is not known as zero."""
    changed: int = Field(default=0, ge=0)
    """In the batches: all of it, zeroes too."""
    digest: str = ""
    """Of all batches' digests, hexadecimal."""

    @model_validator(mode="after")
    def _parent_by_mode(self) -> Self:
        if (self.mode == "full") == bool(self.parent):
            raise ValueError("an incremental has a parent, a full has none")
        return self


class Point(_Manifest):
    """One committed backup of a VM at one time."""

    format: Literal[1] = 1
    id: PointId
    vm: Annotated[VmRef, AfterValidator(_vm_of_a_point)]
    """As it was then: its name and moref may be others by now."""
    created: _Time
    """When the snapshot was taken, UTC."""
    job: str
    quiesced: bool
    mode: Mode
    """full when every disk is."""
    reason: str = ""
    """Why it is a full."""
    disks: list[PointDisk] = Field(min_length=1)
    left_out: dict[int, str] = Field(default_factory=dict)
    """The VM's disks that are not in it, by key, and why."""
    seconds: float = 0.0
    """What the job took."""
    verified: _Time | None = None
    """When its content was last found to be what was copied, UTC."""
    damaged: str = ""
    """Where a verification found other content than was copied, in this point or in one that it is built on."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def copied(self) -> int:
        """Bytes of data that its own images hold; what had to be read twice is counted once."""
        return sum(disk.data for disk in self.disks)

    @model_validator(mode="after")
    def _every_disk_once(self) -> Self:
        if len({disk.key for disk in self.disks}) < len(self.disks):
            raise ValueError("a disk stands in it twice")
        if any(disk.parent == self.id for disk in self.disks):
            raise ValueError("it is its own parent")
        if self.mode != mode_of(self.disks):
            raise ValueError("its mode is not that of its disks")
        return self

    def disk(self, key: int) -> PointDisk:
        """The disk with this key; InputError when the point has none."""
        for disk in self.disks:
            if disk.key == key:
                return disk
        keys = ", ".join(str(disk.key) for disk in self.disks)
        raise NotFound(f"{self.id} has no disk {key}", f"It has: {keys}.")


def mode_of(disks: Iterable[PointDisk]) -> Mode:
    """A point is full when every disk of it is."""
    return "full" if all(disk.mode == "full" for disk in disks) else "incremental"


def read_manifest(path: Path, vm: str, point: str) -> Point:
    """The manifest of that point of that VM; InputError says why it cannot be used."""
    found = read_as(Point, path, FORMAT, "Delete the point, or bring its file back.")
    if (found.vm.uuid, found.id) != (vm, point):
        raise InputError(
            f"{path}: belongs to point {found.id} of {found.vm.uuid}", "Bring the folder back where it was."
        )
    return found


def manifest_text(point: BaseModel) -> bytes:
    """A manifest as it is stored: JSON for machines, in lines for people."""
    return point.model_dump_json(indent=1).encode() + b"\n"


def read_as(kind: type[_Content], path: Path, known: int, fix: str) -> _Content:
    """What a file has that `read_json` reads; InputError as from there, and with `fix` where a value in it is wrong."""
    raw = read_json(path, known)
    try:
        return kind.model_validate(raw)
    except ValidationError as exc:
        raise InputError(f"{path}: damaged: {_first_error(exc)}", fix) from exc


def read_json(path: Path, known: int) -> dict[str, Any]:
    """A JSON object with a `format`; InputError when it cannot be read, is damaged, or is of a newer format."""
    try:
        raw = pydantic_core.from_json(path.read_bytes())
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror}", "Look at the repository's file system.") from exc
    except ValueError as exc:
        raise InputError(f"{path}: damaged: no JSON", "Bring the file back from a copy of the repository.") from exc
    if not isinstance(raw, dict) or type(raw.get("format")) is not int:
        raise InputError(f"{path}: damaged: has no format", "Bring the file back from a copy of the repository.")
    if raw["format"] > known:
        raise InputError(
            f"{path}: is of format {raw['format']}, and this Sendense knows {known} at most",
            "Use a Sendense as new as the one that wrote it.",
        )
    return raw


def _first_error(exc: ValidationError) -> str:
    """In a line: where, and what."""
    error = exc.errors(include_url=False, include_input=False)[0]
    where, words = ".".join(map(str, error["loc"])), plain_words(error["msg"])
    return re.sub(r"\s+", " ", f"{where}: {words}" if where else words)
