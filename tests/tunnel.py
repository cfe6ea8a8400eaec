"""A real sshd with the hub's rules for tunnels, and the node's end as systemd keeps it up."""

import os
import pwd
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.servers import END_SECONDS, free_port, short_folder

DEPLOYED = Path(__file__).resolve().parents[1] / "deploy/tunnel"

PORTS = (6379, 10809, 7780)
"""The hub's ports in the files of deploy/tunnel."""

PATIENCE_SECONDS = 30.0
"""Far more than anything here takes."""

RESTART_SECONDS = 0.5
"""The unit's RestartSec, for tests."""

ALIVE_SECONDS = 1
"""The script's TUNNEL_ALIVE, for tests."""


class Sshd:
    """A running sshd, and what a node needs to get in."""

    def __init__(self, folder: Path, ports: Sequence[int], address: str, prefix: Sequence[str], rules: bool) -> None:
        self.folder, self.address, self.port = folder, address, free_port()
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self.key, self.known_hosts, self.log = folder / "key", folder / "known_hosts", folder / "log"
        self._prefix = list(prefix)
        for name in ("key", "host"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
        host = (folder / "host.pub").read_text().split()
        self.known_hosts.write_text(f"[{address}]:{self.port} {host[0]} {host[1]}\n")
        line, match = (_deployed(name, ports) for name in ("authorized_keys", "sshd.conf"))
        public = (folder / "key.pub").read_text().split()[1]
        (folder / "authorized_keys").write_text(line.replace("KEY", public))
        (folder / "config").write_text(
            f"ListenAddress {address}\nPort {self.port}\nHostKey {folder}/host\nPidFile {folder}/pid\nUsePAM no\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nPermitRootLogin prohibit-password\n"
            + (match.replace("User sendense-tunnel", f"User {self.user}") if rules else "")
        )
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # as the package's unit does
        self.start()

    def start(self) -> None:
        """Start it, or start it again, and wait until it listens."""
        command = [*self._prefix, "/usr/sbin/sshd", "-D", "-e", "-f", str(self.folder / "config")]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        pid = self.folder / "pid"
        wait_for(lambda: pid.exists() or self._process.poll() is not None)
        assert self._process.poll() is None, self.words()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and to all that serve a connection: SIGSTOP cuts tunnels without a word."""
        for process in (self._main(), *self._main().children(recursive=True)):
            process.send_signal(number)

    def kill(self) -> None:
        """End it with all connections, as a power cut at the hub would end it for its nodes."""
        if self._process.poll() is not None:
            return
        family = self._main().children(recursive=True)
        self._main().kill()
        for process in family:
            with suppress(psutil.NoSuchProcess):  # it ended with its connection
                process.kill()
        self._process.wait(END_SECONDS)
        psutil.wait_procs(family, END_SECONDS)
        (self.folder / "pid").unlink(missing_ok=True)

    def words(self) -> str:
        """What it said."""
        return self.log.read_text(errors="replace")

    def command(self, *options: str, run: Sequence[str] = ()) -> list[str]:
        """What a node can do by hand with its key."""
        return [
            *(*self._prefix, "ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes"),
            *("-o", f"UserKnownHostsFile={self.known_hosts}", "-i", str(self.key), "-p", str(self.port)),
            *(*options, f"{self.user}@{self.address}", *run),
        ]

    def _main(self) -> psutil.Process:
        return psutil.Process(self._process.pid)


class Tunnel:
    """The script of deploy/tunnel as its unit runs it: started again whenever it ended."""

    def __init__(
        self, server: Sshd, forwards: Mapping[int, int], prefix: Sequence[str] = (), **variables: str | Path
    ) -> None:
        self._environment = {
            **os.environ,
            "TUNNEL_HUB": server.address,
            "TUNNEL_USER": server.user,
            "TUNNEL_PORT": str(server.port),
            "TUNNEL_KEY": str(server.key),
            "TUNNEL_KNOWN_HOSTS": str(server.known_hosts),
            "TUNNEL_FORWARDS": " ".join(f"{local}:{remote}" for local, remote in forwards.items()),
            "TUNNEL_ALIVE": str(ALIVE_SECONDS),
            **{name: str(value) for name, value in variables.items()},
        }
        self._prefix, self._ended = list(prefix), threading.Event()
        self.exits: list[tuple[int, str]] = []
        """Of each run that ended: its status, and what it said."""
        self._process = self._start()
        self._thread = threading.Thread(target=self._keep_up)

    def kill(self) -> None:
        """End the connection once: it is started again."""
        self._process.kill()

    def __enter__(self) -> "Tunnel":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._process.kill()
        self._thread.join(END_SECONDS)
        assert not self._thread.is_alive()

    def _start(self) -> "subprocess.Popen[str]":
        command = [*self._prefix, "setpriv", "--pdeathsig", "KILL", str(DEPLOYED / "sendense-tunnel")]
        return subprocess.Popen(
            command, env=self._environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def _keep_up(self) -> None:
        while True:
            _, said = self._process.communicate()
            self.exits.append((self._process.returncode, said.strip()))
            if self._ended.wait(RESTART_SECONDS):
                return
            self._process = self._start()
            if self._ended.is_set():
                self._process.kill()


@contextmanager
def open_sshd(
    *ports: int, address: str = "127.0.0.1", prefix: Sequence[str] = (), rules: bool = True
) -> Iterator[Sshd]:
    """
    A hub's sshd that lets nodes reach these ports of its loopback.

    `address` is where it listens, `prefix` a command that runs it elsewhere (a network namespace). Without `rules` only
    the key's own line restricts it.
    """
    with short_folder() as folder:
        server = Sshd(folder, ports, address, prefix, rules)
        try:
            yield server
        finally:
            server.kill()


@contextmanager
def open_tunnel(
    server: Sshd, forwards: Mapping[int, int], prefix: Sequence[str] = (), **variables: str | Path
) -> Iterator[Tunnel]:
    """A tunnel; without a `prefix` it is up. `forwards` has the hub's port for each port of the node."""
    with Tunnel(server, forwards, prefix, **variables) as tunnel:
        if not prefix:
            wait_for(lambda: all(map(listens, forwards)), tunnel)
        yield tunnel


def listens(port: int) -> bool:
    """Whether somebody listens at a port of this machine's loopback."""
    with socket.socket() as probe:
        probe.settimeout(PATIENCE_SECONDS)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(happened: Callable[[], bool], tunnel: Tunnel | None = None) -> None:
    """Wait until it happened."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline, tunnel.exits if tunnel else "in vain"
        time.sleep(0.02)


def _deployed(name: str, ports: Sequence[int]) -> str:
    """A file of deploy/tunnel with these ports in place of its own, the last of them for all that remain."""
    text = (DEPLOYED / name).read_text()
    for number, port in enumerate(PORTS):
        text = text.replace(f":{port}", f":{ports[min(number, len(ports) - 1)]}")
    return text


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_SECONDS)
