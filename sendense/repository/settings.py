"""What a hub does by itself with a repository, kept in it: whoever takes the repository over goes on with that."""

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field

from sendense.files import locked, storing, write_atomically
from sendense.nbd.connect import Beat, no_beat
from sendense.repository.layout import Layout
from sendense.repository.points import manifest_text, read_as
from sendense.schedules import Schedule
from sendense.throttles import Throttle

SETTINGS_FORMAT = 1

LOCK_SECONDS = 10.0
"""A change takes an instant."""


class RepositorySettings(BaseModel):
    """`settings.json` of a repository. Each name of a schedule, and each site of a throttle, is there once."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = SETTINGS_FORMAT
    schedules: list[Schedule] = Field(default_factory=list)
    throttles: list[Throttle] = Field(default_factory=list)


def read_settings(layout: Layout) -> RepositorySettings:
    """The settings as they are now; InputError when the file is damaged, or of a newer format."""
    path = layout.settings
    if not path.exists():
        return RepositorySettings()
    fix = "Correct the file, or bring it back from a copy of the repository."
    return read_as(RepositorySettings, path, SETTINGS_FORMAT, fix)


def change_settings(
    layout: Layout, change: Callable[[RepositorySettings], RepositorySettings], beat: Beat = no_beat
) -> RepositorySettings:
    """Replace the settings by what `change` makes of them, one change at a time; returns the new ones."""
    path = layout.settings
    busy = f"{path}: another process changes it"
    with locked(path.with_name(".settings.lock"), LOCK_SECONDS, busy, beat), storing(path):
        changed = change(read_settings(layout))
        write_atomically(path, manifest_text(changed))
    return changed
