"""A worker process's open connections, and the nbdkits behind them."""

import os
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field

from sendense.errors import ExportGone, InputError, NoSuchExport
from sendense.jobs.ledger import Ledger, LedgerUnavailable
from sendense.models import JobSpec
from sendense.nbd.connect import Beat, Connection, connect
from sendense.nbd.uri import parse
from sendense.settings import Settings
from workers.source import OpenDisk, open_disk

MOST_JOBS = 4
"""Disks that a process keeps open: a VM's, when its batches take turns."""

TIDY_SECONDS = 0.5
"""Between two looks whether a job that connections are open for has ended."""

HOLD_SECONDS = 8.0
"""A process that said nothing for so long holds no connections: it is gone, or about to be killed."""


@dataclass(slots=True)
class _Open:
    """The connections of one job, by URI, and its disk."""

    links: dict[str, Connection] = field(default_factory=dict)
    disk: OpenDisk | None = None

    def close(self) -> None:
        for connection in self.links.values():
            connection.close()
        if self.disk:
            self.disk.close()


class Handles:
    """
    Connections of one process, opened after the fork, kept between the batches of a job until that is closed.

    A broken connection or a fork drops them: a handle is never shared, and never outlives its doubt. A thread closes
    those of ended jobs while the process has nothing to do; the ledger knows meanwhile who has which job's open.
    """

    def __init__(self, ledger: Ledger, settings: Settings, worker: str) -> None:
        self._ledger, self._settings, self._worker = ledger, settings, worker
        self._pid = 0
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self.busy = threading.Lock()
        """Held while a task uses the connections."""

    def source(self, spec: JobSpec, beat: Beat) -> Connection:
        """The job's connection to its source: an NBD server, or a VM's disk through an nbdkit of this process."""
        if not spec.disk:
            return self._link(spec, spec.source, beat)
        job = self._job(spec)
        if job.disk and not (job.disk.disk == spec.disk and _usable(job.disk.connection)):  # of another snapshot, say
            job.disk.close()
            job.disk = None
        if not job.disk:
            site = self._settings.sites.get(spec.disk.site)
            if not site:
                raise InputError(f"site {spec.disk.site}: not in this machine's settings", "Add [sites.NAME] there.")
            job.disk = open_disk(site, spec.disk, beat)
        return job.disk.connection

    def target(self, spec: JobSpec, beat: Beat) -> Connection:
        """The job's connection to its target."""
        return self._link(spec, spec.target, beat)

    def words(self, spec: JobSpec) -> str:
        """What the job's own nbdkit said last."""
        job = self._open.get(spec.of or spec.id)
        return job.disk.words() if job and job.disk else ""

    def drop(self, spec: JobSpec) -> None:
        """Close the job's connections."""
        self._close(spec.of or spec.id)

    def tidy(self) -> None:
        """Close the connections of jobs that need them no more."""
        for name in [name for name in self._open if self._ledger.is_closed(name)]:
            self._close(name)

    def _link(self, spec: JobSpec, uri: str, beat: Beat) -> Connection:
        links = self._job(spec).links
        found = links.get(uri)
        if found and not _usable(found):
            found.close()
            found = None
        if not found:
            try:
                found = links[uri] = connect(parse(uri), self._settings.connect_timeout, beat)
            except NoSuchExport as exc:
                if spec.part_of and not spec.solo:  # of the hub, which puts it back when its daemon was started again
                    raise ExportGone(exc.uri, exc.detail, exc.state) from exc
                raise
        return found

    def _job(self, spec: JobSpec) -> _Open:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._open.clear()
            threading.Thread(target=self._keep_tidy, name="handles", daemon=True).start()
        name = spec.of or spec.id
        job = self._open.setdefault(name, _Open())
        self._open.move_to_end(name)
        self._ledger.hold(name, self._me, HOLD_SECONDS)
        while len(self._open) > MOST_JOBS:
            self._close(next(iter(self._open)))
        return job

    def _close(self, name: str) -> None:
        if job := self._open.pop(name, None):
            job.close()
            with suppress(*LedgerUnavailable):
                self._ledger.let_go(name, self._me)

    def _keep_tidy(self) -> None:
        while True:
            time.sleep(TIDY_SECONDS)
            with suppress(*LedgerUnavailable):
                for name in list(self._open):
                    self._ledger.hold(name, self._me, HOLD_SECONDS)
                if self.busy.acquire(blocking=False):
                    try:
                        self.tidy()
                    finally:
                        self.busy.release()

    @property
    def _me(self) -> str:
        return f"{self._worker}/{self._pid}"


def _usable(connection: Connection) -> bool:
    return not connection.broken and connection.handle.aio_is_ready()
