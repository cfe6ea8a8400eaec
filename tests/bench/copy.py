"""
`make bench`: Sendense beside nbdcopy and qemu-img, on one image, in one run, in turns.

The image lies in RAM, a third of it scattered data; nbdkit serves it, qemu-nbd serves a new qcow2 for every copy, both
over TCP on loopback. Before the timed rounds each tool copies once untimed: that copy is compared with the source, and
the memory of Sendense's processes is watched during it, so that watching costs the timed rounds nothing.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from sendense.units import GiB, KiB, MiB, show_bytes
from tests.servers import nbdkit, qemu_nbd

POOL = 64 * MiB
"""Incompressible bytes that the data is cut from: making all of it anew would take longer than copying it."""

SHORTEST_RUN, LONGEST_RUN, BLOCK = 64 * KiB, 4 * MiB, 4 * KiB

SAMPLE_SECONDS = 0.02
TOOL_SECONDS = 900.0
"""Longest that one copy may take."""

WHOLE, PHASE, NBDCOPY, QEMU_IMG = "sendense copy", "its copying phase", "nbdcopy", "qemu-img convert"

Command = Callable[[str, str], list[str]]


class BenchError(Exception):
    """The benchmark cannot go on; the message says why."""


def commands(workers: int | None) -> dict[str, Command]:
    """How each tool is called, given the two URIs. All flush at the end, and skip zeroes."""
    sendense = [str(Path(sys.executable).with_name("sendense")), "copy"]
    options = ["--target-is-zero", "--json", *(["--workers", str(workers)] if workers else [])]
    qemu_img = ["qemu-img", "convert", "-n", "--target-is-zero", "-W", "-m", "16", "-t", "writeback"]
    return {
        WHOLE: lambda source, target: [*sendense, source, target, *options],
        NBDCOPY: lambda source, target: ["nbdcopy", "--flush", "--destination-is-zero", source, target],
        QEMU_IMG: lambda source, target: [*qemu_img, "-f", "raw", "-O", "raw", source, target],
    }


def make_image(path: Path, size: int, seed: int) -> int:
    """Write a sparse image, a third of it scattered data in runs of mixed lengths; returns the bytes of data."""
    rng = random.Random(seed)
    pool = memoryview(rng.randbytes(POOL))

    def length() -> int:
        return int(SHORTEST_RUN * (LONGEST_RUN / SHORTEST_RUN) ** rng.random()) // BLOCK * BLOCK

    data = 0
    with path.open("wb") as file:
        file.truncate(size)
        offset = length()
        while offset < size:
            run = min(length(), size - offset)
            start = rng.randrange(0, POOL - run, BLOCK)
            os.pwrite(file.fileno(), pool[start : start + run], offset)
            data += run
            offset += run + length() + length()
    return data


@contextmanager
def new_target(path: Path, size: int) -> Iterator[str]:
    """A new qcow2 behind its qemu-nbd, with the flags that every tool gets; yields the URI."""
    path.unlink(missing_ok=True)
    run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)])
    with qemu_nbd(path, "--shared=16", "--persistent", "--discard=unmap", image_format="qcow2", tcp=True) as server:
        yield server.uri


class MemoryWatch(threading.Thread):
    """Samples the peak resident memory (VmHWM) of a process and all below it, by kind of process."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[str, int] = {}
        self._root = psutil.Process(pid)
        self._kinds: dict[int, str] = {}
        self._over = threading.Event()

    def run(self) -> None:
        """Sample until stopped."""
        while not self._over.wait(SAMPLE_SECONDS):
            try:
                below = self._root.children(recursive=True)
            except psutil.NoSuchProcess:
                return
            for process in (self._root, *below):
                self._sample(process)

    def stop(self) -> dict[str, int]:
        """End the sampling; returns bytes by kind of process."""
        self._over.set()
        self.join()
        return self.peaks

    def _sample(self, process: psutil.Process) -> None:
        try:
            kind = self._kind(process)
            status = Path(f"/proc/{process.pid}/status").read_text()
        except (psutil.NoSuchProcess, OSError):
            return  # it just ended
        peak = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0) * KiB
        self.peaks[kind] = max(self.peaks.get(kind, 0), peak)

    def _kind(self, process: psutil.Process) -> str:
        """Told by the command line; a pool process of Celery is a fork, with the command line of its parent."""
        if process.pid == self._root.pid:
            return "command"
        if _is_worker(process):
            parent = process.parent()
            in_pool = parent is not None and _is_worker(parent)
            return "worker process" if in_pool else "worker main"
        return process.name()


