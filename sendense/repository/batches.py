"""
The batches of one disk in one restore point: which extents were copied, and the digest of each batch.

A file is gzip around a magic word and records: number of extents, bytes of data, digest, packed extents. gzip's own
trailer tells a whole file from a cut one. It is written and read as a stream: a million batches need no memory.
"""

import gzip
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from sendense.beat import Beat, beating, no_beat
from sendense.errors import JobFailed
from sendense.extents import Extent, pack, total, unpack
from sendense.files import replacing, storing

_MAGIC = b"sendense batches 1\n"
_HEAD = struct.Struct("<IQ32s")
_EXTENT_BYTES = 16
_MOST_EXTENTS = 2**20
"""A batch has a thousand: whatever says more is damaged, and not worth the memory."""


class StoredBatch(NamedTuple):
    """A batch as it was copied: `data` is its bytes that were not known as zero, `digest` that of `Outcome`."""

    extents: list[Extent]
    data: int
    digest: bytes

    @property
    def length(self) -> int:
        """Bytes of all its extents, zeroes too."""
        return sum(extent.length for extent in self.extents)


def stored_batch(extents: list[Extent], digest: bytes) -> StoredBatch:
    """A batch with its data counted."""
    return StoredBatch(extents, total(extents, zero=False), digest)


class Totals(NamedTuple):
    """What a file of batches adds up to; bytes. `digest` is BLAKE3 over the batches' digests in their order."""

    batches: int
    data: int
    changed: int
    digest: str


def write(path: Path, batches: Iterable[StoredBatch]) -> Totals:
    """Store batches in the order they come in, durably and all or nothing. JobFailed when there is no room."""
    counted = _Counter()
    with storing(path), replacing(path) as part, gzip.GzipFile(part, "wb", mtime=0) as file:
        file.write(_MAGIC)
        for batch in batches:
            packed = pack(batch.extents)
            file.write(_HEAD.pack(len(packed) // _EXTENT_BYTES, batch.data, batch.digest))
            file.write(packed)
            counted.add(batch)
    return counted.totals()


def read(path: Path) -> Iterator[StoredBatch]:
    """The batches in the order they were stored. JobFailed when the file is missing or damaged."""
    try:
        with gzip.GzipFile(path, "rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise JobFailed(f"{path}: damaged: not a file of batches", _DAMAGED)
            while head := file.read(_HEAD.size):
                count, data, digest = _HEAD.unpack(head)
                if count > _MOST_EXTENTS:
                    raise JobFailed(f"{path}: damaged: a batch of {count} extents", _DAMAGED)
                packed = file.read(count * _EXTENT_BYTES)
                if len(packed) < count * _EXTENT_BYTES:
                    raise JobFailed(f"{path}: damaged: ends within a batch", _DAMAGED)
                yield StoredBatch(unpack(packed), data, digest)
    except (EOFError, gzip.BadGzipFile, zlib.error, struct.error) as exc:
        raise JobFailed(f"{path}: damaged: {exc}", _DAMAGED) from exc
    except OSError as exc:
        raise JobFailed(f"{path}: cannot be read: {exc.strerror or exc}", _DAMAGED) from exc


def totals(path: Path, beat: Beat = no_beat) -> Totals:
    """Read a whole file, and add it up. JobFailed as in `read`."""
    counted = _Counter()
    for batch in beating(read(path), beat):
        counted.add(batch)
    return counted.totals()


_DAMAGED = "Bring the file back from a copy of the repository; without it this disk cannot be verified."


class _Counter:
    def __init__(self) -> None:
        self._batches = self._data = self._changed = 0
        self._digests = blake3()

    def add(self, batch: StoredBatch) -> None:
        self._batches += 1
        self._data += batch.data
        self._changed += batch.length
        self._digests.update(batch.digest)

    def totals(self) -> Totals:
        return Totals(self._batches, self._data, self._changed, self._digests.hexdigest())
