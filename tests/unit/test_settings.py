"""Settings come from the environment, and are checked."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from sendense.errors import InputError
from sendense.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SENDENSE_{name.upper()}", raising=False)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting is read from SENDENSE_ and its name."""
    monkeypatch.setenv("SENDENSE_CLAIM_SECONDS", "12.5")
    monkeypatch.setenv("SENDENSE_REQUESTS_IN_FLIGHT", "4")
    monkeypatch.setenv("SENDENSE_STATE_DIR", "/srv/state")
    settings = Settings()
    assert (settings.claim_seconds, settings.requests_in_flight) == (12.5, 4)
    assert settings.state_dir == Path("/srv/state")


def test_state_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """State goes where the XDG base directory specification puts it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Settings().state_dir == tmp_path / "sendense"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings().state_dir == tmp_path / ".local" / "state" / "sendense"


def test_others_names_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that workers get besides their settings are no settings."""
    monkeypatch.setenv("SENDENSE_REDIS", "unix:///run/redis.sock")
    monkeypatch.setenv("SENDENSE_WORKER", "node1")
    assert set(Settings().model_dump()) == set(Settings.model_fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONNECT_TIMEOUT", "0"),
        ("NO_PROGRESS_TIMEOUT", "-1"),
        ("TICK_SECONDS", "often"),
        ("TASK_TIME_LIMIT", ""),
        ("REQUEST_BYTES", "512"),
        ("REQUEST_BYTES", "100000"),
        ("REQUESTS_IN_FLIGHT", "0"),
        ("REQUESTS_IN_FLIGHT", "1000"),
    ],
)
def test_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A value that cannot work is refused by its setting's name, not run into later."""
    monkeypatch.setenv(f"SENDENSE_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_unknown_names_are_refused() -> None:
    """A setting that does not exist cannot be given."""
    with pytest.raises(ValidationError, match="conect_timeout"):
        Settings.model_validate({"conect_timeout": 3})


def test_defaults_fit_together() -> None:
    """A claim outlives missed renewals, and the time limit outlives the no-progress deadline."""
    settings = Settings()
    assert settings.claim_seconds >= 3 * settings.renew_seconds
    assert settings.task_time_limit > settings.connect_timeout * 10 + settings.no_progress_timeout * 10


@pytest.mark.parametrize(("name", "value"), [("SENDENSE_RENEW_SECONDS", "5"), ("SENDENSE_CLAIM_SECOND", "8")])
def test_what_cannot_be_meant_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Settings that contradict each other, and names that are none, are refused with the variable to correct."""
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=name):
        load_settings()


def test_every_setting_is_documented() -> None:
    """docs/settings.md has each setting, and none that is not there."""
    text = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    named = re.findall(r"^\| `SENDENSE_([A-Z_]+)`", text, re.MULTILINE)
    assert sorted(named) == sorted(name.upper() for name in Settings.model_fields)
