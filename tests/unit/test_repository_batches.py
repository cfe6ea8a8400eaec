"""Files of batches: what was written comes back, and damage never goes unnoticed. And what extents cover."""

import gzip
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense.beat import BEAT_ITEMS
from sendense.errors import JobFailed
from sendense.extents import Extent
from sendense.repository.batches import StoredBatch, Totals, read, stored_batch, totals, write
from sendense.repository.coverage import Coverage
from tests.drawing import drawing_of, extents_of

BATCHES = [
    stored_batch([Extent(0, 65536), Extent(2**40, 65536, True)], b"a" * 32),
    stored_batch([Extent(2**41, 2**30, True)], b"b" * 32),
]


def test_round_trip(tmp_path: Path) -> None:
    """Batches come back as they were, in their order, and add up."""
    path = tmp_path / "disk-2000.batches"
    found = write(path, iter(BATCHES))
    assert list(read(path)) == BATCHES
    assert found == totals(path)
    assert found[:3] == (2, 65536, 2 * 65536 + 2**30)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_many_batches_beat(tmp_path: Path) -> None:
    """Whoever adds up a large file shows life all along, and can be ended."""
    path, beats = tmp_path / "disk-2000.batches", list[None]()
    found = write(path, BATCHES * 500)
    assert totals(path, lambda: beats.append(None)) == found
    assert len(beats) == -(-1000 // BEAT_ITEMS)


def test_no_batches(tmp_path: Path) -> None:
    """A disk without any change has an empty file, which is not the same as none."""
    path = tmp_path / "disk-2000.batches"
    assert write(path, []) == Totals(0, 0, 0, totals(path).digest)
    assert list(read(path)) == []


def test_written_again(tmp_path: Path) -> None:
    """A file is replaced as a whole; when its source fails, the old one stays."""
    path = tmp_path / "disk-2000.batches"
    write(path, BATCHES)
    with pytest.raises(ZeroDivisionError):
        write(path, (BATCHES[1 // number] for number in (1, 0)))
    assert list(read(path)) == BATCHES
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    write(path, BATCHES[:1])
    assert list(read(path)) == BATCHES[:1]


@pytest.mark.parametrize("cut", [1, 8, 9, 20, 60, 90])
def test_a_file_that_was_cut(tmp_path: Path, cut: int) -> None:
    """A missing end is an error, never a shorter list."""
    path = tmp_path / "disk-2000.batches"
    write(path, BATCHES)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(JobFailed, match=f"{path}: damaged"):
        list(read(path))


def test_flipped_bits(tmp_path: Path) -> None:
    """A flipped bit anywhere in the content is an error, or changes nothing that is read (a time in gzip's header)."""
    path = tmp_path / "disk-2000.batches"
    write(path, BATCHES)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            assert list(read(path)) == BATCHES, place
        except JobFailed:
            continue


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged"),
        (b"no gzip at all", "damaged"),
        (gzip.compress(b"something else\n" * 9, mtime=0), "not a file of batches"),
        (gzip.compress(b"sendense batches 1\n" + b"\xff" * 44, mtime=0), "4294967295 extents"),
        (gzip.compress(b"sendense batches 1\n" + b"\1\0\0\0" + bytes(50), mtime=0), "ends within a batch"),
        (gzip.compress(b"sendense batches 1\n" + bytes(10), mtime=0), "damaged"),
        (None, "cannot be read"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes | None, reason: str) -> None:
    """Whatever is in the file, the error names it."""
    path = tmp_path / "disk-2000.batches"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(JobFailed, match=reason) as caught:
        list(read(path))
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_many_batches_take_no_memory(tmp_path: Path) -> None:
    """A disk of 1.25 TiB, ten thousand batches, is written and read as a stream."""
    path = tmp_path / "disk-2000.batches"
    rng = random.Random(1)
    step = 2**27
    tracemalloc.start()
    try:
        write(path, (stored_batch([Extent(at * step, step)], rng.randbytes(32)) for at in range(10_000)))
        assert sum(1 for _ in read(path)) == 10_000
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


drawings = st.text("A0-", max_size=40)


@given(drawings, st.lists(drawings, max_size=3))
def test_rest_of(drawing: str, others: list[str]) -> None:
    """What is left is what the others do not touch, of its own kind, however many they are and in whatever order."""
    covered = Coverage(extent for other in others for extent in extents_of(other))
    touched = [any(place < len(other) and other[place] != "-" for other in others) for place in range(len(drawing))]
    expected = "".join("-" if cover else kind for kind, cover in zip(drawing, touched, strict=True))
    assert drawing_of(covered.rest_of(extents_of(drawing)), len(drawing)) == expected


def test_batch_counts_zeroes() -> None:
    """Zeroes are in a batch's length, and not in its data."""
    batch: StoredBatch = BATCHES[0]
    assert (batch.data, batch.length) == (65536, 131072)
