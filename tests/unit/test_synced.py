"""What is remembered of the targets of migrations."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from sendense.coordinator import synced
from sendense.coordinator.synced import Synced
from sendense.errors import InputError
from sendense.settings import Settings

TARGET = "nbd://host/disk"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A state folder of its own."""
    monkeypatch.setenv("SENDENSE_STATE_DIR", str(tmp_path))
    return Settings()


def sync(settings: Settings, vm: str, change_id: str = "a/1") -> Synced:
    """Remember a sync of a VM's disk 2000 onto TARGET."""
    done = Synced(
        vm=vm, key=2000, target=TARGET, size=1, change_id=change_id, time=datetime(2026, 1, 1, tzinfo=UTC), job="aa"
    )
    synced.write(settings, done)
    return done


def test_a_target_is_one_disk(settings: Settings) -> None:
    """A target that another disk was copied onto is no copy of the first one any more."""
    done = sync(settings, "one")
    assert synced.read(settings, "one", 2000, TARGET) == done
    assert synced.read(settings, "one", 2001, TARGET) is None
    assert synced.read(settings, "one", 2000, "nbd://host/other") is None
    sync(settings, "two")
    assert synced.read(settings, "one", 2000, TARGET) is None


def test_written_anew(settings: Settings) -> None:
    """A target that is about to be written anew is complete with nothing; there need not have been anything."""
    synced.forget(settings, TARGET)
    sync(settings, "one")
    synced.forget(settings, TARGET)
    assert synced.read(settings, "one", 2000, TARGET) is None


def test_damaged(settings: Settings) -> None:
    """What cannot be read is an error, not a copy from the beginning."""
    sync(settings, "one")
    next(settings.migrations_dir.iterdir()).write_text("{")
    with pytest.raises(InputError, match="not readable"):
        synced.read(settings, "one", 2000, TARGET)
