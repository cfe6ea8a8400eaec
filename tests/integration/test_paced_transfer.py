"""A transfer whose reads are held back: it waits without a stall, finds real ones, and leaves the rest when told to."""

import re
import time
from pathlib import Path

import pytest

from sendense.errors import ClaimLost, ConnectionLost, ReadStalled
from sendense.extents import Extent, split
from sendense.jobs.batch import run_batch
from sendense.jobs.plan import batch_of
from sendense.jobs.throttle import SiteThrottle
from sendense.models import JobSpec, Survey
from sendense.nbd.connect import Beat, Connection, connect
from sendense.nbd.transfer import Limits, Outcome, Take, Transfer
from sendense.nbd.uri import parse
from sendense.settings import Settings
from sendense.units import KiB, MiB
from tests.hub import Hub, open_hub
from tests.servers import Server, nbdkit

SIZE = 2 * MiB
REQUEST = 256 * KiB
PATIENCE = 60.0
"""Seconds for what takes a few."""


class Paced:
    """A `take` that lets so many reads through, then holds the rest for some seconds, or ends the reading."""

    def __init__(self, reads: int, held: float | None = None) -> None:
        self._reads, self._held = reads, held
        self._since = 0.0
        self.asked = 0

    def take(self, length: int) -> float | None:
        """See `nbd.transfer.Take`."""
        self.asked += 1
        if self._reads > 0:
            self._reads -= 1
            return 0.0
        if self._held is None:
            return None
        self._since = self._since or time.monotonic()
        return max(0.0, min(0.3, self._since + self._held - time.monotonic()))


