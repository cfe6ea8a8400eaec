"""The ssh tunnel of deploy/tunnel, with a real sshd: what goes through, what must not, and how it ends."""

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from sendense.errors import EndpointError
from sendense.exports import Exports, hub_export, reach
from sendense.jobs.access import redis_url
from sendense.jobs.ledger import LedgerUnavailable, connect
from sendense.nbd import images
from sendense.nbd.connect import connect as connect_nbd
from sendense.nbd.probe import probe
from sendense.nbd.uri import parse
from sendense.settings import Settings
from sendense.supervise.redis import PrivateRedis
from sendense.supervise.service import Budget
from sendense.supervise.storage import Storage
from tests.servers import free_port, short_folder
from tests.tunnel import DEPLOYED, PATIENCE_SECONDS, Sshd, listens, open_sshd, open_tunnel, wait_for

MiB = 2**20


@dataclass(frozen=True)
class Hub:
    """A hub's Redis, and an export named disk-1 that is served."""

    redis_port: int
    exports_port: int
    settings: Settings

    def node(self, redis_port: int, exports_port: int) -> Settings:
        """The settings of a node that reaches the hub at these ports of its own."""
        return Settings(
            state_dir=self.settings.state_dir / "node",
            redis=f"redis://127.0.0.1:{redis_port}",
            redis_password_file=self.settings.state_dir / "redis.password",
            exports=f"nbd://127.0.0.1:{exports_port}",
        )


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A hub that listens on loopback."""
    with short_folder() as folder:
        redis_port, exports_port = free_port(), free_port()
        settings = Settings(
            state_dir=folder, redis_listen=f"127.0.0.1:{redis_port}", exports_listen=f"127.0.0.1:{exports_port}"
        )
        settings.hub_dir.mkdir()
        redis = PrivateRedis(settings.hub_dir, lambda text: None, Budget(), settings)
        storage = Storage(settings.exports_address, settings.hub_dir, lambda text: None, Budget())
        images.create(folder / "disk.qcow2", "qcow2", 8 * MiB)
        try:
            for service in (redis, storage):
                service.start()
                service.wait()
            Exports(storage.qmp_socket, settings.exports_address).add("disk-1", folder / "disk.qcow2", writable=True)
            yield Hub(redis_port, exports_port, settings)
        finally:
            redis.client.close()
            for service in (redis, storage):
                service.child.kill()


@pytest.fixture(scope="module")
def sshd(hub: Hub) -> Iterator[Sshd]:
    """The hub's sshd with the rules of deploy/tunnel."""
    with open_sshd(hub.redis_port, hub.exports_port) as server:
        yield server


def test_redis_and_exports_come_through(hub: Hub, sshd: Sshd) -> None:
    """Over one connection; the doctor finds it well, and a tunnel that was cut is back by itself."""
    redis_port, exports_port = free_port(), free_port()
    with open_tunnel(sshd, {redis_port: hub.redis_port, exports_port: hub.exports_port}) as tunnel:
        settings = hub.node(redis_port, exports_port)
        with closing(connect(redis_url(settings), retries=0, settings=settings)) as client:
            assert client.ping()
            uri = reach(hub_export("disk-1"), settings)
            assert probe(uri, PATIENCE_SECONDS).verdict == "ok"
            connections = [connect_nbd(parse(uri), PATIENCE_SECONDS) for _ in range(4)]
            tunnel.kill()
            wait_for(lambda: bool(tunnel.exits), tunnel)
            for connection in connections:
                connection.close()

            def is_back() -> bool:
                try:
                    return bool(client.ping())
                except LedgerUnavailable:
                    return False

            wait_for(is_back, tunnel)
            assert probe(uri, PATIENCE_SECONDS).verdict == "ok"


def test_a_hub_that_vanished_is_noticed(hub: Hub) -> None:
    """Stopped processes answer no sign of life: the tunnel ends within three, and is there again when they are."""
    port = free_port()
    with open_sshd(hub.exports_port) as server, open_tunnel(server, {port: hub.exports_port}) as tunnel:
        server.signal(signal.SIGSTOP)
        wait_for(lambda: bool(tunnel.exits), tunnel)
        assert "Timeout, server" in tunnel.exits[0][1]
        assert tunnel.exits[0][0] == 255
        server.signal(signal.SIGCONT)
        wait_for(lambda: listens(port), tunnel)
        server.kill()
        wait_for(lambda: len(tunnel.exits) > 1, tunnel)
        server.start()
        wait_for(lambda: listens(port), tunnel)


