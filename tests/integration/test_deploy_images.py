"""The hub's image made as its file says in a fresh Debian, and the lab of docker-compose.yml run from it."""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backup import patiently
from tests.containers import RUN_SECONDS, Engine, container_file
from tests.debian import SOURCE, Debian, open_debian

pytestmark = pytest.mark.timeout(900)  # a Debian is downloaded and installed


@pytest.fixture(scope="module")
def image(debian_base: Path) -> Iterator[Debian]:
    """The image: what RUN runs after COPY."""
    with open_debian(debian_base) as debian:
        debian.copy_source()
        for step in container_file("hub")["RUN"]:
            done = debian.run(*json.loads(step))
            assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
        yield debian


@pytest.fixture(scope="module")
def engine(image: Debian) -> Iterator[Engine]:
    """Nothing runs yet."""
    (entrypoint,) = json.loads(container_file("hub")["ENTRYPOINT"][0])
    with tempfile.TemporaryDirectory(prefix="sd-compose-") as folder:
        engine = Engine(image.root, Path(folder), entrypoint)
        try:
            yield engine
        finally:
            engine.close()


def ok(done: "subprocess.CompletedProcess[str]") -> str:
    """The output of a command that has to succeed."""
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


def test_the_image(image: Debian) -> None:
    """It has a user of its own, what Sendense runs on, and nothing to build with."""
    assert ok(image.run("id", "-u", "sendense")).strip() == "10809"
    assert json.loads(container_file("hub")["USER"][0].split(":")[0]) == 10809
    assert "not found" not in ok(image.run("sendense", "doctor"))
    for tool in ("pip", "pip3", "gcc", "cc", "make"):
        assert image.run("sh", "-c", f"command -v {tool}").returncode != 0, tool
    for module in ("pip", "setuptools", "wheel"):
        assert image.run("/opt/sendense/current/bin/python", "-c", f"import {module}").returncode != 0, module
    assert not (image.root / SOURCE).exists()
    assert list((image.root / "var/lib/apt/lists").iterdir()) == []


def test_the_lab_in_containers(engine: Engine) -> None:
    """Everything comes up healthy, backs up and verifies; a lost hub comes back, and ends within its grace period."""
    for name in ("setup", "redis", "hub", "flower", "lab", "lab-node"):
        engine.up(name)
    assert "lab-node" in ok(engine.exec("hub", "sendense", "nodes"))
    ok(engine.exec("hub", "sendense", "backup", "web01", "--site", "lab", "--verify"))
    ok(engine.exec("hub", "sendense", "verify", "web01@latest"))

    # What a service may not do: become root, write where no volume is, and read the others' keys.
    status = ok(engine.exec("hub", "cat", "/proc/self/status"))
    assert "CapBnd:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Read-only file system" in engine.exec("hub", "touch", "/usr/local/bin/x").stderr
    assert "ca-key.pem" not in ok(engine.exec("hub", "ls", "/etc/sendense/keys"))
    assert "server-key.pem" not in ok(engine.exec("lab-node", "ls", "/etc/sendense/keys"))
    secrets = [(engine.volume("authority") / "redis.password").read_text().strip()]
    secrets.append((engine.volume("flower") / "flower.password").read_text().strip())
    assert not any(secret in engine.log(name) for secret in secrets for name in engine.services if engine.exists(name))

    engine.up("setup")  # again, as each `docker compose up` does: what is there stays
    assert (engine.volume("authority") / "redis.password").read_text().strip() == secrets[0]
    ok(engine.run("state", "state", "save", "monday"))
    engine.crash("redis")
    engine.crash("hub")
    engine.empty("state")
    engine.empty("redis")
    ok(engine.run("state", "state", "restore", "monday"))
    engine.up("redis")
    engine.up("hub")
    jobs = json.loads(ok(engine.exec("hub", "sendense", "jobs", "--json")))
    assert {job["state"] for job in jobs} == {"succeeded"}
    assert patiently(lambda: engine.is_healthy("lab-node"), RUN_SECONDS)
    assert engine.is_healthy("flower")
    ok(engine.exec("hub", "sendense", "backup", "web01", "--site", "lab"))
    for name in ("lab-node", "lab", "flower", "hub", "redis"):
        engine.stop(name)


def test_wrong_commands(image: Debian) -> None:
    """Each is refused with what would be right."""
    for words, said in (
        (["hubb"], "'hubb' is none of setup, redis, hub"),
        (["node"], "Give the name of a site"),
        (["state", "save"], "give one name"),
        (["state", "save", "../x"], "give one name"),
    ):
        done = image.run("sendense-entry", *words)
        assert done.returncode == 2
        assert said in done.stderr
