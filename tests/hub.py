"""A private Redis for tests, as the hub of jobs: real, on a Unix socket, with an append-only file."""

import subprocess
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import redis

from sendense.coordinator.context import Context
from sendense.coordinator.record import Jobs
from sendense.jobs import broker
from sendense.jobs.ledger import Ledger, connect
from sendense.models import Node, Tunnel
from sendense.settings import Settings
from tests.servers import short_folder

START_SECONDS = 20.0
END_SECONDS = 10.0


class Hub:
    """A running redis-server, its client, and the ledger in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._socket = folder, folder / "redis.sock"
        self.url = f"unix://{self._socket}"
        self.client: redis.Redis = connect(self.url)
        self.ledger = Ledger(self.client)
        self.start()

    def start(self) -> None:
        """Start it, on the data that is there, and wait until it answers."""
        self._socket.unlink(missing_ok=True)
        command = [
            *("setpriv", "--pdeathsig", "KILL", "redis-server", "--port", "0", "--unixsocket", str(self._socket)),
            *("--dir", str(self.folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            *("--logfile", str(self.folder / "redis.log")),
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = (self.folder / "redis.log").read_text(errors="replace")
                raise RuntimeError(f"redis-server did not start: {log}")
            time.sleep(0.01)

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would."""
        self._process.kill()
        self._process.wait(END_SECONDS)

    def close(self) -> None:
        """End it for good."""
        self.client.close()
        self.kill()

    def _answers(self) -> bool:
        try:
            return self._socket.exists() and bool(self.client.ping())
        except redis.exceptions.RedisError:
            return False


@contextmanager
def open_hub() -> Iterator[Hub]:
    """A Redis with nothing in it, until the block ends."""
    with short_folder() as folder:
        hub = Hub(folder)
        try:
            yield hub
        finally:
            hub.close()


def context_of(hub: Hub, settings: Settings | None = None) -> Context:
    """The parts of a hub over this Redis; with the settings of one that knows no site, where none are given."""
    return Context(settings or Settings(), hub.ledger, Jobs(hub.client), broker.make_app(hub.url))


def a_node(name: str, site: str = "oslo", **fields: object) -> Node:
    """A node as it announces itself, with these fields other than usual."""
    known = {
        "name": name,
        "site": site,
        "host": name,
        "pid": 1,
        "started": 0.0,
        "processes": 4,
        "versions": {},
        "plugins": [],
        "draining": False,
        "active": 0,
        "round_trip": 0.002,
        "rate": 0.0,
        "tunnel": Tunnel(verdict="ok"),
    }
    return Node.model_validate(known | fields)


PLACES = ("todo", "sent", "claims", "later", "done", "failed")
"""Where a batch can be: in exactly one of these."""


def places(client: "redis.Redis", job: str) -> dict[int, list[str]]:
    """Each batch of the job's plan, and the places that hold it."""
    with client.pipeline() as pipe:
        pipe.hkeys(f"sendense:{job}:plan")
        for place in PLACES:
            key = f"sendense:{job}:{place}"
            if place in ("done", "failed"):
                pipe.hkeys(key)
            else:
                pipe.zrange(key, 0, -1)
        plan, *held = pipe.execute()
    found: dict[int, list[str]] = {int(batch): [] for batch in plan}
    for place, batches in zip(PLACES, held, strict=True):
        for batch in batches:
            found.setdefault(int(batch), []).append(place)
    return found


TIMED = frozenset({"sent", "claims", "later"})
"""The places whose batches are there for a time."""


def age(client: "redis.Redis", job: str, seconds: float, timed: Collection[str] = TIMED) -> None:
    """
    Have time pass for these places: what the ledger dates there happened, or is due, `seconds` earlier.

    The job's last sign of life goes with the sent batches.
    """
    for place in timed:
        key = f"sendense:{job}:{place}"
        for batch in cast(list[bytes], client.zrange(key, 0, -1)):
            client.zincrby(key, -seconds, batch)
    if "sent" in timed:
        client.hincrbyfloat(f"sendense:{job}:job", "active", -seconds)
