"""A worker process's open connections."""

import os
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field

from sendense.errors import ConnectionsTaken, ExportGone, InputError, NoSuchExport
from sendense.exports import reach
from sendense.jobs.ledger import Ledger, LedgerUnavailable
from sendense.jobs.slots import Slots
from sendense.jobs.throttle import SiteThrottle
from sendense.models import JobSpec
from sendense.nbd.connect import Beat, Connection, connect
from sendense.nbd.uri import parse
from sendense.settings import Settings
from workers.disks import SLOT_MARGIN_SECONDS, Disks, locked

MOST_JOBS = 4
"""Disks that a process keeps open: a VM's, when its batches take turns."""

TIDY_SECONDS = 0.5
"""Between two looks whether a job that connections are open for has ended."""

HOLD_SECONDS = 8.0
"""A process that said nothing for so long holds no connections: it is gone, or about to be killed."""


@dataclass(slots=True)
class _Open:
    """The connections of one job to NBD servers, by URI."""

    links: dict[str, Connection] = field(default_factory=dict)

    def close(self) -> None:
        for connection in self.links.values():
            connection.close()


class Handles:
    """
    Connections of one process, opened after the fork, kept between the batches of a job until that is closed.

    A broken connection or a fork drops them: a handle is never shared, and never outlives its doubt. A thread closes
    those of ended jobs, also under a task that is at another job, and those that others wait for while the process has
    nothing to do; the ledger knows meanwhile who has which job's open. `watch` is the thread's ledger, over a client
    that does not try again.
    """

    def __init__(self, ledger: Ledger, watch: Ledger, settings: Settings, worker: str) -> None:
        self._ledger, self._watch, self._settings, self._worker = ledger, watch, settings, worker
        self._pid = 0
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._throttles: dict[str, SiteThrottle] = {}
        self._using = ""
        """The job whose connections the task under way uses, or the last one used: the thread leaves them alone."""
        self._closing = threading.Lock()
        """Held by whoever closes what is not the task's own, and while `_using` changes."""
        self._disks = self._no_disks()
        self.busy = threading.Lock()
        """Held while a task uses the connections."""

    def source(self, spec: JobSpec, beat: Beat) -> Connection:
        """The job's connection to its source: an NBD server, or a VM's disk through an nbdkit of this process."""
        if not spec.disk:
            return self._link(spec, spec.source, beat)
        self._job(spec, beat)
        return self._disks.open(spec.of or spec.id, spec.disk, _usable, beat)

    def target(self, spec: JobSpec, beat: Beat) -> Connection:
        """The job's connection to its target."""
        return self._link(spec, spec.target, beat)

    def throttle(self, spec: JobSpec) -> SiteThrottle | None:
        """What this process may read at the site that a VM's disk is at; None for any other source."""
        if not spec.disk:
            return None
        site = spec.disk.site
        if site not in self._throttles:
            self._throttles[site] = SiteThrottle(self._watch, site, self._me)
        return self._throttles[site]

    def words(self, spec: JobSpec) -> str:
        """What the job's own nbdkit said last."""
        return self._disks.words(spec.of or spec.id)

    def lost(self, spec: JobSpec) -> ConnectionsTaken | None:
        """What to say of a disk that was closed while it was used, as its slot was lost; None where it was not."""
        return self._disks.lost(spec.of or spec.id)

    def drop(self, spec: JobSpec) -> None:
        """Close the job's connections."""
        self._close(spec.of or spec.id, self._ledger)

    def tidy(self) -> None:
        """After a task: close the connections of jobs that need them no more, and those that others wait for."""
        with self._closing:
            self._tidy(self._ledger, idle=False)

    def _tidy(self, ledger: Ledger, *, idle: bool) -> None:
        for name in [name for name in self._open if ledger.is_closed(name)]:
            self._close(name, ledger)
        self._disks.make_way(idle=idle)

    def _tidy_beside(self) -> None:
        """Close an ended job's connections under a task of another; one at a time, as the task's slot is to be kept."""
        ended = (name for name in list(self._open) if name != self._using and self._watch.is_closed(name))
        if name := next(ended, None):
            self._close(name, self._watch)

    def _link(self, spec: JobSpec, uri: str, beat: Beat) -> Connection:
        links = self._job(spec, beat).links
        found = links.get(uri)
        if found and not _usable(found):
            found.close()
            found = None
        if not found:
            try:
                found = links[uri] = connect(parse(reach(uri, self._settings)), self._settings.connect_timeout, beat)
            except NoSuchExport as exc:
                if spec.part_of and not spec.solo:  # of the hub, which puts it back when its daemon was started again
                    raise ExportGone(exc.uri, exc.detail, exc.state) from exc
                raise
        return found

    def _job(self, spec: JobSpec, beat: Beat) -> _Open:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._open.clear()
            self._throttles.clear()
            self._disks = self._no_disks()
            threading.Thread(target=self._keep_tidy, name="handles", daemon=True).start()
        name = spec.of or spec.id
        with locked(self._closing, beat):
            self._using = name
            job = self._open.setdefault(name, _Open())
            self._open.move_to_end(name)
            self._ledger.hold(name, self._me, HOLD_SECONDS)
            while len(self._open) > MOST_JOBS:
                self._close(next(iter(self._open)), self._ledger)
        return job

    def _close(self, name: str, ledger: Ledger) -> None:
        if job := self._open.pop(name, None):
            job.close()
            self._disks.close(name, watch=ledger is self._watch)
            with suppress(*LedgerUnavailable):
                ledger.let_go(name, self._me)

    def _keep_tidy(self) -> None:
        hopes = (*LedgerUnavailable, InputError)  # also a wrong password, which somebody may correct
        while True:
            time.sleep(TIDY_SECONDS)
            with suppress(*hopes):
                self._disks.keep()
            self._disks.end_overdue()
            with suppress(*hopes):
                for name in list(self._open):
                    self._watch.hold(name, self._me, HOLD_SECONDS)
                if self.busy.acquire(blocking=False):
                    try:
                        self._tidy(self._watch, idle=True)
                    finally:
                        self.busy.release()
                elif self._closing.acquire(blocking=False):
                    try:
                        self._tidy_beside()
                    finally:
                        self._closing.release()
            self._disks.end_overdue()

    def _no_disks(self) -> Disks:
        seconds = self._settings.claim_seconds + SLOT_MARGIN_SECONDS
        slots, watch = (Slots(ledger.client, seconds) for ledger in (self._ledger, self._watch))
        return Disks(slots, watch, self._settings, self._me, self._closing)

    @property
    def _me(self) -> str:
        return f"{self._worker}/{self._pid}"


def _usable(connection: Connection) -> bool:
    return not connection.broken and connection.handle.aio_is_ready()
