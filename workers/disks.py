"""The disks of VMs that one process has open, each with its slot among the site's connections."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sendense.errors import ConnectionsTaken, InputError
from sendense.jobs.ledger import LedgerUnavailable
from sendense.jobs.slots import Slot, Slots
from sendense.models import DiskSource
from sendense.nbd.connect import Beat, Connection
from sendense.settings import Settings
from workers.source import OpenDisk, open_disk

SLOT_MARGIN_SECONDS = 4.0
"""A slot lasts for so much longer than a claim. The process that let both lapse was killed meanwhile (a tick of two
seconds, and a look of its supervisor), and its nbdkit with it."""

UNKEPT_SECONDS = 4.0
"""A disk whose slot could not be kept for so long is closed: with the longest call to a Redis that does not answer,
that is before anybody else can have the slot."""

PARK_SECONDS = 1.0
"""A process waits for a slot for so long, then takes other work: so few batches go round while there is none."""

LOOK_SECONDS = 0.1
"""Between two looks meanwhile."""

TURN_SECONDS = 10.0
"""A busy process has a disk for so long before it makes way for others: opening one takes a second or two."""


@dataclass(slots=True)
class _Held:
    """A slot, since when (monotonic clock), and the disk once it is open."""

    slot: Slot
    taken: float
    kept: float
    source: DiskSource
    disk: OpenDisk | None = None
    lost: bool = False
    """The slot may be another's: what is read from now on does not count."""

    def end(self) -> None:
        """End nbdkit at once, under whatever the process is doing with it."""
        self.lost = True
        if self.disk:
            self.disk.server.kill()

    def is_overdue(self) -> bool:
        return self.lost or time.monotonic() - self.kept > UNKEPT_SECONDS


class Disks:
    """
    One process's open disks, by job.

    All is called while the process holds its handles, but for `keep` and `end_overdue`, which a thread calls all the
    time, and for `close` of a job that no task uses, under the lock `closing`. `watch` are that thread's slots, over a
    client that does not try again.
    """

    def __init__(self, slots: Slots, watch: Slots, settings: Settings, process: str, closing: threading.Lock) -> None:
        self._slots, self._watch, self._settings, self._process = slots, watch, settings, process
        self._closing = closing
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()
        """A slot is not kept while it is given back: that would take it again."""

    def open(self, job: str, source: DiskSource, usable: Callable[[Connection], bool], beat: Beat) -> Connection:
        """The job's connection to its disk, opened if need be; ConnectionsTaken when the site has no slot for it."""
        held = self._held.get(job)
        if held and held.disk and held.source == source and usable(held.disk.connection) and not held.is_overdue():
            self._held[job] = self._held.pop(job)  # the last one used is the last in order
            return held.disk.connection
        self.close(job)
        site = self._settings.sites.get(source.site)
        if not site:
            raise InputError(f"site {source.site}: not in this machine's settings", "Add [sites.NAME] there.")
        slot = Slot(source.site, source.host, site.connections, site.host_connections, self._process, job)
        began = self._take(slot, beat)
        held = self._held[job] = _Held(slot, taken=began, kept=began, source=source)

        def watched() -> None:
            beat()
            if held.lost:
                raise _taken(slot)

        try:
            held.disk = open_disk(site, source, watched)
            watched()
        except BaseException:
            self.close(job)
            raise
        return held.disk.connection

    def close(self, job: str, *, watch: bool = False) -> None:
        """Hang up, end nbdkit, and only then give the slot back; `watch` for the thread, which has others to keep."""
        held = self._held.get(job)
        if not held:
            return
        if held.disk:
            held.disk.close()
        with self._lock, suppress(*LedgerUnavailable):  # then it lapses
            if self._held.pop(job, None):  # else it was closed meanwhile
                (self._watch if watch else self._slots).give_back(held.slot)

    def words(self, job: str) -> str:
        """What the job's nbdkit said last."""
        held = self._held.get(job)
        return held.disk.words() if held and held.disk else ""

    def lost(self, job: str) -> ConnectionsTaken | None:
        """What has to be said of a job whose disk was closed under it because its slot was lost."""
        held = self._held.get(job)
        return _taken(held.slot) if held and held.lost else None

    def make_way(self, *, idle: bool) -> None:
        """Close the disks that others wait for: at once those of an idle process, and after a turn those of a busy."""
        for job, held in list(self._held.items()):
            turn_is_over = idle or time.monotonic() - held.taken > TURN_SECONDS
            if held.lost or (turn_is_over and self._slots.should_yield(held.slot, idle=idle)):
                self.close(job)

    def keep(self) -> None:
        """Keep all slots, and end the disks of those that others have by now."""
        for job, held in list(self._held.items()):
            began = time.monotonic()
            with self._lock:
                if held.lost or self._held.get(job) is not held:
                    continue
                kept = self._watch.keep(held.slot)
            if kept:
                held.kept = began
            else:
                held.end()

    def end_overdue(self) -> None:
        """End the disks whose slots could not be kept, and may be others' soon."""
        for held in list(self._held.values()):
            if held.is_overdue():
                held.end()

    def _take(self, slot: Slot, beat: Beat) -> float:
        """Take a slot, instead of another one of this process if need be; returns when that was asked for."""
        deadline = time.monotonic() + PARK_SECONDS
        while True:
            began = time.monotonic()
            try:
                self._slots.take(slot)
                return began
            except ConnectionsTaken as exc:
                idle = (job for job, held in list(self._held.items()) if _counts(held.slot, exc))
                if job := next(idle, None):
                    with locked(self._closing, beat):
                        self.close(job)
                elif began > deadline:
                    raise
                else:
                    beat()
                    time.sleep(LOOK_SECONDS)


@contextmanager
def locked(lock: threading.Lock, beat: Beat) -> Iterator[None]:
    """Have a lock that others have for seconds at most."""
    while not lock.acquire(timeout=LOOK_SECONDS):
        beat()
    try:
        yield
    finally:
        lock.release()


def _counts(slot: Slot, taken: ConnectionsTaken) -> bool:
    """Whether a slot is one of those that are all taken."""
    return slot.site == taken.site and taken.host in ("", slot.host)


def _taken(slot: Slot) -> ConnectionsTaken:
    return ConnectionsTaken(slot.site, "", slot.connections)