def _is_worker(process: psutil.Process) -> bool:
    return process.cmdline()[1:3] == ["-m", "workers"]


def copy_once(command: list[str], *, watch: bool = False) -> tuple[float, str, dict[str, int]]:
    """Run one copy; returns wall seconds, its stdout, and the memory peaks if watched."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        watcher = MemoryWatch(process.pid) if watch else None
        if watcher:
            watcher.start()
        try:
            out, err = process.communicate(timeout=TOOL_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise BenchError(f"not done after {TOOL_SECONDS:.0f} s: {' '.join(command)}") from None
        except BaseException:
            process.terminate()  # leaving the block waits for its end
            raise
        seconds = time.perf_counter() - started
        peaks = watcher.stop() if watcher else {}
    if process.returncode:
        raise BenchError(f"exit status {process.returncode}: {' '.join(command)}\n{err.decode(errors='replace')}")
    return seconds, out.decode(), peaks


def run(command: list[str]) -> None:
    """Run a command that is not measured; its output is shown if it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TOOL_SECONDS, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command)}: {(done.stdout + done.stderr).decode(errors='replace')}")


def bench_plan() -> dict[str, float]:
    """Plan a million extents in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.plan"]
    done = subprocess.run(command, capture_output=True, timeout=TOOL_SECONDS, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command)}\n{done.stderr.decode(errors='replace')}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


def bench_copy(options: argparse.Namespace, folder: Path, console: Console) -> dict[str, Any]:
    """Make the image, check every tool once, then time them in turns."""
    size = int(options.size_gib * GiB)
    source, target = folder / "source.raw", folder / "target.qcow2"
    console.print(f"making an image of {show_bytes(size)} in {folder}")
    data = make_image(source, size, options.seed)
    tools = {name: call for name, call in commands(options.workers).items() if name in options.tools}
    times: dict[str, list[float]] = {name: [] for name in (WHOLE, PHASE, NBDCOPY, QEMU_IMG)}
    memory: dict[str, int] = {}

    with nbdkit("--readonly", "file", source, tcp=True) as server:
        for name, call in tools.items():
            with new_target(target, size) as uri:
                _, _, peaks = copy_once(call(server.uri, uri), watch=name == WHOLE)
            memory.update(peaks)
            run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(source), str(target)])
            console.print(f"  {name}: identical")
        order = list(tools.items())
        for number in range(options.rounds):
            shown = []
            for name, call in order:
                with new_target(target, size) as uri:
                    seconds, out, _ = copy_once(call(server.uri, uri))
                times[name].append(seconds)
                shown.append(f"{name} {seconds:.2f} s")
                if name == WHOLE:
                    times[PHASE].append(float(json.loads(out)["seconds"]))
            console.print(f"  round {number + 1} of {options.rounds}: {', '.join(shown)}")
            order = order[1:] + order[:1]  # nobody is always first
    return {
        "size": size,
        "data": data,
        "seconds": {name: took for name, took in times.items() if took},
        "memory": memory,
    }


def judge(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The project's goals, and what was measured for each; a goal whose measurement is missing is left out."""
    ratios, memory, planned = result.get("ratio_to_nbdcopy", {}), result.get("memory", {}), result.get("plan", {})
    goals = [
        ("copying phase / nbdcopy", ratios.get(PHASE), 1.00, "{:.2f}"),
        ("whole command / nbdcopy", ratios.get(WHOLE), 1.15, "{:.2f}"),
        ("memory of a worker process, MB", _mb(memory.get("worker process")), 150, "{:.0f}"),
        ("planning a million extents, s", planned.get("seconds_stored"), 2.0, "{:.2f}"),
        ("memory of planning, MB", _mb(planned.get("peak_bytes")), 200, "{:.0f}"),
    ]
    return [
        {"goal": goal, "at_most": limit, "measured": value, "met": value <= limit, "shown": form.format(value)}
        for goal, value, limit, form in goals
        if value is not None
    ]


def _mb(count: float | None) -> float | None:
    return None if count is None else count / 1000**2


