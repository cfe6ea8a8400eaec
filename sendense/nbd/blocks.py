"""Which parts of an export hold data: `base:allocation`, asked for range by range."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import nbd

from sendense.errors import ConnectionLost, ReadStalled
from sendense.extents import Extent
from sendense.nbd.connect import ALLOCATION, POLL_MS, Beat, Connection, no_beat
from sendense.units import GiB

RANGE = 1 * GiB
"""Bytes that one query covers: VDDK answers a whole-disk query very slowly."""

QUERIES_IN_FLIGHT = 8
"""Hides a tunnel's round trip: at 50 ms, a 1 TiB disk is mapped in 6 s instead of 51."""


@dataclass(slots=True)
class _Query:
    offset: int
    end: int
    cookie: int
    entries: list[int] = field(default_factory=list)


def map_extents(
    connection: Connection, offset: int, length: int, timeout: float, beat: Beat = no_beat
) -> Iterator[Extent]:
    """
    The extents of `length` bytes from `offset`, as the server reports them; all data where it cannot say.

    *zero* decides, not *hole* (NBD protocol, "base:allocation"). Raises ReadStalled when no query is answered for
    `timeout` seconds, ConnectionLost when the connection breaks.
    """
    stop = offset + length
    if not connection.info.allocation:
        if length:
            yield Extent(offset, length)
        return
    queries: deque[_Query] = deque()
    try:
        while offset < stop or queries:
            while offset < stop and len(queries) < QUERIES_IN_FLIGHT:
                end = min(stop, (offset // RANGE + 1) * RANGE)
                queries.append(_ask(connection, offset, end))
                offset = end
            query = queries.popleft()
            if _answered(connection, query, timeout, beat):
                yield from _read_entries(query)
            else:
                yield Extent(query.offset, query.end - query.offset)
                continue
            covered = query.offset + sum(query.entries[::2])
            if covered < query.end:  # a server may answer for less than was asked
                queries.appendleft(_ask(connection, covered, query.end))
    except nbd.Error as exc:
        connection.broken = True
        raise ConnectionLost(connection.uri, f"block status: {exc.string}") from exc


def _ask(connection: Connection, offset: int, end: int) -> _Query:
    query = _Query(offset, end, 0)

    def receive(context: str, start: int, entries: list[int], error: "nbd.Pointer") -> int:
        if context == ALLOCATION and not error.value:
            query.entries = entries
        return 0

    length = end - offset + connection.info.padding(end)
    query.cookie = connection.handle.aio_block_status(length, offset, receive)
    return query


def _answered(connection: Connection, query: _Query, timeout: float, beat: Beat) -> bool:
    """Wait for one answer; False when the server declined it, or said nothing of any use."""
    handle, deadline = connection.handle, time.monotonic() + timeout
    while True:
        try:
            if handle.aio_command_completed(query.cookie):
                return sum(query.entries[::2]) > 0
        except nbd.Error:
            if handle.aio_is_dead() or handle.aio_is_closed():
                raise
            return False
        if time.monotonic() > deadline:
            connection.broken = True
            raise ReadStalled(connection.uri, query.offset, query.end - query.offset, timeout)
        handle.poll(POLL_MS)
        beat()


def _read_entries(query: _Query) -> Iterator[Extent]:
    offset, entries = query.offset, query.entries
    for index in range(0, len(entries), 2):
        # The last extent may reach beyond what was asked for.
        length = min(entries[index], query.end - offset)
        if length <= 0:
            return
        yield Extent(offset, length, bool(entries[index + 1] & nbd.STATE_ZERO))
        offset += length
