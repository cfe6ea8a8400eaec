"""The hub's image made as its file says in a fresh Debian, and the lab of docker-compose.yml run from it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backup import patiently
from tests.containers import RUN_SECONDS, Engine, container_file
from tests.debian import SOURCE, Debian, open_debian
from tests.docs import command_in

HUB_SETTINGS = """
[notices]
webhook = "http://127.0.0.1:8099/"
webhook_secret_file = "/etc/sendense/hub/webhook.secret"
"""

RECEIVER = """
import http.server

class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        print(self.headers["Sendense-Signature"], flush=True)
        self.send_response(204)
        self.end_headers()

server = http.server.HTTPServer(("127.0.0.1", 8099), Receiver)
print("listens", flush=True)
server.serve_forever()
"""
"""A webhook's receiver, which says how each notice was signed."""

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
        own = {
            "TZ": "Europe/Oslo",
            "SITE": "lab",
            "SITE_SETTINGS": f"{folder}/site.toml",
            "VCENTER_PASSWORD_FILE": f"{folder}/vcenter.password",
            "VDDK": f"{folder}/volumes/lab",  # what the node reads here is in the lab's volume
        }
        engine = Engine(image.root, Path(folder), entrypoint, own)
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
    compose = engine.compose
    compose(command_in("docs/deploying.md", "docker compose up --detach --build"))
    token = compose(command_in("docs/deploying.md", "docker compose exec hub sendense token create --role operator"))
    assert token.strip()
    flower = command_in("docs/deploying.md", "docker compose exec flower cat /var/lib/sendense/flower.password")
    assert compose(flower) == (engine.volume("flower") / "flower.password").read_text()
    certificate = command_in("docs/metrics.md", "docker compose exec hub cat /etc/sendense/keys/ca-cert.pem")
    assert compose(certificate) == (engine.volume("hub-keys") / "ca-cert.pem").read_text()
    compose(command_in("docs/deploying.md", "docker compose --profile lab up --detach --build"))
    assert "lab-node" in compose(command_in("docs/deploying.md", "docker compose exec hub sendense nodes"))
    compose(command_in("docs/deploying.md", "docker compose exec hub sendense backup web01 --site lab --verify"))
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
    compose(
        command_in(
            "docs/deploying.md",
            "docker compose run --rm --entrypoint sendense setup pki node /keys/authority NAME",
        )
    )
    assert (engine.volume("authority") / "nodes/NAME/client-cert.pem").exists()
    _have_a_node_of_a_site(engine)
    _write_settings(engine)
    compose(command_in("docs/deploying.md", "docker compose run --rm state state save monday"))
    engine.crash("redis")
    engine.crash("hub")
    engine.up("redis")
    engine.up("hub")
    _settings_are_known(engine)
    assert engine.is_healthy("flower")
    compose(command_in("docs/deploying.md", "docker compose stop hub flower redis"))
    trusted = _files(engine.volume("authority"))
    for volume in ("state", "redis", "authority", "redis-keys", "hub-keys", "flower-keys"):
        engine.empty(volume)
    (engine.volume("authority") / "ca-key.pem").write_text("another one")
    refused = engine.run("state", "state", "restore", "monday")
    assert refused.returncode == 2
    assert "has another authority than /srv/copies/monday" in refused.stderr
    engine.empty("authority")
    compose(command_in("docs/deploying.md", "docker compose run --rm state state restore monday"))
    assert _files(engine.volume("authority")) == trusted
    compose(command_in("docs/deploying.md", "docker compose up --detach --build"))
    kept = _files(engine.volume("authority"))
    assert {name: content for name, (content, _) in kept.items()} == {name: trusted[name][0] for name in trusted}
    jobs = json.loads(ok(engine.exec("hub", "sendense", "jobs", "--json")))
    assert {job["state"] for job in jobs} == {"succeeded"}
    assert patiently(lambda: engine.is_healthy("lab-node"), RUN_SECONDS)
    ok(engine.exec("hub", "sendense", "backup", "web01", "--site", "lab"))
    for name in ("lab-node", "lab", "flower", "hub", "redis"):
        engine.stop(name)


def _files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """All files of a folder, and when they were written, which says when certificates are renewed."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def _have_a_node_of_a_site(engine: Engine) -> None:
    """The service `node` alone copies a disk, with a site's settings, a password and VDDK's folder from outside."""
    lab = engine.volume("lab") / "lab"
    site = (lab / "sendense.toml").read_text()
    site = site[site.index("[sites") :].replace("/var/lib/sendense/lab/password", "/run/sendense/vcenter-password")
    node = engine.services["node"]
    settings = Path(node["volumes"][2].partition(":")[0])
    settings.write_text(site)
    settings.with_name("vcenter.password").write_bytes((lab / "password").read_bytes())
    settings.with_name("vcenter.password").chmod(0o444)
    engine.compose("docker compose --profile node up --detach --build")
    (engine.volume("node") / "lab").symlink_to("/opt/vmware-vix-disklib-distrib/lab")  # where vCenter says disks are
    engine.stop("lab-node")
    engine.compose("docker compose exec hub sendense backup web01 --site lab --mode full --verify")
    assert "vcenter-password" in ok(engine.exec("node", "ls", "/run/sendense"))
    engine.stop("node")
    engine.up("lab-node")


def _write_settings(engine: Engine) -> None:
    """As the page says: of the user that everything runs as, which the volume belongs to."""
    folder = engine.volume("settings")
    (folder / "sendense.toml").write_text(HUB_SETTINGS)
    (folder / "webhook.secret").write_text("secret\n")
    for path in folder.iterdir():
        path.chmod(0o600)
        os.chown(path, folder.stat().st_uid, folder.stat().st_gid)


def _settings_are_known(engine: Engine) -> None:
    """The hub has settings, a secret and a time zone; they are in the copy."""
    receiver = subprocess.Popen([*engine.inside, sys.executable, "-c", RECEIVER], stdout=subprocess.PIPE, text=True)
    try:
        assert receiver.stdout
        assert receiver.stdout.readline() == "listens\n"
        engine.compose(command_in("docs/deploying.md", "docker compose exec hub sendense config check"))
        engine.compose(command_in("docs/deploying.md", "docker compose exec hub sendense notices test"))
        assert receiver.stdout.readline().startswith("sha256=")
    finally:
        receiver.kill()
        receiver.communicate()
    added = ok(engine.exec("hub", "sendense", "schedule", "add", "web01", "--daily", "02:00", "--json"))
    assert json.loads(added)["schedule"]["timezone"] == "Europe/Oslo"
    ok(engine.exec("hub", "sendense", "schedule", "remove", "web01"))
    copied = _files(engine.volume("copies") / "monday/files/etc/sendense")
    assert {"sendense.toml", "hub/webhook.secret"} <= copied.keys()


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
