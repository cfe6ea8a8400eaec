"""
`make bench`: backups of a simulated site's VM, an incremental beside a full, and a restore beside qemu-img, in one run.

The site's one disk and the repository lie in RAM, a quarter of the disk is files; the hub's state is on disk, where a
user's is. Each round begins with an empty repository: a full, the guest changes a hundredth of the disk, an
incremental, a verification, a restore of both levels. The first round's restore is compared with the disk.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sendense.lab.client import LabClient
from sendense.repository.catalogue import Repository
from sendense.units import GiB, KiB, show_bytes
from sendense.views import Job
from tests.bench.copy import BenchError, copy_once, run, versions, work_folder
from tests.site import LabSite

FULL, INCREMENTAL, VERIFY, RESTORE, QEMU_IMG = "full", "incremental", "verify", "restore", "qemu-img convert"

DATA_PART, CHANGED_PART = 4, 100
"""One of so many bytes of the disk is in files, and is changed before the incremental."""

FILE_BYTES = 512 * KiB
"""Of a file that the guest writes: the changes are scattered, and not too small to be files."""

GRAIN = 64 * KiB
"""Changed areas count in whole blocks of this size, which change tracking and qcow2 share."""

SPACE = 1.25
"""Of the disk's size: its files, what a snapshot holds, a restore point and two restored images, a quarter each."""


class Bench:
    """One site, and what was measured there: seconds of copying and of whole commands, by what was done."""

    def __init__(self, site: LabSite, folder: Path) -> None:
        self._site, self._folder = site, folder
        self._repository = folder / "repository"
        self.copying: dict[str, list[float]] = {}
        self.whole: dict[str, list[float]] = {}
        self.bytes: dict[str, list[int]] = {}
        self.changed: list[int] = []

    def round(self, first: bool) -> None:
        """Do everything once, on an empty repository."""
        shutil.rmtree(self._repository, ignore_errors=True)
        vm = self._site.client.vms()[0]
        disk = vm.disks[0]
        self._job(FULL, "backup", vm.name)
        size = disk.size // CHANGED_PART
        files = max(1, size // FILE_BYTES // 2)  # new ones, and as many that are there already
        written = self._site.client.write_files(vm.name, files=files, size=size)
        self.changed.append(in_grains(written.areas))
        point = self._job(INCREMENTAL, "backup", vm.name, "--mode", "incremental").point
        self._job(VERIFY, "verify", point)
        restored, converted = self._folder / "restored.qcow2", self._folder / "converted.qcow2"
        repository = Repository.open(self._repository, create=False)
        image = repository.levels(repository.find(point), disk.key)[0].image
        convert = ["qemu-img", "convert", "-W", "-m", "16", "-t", "writeback", "-O", "qcow2", str(image)]
        self._job(RESTORE, "restore", point, str(restored))
        self.whole.setdefault(QEMU_IMG, []).append(copy_once([*convert, str(converted)])[0])
        if first:
            run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(disk.path), str(restored)])
        restored.unlink()
        converted.unlink()

    def _job(self, name: str, *arguments: str) -> Job:
        sendense = str(Path(sys.executable).with_name("sendense"))
        seconds, out, _ = copy_once([sendense, *arguments, "--json"])
        view = Job.model_validate_json(out)
        self.whole.setdefault(name, []).append(seconds)
        if name != VERIFY:
            self.copying.setdefault(name, []).append(max(disk.seconds for disk in view.disks))
            copied = sum(disk.progress.copied for disk in view.disks if disk.progress)
            self.bytes.setdefault(name, []).append(copied)
        return view

    def result(self) -> dict[str, Any]:
        """The figures, their medians, and the ratios that matter, each taken within a round."""
        full, incremental, restore = (self.copying[name] for name in (FULL, INCREMENTAL, RESTORE))
        ratios = {
            "incremental's copying / full's": ratio(incremental, full),
            "bytes moved / changed areas": ratio(self.bytes[INCREMENTAL], self.changed),
            "incremental, whole / full, whole": ratio(self.whole[INCREMENTAL], self.whole[FULL]),
            "restore's copying / qemu-img convert": ratio(restore, self.whole[QEMU_IMG]),
            "restore, whole / qemu-img convert": ratio(self.whole[RESTORE], self.whole[QEMU_IMG]),
        }
        return {
            "copying_seconds": self.copying,
            "whole_seconds": self.whole,
            "bytes": self.bytes,
            "changed_bytes": self.changed,
            "ratios": ratios,
        }


