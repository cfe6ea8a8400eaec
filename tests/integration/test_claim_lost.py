"""A task whose claim is lost, as its process was stopped for long: it writes nothing any more."""

import time
from pathlib import Path

import pytest

from sendense.errors import ClaimLost
from sendense.extents import Extent
from sendense.jobs.claim import ClaimKeeper
from sendense.jobs.ledger import Claim
from sendense.nbd.connect import connect
from sendense.nbd.transfer import Limits, Transfer
from sendense.nbd.uri import parse
from sendense.units import KiB, MiB
from tests.hub import Hub
from tests.servers import nbdkit

SIZE = 8 * MiB
LIMITS = Limits(64 * KiB, 4, 10.0)


@pytest.mark.parametrize("zero", [False, True])
def test_nothing_is_written_after_the_loss(tmp_path: Path, *, zero: bool) -> None:
    """What was read by then is not written, nor is what has to be zeroed; and the target's connection is closed."""
    target = tmp_path / "target"
    target.write_bytes(b"A" * SIZE)
    calls = 0

    def beat(copied: int) -> None:
        nonlocal calls
        calls += 1
        if zero or calls > 1:
            raise ClaimLost("job", "0")

    with nbdkit("pattern", f"size={SIZE}") as source, nbdkit("file", target) as server:
        read, written = connect(parse(source.uri), 10.0), connect(parse(server.uri), 10.0)
        with pytest.raises(ClaimLost):
            Transfer(read, written, LIMITS, target_is_zero=False, beat=beat).run([Extent(0, SIZE, zero)])
        assert written.broken
        read.close()
    assert target.read_bytes() == b"A" * SIZE


def test_a_claim_counts_from_when_it_was_asked_for(hub: Hub) -> None:
    """A process that was stopped between its claim and its first beat asks whether it still has it, and has not."""
    claim = Claim("job", 0, "w/1/task", 1, [])
    with pytest.raises(ClaimLost):
        ClaimKeeper(hub.ledger, claim, 8.0, 2.0, time.monotonic() - 60.0).beat()
