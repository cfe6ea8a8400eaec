"""A copy that is slow enough to be disturbed, and its processes."""

import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from sendense.nbd.transfer import CLUSTER
from sendense.nbd.uri import unix_uri
from tests.integration.support import Lab, Result
from tests.servers import Server, serve

BATCH = 32 * 2**20
"""Bytes of data in a batch of a scattered disk: 512 clusters, with as many holes between them."""

BATCHES = 6
RATE = 48 * 2**20
"""Bytes per second that the source gives: a copy takes four seconds."""

QUICK = {
    "no_progress_timeout": 3,
    "connect_timeout": 2,
    "claim_seconds": 3,
    "renew_seconds": 0.5,
    "tick_seconds": 0.5,
    "retry_seconds": 0.7,
}
"""Deadlines that let a test see what happens behind them."""

MIDWAY_SECONDS = 60.0


@contextmanager
def slow_server(disk: Path, socket: Path, *options: str) -> Iterator[Server]:
    """Serve a raw disk slowly. By qemu's throttle: nbdkit 1.32 may abort when a client is killed in a read."""
    pid_file = socket.with_suffix(".pid")
    pid_file.unlink(missing_ok=True)
    command = [
        *("qemu-nbd", "--persistent", "--shared=0", "--pid-file", str(pid_file), "--socket", str(socket), *options),
        *("--object", f"throttle-group,id=slow,x-bps-total={RATE}", "--image-opts"),
        f"driver=throttle,throttle-group=slow,file.driver=file,file.filename={disk}",
    ]
    with serve(command, unix_uri(str(socket)), pid_file) as server:
        yield server


class RunningCopy:
    """A `sendense copy` in the middle of its work."""

    def __init__(self, lab: Lab, *arguments: str | Path, growing: Path) -> None:
        self.lab = lab
        self.process = lab.start("copy", *arguments, "--workers", "2", "--json", **QUICK)
        self._growing = growing

    def wait_midway(self, stored: int = 3 * BATCH) -> None:
        """Wait until so many bytes are in the target's file: a batch is recorded by then, and half are left."""
        deadline = time.monotonic() + MIDWAY_SECONDS
        while not self._growing.exists() or self._growing.stat().st_blocks * 512 < stored:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, "the copy does not get on"
            time.sleep(0.02)

    def family(self, *words: str) -> list[psutil.Process]:
        """The copy's processes with one of these words in their command line, parents first."""
        everybody = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in everybody if any(word in " ".join(one.cmdline()) for word in words)]

    def redis_url(self) -> str:
        """Where the copy's own Redis listens."""
        (socket,) = self.lab.state.glob("copies/*/redis.sock")
        return f"unix://{socket}"

    def worker(self) -> psutil.Process:
        """The main process of the Celery worker."""
        return self.family("-m workers")[0]

    def worker_processes(self) -> list[psutil.Process]:
        """The processes that copy."""
        return self.worker().children()

    def send(self, number: signal.Signals) -> None:
        """A signal to the command itself."""
        self.process.send_signal(number)

    def finish(self) -> Result:
        """Its end, with nothing left of it."""
        return self.lab.finish(self.process)


@contextmanager
def copy_midway(lab: Lab, source: str | Path, target: str | Path, growing: Path) -> Iterator[RunningCopy]:
    """Start a copy and wait until it is midway; whatever happens, it is gone afterwards."""
    copy = RunningCopy(lab, source, target, growing=growing)
    try:
        copy.wait_midway()
        yield copy
    finally:
        if copy.process.poll() is None:
            copy.process.send_signal(signal.SIGKILL)
        for pipe in (copy.process.stdout, copy.process.stderr):
            if pipe:
                pipe.close()
        copy.process.wait()


def scattered_disk(lab: Lab, batches: int = BATCHES) -> Path:
    """A disk of so many batches: every second cluster is data, and no two are alike."""
    path, noise = lab.path("disk.raw"), random.Random(1).randbytes(CLUSTER - 8)
    with path.open("wb") as file:
        for number in range(batches * BATCH // CLUSTER):
            file.seek(2 * number * CLUSTER)
            file.write(number.to_bytes(8, "little") + noise)
        file.truncate(2 * batches * BATCH)
    return path