LIMITS = {"incremental's copying / full's": 0.1, "bytes moved / changed areas": 1.05}
"""The project's goals; the other ratios are there to be looked at."""


def ratio(parts: list[float] | list[int], wholes: list[float] | list[int]) -> float:
    """The median of the rounds' own ratios: what slows the machine down slows down both sides of one."""
    return statistics.median(part / whole for part, whole in zip(parts, wholes, strict=True))


def in_grains(areas: Iterable[tuple[int, int]]) -> int:
    """Bytes of the blocks of GRAIN that these areas touch."""
    touched: set[int] = set()
    for offset, length in areas:
        touched.update(range(offset // GRAIN, -(-(offset + length) // GRAIN)))
    return len(touched) * GRAIN


def show(result: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    table = Table("what", title=f"disk of {show_bytes(result['size'])}, rounds: {result['rounds']}")
    table.title_justify = "left"
    for heading in ("copying", "whole command", "slowest", "bytes"):
        table.add_column(heading, justify="right")
    for name, took in result["whole_seconds"].items():
        copying = result["copying_seconds"].get(name)
        moved = show_bytes(statistics.median(result["bytes"][name])) if name in result["bytes"] else ""
        cells = [f"{statistics.median(copying):.2f} s" if copying else "", f"{statistics.median(took):.2f} s"]
        table.add_row(name, *cells, f"{max(took):.2f} s", moved)
    console.print(table)
    table = Table("ratio", title="medians of the rounds' ratios", title_justify="left")
    for heading in ("at most", "measured", ""):
        table.add_column(heading, justify="right")
    for name, measured in result["ratios"].items():
        limit = LIMITS.get(name)
        verdict = "" if limit is None else "[green]met[/]" if measured <= limit else "[red]missed[/]"
        table.add_row(name, "" if limit is None else str(limit), f"{measured:.3f}", verdict)
    console.print(table)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.backup", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--size-gib", type=float, default=8.0, help="size of the disk (default 8)")
    parser.add_argument("--rounds", type=int, default=3, help="how often all is done (default 3)")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where disks go (default /dev/shm)")
    parser.add_argument(
        "--json", type=Path, default=Path("bench-backup.json"), help="result file (default bench-backup.json)"
    )
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.size_gib < 1:
        parser.error("--rounds and --size-gib must be 1 or more")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run it all; the exit status is 0 unless something could not be measured or a restored disk was wrong."""
    options, console = parse(arguments), Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder in RAM is removed
    size = int(options.size_gib * GiB)
    result: dict[str, Any] = {"rounds": options.rounds, "size": size, "cpus": os.cpu_count()}
    for name in [name for name in os.environ if name.startswith("SENDENSE_")]:
        del os.environ[name]
    try:
        result["versions"] = versions()
        with work_folder(options.folder, int(size * SPACE)) as folder, tempfile.TemporaryDirectory() as state:
            console.print(f"making a site with a disk of {show_bytes(size)} in {folder}")
            plan = ["--vms", "1", "--disks", "1", "--disk-size", str(size), "--fill", str(size // DATA_PART)]
            site = LabSite(folder / "lab", plan, LabClient(folder / "lab"))
            os.environ["SENDENSE_CONFIG"] = str(site.config)
            os.environ["SENDENSE_STATE_DIR"] = state
            os.environ["SENDENSE_REPOSITORY"] = str(folder / "repository")
            try:
                site.start()
                bench = Bench(site, folder)
                for number in range(options.rounds):
                    bench.round(number == 0)
                    shown = ", ".join(f"{name} {took[-1]:.2f} s" for name, took in bench.whole.items())
                    console.print(f"  round {number + 1} of {options.rounds}: {shown}")
            finally:
                site.stop()
    except (BenchError, RuntimeError) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    result.update(bench.result())
    show(result, console)
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"written to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
