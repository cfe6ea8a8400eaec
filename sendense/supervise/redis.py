"""A Redis of our own: on a Unix socket the broker and the ledger of one machine, on an address those of all nodes."""

import hashlib
import math
import os
import secrets
import time
from pathlib import Path

from sendense.files import make_folder, read_secret, storing, write_atomically
from sendense.jobs.access import RedisFull, own_password_file, socket_of
from sendense.jobs.access import url_of as url_of
from sendense.jobs.ledger import LedgerUnavailable, connect
from sendense.settings import Settings, host_and_port
from sendense.supervise.child import Child
from sendense.supervise.service import SAY_SECONDS, Budget, Note, Service
from sendense.supervise.web import must_be_free

PASSWORD_BYTES = 32
"""Of randomness in a password that is made: nobody types it."""

RIGHTS = "~* &* +@all -@admin -@dangerous +info"
"""What whoever knows the password may do: everything that Celery and the ledger do, and nothing to the server."""


class PrivateRedis(Service):
    """
    Keeps its data (AOF), its socket and its log in `folder`, whose path has to be short enough for a socket's.

    With `settings`, those of a hub, `folder` is its `hub_dir`. Where they have a `redis_listen`, nodes reach it there:
    with a password, which it then has on its socket as well, and with TLS where there is a `tls_dir`.
    """

    def __init__(self, folder: Path, note: Note, budget: Budget, settings: Settings | None = None) -> None:
        self._folder = folder
        self._settings = settings if settings and settings.redis_listen else None
        self.url = url_of(folder)
        super().__init__(Child("redis", self._command(), folder / "redis.log"), note, budget)
        self.client = connect(self.url, retries=1, settings=settings)
        """For the supervisor, which has to learn quickly that Redis does not answer."""
        self._said = -math.inf

    def prepare(self) -> None:
        """
        A killed Redis leaves its socket; one with a password reads that from a file when it starts.

        JobFailed where another process has its address.
        """
        socket_of(self._folder).unlink(missing_ok=True)
        if self._settings:
            must_be_free("redis_listen", self._settings.redis_listen)
            file = own_password_file(self._settings)
            with storing(self._users):
                if not self._settings.redis_password_file and not file.exists():
                    make_folder(file.parent)
                    write_atomically(file, f"{secrets.token_urlsafe(PASSWORD_BYTES)}\n".encode())
                digest = hashlib.sha256(read_secret(file, "redis_password_file").encode()).hexdigest()
                write_atomically(self._users, f"user default on #{digest} {RIGHTS}\n".encode())

    def is_ready(self) -> bool:
        """Whether it has read its file, and answers."""
        try:
            return bool(self.client.ping())
        except RedisFull:  # Redis 7 refuses even this when its disk is full
            return True
        except LedgerUnavailable:
            return False

    def missed(self, exc: Exception) -> None:
        """
        It did not do what it was asked. One that does not answer is replaced.

        One that has no room is waited for, as starting it again would not help: said at once, and then each minute.
        """
        if not self.is_ready():
            self.restart("redis stopped answering: killing it and starting it again")
        elif time.monotonic() - self._said > SAY_SECONDS:
            self._said = time.monotonic()
            self.note(f"redis answers, and does not do what it is asked: {exc}")

    @property
    def _users(self) -> Path:
        return self._folder / "redis.acl"

    def _command(self) -> list[str]:
        return [
            *("redis-server", "--unixsocket", str(socket_of(self._folder)), "--unixsocketperm", "700"),
            *("--dir", str(self._folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            *("--maxmemory", str(_half_of_memory()), "--maxmemory-policy", "noeviction"),
            *("--loglevel", "warning", "--daemonize", "no"),
            *(self._network(self._settings) if self._settings else ("--port", "0")),
        ]

    def _network(self, settings: Settings) -> list[str]:
        host, port = host_and_port(settings.redis_listen)
        command = ["--bind", host, "--aclfile", str(self._users)]
        if not settings.tls_dir:
            return [*command, "--port", str(port)]
        folder = settings.tls_dir.absolute()
        return [
            *(*command, "--port", "0", "--tls-port", str(port), "--tls-auth-clients", "yes"),
            *("--tls-ca-cert-file", str(folder / "ca-cert.pem")),
            *("--tls-cert-file", str(folder / "server-cert.pem"), "--tls-key-file", str(folder / "server-key.pem")),
        ]


def _half_of_memory() -> int:
    """Bytes: one that fills the machine's memory would be killed by the kernel; this one refuses what is too much."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
