"""The children of one local copy, and their supervision: whatever ends or stops is named, ended, and started again."""

import math
import os
from collections.abc import Callable
from pathlib import Path

from sendense.errors import EndpointError
from sendense.jobs.queues import HUB_QUEUE, site_queue
from sendense.local.state import StateFolder
from sendense.nbd.connect import connect as connect_nbd
from sendense.nbd.uri import parse, unix_uri
from sendense.supervise.child import START_SECONDS, Child
from sendense.supervise.redis import PrivateRedis
from sendense.supervise.service import Budget, Note, Service
from sendense.supervise.worker import Worker

SITE = "local"

END_SECONDS = 1.5
"""Time for Redis or a server to end by itself: together they stay within the five seconds of Ctrl-C."""


class Stack:
    """Redis, the worker and the servers of one copy."""

    def __init__(self, folder: StateFolder) -> None:
        self._folder = folder
        self.note: Note = lambda text: None
        """Is told what was started again, and why."""
        self._redis = PrivateRedis(folder.path, self._tell, _budget())
        queues = (HUB_QUEUE, site_queue(SITE))
        self._worker = Worker(f"copy-{os.getpid()}", self._redis, queues, folder.log("worker"), self._tell, _budget())
        self._servers: dict[str, _Server] = {}
        self.redis_url, self.client = self._redis.url, self._redis.client

    @property
    def processes(self) -> int:
        """Worker processes that a worker is started with from now on."""
        return self._worker.processes

    @processes.setter
    def processes(self, number: int) -> None:
        self._worker.processes = number

    def start(self) -> None:
        """Start Redis and the worker; both are of use a moment later."""
        self._redis.start()
        self._worker.start()

    def await_redis(self) -> None:
        """Wait until Redis has read its file."""
        self._redis.wait()

    def serve(
        self, name: str, command: Callable[[Path, str], list[str]], before: Callable[[], None] = lambda: None
    ) -> str:
        """Start a server, and keep it up; `before` runs ahead of each start. Returns its URI."""
        socket = self._folder.socket(name)
        export = f"{name}-{os.urandom(8).hex()}"
        child = Child(name, command(socket, export), self._folder.log(name))
        server = _Server(child, socket, export, before, self._tell)
        server.start()
        server.wait()
        self._servers[server.uri] = server
        return server.uri

    def end_server(self, uri: str) -> None:
        """End a server in good order, so that its image can be used by others."""
        self._servers.pop(uri).child.end(START_SECONDS)

    def end_worker(self) -> None:
        """End the worker at once: what counts is in the ledger."""
        self._worker.child.kill()

    def supervise(self) -> None:
        """Start again whatever ended, and a worker whose main process stopped."""
        for service in (self._redis, *self._servers.values(), self._worker):
            service.supervise()

    def restart_worker(self) -> None:
        """Kill the worker with all its processes, and start another."""
        self._worker.restart()

    def missed_redis(self, exc: Exception) -> None:
        """For a Redis that does not do what it is asked: the worker could not say that it lives either."""
        self._redis.missed(exc)
        self._worker.excuse()

    def look_at_server(self, uri: str) -> None:
        """Kill a server of this stack that does not answer; `supervise` starts it again. Others' are left alone."""
        if uri in self._servers:
            self._servers[uri].look()

    def claim_lapsed(self, owner: str) -> None:
        """Kill the worker process that let its claim lapse: it is stopped, or stuck where Python cannot wake it."""
        self._worker.claim_lapsed(owner)

    def close(self) -> None:
        """End every child."""
        self._worker.child.kill()
        children = [server.child for server in self._servers.values()]
        if self._folder.is_unfinished:
            children.append(self._redis.child)
        else:
            self._redis.child.kill()  # there is nothing that it would have to keep
        for child in children:
            child.ask_to_end()
        for child in children:
            child.end(END_SECONDS)

    def _tell(self, text: str) -> None:
        self.note(text)


class _Server(Service):
    """An NBD server of one local image."""

    def __init__(self, child: Child, socket: Path, export: str, before: Callable[[], None], note: Note) -> None:
        super().__init__(child, note, _budget())
        self._socket, self._before = socket, before
        self.uri = unix_uri(str(socket), export)

    def prepare(self) -> None:
        self._before()
        self._socket.unlink(missing_ok=True)

    def is_ready(self) -> bool:
        try:
            connect_nbd(parse(self.uri), 1.0).close()
        except EndpointError:
            return False
        return True

    def look(self) -> None:
        """Kill it if it does not answer."""
        if self.child.is_running() and not self.is_ready():
            self.note(f"the {self.child.name} server stopped answering: killing it")
            self.child.kill()


def _budget() -> Budget:
    """For as long as the copy lasts."""
    return Budget(seconds=math.inf)
