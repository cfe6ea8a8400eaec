"""`sendense hub` as a service of one machine: ready when it is, told to systemd, alone, and kept up."""

import http.client
import io
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from sendense.coordinator.record import Jobs
from sendense.errors import Conflict
from sendense.exports import Exports
from sendense.hub import service as service_module
from sendense.hub.host import Host
from sendense.hub.service import HubService
from sendense.jobs import presence
from sendense.settings import Settings
from sendense.supervise.journal import Journal
from sendense.supervise.stopping import Stop
from sendense.units import MiB
from tests.backup import END_SECONDS, QUICK, WAIT_SECONDS, Backups, open_backups, patiently, small_disk
from tests.hub import open_hub
from tests.machines import STOP_SECONDS, Service, environment
from tests.servers import free_port, short_folder
from tests.site import LabSite, open_site

COMMAND = [str(Path(".venv/bin/sendense").absolute()), "hub"]


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """A small site: the hub has it in its own settings."""
    with open_site(vms=1, disks=1, disk_size=32 * 2**20, fill=0) as site:
        yield site


@pytest.fixture
def backups(site: LabSite) -> Iterator[Backups]:
    """A state folder and a repository."""
    with open_backups(site) as backups:
        yield backups


class OneHub:
    """The settings of a hub on this machine, and what it tells systemd."""

    def __init__(self, backups: Backups) -> None:
        self.backups = backups
        self.api, self.flower = free_port(), free_port()
        self.settings: dict[str, object] = {
            "config": backups.site.config,
            "state_dir": backups.state,
            "repository": backups.root,
            **QUICK,
            "api_listen": f"127.0.0.1:{self.api}",
            "flower_listen": f"127.0.0.1:{self.flower}",
        }
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.listener.settimeout(WAIT_SECONDS)
        self._address = str(backups.folder / "notify")
        self.listener.bind(self._address)
        self._services: list[Service] = []

    def start(self, *options: str) -> Service:
        """Start it."""
        told = {"NOTIFY_SOCKET": self._address, "WATCHDOG_USEC": "1000000"}
        service = Service([*COMMAND, *options], environment(self.settings) | told, self.backups.folder / "hub.out")
        self._services.append(service)
        return service

    def hears(self, word: str) -> str:
        """Wait until systemd is told this; what it was told."""
        while not (text := self.listener.recv(1000).decode()).startswith(word):
            continue
        return text

    def close(self) -> None:
        """End what runs."""
        for service in self._services:
            service.stop()
        self.listener.close()


@pytest.fixture
def one(backups: Backups) -> Iterator[OneHub]:
    """A hub that is not started yet."""
    one = OneHub(backups)
    try:
        yield one
    finally:
        one.close()


