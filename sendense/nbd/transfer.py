"""
Moving one batch: many requests in flight on two handles, one buffer from read to write, digests on the way.

What can go wrong, and what is done about it:

- A read errors: it is tried again here (a flaky sector), then narrowed to clusters; what never reads is returned in
  `Outcome.failed` and the rest of the batch is stored.
- A write, zero or flush errors, or a connection breaks: the batch is given up, nothing of it counts as stored.
- A server completes nothing for the no-progress deadline: ReadStalled or WriteStalled names it. Elapsed time alone
  never fails a batch.
- The source may be read only so fast: reads wait until they may be made, which is no stall, or are left to another
  time in `Outcome.left`; one that failed by then counts as failed. What was sent is waited for as ever.
- The claim is lost: nothing more is sent to the target from that moment on, as another process may write there.
- Only `run`'s return says that data is stored: every write completed and a flush after them completed, on a handle
  that was open since before the first write.
"""

import errno
import heapq
import os
import random
import select
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache

import nbd
from blake3 import blake3

from sendense.errors import ClaimLost, ConnectionLost, ReadStalled, SendenseError, TargetFull, WriteFailed, WriteStalled
from sendense.extents import Extent, split
from sendense.nbd.connect import POLL_MS, Connection
from sendense.units import KiB, MiB

CLUSTER = 64 * KiB
"""The unit of digests, of zero detection and of what a bad sector costs: qcow2's default cluster."""

ZERO_REQUEST = 32 * MiB
"""Bytes of one WRITE_ZEROES: a server that has to write them needs only 1 MB/s to stay within its deadline."""

READ_TRIES = 3
"""Times that a read is tried within one attempt of its batch, before it is narrowed to clusters."""

READ_RETRY_SECONDS = 0.1
"""Pause before a failed read is tried again, doubled each time; other requests go on meanwhile."""

FLUSH_PATIENCE = 4
"""A flush may take this many no-progress deadlines: it stands for all the writes before it."""

LEAVE_SECONDS = 1.0
"""Longest wait for requests under way when a batch is given up: well within the claim."""

Take = Callable[[int], float | None]
"""
Asked for the bytes of every read: 0 when it may be made now, and then they are taken.

Otherwise seconds until it is worth asking again; or None, when nothing more is to be read in this transfer.
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one transfer may use: bytes of a request, requests in flight, seconds without progress."""

    request: int
    in_flight: int
    no_progress: float


@dataclass(slots=True)
class Outcome:
    """What one transfer did. Bytes; `digest` covers the clusters that are not zero, in disk order."""

    copied: int = 0
    retries: int = 0
    failed: list[tuple[Extent, str]] = field(default_factory=list)
    left: list[Extent] = field(default_factory=list)
    """What was not read, as no more was to be; in no order."""
    digest: bytes = b""


@dataclass(slots=True)
class _Piece:
    """A part of the disk that goes through one buffer."""

    extent: Extent
    tries: int = 0
    slot: int = -1
    outstanding: int = 0
    error: int = 0