def answer(port: int) -> bytes:
    """What is heard first at a port of this machine; nothing when it is closed at once."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) as peer:
        peer.sendall(b"PING\r\n")
        try:
            return peer.recv(16)
        except ConnectionResetError:
            return b""


@contextmanager
def listener() -> Iterator[int]:
    """A service of the hub that is none of the nodes' business."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server.getsockname()[1]
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("rules", [True, False])
def test_no_other_port_is_reached(hub: Hub, rules: bool) -> None:
    """By the rules of sshd, and by the key's own line alone."""
    forbidden, permitted = free_port(), free_port()
    with (
        listener() as port,
        open_sshd(hub.redis_port, rules=rules) as server,
        open_tunnel(server, {forbidden: port, permitted: hub.redis_port}) as tunnel,
    ):
        assert answer(forbidden) == b""
        assert answer(permitted).startswith(b"-NOAUTH")
        assert f"127.0.0.1 port {port}" in server.words()
        assert tunnel.exits == []


def by_hand(*command: str) -> "subprocess.CompletedProcess[str]":
    """Run a command that ends by itself."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_SECONDS)


def test_a_node_has_no_shell_and_no_way_back(sshd: Sshd) -> None:
    """Its key runs nothing at the hub, and opens nothing that listens there."""
    done = by_hand(*sshd.command(run=["id"]))
    assert (done.returncode, "uid=" in done.stdout) == (1, False)
    assert "not available" in done.stdout
    done = by_hand(*sshd.command("-s", run=["sftp"]))
    assert (done.returncode, done.stdout) == (255, "")
    done = by_hand(*sshd.command("-N", "-R", f"{free_port()}:127.0.0.1:1"))
    assert done.returncode == 255
    assert "remote port forwarding failed" in done.stderr


@pytest.mark.parametrize("rules", [True, False])
def test_no_unix_socket_is_reached(rules: bool) -> None:
    """The hub's own are not protected by a password, nor is the exports daemon's monitor."""
    port = free_port()
    with (
        open_sshd(free_port(), rules=rules) as sshd,
        short_folder() as folder,
        socket.socket(socket.AF_UNIX) as private,
    ):
        private.bind(str(folder / "private"))
        private.listen()
        private.settimeout(0)
        node = subprocess.Popen(
            sshd.command("-N", "-L", f"127.0.0.1:{port}:{folder}/private"), stdin=subprocess.DEVNULL
        )
        try:
            wait_for(lambda: listens(port))
            assert answer(port) == b""
            with pytest.raises(BlockingIOError):
                private.accept()
        finally:
            node.kill()
            node.wait(PATIENCE_SECONDS)


def test_a_forward_that_cannot_be_had_ends_the_tunnel(hub: Hub, sshd: Sshd) -> None:
    """Half a tunnel is worse than none: the unit tries again, and its log says why."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        forwards = {free_port(): hub.redis_port, taken.getsockname()[1]: hub.exports_port}
        done = run_script(sshd, forwards=forwards)
    assert done.returncode == 255
    assert "Address already in use" in done.stderr


def test_an_unknown_hub_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    """Whoever took the hub's place gets nothing; and nobody is asked anything."""
    (tmp_path / "known").write_text(sshd.known_hosts.read_text().rpartition(" ")[0] + " AAAA\n")
    done = run_script(sshd, TUNNEL_KNOWN_HOSTS=str(tmp_path / "known"))
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr
    done = run_script(sshd, TUNNEL_HUB="")
    assert "TUNNEL_HUB: name or address of the hub" in done.stderr


def run_script(
    server: Sshd, forwards: dict[int, int] | None = None, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """One run of the script, which has to end by itself."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "TUNNEL_HUB": server.address,
        "TUNNEL_USER": server.user,
        "TUNNEL_PORT": str(server.port),
        "TUNNEL_KEY": str(server.key),
        "TUNNEL_KNOWN_HOSTS": str(server.known_hosts),
        "TUNNEL_FORWARDS": " ".join(f"{local}:{remote}" for local, remote in (forwards or {}).items()),
    }
    return subprocess.run(
        [DEPLOYED / "sendense-tunnel"],
        env=environment | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )


def test_a_hub_that_does_not_serve_yet(sshd: Sshd, hub: Hub) -> None:
    """The tunnel stands, and what is behind it is told apart from the tunnel."""
    nobody, port = free_port(), free_port()
    with open_sshd(nobody) as server, open_tunnel(server, {port: nobody}):
        with pytest.raises(EndpointError) as caught:
            connect_nbd(parse(f"nbd://127.0.0.1:{port}/disk-1"), PATIENCE_SECONDS)
        assert caught.value.verdict == "no-greeting"


def test_the_unit_runs_the_script() -> None:
    """What the documentation installs is there, and the unit's file of variables names those of the script."""
    unit, script = (DEPLOYED / "sendense-tunnel.service").read_text(), (DEPLOYED / "sendense-tunnel").read_text()
    assert "ExecStart=/usr/local/bin/sendense-tunnel\n" in unit
    assert shutil.which(str(DEPLOYED / "sendense-tunnel"))
    for line in (DEPLOYED / "tunnel.env").read_text().splitlines()[1:]:
        name, _, default = line.removeprefix("#").partition("=")
        assert name == "TUNNEL_HUB" or f"{{{name}:={default.strip(chr(34))}}}" in script
