"""Settings come from the environment, and are checked."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from sendense.errors import InputError
from sendense.settings import Settings, Site, load_settings, settings_file


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


@pytest.mark.parametrize("name", ["redis_listen", "exports_listen", "api_listen", "flower_listen"])
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:6379", ""),
        ("127.8.8.8:6379", ""),
        ("[::1]:6379", ""),
        ("localhost:65535", ""),
        ("", ""),
        ("0.0.0.0:6379", "so it needs TLS: set tls_dir"),
        ("[::]:6379", "so it needs TLS: set tls_dir"),
        ("hub.example:6379", "so it needs TLS: set tls_dir"),
        ("127.0.0.1:0", "0 is no port"),
        ("127.0.0.1:65536", "65536 is no port"),
        ("127.0.0.1", "is no HOST:PORT"),
        ("::1:6379", "is no HOST:PORT"),
        ("a,b:1", "is no HOST:PORT"),
    ],
)
def test_addresses(monkeypatch: pytest.MonkeyPatch, name: str, address: str, words: str) -> None:
    """What listens is on loopback, or speaks TLS; anything else is refused by the setting's name."""
    monkeypatch.setenv(f"SENDENSE_{name.upper()}", address)
    if not words:
        assert getattr(load_settings(), name) == address
        return
    with pytest.raises(InputError, match=f"SENDENSE_{name.upper()} = .*{words}"):
        load_settings()
    if "TLS" in words:
        monkeypatch.setenv("SENDENSE_TLS_DIR", "/etc/sendense/pki")
        assert getattr(load_settings(), name) == address


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("redis", "redis://:secret@hub:6379"),
        ("redis", "rediss://hub:6379?ssl_cert_reqs=none"),
        ("redis", "http://hub"),
        ("exports", "nbd://hub/disk"),
        ("exports", "nbd+unix:///?socket=/s"),
    ],
)
def test_urls_of_a_hub(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    """They say where, and nothing else: no password, no option that would weaken TLS."""
    monkeypatch.setenv(f"SENDENSE_{name.upper()}", url)
    with pytest.raises(InputError, match=f"SENDENSE_{name.upper()} = ") as caught:
        load_settings()
    assert "secret" not in str(caught.value)


def test_every_setting_is_documented() -> None:
    """docs/settings.md has each setting, and none that is not there."""
    text = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    named = re.findall(r"^\| `SENDENSE_([A-Z_]+)`", text, re.MULTILINE)
    assert sorted(named) == sorted(name.upper() for name in Settings.model_fields)


SITE = """
[sites.oslo]
vcenter = "vcenter.example:8443"
user = "operator"
password_file = "/etc/sendense/password"
"""


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The settings file that SENDENSE_CONFIG names, still empty."""
    path = tmp_path / "sendense.toml"
    path.touch()
    monkeypatch.setenv("SENDENSE_CONFIG", str(path))
    return path


def test_file(file: Path) -> None:
    """Settings and sites are read from a TOML file; a site has all that is not given by default."""
    file.write_text(f'repository = "/srv/backup"\nclaim_seconds = 12\n{SITE}nbdkit_options = {{ libdir = "/opt" }}\n')
    settings = load_settings()
    assert (settings.repository, settings.claim_seconds) == (Path("/srv/backup"), 12)
    site = settings.sites["oslo"]
    assert (site.host, site.port, site.user) == ("vcenter.example", 8443, "operator")
    assert (site.nbdkit_plugin, site.nbdkit_options) == ("vddk", {"libdir": "/opt"})
    assert (site.thumbprint, site.ca_file) == ("", None)


def test_an_address_without_a_port(file: Path) -> None:
    """vCenter listens on 443 unless it is said otherwise."""
    file.write_text(SITE.replace(":8443", ""))
    site = load_settings().sites["oslo"]
    assert (site.host, site.port) == ("vcenter.example", 443)


def test_the_environment_wins(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """A variable replaces what the file says, also where that is nonsense."""
    file.write_text("tick_seconds = -1\nretry_seconds = 5\n")
    monkeypatch.setenv("SENDENSE_TICK_SECONDS", "3")
    settings = load_settings()
    assert (settings.tick_seconds, settings.retry_seconds) == (3, 5)


def test_where_a_file_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without SENDENSE_CONFIG the user's own file is read; one that is named has to be there."""
    monkeypatch.delenv("SENDENSE_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    own = tmp_path / "sendense" / "sendense.toml"
    own.parent.mkdir()
    own.write_text("processes = 7\n")
    assert (load_settings().processes, settings_file()) == (7, own)
    monkeypatch.setenv("SENDENSE_CONFIG", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"SENDENSE_CONFIG=.*none: no such file"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("conect_timeout = 3\n", "conect_timeout: no such setting"),
        ("tick_seconds = 'often'\n", "tick_seconds = 'often'"),
        ("claim_seconds = 3\nrenew_seconds = 2\n", "renew_seconds"),
        (f"{SITE}pasword = 'x'\n", "sites.oslo.pasword: no such setting"),
        (SITE.replace('user = "operator"\n', ""), "sites.oslo.user"),
        (f'{SITE}thumbprint = "AA:BB"\n', "sites.oslo.thumbprint = 'AA:BB'"),
        (f"{SITE}snapshot_seconds = 0\n", "sites.oslo.snapshot_seconds = 0"),
        (f"{SITE}nbdkit_options = {{ nfchostport = 902 }}\n", "sites.oslo.nbdkit_options.nfchostport = 902"),
        (SITE.replace("oslo", "Oslo"), "sites"),
        (SITE.replace("oslo", "hub"), "'hub' cannot be a site's name"),
        ("tick_seconds = \n", "Invalid value"),
        ("repository = 3\n", "repository = 3"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(file: Path, text: str, where: str) -> None:
    """The file and the key are named, with what is wrong about the value."""
    file.write_text(text)
    with pytest.raises(InputError, match=re.escape(where)) as caught:
        load_settings()
    assert str(caught.value).startswith(f"{file}: ")
    assert caught.value.hint


def test_every_key_of_a_site_is_documented() -> None:
    """docs/settings.md has each key of a site, and none that is not there."""
    text = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    named = re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE)
    assert named == list(Site.model_fields)
