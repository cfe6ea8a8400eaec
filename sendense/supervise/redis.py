"""A Redis of our own, on a Unix socket: the broker and the ledger of one machine."""

from pathlib import Path
from urllib.parse import quote

from sendense.jobs.ledger import LedgerUnavailable, connect
from sendense.supervise.child import Child
from sendense.supervise.service import Budget, Note, Service


class PrivateRedis(Service):
    """Keeps its data (AOF), its socket and its log in `folder`, whose path has to be short enough for a socket's."""

    def __init__(self, folder: Path, note: Note, budget: Budget) -> None:
        self._socket = _socket(folder)
        super().__init__(Child("redis", _command(folder, self._socket), folder / "redis.log"), note, budget)
        self.url = url_of(folder)
        self.client = connect(self.url, retries=1)
        """For the supervisor, which has to learn quickly that Redis does not answer."""

    def prepare(self) -> None:
        """A killed Redis leaves its socket."""
        self._socket.unlink(missing_ok=True)

    def is_ready(self) -> bool:
        """Whether it has read its file, and answers."""
        try:
            return bool(self.client.ping())
        except LedgerUnavailable:
            return False

    def restart_silent(self) -> None:
        """For a Redis that does not answer: what whoever gets LedgerUnavailable from it calls."""
        self.restart("redis stopped answering: killing it and starting it again")


def url_of(folder: Path) -> str:
    """Where the Redis of this folder answers, whoever runs it."""
    return f"unix://{quote(str(_socket(folder)))}"


def _socket(folder: Path) -> Path:
    return folder / "redis.sock"


def _command(folder: Path, socket: Path) -> list[str]:
    return [
        *("redis-server", "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"),
        *("--dir", str(folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        *("--maxmemory-policy", "noeviction", "--loglevel", "warning", "--daemonize", "no"),
    ]