def answers(port: int) -> bool:
    """Whether a page is there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=END_SECONDS)
    try:
        connection.request("GET", "/healthz")
        connection.getresponse()
    except OSError:
        return False
    finally:
        connection.close()
    return True


@contextmanager
def served_by_another(port: int) -> Iterator[None]:
    """Another program that answers at a port."""
    with ThreadingHTTPServer(("127.0.0.1", port), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join(END_SECONDS)


@pytest.mark.parametrize("part", ["api", "flower"])
def test_a_port_that_another_process_has(one: OneHub, part: str) -> None:
    """The hub says which port and which setting, is not ready though somebody answers there, and then is by itself."""
    port = {"api": one.api, "flower": one.flower}[part]
    with served_by_another(port):
        hub = one.start("--log-json")
        words = f"cannot listen at 127.0.0.1:{port} ({part}_listen): Address already in use"
        hub.wait_for(words)
        assert next(line["level"] for line in hub.lines() if words in line["message"]) == "error"
        assert answers(port)
        assert not hub.has_said("is ready")
    hub.wait_for("is ready")
    assert answers(port)


def test_the_hub_as_a_service(one: OneHub) -> None:
    """It is ready when its parts answer, is the only one, keeps them up, serves commands, and ends in good order."""
    hub = one.start("--log-json")
    one.hears("READY=1")
    assert answers(one.api)
    assert answers(one.flower)
    assert one.hears("WATCHDOG=1")

    second = subprocess.run(
        COMMAND, env=environment(one.settings), capture_output=True, text=True, timeout=STOP_SECONDS
    )
    assert second.returncode == 2
    assert (second.stdout, second.stderr[:32]) == ("", "sendense: a hub runs already in ")  # said once

    view = one.backups.backup("web01")  # by a command, which is a guest
    hub.wait_for(f"job {view.id}, backup of web01: succeeded", WAIT_SECONDS)

    with short_folder() as elsewhere:  # as two hubs are after a state was brought back elsewhere
        settings = environment({**one.settings, "state_dir": elsewhere})
        for command in (["hub"], ["backup", "web01"]):
            argv = [COMMAND[0], *command]
            other = subprocess.run(argv, env=settings, capture_output=True, text=True, timeout=STOP_SECONDS)
            assert other.returncode == 2, other.stderr
            assert f"another hub has the repository {one.backups.root}: that of {one.backups.state} on" in other.stderr
        assert one.backups.run("points", state_dir=elsewhere).status == 0
        assert json.loads(one.backups.run("jobs", "--json", state_dir=elsewhere).stdout) == []

    hub.child("sendense.api").kill()
    hub.wait_for("API ended", WAIT_SECONDS)
    assert patiently(lambda: answers(one.api), WAIT_SECONDS)

    image = one.backups.image(one.backups.points("web01")[0], 2000)
    exports = Exports(one.backups.state / "hub" / "exports.sock", str(one.backups.state / "hub" / "nbd.sock"))
    with one.backups.client() as client:
        Jobs(client).keep_served("point-1-2000", str(image))
        Jobs(client).keep_served("point-2-2000", str(image.with_name("gone.qcow2")))
    hub.child("qemu-storage-daemon").kill()
    hub.wait_for("exports daemon ended: starting it again", WAIT_SECONDS)
    assert patiently(lambda: [each.name for each in exports.list()] == ["point-1-2000"], WAIT_SECONDS)
    hub.wait_for("export point-2-2000 cannot be put back", WAIT_SECONDS)

    hub.ask_to_end()
    one.hears("STOPPING=1")
    assert hub.ends() == 0
    assert one.backups.survivors() == []
    lines = hub.lines()
    assert all(line.keys() >= {"time", "level", "part", "message"} for line in lines), hub.text()
    assert {"hub", "API"} <= {line["part"] for line in lines}
    secrets = [(one.backups.state / "flower.password").read_text().strip(), one.backups.site.password]
    assert not any(secret in hub.text() for secret in secrets)


def test_a_full_state_folder(one: OneHub) -> None:
    """The hub stays, and says what is wrong; once there is room it is ready again, and does what it is asked."""
    ready = f"http://127.0.0.1:{one.api}/readyz"
    with small_disk(64 * MiB) as disk:
        one.settings["state_dir"] = disk.path / "state"
        service = one.start()
        service.wait_for("is ready")
        with (disk.path / "other").open("wb", buffering=0) as other, suppress(OSError):
            while True:
                other.write(bytes(MiB))
        assert patiently(lambda: "Redis has no room" in httpx.get(ready, timeout=END_SECONDS).text, WAIT_SECONDS)
        service.wait_for("Redis has no room: MISCONF", WAIT_SECONDS)
        (disk.path / "other").unlink()
        assert patiently(lambda: httpx.get(ready, timeout=END_SECONDS).status_code == 200, WAIT_SECONDS)
        service.stop()


def test_commands_leave_it_the_hub(one: OneHub) -> None:
    """A command that runs the hub in passing leaves it to the service, and takes it over again when that has ended."""
    with one.backups.hub():
        hub = one.start()
        hub.wait_for("waiting for a command on this machine", WAIT_SECONDS)
        one.hears("READY=1")
        one.backups.backup("web01")
        hub.stop()
        one.backups.backup("web01")


def test_it_ends_at_once(one: OneHub) -> None:
    """A second signal is enough, also while it starts; what it had started ends with it."""
    hub = one.start()
    hub.wait_for("starts", WAIT_SECONDS)
    hub.process.send_signal(signal.SIGHUP)  # means nothing
    hub.process.send_signal(signal.SIGINT)
    hub.process.send_signal(signal.SIGTERM)
    assert hub.ends() == 0
    assert one.backups.survivors() == []


def test_a_part_that_cannot_be(one: OneHub) -> None:
    """Where a part cannot start, it ends with that part's last words."""
    (one.backups.state / "hub").mkdir(parents=True)
    (one.backups.state / "hub" / "appendonlydir").write_text("in Redis' way")
    hub = one.start("--log-json")
    assert hub.ends() == 1
    last = [line for line in hub.lines() if line.get("level") == "error"]
    assert last[0]["message"].startswith("the redis ended at once: ")
    assert "redis.log" in last[0]["hint"]


def test_one_hub_on_one_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second hub on a Redis that others run is refused, and may have it once the first has ended."""
    monkeypatch.setattr(service_module, "TAKE_SECONDS", 0.3)
    with open_hub() as redis, short_folder() as one, short_folder() as other:
        first, second = (Settings(redis=redis.url, state_dir=folder) for folder in (one, other))
        first.hub_dir.mkdir(parents=True)
        host = Host(first, print)
        assert host.hold()
        assert Host(first, print).hold()
        with pytest.raises(Conflict, match="another hub uses the Redis at"):
            HubService(second, Journal(io.BytesIO(), as_json=False), Stop()).run()
        host.close()
        assert Host(second, print).hold()
        assert not host.hold()
        presence.let_go(redis.client, "hub", (second.hub_dir / "identity").read_text())
        assert host.hold()