class _Side:
    """One handle and its requests under way."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.handle = connection, connection.handle
        self.pending: dict[int, _Piece] = {}
        self.since = time.monotonic()
        self.fd = self.handle.aio_get_fd()

    def add(self, cookie: int, piece: _Piece) -> None:
        if not self.pending:
            self.since = time.monotonic()
        self.pending[cookie] = piece
        piece.outstanding += 1

    def events(self) -> int:
        direction = self.handle.aio_get_direction()
        return (select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0) | (
            select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0
        )

    def notify(self, revents: int) -> None:
        direction = self.handle.aio_get_direction()
        if revents & (select.POLLIN | select.POLLHUP | select.POLLERR) and direction & nbd.AIO_DIRECTION_READ:
            self.handle.aio_notify_read()
        elif revents & (select.POLLOUT | select.POLLHUP | select.POLLERR) and direction & nbd.AIO_DIRECTION_WRITE:
            self.handle.aio_notify_write()

    def reap(self) -> Iterator[tuple[_Piece, int]]:
        """The pieces whose requests completed, each with its errno or 0."""
        handle = self.handle
        while self.pending and (cookie := handle.aio_peek_command_completed()) > 0:
            error = 0
            try:
                handle.aio_command_completed(cookie)
            except nbd.Error as exc:
                error = exc.errnum or errno.EIO
            self.since = time.monotonic()
            yield self.pending.pop(cookie), error


class Transfer:
    """One batch from source to target; without a target the source is only read and hashed. Used once."""

    def __init__(
        self,
        source: Connection,
        target: Connection | None,
        limits: Limits,
        *,
        target_is_zero: bool,
        beat: Callable[[int], None],
        take: Take = lambda length: 0.0,
    ) -> None:
        self._source, self._target = _Side(source), _Side(target) if target else None
        self._limits, self._target_is_zero, self._beat, self._take = limits, target_is_zero, beat, take
        slots = _slots(limits.request, limits.in_flight)
        self._views = [memoryview(slot) for slot in slots]
        self._buffers = [nbd.Buffer.from_buffer(slot) for slot in slots]
        self._zeroes = memoryview(bytes(limits.request))
        self._free = list(range(limits.in_flight))
        self._again: list[tuple[float, int, _Piece]] = []
        self._next: Extent | None = None
        self._ask_at, self._is_over = 0.0, False
        self._leaves: list[tuple[int, bytes]] = []
        self._zeroing = 0
        self._out = Outcome()

    def run(self, extents: Sequence[Extent]) -> Outcome:
        """Move the extents; see the module's text for what its return and its errors mean."""
        data = split((extent for extent in extents if not extent.zero), self._limits.request)
        zeroes: Iterator[Extent] = iter(())
        if self._target and not self._target_is_zero:
            limit = ZERO_REQUEST if self._target.connection.info.zero else self._limits.request
            zeroes = split((extent for extent in extents if extent.zero), limit)
        poll = select.poll()
        sides = [side for side in (self._source, self._target) if side]
        for side in sides:
            poll.register(side.fd, 0)
        try:
            self._beat(0)
            while self._issue(data, zeroes):
                for side in sides:
                    poll.modify(side.fd, side.events())
                self._drive(poll.poll(self._patience_ms()), sides)
            self._flush(poll)
        except nbd.Error as exc:
            raise self._broken(exc) from exc
        except ClaimLost:
            if self._target:
                sides.remove(self._target)
                self._target.connection.broken = True  # so that not even a goodbye is sent after what is queued
                self._target.connection.close()
            raise
        finally:
            if any(side.pending for side in sides):
                self._leave(sides)
        self._out.digest = digest_of(self._leaves)
        return self._out

    def _leave(self, sides: list[_Side]) -> None:
        """
        Let the requests under way end, as far as they do so soon, and have the handles dropped.

        nbdkit 1.32 may abort when a client leaves that it still has to answer (measured).
        """
        deadline = time.monotonic() + LEAVE_SECONDS
        for side in sides:
            side.connection.broken = True
            with suppress(nbd.Error):
                while side.pending and (left := deadline - time.monotonic()) > 0:
                    side.handle.poll(max(1, int(left * 1000)))
                    deque(side.reap(), maxlen=0)

    def _issue(self, data: Iterator[Extent], zeroes: Iterator[Extent]) -> bool:
        """Start what there is room for; False when nothing is left to start or to wait for."""
        while self._zeroing < self._limits.in_flight and (extent := next(zeroes, None)):
            self._zeroing += 1
            self._zero(_Piece(extent), extent)
        # Behind all that is sent to the target: to be allowed to read may take as long as the claim lasts.
        now = time.monotonic()
        while self._free and self._again and self._again[0][0] <= now and self._may_read(self._again[0][2].extent):
            self._read(heapq.heappop(self._again)[2])
        while self._free and (extent := self._next or next(data, None)):
            self._next = extent
            if not self._may_read(extent):
                break
            self._next = None
            self._read(_Piece(extent))
        if self._is_over:
            for _, _, piece in self._again:
                self._give_up(piece)
            self._out.left += [self._next] if self._next else []
            self._out.left += data
            self._again, self._next = [], None
        under_way = self._source.pending or (self._target and self._target.pending)
        return bool(under_way or self._again or self._next)

    def _may_read(self, extent: Extent) -> bool:
        """Whether it may be read now; otherwise `_ask_at` says when to ask again, or nothing more is to be read."""
        wait = None if self._is_over else self._take(extent.length)
        self._is_over = wait is None
        if not wait:
            return not self._is_over
        self._ask_at = time.monotonic() + wait
        for side in (self._source, self._target):  # with nothing under way, nothing else tells that one is gone
            if side and (side.handle.aio_is_dead() or side.handle.aio_is_closed()):
                side.connection.broken = True
                raise ConnectionLost(side.connection.uri, "the connection broke")
        return False

    def _patience_ms(self) -> int:
        if not self._free or not (self._next or self._again):
            return POLL_MS
        due = self._ask_at if self._next else max(self._ask_at, self._again[0][0])
        return max(1, min(POLL_MS, int((due - time.monotonic()) * 1000) + 1))

    def _drive(self, ready: list[tuple[int, int]], sides: list[_Side]) -> None:
        self._beat(self._out.copied)  # before anything is sent: the wait may have been longer than the claim lasts
        for fd, revents in ready:
            for side in sides:
                if side.fd == fd:
                    side.notify(revents)
        for piece, error in self._source.reap():
            self._read_done(piece, error)
        if self._target:
            for piece, error in self._target.reap():
                self._write_done(piece, error)
        now = time.monotonic()
        for side in sides:
            if side.pending and now - side.since > self._limits.no_progress:
                raise self._stalled(side, now - side.since)

    def _read(self, piece: _Piece) -> None:
        piece.slot, piece.error = self._free.pop(), 0
        piece.tries += 1
        offset, length, _ = piece.extent
        info = self._source.connection.info
        length += info.padding(offset + length)  # when a target is read back that is larger than the disk
        view, step = self._views[piece.slot], info.maximum
        for start in range(0, length, step):
            part = view[start : min(start + step, length)]
            self._source.add(self._source.handle.aio_pread(part, offset + start), piece)

    def _read_done(self, piece: _Piece, error: int) -> None:
        piece.outstanding -= 1
        piece.error = piece.error or error
        if piece.outstanding:
            return
        if piece.error:
            self._read_failed(piece)
            return
        runs = list(self._hash(piece))
        if self._target:
            for run in runs:
                self._write(piece, run)
        if not piece.outstanding:
            self._stored(piece)

    def _read_failed(self, piece: _Piece) -> None:
        """Try it again; then cluster by cluster; then give the cluster up."""
        self._free.append(piece.slot)
        extent = piece.extent
        if piece.tries < READ_TRIES:
            self._read_later(piece)
        elif extent.length > CLUSTER:
            for part in split([extent], CLUSTER):
                self._read_later(_Piece(part, tries=READ_TRIES - 2, error=piece.error))
        else:
            self._give_up(piece)

    def _give_up(self, piece: _Piece) -> None:
        self._out.failed.append((piece.extent, f"{os.strerror(piece.error)}, tried {piece.tries} times"))

    def _read_later(self, piece: _Piece) -> None:
        self._out.retries += 1
        pause = READ_RETRY_SECONDS * 2 ** (piece.tries - 1) * random.uniform(0.5, 1.5)
        heapq.heappush(self._again, (time.monotonic() + pause, id(piece), piece))

    def _hash(self, piece: _Piece) -> Iterator[Extent]:
        """Hash the clusters that are not zero; yield the runs that the target has to be given."""
        offset, length, _ = piece.extent
        buffer, view = self._buffers[piece.slot], self._views[piece.slot]
        run_start, run_zero = 0, False
        for start in range(0, length, CLUSTER):
            end = min(start + CLUSTER, length)
            zero = buffer.is_zero(start, end - start)
            if not zero:
                self._leaves.append((offset + start, blake3(view[start:end]).digest()))
            if zero != run_zero:
                if start > run_start:
                    yield Extent(offset + run_start, start - run_start, run_zero)
                run_start, run_zero = start, zero
        yield Extent(offset + run_start, length - run_start, run_zero)

    def _write(self, piece: _Piece, run: Extent) -> None:
        assert self._target
        if run.zero:
            if not self._target_is_zero:
                self._zero(piece, run)
            return
        info, view = self._target.connection.info, self._views[piece.slot]
        first, length = run.offset - piece.extent.offset, run.length
        if padding := info.padding(run.end):
            view[first + length : first + length + padding] = bytes(padding)
            length += padding
        for start in range(first, first + length, info.maximum):
            part = view[start : min(start + info.maximum, first + length)]
            self._target.add(self._target.handle.aio_pwrite(part, piece.extent.offset + start), piece)

    def _zero(self, piece: _Piece, run: Extent) -> None:
        assert self._target
        target, info = self._target, self._target.connection.info
        length = run.length + info.padding(run.end)
        if info.zero:
            target.add(target.handle.aio_zero(length, run.offset), piece)
            return
        step = min(self._limits.request, info.maximum)
        for start in range(0, length, step):
            part = self._zeroes[: min(step, length - start)]
            target.add(target.handle.aio_pwrite(part, run.offset + start), piece)

    def _write_done(self, piece: _Piece, error: int) -> None:
        assert self._target
        piece.outstanding -= 1
        if error:
            raise self._write_error(piece.extent, error)
        if not piece.outstanding:
            self._stored(piece)

    def _stored(self, piece: _Piece) -> None:
        if piece.slot < 0:
            self._zeroing -= 1
            return
        self._free.append(piece.slot)
        self._out.copied += piece.extent.length

    def _flush(self, poll: "select.poll") -> None:
        """Make what was written durable."""
        target = self._target
        if not target or not target.connection.info.flush:
            return
        piece = _Piece(Extent(0, 0))
        target.add(target.handle.aio_flush(), piece)
        poll.modify(self._source.fd, 0)
        while target.pending:
            poll.modify(target.fd, target.events())
            ready = poll.poll(POLL_MS)
            self._beat(self._out.copied)
            for fd, revents in ready:
                if fd == target.fd:
                    target.notify(revents)
                else:
                    poll.unregister(fd)  # the source may leave now: its part is done
            for _, error in target.reap():
                if error:
                    raise self._write_error(piece.extent, error)
            waited = time.monotonic() - target.since
            if target.pending and waited > FLUSH_PATIENCE * self._limits.no_progress:
                raise self._stalled(target, waited)

    def _write_error(self, extent: Extent, error: int) -> SendenseError:
        assert self._target
        if error == errno.ENOTCONN:  # never sent by a server: libnbd's word for a handle that died
            self._target.connection.broken = True
            return ConnectionLost(self._target.connection.uri, "the connection broke")
        kind = TargetFull if error in (errno.ENOSPC, errno.EDQUOT) else WriteFailed
        return kind(self._target.connection.uri, extent.offset, extent.length, os.strerror(error))

    def _stalled(self, side: _Side, waited: float) -> SendenseError:
        extent = next(iter(side.pending.values())).extent
        kind = ReadStalled if side is self._source else WriteStalled
        return kind(side.connection.uri, extent.offset, extent.length, waited)

    def _broken(self, exc: nbd.Error) -> SendenseError:
        """Which side libnbd's error belongs to: the handle that died."""
        broken = self._source
        if self._target and (self._target.handle.aio_is_dead() or self._target.handle.aio_is_closed()):
            broken = self._target
        broken.connection.broken = True
        return ConnectionLost(broken.connection.uri, f"the connection broke ({exc.string})")


@lru_cache(maxsize=1)
def _slots(request: int, in_flight: int) -> list[bytearray]:
    """A process's buffers, kept from batch to batch: one transfer at a time uses them."""
    return [bytearray(request) for _ in range(in_flight)]


def digest_of(leaves: Iterable[tuple[int, bytes]]) -> bytes:
    """BLAKE3 over (offset as 8 bytes, cluster's BLAKE3) in disk order; zero clusters are left out by the caller."""
    hasher = blake3()
    for offset, leaf in sorted(leaves):
        hasher.update(offset.to_bytes(8, "little"))
        hasher.update(leaf)
    return hasher.digest()
