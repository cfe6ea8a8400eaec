"""
The batches of two neighbouring points as one.

What the child overwrote in part is hashed anew, from the parent's image, after that was found to be what was copied.
"""

import heapq
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path

from sendense.errors import JobFailed
from sendense.extents import Extent
from sendense.lifeline import tied
from sendense.nbd.blocks import map_extents
from sendense.nbd.connect import Beat, Connection, connect
from sendense.nbd.images import Image
from sendense.nbd.serve import serve_source
from sendense.nbd.transfer import Limits, Transfer
from sendense.nbd.uri import parse, unix_uri
from sendense.repository.batches import StoredBatch, read, stored_batch
from sendense.repository.coverage import Coverage
from sendense.units import MiB

LIMITS = Limits(request=1 * MiB, in_flight=16, no_progress=30.0)
"""As copies have it by default."""

START_SECONDS = 20.0
"""qemu-nbd listens within milliseconds, and on a machine that is very busy within a few seconds."""

END_SECONDS = 5.0
CONNECT_SECONDS = 10.0
POLL_SECONDS = 0.01


def merged(child: Path, parent: Path, parent_image: Path, disk: str, beat: Beat) -> Generator[StoredBatch, None, None]:
    """
    The batches of `child` and what is left of `parent`'s, about in disk order; `parent_image` has the parent's content.

    A batch of the parent's that the child overwrote in part is first compared with its digest. JobFailed names `disk`
    and where, when its content is not what was copied.
    """
    taken = Coverage(chain.from_iterable(batch.extents for batch in read(child)))
    with ExitStack() as stack:
        reader = _Reader(stack, parent_image, disk, beat)
        left = (batch for batch in (_rest(reader, taken, batch) for batch in read(parent)) if batch.extents)
        yield from heapq.merge(read(child), left, key=_begin)


def _begin(batch: StoredBatch) -> int:
    return batch.extents[0].offset if batch.extents else 0


def _rest(reader: "_Reader", taken: Coverage, batch: StoredBatch) -> StoredBatch:
    rest = list(taken.rest_of(batch.extents))
    if rest == batch.extents or not rest:
        return batch if rest else StoredBatch([], 0, b"")
    reader.verify(batch)
    return stored_batch(rest, reader.digest(rest))


class _Reader:
    """Reads a disk as an image has it. Opened at the first read: often no batch was overwritten in part."""

    def __init__(self, stack: ExitStack, image: Path, disk: str, beat: Beat) -> None:
        self._stack, self._image, self._disk, self._beat = stack, image, disk, beat
        self._connection: Connection | None = None

    def verify(self, batch: StoredBatch) -> None:
        """JobFailed when the image does not have what the batch says."""
        if self.digest(batch.extents) != batch.digest:
            offset, end = batch.extents[0].offset, batch.extents[-1].end
            raise JobFailed(
                f"{self._disk}: its content is not what was copied, offset={offset} length={end - offset}; "
                "nothing was deleted",
                "Verify the points that are built on it; make a full.",
            )

    def digest(self, extents: list[Extent]) -> bytes:
        """The digest of the extents, as a verification takes it."""
        if not self._connection:
            self._connection = self._stack.enter_context(served(self._image, self._beat))
        connection = self._connection
        transfer = Transfer(connection, None, LIMITS, target_is_zero=False, beat=lambda copied: self._beat())
        outcome = transfer.run(list(_to_read(connection, extents, self._beat)))
        if outcome.failed:
            extent, reason = outcome.failed[0]
            raise JobFailed(
                f"{self._disk}: cannot be read: {reason}, offset={extent.offset} length={extent.length}; "
                "nothing was deleted",
                "Look at the disk under the repository.",
            )
        return outcome.digest


def _to_read(connection: Connection, extents: list[Extent], beat: Beat) -> Iterator[Extent]:
    """Data, and of the zeroes whatever the image does not know as zero: a digest covers that as well."""
    for extent in extents:
        if extent.zero:
            yield from map_extents(connection, extent.offset, extent.length, LIMITS.no_progress, beat)
        else:
            yield extent


@contextmanager
def served(image: Path, beat: Beat) -> Iterator[Connection]:
    """A connection to a qemu-nbd of its own, which serves a qcow2 read-only until the block ends."""
    with tempfile.TemporaryDirectory(prefix="sendense-", ignore_cleanup_errors=True) as folder:
        socket, log, pid = (Path(folder) / name for name in ("s", "log", "pid"))
        command = [*serve_source(Image(image, "qcow2", (image,)), socket, ""), "--pid-file", str(pid)]
        with log.open("wb") as errors:
            process = subprocess.Popen(
                tied(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        try:
            _await_server(process, pid, log, image, beat)
            connection = connect(parse(unix_uri(str(socket))), CONNECT_SECONDS, beat)
            shutil.rmtree(folder, ignore_errors=True)  # nothing of it is left when this process is killed
            try:
                yield connection
            finally:
                connection.close()
        finally:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(END_SECONDS)


def _await_server(process: "subprocess.Popen[bytes]", pid: Path, log: Path, image: Path, beat: Beat) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not pid.exists():
        if process.poll() is not None:
            raise JobFailed(f"{image}: cannot be served: {' '.join(log.read_text(errors='replace').split())}")
        if time.monotonic() > deadline:
            raise JobFailed(f"{image}: qemu-nbd does not listen after {START_SECONDS:.0f} s")
        beat()
        time.sleep(POLL_SECONDS)
