"""
A site's throttle: in Redis, over the processes of all its nodes; each takes the bytes that it reads from there.

Bytes are promised in chunks, one after the other at the limit's rate (scripts/throttle.lua), so processes take turns,
and one that is killed or stopped costs the others what it was promised last: a chunk. While Redis is away, each goes on
with its share of the limit that it knows.
"""

import time
from contextlib import suppress
from functools import cached_property
from importlib import resources
from typing import NamedTuple, cast

import redis
from redis.commands.core import Script

from sendense.errors import InputError
from sendense.jobs.claim import ClaimKeeper
from sendense.jobs.ledger import Ledger, LedgerUnavailable
from sendense.units import show_bytes

CHUNK_SECONDS = 0.25
"""Of a site's limit that its processes together are promised at a time, one request each at least."""

LOOK_SECONDS = 1.0
"""Until a process looks again what the limit is now, whether it waits, or reads as there is none."""

HELD_SECONDS = 5.0
"""A site at which nobody was told to wait for so long is not held back."""

STALE_SECONDS = 3.0
"""What was promised to a process that asked for nothing for so long is lost: the limit may be another by now."""

MEASURED_SECONDS = 10
"""The time over which a site's rate is measured."""

HELD_SHARE = 6
"""A batch may be held for this part of the time limit of its task; what is read of it by then is recorded."""

HEED_SECONDS = 0.6
"""Between two looks of a process that waits whether its job was stopped or paused."""


class Limit(NamedTuple):
    """A site's limit in force, 0 for none, whether it held somebody back lately, and what is read; bytes a second."""

    rate: int
    holds: bool
    measured: int


class Promise(NamedTuple):
    """What a process that asked was told: the limit, its name, who shares it, and bytes, in so many seconds."""

    rate: int
    since: str
    processes: int
    bytes: int
    wait: float


