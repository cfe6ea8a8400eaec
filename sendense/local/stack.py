"""The children of one local copy, and their supervision: whatever ends or stops is named, ended, and started again."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from sendense.errors import EndpointError, JobFailed
from sendense.jobs import presence
from sendense.jobs.ledger import LedgerUnavailable, connect
from sendense.jobs.queues import HUB_QUEUE, site_queue
from sendense.local.child import Child
from sendense.local.state import StateFolder
from sendense.nbd.connect import connect as connect_nbd
from sendense.nbd.uri import parse, unix_uri

SITE = "local"

START_SECONDS = 30.0
"""A child that is not of use after this long never will be: all of them need well under two."""

MOST_STARTS = 20
"""Starts of one child within a copy before its ending counts as the copy's failure."""

END_SECONDS = 1.5
"""Time for Redis or a server to end by itself: together they stay within the five seconds of Ctrl-C."""

PRESENCE_GRACE_SECONDS = 20.0
"""A worker that was started this long ago has to be present."""


class Stack:
    """Redis, the worker and the servers of one copy."""

    def __init__(self, folder: StateFolder) -> None:
        self._folder = folder
        self.note: Callable[[str], None] = lambda text: None
        """Is told what was started again, and why."""
        self.redis_url = f"unix://{quote(str(folder.socket('redis')))}"
        self.client = connect(self.redis_url, retries=1)
        self.processes = 1
        """Worker processes that a worker is started with from now on."""
        self._servers: dict[str, tuple[Child, Callable[[], None]]] = {}
        self._name = f"copy-{os.getpid()}"
        self._redis = Child("redis", _redis_command(folder), folder.log("redis"))
        environment = {"SENDENSE_REDIS": self.redis_url, "SENDENSE_WORKER": self._name}
        self._worker = Child("worker", [], folder.log("worker"), environment)
        self._worker_began = 0.0

    def start(self) -> None:
        """Start Redis and the worker; both are of use a moment later."""
        self._start_redis()
        self._start_worker()

    def await_redis(self) -> None:
        """Wait until Redis has read its file."""
        wait_until(self._redis_answers, self._redis)

    def _start_redis(self) -> None:
        self._folder.socket("redis").unlink(missing_ok=True)
        self._redis.start()

    def _restart_redis(self) -> None:
        self._start_redis()
        self.await_redis()

    def _start_worker(self) -> None:
        self._worker.argv = _worker_command(self._name, self.processes)
        self._worker.start()
        self._worker_began = time.monotonic()

    def serve(
        self, name: str, command: Callable[[Path, str], list[str]], before: Callable[[], None] = lambda: None
    ) -> str:
        """Start a server, and keep it up; `before` runs ahead of each start. Returns its URI."""
        socket = self._folder.socket(name)
        export = f"{name}-{os.urandom(8).hex()}"
        child = Child(name, command(socket, export), self._folder.log(name))
        uri = unix_uri(str(socket), export)

        def start() -> None:
            before()
            socket.unlink(missing_ok=True)
            child.start()
            wait_until(lambda: _answers(uri), child)

        start()
        self._servers[uri] = (child, start)
        return uri

    def end_server(self, uri: str) -> None:
        """End a server in good order, so that its image can be used by others."""
        child, _ = self._servers.pop(uri)
        child.end(START_SECONDS)

    def end_worker(self) -> None:
        """End the worker at once: what counts is in the ledger."""
        self._worker.kill()

    def supervise(self) -> None:
        """Start again whatever ended, and a worker whose main process stopped."""
        if not self._redis.is_running():
            self._restart(self._redis, self._restart_redis)
        for child, start in self._servers.values():
            if not child.is_running():
                self._restart(child, start)
        if not self._worker.is_running():
            self._restart(self._worker, self._start_worker)
        elif time.monotonic() - self._worker_began > PRESENCE_GRACE_SECONDS:
            if not presence.is_present(self.client, self._name):
                self.note("the worker stopped: killing it and starting another")
                self.restart_worker()

    def restart_worker(self) -> None:
        """Kill the worker with all its processes, and start another."""
        self._worker.kill()
        self._restart(self._worker, self._start_worker)

    def restart_redis(self) -> None:
        """For a Redis that does not answer."""
        self.note("redis stopped answering: killing it and starting it again")
        self._redis.kill()
        self._restart(self._redis, self._restart_redis)

    def look_at_server(self, uri: str) -> None:
        """Kill a server of this stack that does not answer; `supervise` starts it again. Others' are left alone."""
        if uri not in self._servers:
            return
        child, _ = self._servers[uri]
        if child.is_running() and not _answers(uri):
            self.note(f"the {child.name} server stopped answering: killing it")
            child.kill()

    def claim_lapsed(self, owner: str) -> None:
        """Kill the worker process that let its claim lapse: it is stopped, or stuck where Python cannot wake it."""
        pid = int(owner.split("/")[1])
        if self._worker.kill_own_child(pid):
            self.note(f"worker process {pid} stopped: killed, its batch is copied again")

    def close(self) -> None:
        """End every child."""
        self._worker.kill()
        children = [child for child, _ in self._servers.values()]
        if self._folder.is_unfinished:
            children.append(self._redis)
        else:
            self._redis.kill()  # there is nothing that it would have to keep
        for child in children:
            child.ask_to_end()
        for child in children:
            child.end(END_SECONDS)

    def _restart(self, child: Child, start: Callable[[], None]) -> None:
        if child.starts >= MOST_STARTS:
            raise JobFailed(
                f"the {child.name} ended {child.starts} times, the last time with: {child.last_words()}",
                f"Its log: {child.log}",
            )
        if child.starts:
            self.note(f"{child.name} ended: starting it again")
        start()

    def _redis_answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except LedgerUnavailable:
            return False


def wait_until(ready: Callable[[], bool], child: Child) -> None:
    """Wait until a child is of use; JobFailed, with the end of its log, when it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if not child.is_running():
            raise JobFailed(f"the {child.name} ended at once: {child.last_words()}", f"Its log: {child.log}")
        if time.monotonic() > deadline:
            child.kill()
            raise JobFailed(f"the {child.name} was not up within {START_SECONDS:.0f} s", f"Its log: {child.log}")
        time.sleep(0.005)


def _answers(uri: str) -> bool:
    try:
        connect_nbd(parse(uri), 1.0).close()
    except EndpointError:
        return False
    return True


def _redis_command(folder: StateFolder) -> list[str]:
    return [
        *("redis-server", "--port", "0", "--unixsocket", str(folder.socket("redis")), "--unixsocketperm", "700"),
        *("--dir", str(folder.path), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        *("--maxmemory-policy", "noeviction", "--loglevel", "warning", "--daemonize", "no"),
    ]


def _worker_command(name: str, processes: int) -> list[str]:
    return [sys.executable, "-m", "workers", name, str(processes), f"{HUB_QUEUE},{site_queue(SITE)}"]
