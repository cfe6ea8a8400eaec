"""How a copy is shown while it runs: a live display on a terminal, plain lines elsewhere, notes only with --json."""

import time
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sendense.models import CopySummary, Progress
from sendense.units import show_bytes, show_seconds

RATE_SECONDS = 10.0
"""The rate is the mean over so long: shorter jumps about, longer hides a stall."""

LINE_SECONDS = 5.0
"""Between two plain lines."""

DRAW_SECONDS = 0.2
"""Between two pictures on a terminal: each costs milliseconds that the copy could use."""


def make_watcher(*, quiet: bool) -> "Watcher":
    """What suits where the output goes. Everything is written to stderr: stdout is for results."""
    console = Console(stderr=True, highlight=False)
    if quiet:
        return Watcher(console)
    return LiveWatcher(console) if console.is_terminal else LineWatcher(console)


class Watcher:
    """Prints notes, and shows no progress."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._samples: deque[tuple[float, int]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def note(self, text: str) -> None:
        """One line, as it is."""
        self._console.print(Text(f"sendense: {text}"), soft_wrap=True)

    def show(self, phase: str, progress: Progress) -> None:
        """Nothing."""

    def conclude(self, summary: CopySummary) -> None:
        """The result in two lines, on stdout."""
        stored = summary.data - summary.already_done
        rate = f", {show_bytes(stored / summary.seconds)}/s" if summary.seconds else ""
        before = f", {show_bytes(summary.already_done)} before" if summary.already_done else ""
        again = f", {show_bytes(summary.copied - stored)} again" if summary.copied > stored else ""
        tries = f"; {summary.retries} retries, {summary.stalls} stalls" if summary.retries or summary.stalls else ""
        print(
            f"copied {show_bytes(stored)} of data in {show_seconds(summary.seconds)}{rate}{before}{again}{tries}\n"
            f"{'verified, ' if summary.verified else ''}{show_bytes(summary.size)} in all, digest {summary.digest}"
        )

    def _rate(self, progress: Progress) -> float:
        """Bytes per second, over the last RATE_SECONDS."""
        now = time.monotonic()
        if self._samples and progress.copied < self._samples[-1][1]:
            self._samples.clear()  # another phase began
        self._samples.append((now, progress.copied))
        while now - self._samples[0][0] > RATE_SECONDS:
            self._samples.popleft()
        seconds = now - self._samples[0][0]
        return (progress.copied - self._samples[0][1]) / seconds if seconds else 0.0


class LineWatcher(Watcher):
    """A line every few seconds, where there is no terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._said = 0.0

    def show(self, phase: str, progress: Progress) -> None:
        """A line, when it is time for one."""
        rate = self._rate(progress)
        if time.monotonic() - self._said < LINE_SECONDS and progress.state == "copying":
            return
        self._said = time.monotonic()
        self._console.print(f"{phase}: {_counts(progress, rate)}", soft_wrap=True)


class LiveWatcher(Watcher):
    """A bar, the counters, and a line for each worker process."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        # Drawn by `show` alone: a refresh thread of its own would go on drawing while the copy stands still.
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._drawn = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, phase: str, progress: Progress) -> None:
        """Draw it, when it is time to."""
        rate = self._rate(progress)
        if time.monotonic() - self._drawn < DRAW_SECONDS and progress.state == "copying":
            return
        self._drawn = time.monotonic()
        table = Table.grid(padding=(0, 2))
        workers = {activity.worker.split("/")[0] for activity in progress.active}
        for activity in progress.active:
            worker, process = activity.worker.split("/")[:2]
            name = f"{worker} {process}" if len(workers) > 1 else f"process {process}"
            table.add_row(f"  {name}", f"batch {activity.batch + 1}", show_bytes(activity.done))
        bar = Table.grid()  # which ends the line behind it
        bar.add_row(ProgressBar(total=max(1, progress.data), completed=progress.moved, width=60))
        self._live.update(Group(Text(f"{phase}: {_counts(progress, rate)}"), bar, table), refresh=True)


def show_moved(progress: Progress) -> str:
    """How far it is, and what of it had to be moved again."""
    again = f", {show_bytes(progress.again)} again" if progress.again else ""
    return f"{show_bytes(progress.moved)} of {show_bytes(progress.data)}{again}"


def _counts(progress: Progress, rate: float) -> str:
    left = f"{show_seconds((progress.data - progress.moved) / rate)} left" if rate else "waiting"
    parts = [show_moved(progress), f"{show_bytes(rate)}/s", left]
    parts.append(f"batch {progress.batches_done}/{progress.batches}")
    if progress.retries:
        parts.append(f"{progress.retries} retries")
    if progress.stalls:
        parts.append(f"{progress.stalls} stalls")
    return ", ".join(parts)