class Throttles:
    """The throttles of all sites."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client

    def put_in_force(self, site: str, rate: int) -> None:
        """Have the nodes of a site read so many bytes a second from now on; 0: no limit."""
        if rate:
            self._redis.sadd(_LIMITED, site)  # first, so that nobody overlooks it who lifts limits
        self._script(keys=[_key(site)], args=["set", rate])
        if not rate:
            self._redis.srem(_LIMITED, site)

    def limited(self) -> set[str]:
        """The sites that have a limit now."""
        return {site.decode() for site in cast(set[bytes], self._redis.smembers(_LIMITED))}

    def look(self, site: str) -> Limit:
        """A site's limit."""
        rate, held, read = cast(list[int], self._script(keys=[_key(site)], args=["look"]))
        return Limit(rate, bool(rate) and held < HELD_SECONDS * 1e6, read // MEASURED_SECONDS)

    def ask(self, site: str, process: str, read: int, needed: int, useful: int, since: str, patience: float) -> Promise:
        """See the script's text."""
        args: list[str | int | float] = ["ask", process, read, needed, useful, CHUNK_SECONDS, since, patience]
        rate, named, processes, promised, wait = self._script(keys=[_key(site)], args=args)
        return Promise(int(rate), named.decode(), int(processes), int(promised), wait / 1e6)

    @cached_property
    def _script(self) -> Script:
        return self._redis.register_script((resources.files("sendense.jobs") / "scripts" / "throttle.lua").read_text())


class SiteThrottle:
    """What one process may read at one site; kept from batch to batch, as what was promised is."""

    def __init__(self, ledger: Ledger, site: str, process: str) -> None:
        """`ledger` over a client that does not try again; `process`: WORKER/PID."""
        self.ledger, self.site, self._process = ledger, site, process
        self._throttles = Throttles(ledger.client)
        self.rate = 0
        """Bytes a second of all processes together, as they were last told; 0: no limit."""
        self._processes, self._since = 1, ""
        self._left = 0
        """Bytes that may be read now."""
        self._promised, self._due = 0, 0.0
        """Bytes that may be read from then on (monotonic clock), under the limit named `_since`."""
        self._refused = False
        """Whether nothing was promised, as it would have been later than is any use."""
        self._had, self._had_at = 0, 0.0
        """The last chunk, and since when it could be read."""
        self._read = 0
        """Bytes that were read and not yet told of."""
        self._looked, self._away_until = -LOOK_SECONDS, 0.0

    def take(self, length: int, patience: float) -> float:
        """
        Take so many bytes: 0 when they may be read now; otherwise none are taken, and it is seconds until to ask again.

        Nothing is promised that is due in more than `patience` seconds: it would be lost, and to the others as well.
        """
        while True:
            now = time.monotonic()
            if now - self._looked > STALE_SECONDS:
                self._left = self._promised = 0
            if self._promised and now >= self._due:
                self._had, self._had_at = self._promised, self._due
                self._left, self._promised = self._left + self._promised, 0
            overdue = now - self._looked > LOOK_SECONDS
            if (not overdue and not self.rate) or self._left >= length:
                self._left = max(0, self._left - length)
                self._read += length
                return 0.0
            if not overdue and (self._promised or self._refused):
                look = self._looked + LOOK_SECONDS - now + 0.001
                return min(self._due - now, look) if self._promised else look
            self._ask(length - self._left, now, patience)

    def _ask(self, needed: int, now: float, patience: float) -> None:
        """Ask for more, or whether the limit is still the one of the promise that this process waits for."""
        self._looked, self._refused = now, False
        if now < self._away_until:
            self._promise_ourselves(needed)
            return
        since = self._since if self._promised else ""
        try:
            useful = self._useful(now)
            found = self._throttles.ask(self.site, self._process, self._read, needed, useful, since, patience)
        except (*LedgerUnavailable, InputError):
            self._looked = time.monotonic()  # its silence may have lasted for seconds, and must not again at once
            self._away_until = self._looked + LOOK_SECONDS
            self._promise_ourselves(needed)
            return
        self._read = 0
        if found.since != self._since or not found.rate:
            self._left = self._promised = 0
        self.rate, self._since, self._processes = found.rate, found.since, found.processes
        if found.bytes:
            self._promised, self._due = found.bytes, now + found.wait
        self._refused = bool(self.rate) and not self._promised

    def _useful(self, now: float) -> int:
        """Twice what this process reads in the time of a chunk: a slow one leaves the rest to others."""
        return int(2 * CHUNK_SECONDS * self._had / max(1e-3, now - self._had_at))

    def _promise_ourselves(self, needed: int) -> None:
        """While Redis is away: this process's share, as far as it is known."""
        if self.rate and not self._promised:
            share = self.rate / self._processes
            self._promised = max(needed, int(share * CHUNK_SECONDS))
            self._due = max(self._due, self._looked - CHUNK_SECONDS) + self._had / share


class Allowance:
    """What one batch may read at its site, until it was held for long, or its job is to rest."""

    def __init__(self, throttle: SiteThrottle, keeper: ClaimKeeper, job: str, time_limit: float) -> None:
        """`time_limit`: seconds that the task of the batch may take."""
        self._throttle, self._keeper, self._job = throttle, keeper, job
        self._until = time.monotonic() + time_limit / HELD_SHARE
        self._heeded = 0.0
        self.why = ""
        """Why no more is read of the batch; empty for as long as there may be."""

    def take(self, length: int) -> float | None:
        """See `nbd.transfer.Take`. ClaimLost when the batch is not ours any more, or its job was stopped."""
        wait = self._throttle.take(length, max(0.0, self._until - time.monotonic()))
        if not wait:
            return 0.0
        now = time.monotonic()
        if now - self._heeded > HEED_SECONDS:
            self._heeded = now
            self._keeper.heed()
            with suppress(*LedgerUnavailable, InputError):
                if self._throttle.ledger.is_paused(self._job):
                    self.why = "its job is paused"
        if now > self._until:
            self.why = held_text(self._throttle.rate, self._throttle.site)
        return None if self.why else min(wait, HEED_SECONDS)


def held_text(rate: int, site: str) -> str:
    """What a job that is held back waits for."""
    return f"held to {show_bytes(rate)}/s by the throttle of site {site}"


_LIMITED = "sendense:throttles"


def _key(site: str) -> str:
    return f"sendense:throttle:{site}"