def transfer(source: Server, target: Server, take: Take, beats: list[float], no_progress: float = 1.0) -> Outcome:
    """Copy a disk of data whose last quarter is known to be zero."""
    read, written = connect(parse(source.uri), 10.0), connect(parse(target.uri), 10.0)
    extents = [Extent(0, SIZE * 3 // 4), Extent(SIZE * 3 // 4, SIZE // 4, True)]

    def beat(copied: int) -> None:
        beats.append(time.monotonic())

    limits = Limits(REQUEST, 4, no_progress)
    try:
        return Transfer(read, written, limits, target_is_zero=False, beat=beat, take=take).run(extents)
    finally:
        read.close()
        written.close()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """The target, full of old data."""
    path = tmp_path / "target"
    path.write_bytes(b"A" * SIZE)
    return path


def pattern() -> bytes:
    """What nbdkit's pattern plugin serves, up to the zeroes."""
    return b"".join(offset.to_bytes(8, "big") for offset in range(0, SIZE * 3 // 4, 8))


def test_held_for_longer_than_no_progress(disk: Path) -> None:
    """Time in which reads are held back is no stall; the claim is renewed meanwhile, and then all is copied."""
    beats, paced = list[float](), Paced(2, held=2.5)
    with nbdkit("pattern", f"size={SIZE}") as source, nbdkit("file", disk) as target:
        outcome = transfer(source, target, paced.take, beats)
    assert (outcome.copied, outcome.left, outcome.retries) == (SIZE * 3 // 4, [], 0)
    assert disk.read_bytes() == pattern() + bytes(SIZE // 4)
    assert len(beats) >= 3  # every third of a second, on an idle machine
    assert paced.asked < 100, "it waits rather than asking all the time"


def test_a_server_that_stalls_while_reads_are_held(disk: Path) -> None:
    """A request that was sent and is not answered is found, however long the next ones are held."""
    with nbdkit("--filter=delay", "pattern", f"size={SIZE}", "rdelay=60") as source, nbdkit("file", disk) as target:
        with pytest.raises(ReadStalled):
            transfer(source, target, Paced(2, held=PATIENCE).take, [])
        source.kill()  # it would answer first


@pytest.mark.parametrize("end", ["source", "target"])
def test_a_server_that_is_gone_while_reads_are_held(disk: Path, end: str) -> None:
    """With nothing under way, the end of a server is found at once, and not when the next read may be made."""
    with nbdkit("pattern", f"size={SIZE}") as source, nbdkit("file", disk) as target:
        paced = Paced(0, held=PATIENCE)

        def take(length: int) -> float | None:
            if paced.asked == 3:
                {"source": source, "target": target}[end].kill()
            return paced.take(length)

        began = time.monotonic()
        with pytest.raises(ConnectionLost) as caught:
            transfer(source, target, take, [])
        assert caught.value.uri == {"source": source, "target": target}[end].uri
        assert time.monotonic() - began < PATIENCE
        assert paced.asked < 100


@pytest.mark.parametrize("reads", [0, 3, 6])
def test_reading_is_over(disk: Path, reads: int) -> None:
    """What was read is stored, hashed and flushed, zeroes are written, and the rest is left as it was."""
    with nbdkit("pattern", f"size={SIZE}") as source, nbdkit("file", disk) as target:
        outcome = transfer(source, target, Paced(reads).take, [])
        read = connect(parse(source.uri), 10.0)
        stored = [Extent(0, reads * REQUEST)] if reads else []
        alone = Transfer(read, None, Limits(REQUEST, 4, 10.0), target_is_zero=False, beat=lambda copied: None)
        assert outcome.digest == alone.run(stored).digest
        read.close()
    assert sorted(outcome.left) == list(split([Extent(reads * REQUEST, SIZE * 3 // 4 - reads * REQUEST)], REQUEST))
    assert outcome.copied == reads * REQUEST
    kept = SIZE * 3 // 4 - reads * REQUEST
    assert disk.read_bytes() == pattern()[: reads * REQUEST] + b"A" * kept + bytes(SIZE // 4)


def test_reading_is_over_with_reads_that_failed(disk: Path, tmp_path: Path) -> None:
    """A read that failed and would be tried again has failed; the rest is left, and none is lost."""
    trigger = tmp_path / "trigger"
    trigger.touch()
    options = ("error-pread=EIO", "error-pread-rate=100%", f"error-file={trigger}")
    with (
        nbdkit("--filter=error", "pattern", f"size={SIZE}", *options) as source,
        nbdkit("file", disk) as target,
    ):
        outcome = transfer(source, target, Paced(2).take, [])
    assert outcome.copied == 0
    assert sorted(outcome.failed) == [
        (extent, "Input/output error, tried 1 times") for extent in split([Extent(0, 2 * REQUEST)], REQUEST)
    ]
    assert sorted(outcome.left) == list(split([Extent(2 * REQUEST, SIZE * 3 // 4 - 2 * REQUEST)], REQUEST))


def test_a_claim_that_is_lost_while_reads_are_held(disk: Path) -> None:
    """Whoever waits may find that the batch is another's: nothing more is done with it."""
    paced = Paced(1, held=PATIENCE)

    def take(length: int) -> float | None:
        if paced.asked == 3:
            raise ClaimLost("job", "0")
        return paced.take(length)

    with (
        nbdkit("pattern", f"size={SIZE}") as source,
        nbdkit("file", disk) as target,
        pytest.raises(ClaimLost),
    ):
        transfer(source, target, take, [])


class HeldHandles(SiteThrottle):
    """A process whose site lets two reads through for each batch, and then none."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub.ledger, "oslo", "n1/1")
        self._paced, self._open = Paced(0), list[Connection]()

    def source(self, spec: JobSpec, beat: Beat) -> Connection:
        """See `jobs.batch.Handles`, as for the others."""
        self._paced = Paced(2, held=PATIENCE)
        return self._connect(spec.source)

    def target(self, spec: JobSpec, beat: Beat) -> Connection:
        """The target."""
        return self._connect(spec.target)

    def throttle(self, spec: JobSpec) -> SiteThrottle:
        """This."""
        return self

    def take(self, length: int, patience: float = 0.0) -> float:
        """See `SiteThrottle`."""
        return self._paced.take(length) or 0.0

    def drop(self, spec: JobSpec) -> None:
        """Close all."""
        while self._open:
            self._open.pop().close()

    def words(self, spec: JobSpec) -> str:
        """None are said."""
        return ""

    def lost(self, spec: JobSpec) -> None:
        """None is."""

    def _connect(self, uri: str) -> Connection:
        self._open.append(connect(parse(uri), 10.0))
        return self._open[-1]


def test_a_disk_that_cannot_be_read_while_reads_are_held(disk: Path) -> None:
    """Where nothing of a batch was stored and reads failed, that is an attempt, however little of it was allowed."""
    settings = Settings(task_time_limit=1.0, retry_seconds=0.01, request_bytes=REQUEST)
    with (
        open_hub() as hub,
        nbdkit("--filter=error", "pattern", f"size={SIZE}", "error-pread=EIO", "error-pread-rate=100%") as source,
        nbdkit("file", disk) as target,
    ):
        spec = JobSpec(id="job1", kind="copy", name="disk", site="oslo", source=source.uri, target=target.uri)
        hub.ledger.prepare(spec)
        survey = Survey(size=SIZE, multi_conn=True, allocation=True, flush=True)
        hub.ledger.write_plan(spec.id, survey, [batch_of([Extent(0, SIZE)])])
        epoch, handles, said = hub.ledger.begin(spec), HeldHandles(hub), list[str]()
        deadline = time.monotonic() + PATIENCE
        while hub.ledger.take(spec.id, epoch, 1).state == "copying" and time.monotonic() < deadline:
            said.append(run_batch(hub.ledger, handles, settings, spec.id, 0, epoch, f"n1/1/{len(said)}"))
            handles.drop(spec)
            time.sleep(0.1)
            hub.ledger.sweep(spec.id, epoch, 9, 60.0, 60.0, 1.0)
        progress = hub.ledger.progress(spec.id)
        assert progress
        assert progress.state == "failed"
    assert [re.sub(" nbd.*", "", text) for text in said] == [
        "to be tried again: ReadFailed: read",
        "to be tried again: ReadFailed: read",
        "failed: ReadFailed: read",
    ]
