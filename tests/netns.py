"""Hosts of their own for tests: network namespaces on one bridge, each with an address, and a way to cut one off."""

import os
import secrets
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

COMMAND_SECONDS = 20.0
"""For one ip(8) command: it takes milliseconds."""

PIPE_BYTES = 64 * 1024


class Network:
    """
    Hosts by name, on the net `prefix`.0/24; this machine's own namespace is on it as `prefix`.254.

    The names of everything begin with `mark`, which is this process's alone.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        self.mark = f"sd{os.getpid():x}{secrets.token_hex(1)}"
        self.prefix = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
        self._hosts = list(hosts)
        self.here = f"{self.prefix}.254"

    def address(self, host: str) -> str:
        """A host's address."""
        return f"{self.prefix}.{self._hosts.index(host) + 1}"

    def on(self, host: str, argv: Sequence[str]) -> list[str]:
        """The command, for a process of that host; it has the pid of the process that this starts."""
        return ["ip", "netns", "exec", self._space(host), *argv]

    def cut(self, host: str) -> None:
        """Take the host's cable out: nobody is told."""
        _ip("-n", self._switch, "link", "set", self._port(host), "down")

    def mend(self, host: str) -> None:
        """Put it in again."""
        _ip("-n", self._switch, "link", "set", self._port(host), "up")

    def make(self) -> None:
        """Make everything."""
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        for host in self._hosts:
            _ip("netns", "add", self._space(host))
            _ip("-n", self._space(host), "link", "set", "lo", "up")
            self._connect(host, "eth0", self.address(host), self._space(host))
        self._connect("here", f"{self.mark}h", self.here, None)

    def remove(self) -> None:
        """Remove everything, also what was made only in part."""
        with suppress(subprocess.SubprocessError):
            _ip("link", "del", f"{self.mark}h")
        for space in [*map(self._space, self._hosts), self._switch]:
            with suppress(subprocess.SubprocessError):
                _ip("netns", "del", space)

    def _connect(self, host: str, link: str, address: str, space: str | None) -> None:
        into = ["netns", space] if space else ["netns", str(os.getpid())]
        _ip("-n", self._switch, "link", "add", self._port(host), "type", "veth", "peer", "name", link, *into)
        _ip("-n", self._switch, "link", "set", self._port(host), "master", "bridge", "up")
        at = ["-n", space] if space else []
        _ip(*at, "address", "add", f"{address}/24", "dev", link)
        _ip(*at, "link", "set", link, "up")

    def _space(self, host: str) -> str:
        return f"{self.mark}-{host}"

    @property
    def _switch(self) -> str:
        return f"{self.mark}-switch"

    def _port(self, host: str) -> str:
        return f"p-{host}"


@contextmanager
def open_network(*hosts: str) -> Iterator[Network]:
    """A network of these hosts, which is gone in the end."""
    network = Network(hosts)
    try:
        network.make()
        yield network
    finally:
        network.remove()


@contextmanager
def forwarding(address: str, port: int) -> Iterator[int]:
    """Whoever connects to the port that this yields, at the address, gets to `port` on 127.0.0.1."""

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", port))
            except OSError:
                client.close()
                continue
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=_pipe, args=(source, target), daemon=True).start()

    with socket.create_server((address, 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(COMMAND_SECONDS)


def _pipe(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(PIPE_BYTES):
            target.sendall(data)
    for each in (source, target):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        if each is target:
            source.close()


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=COMMAND_SECONDS)
    if done.returncode:
        raise subprocess.SubprocessError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
