"""
How well a site's throttle is held, and what it costs where there is none; prints one JSON object.

    python -m tests.bench.throttle [SECONDS]

Processes read an nbdkit of their own each, in memory, through the real transfer and a real Redis. Accuracy is what they
all read in a time, over what the limit allows in it. Cost is the time of a transfer that asks a throttle without a
limit, over that of one that asks nothing, in turns; the median of the ratios.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from sendense.extents import Extent
from sendense.jobs.ledger import Ledger, connect
from sendense.jobs.throttle import SiteThrottle, Throttles
from sendense.nbd.connect import Connection
from sendense.nbd.connect import connect as connect_nbd
from sendense.nbd.transfer import Limits, Take, Transfer
from sendense.nbd.uri import parse
from sendense.units import GiB, MiB
from tests.hub import Hub, open_hub
from tests.servers import nbdkit

SITE = "bench"
PROCESSES = 4
RATES = {"100 MiB/s": 100 * MiB, "10 MiB/s": 10 * MiB, "1 MiB/s": MiB}
SECONDS = 15.0
"""Of each measurement: at 1 MiB/s a request more or less is 7 %."""

SETTLE_SECONDS = 3.0
PATIENCE = 60.0
ROUNDS = 15
BYTES = 1 * GiB
LIMITS = Limits(1 * MiB, 16, 30.0)


def transfer(connection: Connection, size: int, take: Take) -> None:
    """Read so many bytes."""
    transfer = Transfer(connection, None, LIMITS, target_is_zero=False, beat=lambda copied: None, take=take)
    transfer.run([Extent(0, size)])


def read_for_ever(uri: str, redis_url: str, name: str) -> None:
    """What each process does: print the bytes that it was let read, all the time."""
    throttle = SiteThrottle(Ledger(connect(redis_url, retries=0)), SITE, name)
    connection, read = connect_nbd(parse(uri), 10.0), 0

    def take(length: int) -> float:
        nonlocal read
        wait = throttle.take(length, PATIENCE)
        if not wait:
            read += length
            print(time.monotonic(), read, flush=True)
        return wait

    while True:
        transfer(connection, BYTES, take)


@contextmanager
def readers(hub: Hub, uri: str) -> Iterator[list["subprocess.Popen[str]"]]:
    """Processes that read until the block ends."""
    argv = [sys.executable, "-m", "tests.bench.throttle", "--read", uri, hub.url]
    found = [
        subprocess.Popen([*argv, f"n{number}/1"], stdout=subprocess.PIPE, text=True) for number in range(PROCESSES)
    ]
    try:
        yield found
    finally:
        for process in found:
            process.kill()


def accuracy(hub: Hub, uri: str, rate: int, seconds: float) -> dict[str, float]:
    """What was read over what might be, and the same of the process that read least, of its share."""
    Throttles(hub.client).put_in_force(SITE, rate)
    with readers(hub, uri) as processes:
        time.sleep(SETTLE_SECONDS)
        begin = time.monotonic()
        time.sleep(seconds)
    end = begin + seconds
    each = []
    for process in processes:
        assert process.stdout
        with process:
            lines = [line.split() for line in process.stdout.read().splitlines() if line.count(" ") == 1]
        sums = [(float(at), int(read)) for at, read in lines if at and read]
        before = max((read for at, read in sums if at <= begin), default=0)
        each.append(max((read for at, read in sums if at <= end), default=0) - before)
    share = rate * seconds / PROCESSES
    return {"read": round(sum(each) / (rate * seconds), 3), "least": round(min(each) / share, 3)}


def cost(hub: Hub, uri: str) -> dict[str, float]:
    """Times the duration without a throttle: one that has no limit; and the same measured against itself."""
    Throttles(hub.client).put_in_force(SITE, 0)
    asking = partial(SiteThrottle(Ledger(connect(hub.url, retries=0)), SITE, "n/1").take, patience=PATIENCE)
    connection = connect_nbd(parse(uri), 10.0)

    def free(length: int) -> float:
        return 0.0

    def seconds(take: Take) -> float:
        began = time.perf_counter()
        transfer(connection, BYTES, take)
        return time.perf_counter() - began

    seconds(free)
    throttled, noise = [], []
    for _ in range(ROUNDS):
        first, asked, second = seconds(free), seconds(asking), seconds(free)
        throttled.append(2 * asked / (first + second))
        noise.append(second / first)
    connection.close()
    return {"without_limit": round(statistics.median(throttled), 3), "noise": round(statistics.median(noise), 3)}


def measure(seconds: float) -> dict[str, object]:
    """All of it."""
    with open_hub() as hub, nbdkit("pattern", f"size={BYTES}") as server:
        found = {name: accuracy(hub, server.uri, rate, seconds) for name, rate in RATES.items()}
        return {"processes": PROCESSES, "of_limit": found, "cost": cost(hub, server.uri)}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        read_for_ever(*sys.argv[2:])
    else:
        print(json.dumps(measure(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS)))
