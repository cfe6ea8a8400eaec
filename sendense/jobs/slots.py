"""
How many disks of a VMware site are open at once: a counting semaphore in Redis, over the processes of all nodes.

vCenter, and each ESXi host, serve so many disks and no more. Whoever opens one takes a slot of both first, and gives it
back when the disk's server has ended. A slot lapses unless it is kept, so those of killed processes come back.

Nobody starves: a job without any slot wishes for one, wishes are served in their order ahead of jobs that have some,
and holders are told to close their disks for them (scripts/slots.lua).
"""

from functools import cached_property
from importlib import resources
from typing import NamedTuple

import redis
from redis.commands.core import Script

from sendense.errors import ConnectionsTaken

WISH_SECONDS = 15.0
"""A wish that was not repeated for so long is forgotten: a batch that was given back is asked for again within five."""


class Slot(NamedTuple):
    """The right of a process to have a job's disk open. `process`: WORKER/PID; `host` may be unknown, and empty."""

    site: str
    host: str
    connections: int
    host_connections: int
    process: str
    job: str


class Slots:
    """The slots of all sites, each good for `seconds` at a time."""

    def __init__(self, client: "redis.Redis", seconds: float) -> None:
        self._redis, self._seconds = client, seconds

    def take(self, slot: Slot) -> None:
        """Take a slot, for the first time or again; ConnectionsTaken when there is none, or others wait for it."""
        full = self._run("take", slot)
        if full:
            host, limit = ("", slot.connections) if full == 1 else (slot.host, slot.host_connections)
            raise ConnectionsTaken(slot.site, host, limit)

    def keep(self, slot: Slot) -> bool:
        """Keep a slot that was taken; False when it lapsed and is another's: the disk may not be used any more."""
        return self._run("keep", slot) == 0

    def should_yield(self, slot: Slot, *, idle: bool) -> bool:
        """
        Whether the holder has to close its disk, and give the slot back, for others that wait for one.

        An idle holder does so for anybody, also another process at the same job; a busy one for jobs that have none.
        """
        return self._run("spare" if idle else "yield", slot) == 1

    def give_back(self, slot: Slot) -> None:
        """The disk is closed."""
        self._run("leave", slot)

    def _run(self, act: str, slot: Slot) -> int:
        keys, limits = [f"sendense:slots:{slot.site}"], [slot.connections]
        if slot.host:
            keys.append(f"sendense:slots:{slot.site}:{slot.host}")
            limits.append(slot.host_connections)
        holder = f"{slot.process}/{slot.job}"
        return int(self._script(keys=keys, args=[act, holder, slot.job, self._seconds, WISH_SECONDS, *limits]))

    @cached_property
    def _script(self) -> Script:
        return self._redis.register_script((resources.files("sendense.jobs") / "scripts" / "slots.lua").read_text())