def show(result: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    if "seconds" in result:
        title = f"{show_bytes(result['size'])}, {show_bytes(result['data'])} of it data, rounds: {result['rounds']}"
        table = Table("tool", title=title, title_justify="left")
        for heading in ("median", "fastest", "slowest", "data/s", "/ nbdcopy"):
            table.add_column(heading, justify="right")
        for name, took in result["seconds"].items():
            median, ratio = result["median"][name], result["ratio_to_nbdcopy"].get(name)
            rate = show_bytes(result["data"] / median) + "/s" if median else ""
            cells = [f"{median:.2f} s", f"{min(took):.2f} s", f"{max(took):.2f} s", rate]
            table.add_row(name, *cells, f"{ratio:.2f}" if ratio else "")
        console.print(table)
    if result.get("memory"):
        table = Table("process", title="Sendense's memory", title_justify="left")
        table.add_column("peak of the largest", justify="right")
        for kind, peak in sorted(result["memory"].items()):
            table.add_row(kind, f"{peak / 1000**2:.0f} MB")
        console.print(table)
    table = Table("goal", title="goals", title_justify="left")
    for heading in ("at most", "measured", ""):
        table.add_column(heading, justify="right")
    for goal in result["goals"]:
        verdict = "[green]met[/]" if goal["met"] else "[red]missed[/]"
        table.add_row(goal["goal"], str(goal["at_most"]), goal["shown"], verdict)
    console.print(table)


def versions() -> dict[str, str]:
    """What was compared with what."""
    asked = {"qemu": ["qemu-img", "--version"], "nbdcopy": ["nbdcopy", "--version"], "nbdkit": ["nbdkit", "--version"]}
    found = {
        name: subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()[0]
        for name, command in asked.items()
    }
    return {**found, "python": platform.python_version(), "kernel": platform.release()}


@contextmanager
def work_folder(parent: Path, size: int) -> Iterator[Path]:
    """A folder in RAM with room for the image and one copy; earlier ones whose process was killed are removed."""
    for left in parent.glob("sendense-bench.*.*"):
        if not psutil.pid_exists(int(left.name.split(".")[1])):
            shutil.rmtree(left, ignore_errors=True)
    needed = size  # a third of it data, stored twice, and a third to spare
    free = min(shutil.disk_usage(parent).free, psutil.virtual_memory().available)
    if free < needed:
        raise BenchError(
            f"{parent} has {show_bytes(free)} to use, {show_bytes(needed)} are needed: take a smaller --size-gib"
        )
    folder = Path(tempfile.mkdtemp(prefix=f"sendense-bench.{os.getpid()}.", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    tools = (WHOLE, NBDCOPY, QEMU_IMG)
    parser = argparse.ArgumentParser(prog="python -m tests.bench.copy", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--size-gib", type=float, default=8.0, help="size of the disk (default 8)")
    parser.add_argument("--rounds", type=int, default=5, help="timed copies of each tool (default 5)")
    parser.add_argument("--workers", type=int, help="passed to sendense copy")
    parser.add_argument(
        "--tools", nargs="+", choices=tools, default=tools, metavar="TOOL", help=f"of {', '.join(tools)}"
    )
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where the images go (default /dev/shm)")
    parser.add_argument("--seed", type=int, default=1, help="of the image's content (default 1)")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="result file (default bench.json)")
    parser.add_argument("--no-plan", action="store_true", help="leave planning a million extents out")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.size_gib <= 0:
        parser.error("--rounds and --size-gib must be positive")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run it all; the exit status is 0 unless something could not be measured or a copy was wrong."""
    options, console = parse(arguments), Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder in RAM is removed
    result: dict[str, Any] = {"rounds": options.rounds, "cpus": os.cpu_count()}
    try:
        result["versions"] = versions()
        if not options.no_plan:
            result["plan"] = bench_plan()
        with work_folder(options.folder, int(options.size_gib * GiB)) as folder, tempfile.TemporaryDirectory() as state:
            os.environ["SENDENSE_STATE_DIR"] = state  # on disk, where a user's is, and gone afterwards
            result.update(bench_copy(options, folder, console))
    except (BenchError, RuntimeError) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    medians = {name: statistics.median(took) for name, took in result["seconds"].items()}
    result["median"] = medians
    base = medians.get(NBDCOPY)
    result["ratio_to_nbdcopy"] = {name: median / base for name, median in medians.items()} if base else {}
    result["goals"] = judge(result)
    show(result, console)
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"written to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
