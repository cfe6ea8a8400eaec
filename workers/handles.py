"""A worker process's open NBD connections."""

import os

from sendense.nbd.connect import Beat, Connection, connect
from sendense.nbd.uri import parse


class Handles:
    """
    Connections of one process, opened after the fork, kept between the batches of one job.

    Another job, a broken connection or a fork drops them all: a handle is never shared, and never outlives its doubt.
    """

    def __init__(self, connect_timeout: float) -> None:
        self._timeout = connect_timeout
        self._owner: tuple[int, str] = (0, "")
        self._open: dict[str, Connection] = {}

    def get(self, job: str, uri: str, beat: Beat) -> Connection:
        """The job's connection to `uri`, opened if need be, each stage within the connect timeout."""
        owner = (os.getpid(), job)
        if self._owner != owner:
            self.drop()
            self._owner = owner
        found = self._open.get(uri)
        if found and not found.broken and found.handle.aio_is_ready():
            return found
        if found:
            found.close()
        self._open[uri] = connect(parse(uri), self._timeout, beat)
        return self._open[uri]

    def drop(self) -> None:
        """Close every connection."""
        for connection in self._open.values():
            connection.close()
        self._open.clear()
