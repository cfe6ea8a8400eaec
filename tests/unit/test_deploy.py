"""What deploy/ has: the compose file, the images' files, units and settings, each read by who reads it for real."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sendense.settings import Settings, load_settings
from sendense.supervise.redis import RIGHTS, PrivateRedis
from sendense.supervise.service import Budget
from tests.containers import ROOT, compose_file, container_file

SCHEMA = Path("/usr/lib/python3/dist-packages/compose/config/compose_spec.json")
"""The Compose Specification's, as Debian's docker-compose has it."""

READ_SECONDS = 60.0

EXPOSURE = {"sendense-hub": 2.0, "sendense-node@": 2.0, "sendense-tunnel": 2.0}
"""What `systemd-analyze security` may find at most: 10 is no restriction at all."""

GRACE_SECONDS = 45
"""What is under way has 30 s, then the images are closed."""

PROFILES = ("node", "lab", "state")

SECRET_WORDS = re.compile(r"(?i)(password|secret|token)")


def test_the_compose_file_follows_the_specification() -> None:
    """By the specification's schema, and by a reader of compose files with all profiles."""
    jsonschema.Draft201909Validator(json.loads(SCHEMA.read_text())).validate(compose_file())
    profiles = [word for name in PROFILES for word in ("--profile", name)]
    command = ["docker-compose", "--file", str(ROOT / "docker-compose.yml"), *profiles, "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=READ_SECONDS)
    assert done.returncode == 0, done.stderr


SERVICES: dict[str, dict[str, Any]] = compose_file()["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name: str) -> None:
    """No root, no capability, no writable system, no password in its environment, time to end in good order."""
    service = SERVICES[name]
    assert service["user"] == "10809:10809"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert not service.keys() & {"privileged", "cap_add", "devices", "pid", "ipc"}
    assert int(service["stop_grace_period"].removesuffix("s")) >= GRACE_SECONDS
    assert service["restart"] == ("no" if name in ("setup", "state") else "unless-stopped")
    assert ("healthcheck" in service) == (service["restart"] != "no")
    for key, value in service.get("environment", {}).items():
        assert not SECRET_WORDS.search(key) or str(value).startswith("/"), key


def test_what_is_published() -> None:
    """The API and Flower alone, and on loopback unless somebody wants it otherwise."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"hub": ["127.0.0.1:7780:7780"], "flower": ["127.0.0.1:5555:5555"]}
    elsewhere = compose_file({"PUBLISH": "192.0.2.1"})["services"]
    assert elsewhere["hub"]["ports"] == ["192.0.2.1:7780:7780"]
    assert compose_file()["networks"]["inside"] == {"internal": True}


def test_a_hub_may_have_settings_and_a_time_zone() -> None:
    """From a folder, which its copies have as well; without one, an empty volume is in its place."""
    folder = "/etc/sendense/hub:ro"
    given = compose_file({"HUB_SETTINGS": "/srv/sendense", "TZ": "Europe/Oslo"})["services"]
    assert compose_file()["volumes"]["settings"] == {}
    for name in ("hub", "state"):
        assert f"settings:{folder}" in SERVICES[name]["volumes"]
        assert f"/srv/sendense:{folder}" in given[name]["volumes"]
    assert [services["hub"]["environment"]["TZ"] for services in (SERVICES, given)] == ["Etc/UTC", "Europe/Oslo"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_good_settings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment is taken as Sendense's settings."""
    for key, value in SERVICES[name].get("environment", {}).items():
        if key != "SENDENSE_CONFIG":
            monkeypatch.setenv(key, str(value))
    assert isinstance(load_settings(), Settings)


@pytest.mark.parametrize("name", ["hub", "node"])
def test_images_run_scripts_alone(name: str) -> None:
    """An image's file copies and names scripts of deploy/, which other tests run; it does nothing by itself."""
    found = container_file(name)
    assert found.keys() <= {"FROM", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}
    assert found["COPY"] == [". /usr/src/sendense"]
    assert found["USER"] == ["10809:10809"]
    assert [json.loads(step) for step in found["RUN"]] == [["/usr/src/sendense/deploy/install.sh", name, "--image"]]
    assert found["ENTRYPOINT"] == ['["/usr/local/bin/sendense-entry"]']
    for service in SERVICES.values():
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).exists()


@pytest.mark.parametrize("script", ["install.sh", "setup", "images/entry", "images/healthy"])
def test_scripts_can_be_read(script: str) -> None:
    """By bash, and started as they are."""
    path = ROOT / "deploy" / script
    assert path.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=READ_SECONDS)


UNITS = sorted([*(ROOT / "deploy/systemd").glob("*.service"), *(ROOT / "deploy/tunnel").glob("*.service")])


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.stem))
def test_units_are_sound(unit: Path, tmp_path: Path) -> None:
    """systemd finds nothing wrong with them, once what they start is there, and calls what they may do little."""
    text = unit.read_text()
    copy = tmp_path / unit.name.replace("@", "@oslo")
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy)],
        capture_output=True,
        text=True,
        timeout=READ_SECONDS,
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    most = str(round(EXPOSURE[unit.stem] * 10))
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={most}", str(copy)],
        capture_output=True,
        text=True,
        timeout=READ_SECONDS,
    )
    assert judged.returncode == 0, judged.stdout
    program = re.search(r"^ExecStart=(\S+)", text, flags=re.MULTILINE)
    assert program
    assert program[1] in (ROOT / "deploy/install.sh").read_text()


def test_redis_settings_are_those_of_a_hubs_own(tmp_path: Path) -> None:
    """redis.conf says what a hub says to the Redis that it starts itself; so does the image's entry of its rights."""
    settings = Settings(state_dir=tmp_path, redis_listen="0.0.0.0:6379", tls_dir=Path("/etc/sendense/keys"))
    words = PrivateRedis(settings.hub_dir, print, Budget(), settings).child.argv[1:]
    own = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
    text = (ROOT / "deploy/redis.conf").read_text()
    said = dict(line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#"))
    places = {"dir", "aclfile", "unixsocket", "unixsocketperm", "maxmemory"}
    assert "maxmemory" in said.keys() & own.keys()
    assert {key: value.strip('"') for key, value in said.items() if key not in places} == {
        key: value for key, value in own.items() if key not in places
    }
    assert RIGHTS in text
    assert RIGHTS in (ROOT / "deploy/images/entry").read_text()


@pytest.mark.parametrize("kind", ["hub", "node"])
def test_example_settings(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example can be used as it is, and with each of its proposals."""
    text = (ROOT / "deploy" / f"{kind}.toml").read_text()
    proposals = re.sub(r"^#(?=[a-z_]+ = |\[)", "", text, flags=re.MULTILINE).split("\n\n")
    state = "state_dir = '/var/lib/sendense'\n"
    for number, proposal in enumerate(["", *proposals]):
        file = tmp_path / f"{number}.toml"
        file.write_text(proposal if "state_dir =" in proposal else state + proposal)
        monkeypatch.setenv("SENDENSE_CONFIG", str(file))
        assert load_settings().state_dir == Path("/var/lib/sendense")
    assert any("sites" in proposal for proposal in proposals)
