"""
How long a plan of many extents takes, and how much memory: run in a process of its own, prints one JSON object.

    python -m tests.bench.plan [EXTENTS]
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from sendense.extents import Extent
from sendense.jobs.ledger import Ledger, connect
from sendense.jobs.plan import plan
from sendense.models import JobSpec, Survey
from sendense.units import KiB
from tests.servers import short_folder

DEFAULT_EXTENTS = 1_000_000
PITCH = 128 * KiB
START_SECONDS = 10.0


def scattered(count: int) -> Iterator[Extent]:
    """Data and zero in turns, none mergeable with the next: the worst case for a plan."""
    for i in range(count):
        yield Extent(i * PITCH, PITCH, zero=bool(i % 2))


def measure(count: int) -> dict[str, float]:
    """Seconds of planning alone and of planning into a real Redis; bytes at the peak of this process."""
    size = count * PITCH
    started = time.perf_counter()
    batches = sum(1 for _ in plan(scattered(count), size))
    seconds = time.perf_counter() - started

    with short_folder() as folder:
        socket = folder / "redis"
        options = ["--port", "0", "--unixsocket", socket, "--dir", folder, "--save", "", "--appendonly", "yes"]
        command = ["setpriv", "--pdeathsig", "KILL", "redis-server", *map(str, options)]
        redis_server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            seconds_stored = _store(socket, count, size)
        finally:
            redis_server.kill()
            redis_server.wait()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KiB
    return {
        "extents": count,
        "batches": batches,
        "seconds": round(seconds, 3),
        "seconds_stored": round(seconds_stored, 3),
        "peak_bytes": peak,
    }


def _store(socket: Path, count: int, size: int) -> float:
    deadline = time.monotonic() + START_SECONDS
    while not socket.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"redis-server has not started within {START_SECONDS:.0f} s")
        time.sleep(0.01)
    ledger = Ledger(connect(f"unix://{socket}"))
    survey = Survey(size=size, multi_conn=True, allocation=True, flush=True)
    ledger.prepare(JobSpec(id="bench", kind="copy", name="disk", source="nbd://s/", target="nbd://t/"))
    started = time.perf_counter()
    ledger.write_plan("bench", survey, plan(scattered(count), size))
    return time.perf_counter() - started


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_EXTENTS)))
