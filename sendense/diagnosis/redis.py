"""The hub's Redis: reached, let in, and set up so that nothing that counts gets lost."""

import socket
import time
from functools import cached_property
from typing import Any
from urllib.parse import unquote, urlsplit

from sendense.coordinator.context import Context
from sendense.coordinator.record import Jobs
from sendense.diagnosis.finding import Trouble
from sendense.diagnosis.machine import compare_clocks
from sendense.diagnosis.walk import REDIS_FIX
from sendense.jobs import broker
from sendense.jobs.access import redis_url
from sendense.jobs.ledger import Ledger, connect
from sendense.settings import Settings
from sendense.units import show_bytes

CONNECT_SECONDS = 5.0
"""For the way to Redis: a tunnel around the world takes well under one."""

PINGS = 5
"""Of which the quickest counts: one may meet a busy moment."""

SLOW_SECONDS = 0.2
"""A round trip that holds work up: each batch takes a handful of them."""

LEAST_VERSION = (7, 0)

FULL_SHARE = 0.8
"""Of the memory that it may take, or that the machine has."""


class RedisLooks:
    """Looks at the Redis of these settings, which may be away, silent, or another one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.url = redis_url(settings)

    @cached_property
    def client(self) -> Any:
        """Its calls give up soon."""
        return connect(self.url, retries=0, settings=self._settings)

    @cached_property
    def context(self) -> Context:
        """The records that are in it."""
        return Context(self._settings, Ledger(self.client), Jobs(self.client), broker.make_app(self.url))

    def reach(self) -> str:
        """Somebody listens there."""
        try:
            self._connect().close()
        except TimeoutError as exc:
            fix = "Look at the route, the firewall and the tunnel: systemctl status sendense-tunnel"
            raise Trouble("redis-unreachable", f"{self.url}: no answer in {CONNECT_SECONDS:.0f} s", fix) from exc
        except OSError as exc:
            fix = "Start it ('sendense hub' has one of its own), correct 'redis' in the settings, or start the tunnel."
            raise Trouble("redis-away", f"{self.url}: {exc.strerror or exc}", fix) from exc
        return self.url

    def answer(self) -> str:
        """It lets us in, and answers soon."""
        try:
            quickest = min(self._ping() for _ in range(PINGS))
        except broker.Unavailable as exc:
            fix = f"{REDIS_FIX} Through a tunnel: is Redis up at the hub?"
            raise Trouble("redis-silent", f"{self.url}: connected, and no answer: {exc}", fix) from exc
        said = f"answers in {quickest * 1000:.1f} ms"
        if quickest > SLOW_SECONDS:
            fix = "Look at the way to it and at its machine: each batch waits for it a few times."
            raise Trouble("redis-slow", said, fix, "warning")
        return said

    def data(self) -> str:
        """It keeps what it is told: its file, its memory, its version."""
        told = self.client.info()
        version = str(told["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < LEAST_VERSION:
            raise Trouble("redis-old", f"Redis {version}", "Install Redis 7.0 or later.")
        if told.get("loading"):
            raise Trouble("redis-loading", "reads its file", "Wait; its log says how far it is.", "warning")
        if not told.get("aof_enabled"):
            raise Trouble("redis-volatile", "keeps no append-only file: a restart forgets jobs", "Set: appendonly yes")
        if told.get("aof_last_write_status", "ok") != "ok":
            raise Trouble("redis-disk", "cannot write its append-only file", "Make room on its disk; see its log.")
        if (policy := told.get("maxmemory_policy", "noeviction")) != "noeviction":
            raise Trouble("redis-evicts", f"maxmemory-policy is {policy}", "Set: maxmemory-policy noeviction")
        used, most = int(told["used_memory"]), int(told.get("maxmemory") or told.get("total_system_memory") or 0)
        said = f"Redis {version}, append-only file, {show_bytes(used)} used"
        if most and used > FULL_SHARE * most:
            fix = "Give it more memory (maxmemory), or end jobs that nobody needs: sendense jobs"
            raise Trouble("redis-full", f"{said} of {show_bytes(most)}", fix)
        return said

    def clock(self) -> str:
        """Records have its time, and certificates and schedules this machine's."""
        began = time.time()
        theirs = self.context.jobs.clock()
        return compare_clocks(theirs, (began + time.time()) / 2, "Redis", within=time.time() - began)

    def _ping(self) -> float:
        began = time.monotonic()
        self.client.ping()
        return time.monotonic() - began

    def _connect(self) -> socket.socket:
        if self.url.startswith("unix:"):
            found = socket.socket(socket.AF_UNIX)
            found.settimeout(CONNECT_SECONDS)
            try:
                found.connect(unquote(self.url.removeprefix("unix://")))
            except BaseException:
                found.close()
                raise
            return found
        parts = urlsplit(self.url)
        return socket.create_connection((parts.hostname or "", parts.port or 6379), CONNECT_SECONDS)
