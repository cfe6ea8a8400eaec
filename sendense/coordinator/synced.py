"""What is known of the targets of migrations: which disk each one is, and up to which change."""

from datetime import datetime
from pathlib import Path

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, ValidationError

from sendense.errors import InputError
from sendense.files import make_folder, storing, write_atomically
from sendense.settings import Settings


class Synced(BaseModel):
    """Up to which change of its disk a target is complete; `change_id` is empty without change tracking."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vm: str
    key: int
    target: str
    size: int
    change_id: str
    time: datetime
    job: str


def read(settings: Settings, vm: str, key: int, target: str) -> Synced | None:
    """The last complete sync onto a target, if it was of this disk."""
    path = _file(settings, target)
    try:
        found = Synced.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as exc:
        raise InputError(f"{path}: not readable by this version", "Migrate the disk anew, onto a new target.") from exc
    return found if (found.vm, found.key) == (vm, key) else None


def write(settings: Settings, synced: Synced) -> None:
    """Remember a complete sync, in place of any other onto its target."""
    path = _file(settings, synced.target)
    with storing(path):
        make_folder(path.parent)
        write_atomically(path, synced.model_dump_json().encode())


def forget(settings: Settings, target: str) -> None:
    """The target is about to be written anew: whatever it was complete with, it is not any more."""
    path = _file(settings, target)
    with storing(path):
        path.unlink(missing_ok=True)


def _file(settings: Settings, target: str) -> Path:
    return settings.migrations_dir / f"{blake3(target.encode()).hexdigest()[:24]}.json"
