"""One child that is kept up, and how often that may be tried."""

import time
from collections import deque
from collections.abc import Callable

from sendense.errors import JobFailed
from sendense.supervise.child import Child, wait_until
from sendense.units import show_seconds

Note = Callable[[str], None]
"""Is told, in a sentence for operators, what was started again and why."""

MOST_STARTS = 20
"""Starts of one child within its budget's window before its ending is a failure that starting again does not heal."""

WINDOW_SECONDS = 600.0
"""The window of a service that runs for years: a child that ends every half minute does no work."""

SAY_SECONDS = 60.0
"""Between two notes that something is still so."""

UNDYING_HINT = "a disk that it uses does not answer, look at the system's log"


class Budget:
    """So many starts within so many seconds; math.inf seconds: in all."""

    def __init__(self, starts: int = MOST_STARTS, seconds: float = WINDOW_SECONDS) -> None:
        self._starts, self._seconds = starts, seconds
        self._times: deque[float] = deque()

    def spend(self) -> None:
        """Count a start."""
        self._times.append(time.monotonic())

    def forgive(self) -> None:
        """Count anew: what it ended of was not its own fault."""
        self._times.clear()

    def is_spent(self) -> bool:
        """Whether there is none left."""
        while self._times and time.monotonic() - self._times[0] > self._seconds:
            self._times.popleft()
        return len(self._times) >= self._starts

    def __str__(self) -> str:
        within = f" within {show_seconds(self._seconds)}" if self._seconds < float("inf") else ""
        return f"{len(self._times)} times{within}"


class Service:
    """A child, when it is of use, and what has to be done before it can be started."""

    def __init__(self, child: Child, note: Note, budget: Budget) -> None:
        self.child, self.note, self._budget = child, note, budget
        self._undying = 0.0
        """When it was said last that the child does not die; 0 while it does."""

    def start(self) -> None:
        """Start it; it is of use a moment later."""
        self._budget.spend()
        self.prepare()
        self.child.start()

    def prepare(self) -> None:
        """Runs ahead of each start."""

    def is_ready(self) -> bool:
        """Whether it is of use."""
        return True

    def wait(self) -> None:
        """Wait until it is of use; JobFailed when it ends or takes longer than START_SECONDS."""
        wait_until(self.is_ready, self.child)

    def supervise(self) -> None:
        """Start it again if it ended; JobFailed when its budget is spent, or it cannot be started."""
        if not self.child.is_running():
            self.restart()

    def kill(self) -> bool:
        """End it at once, with all that it started; False, which is said each minute, when it does not die."""
        if self.child.kill():
            self._undying = 0.0
            return True
        if not self._undying or time.monotonic() - self._undying > SAY_SECONDS:
            self._undying = time.monotonic()
            self.note(f"{self.child.name} (process {self.child.pid}) was killed and does not die: {UNDYING_HINT}")
        return False

    def restart(self, why: str = "") -> None:
        """
        Kill it with all that it started, start it again, and wait until it is of use.

        Where it does not die, there is no second one: that is said, and whoever supervises it tries again.
        """
        if why and not self._undying:
            self.note(why)
        if not self.kill():
            return
        if self._budget.is_spent():
            raise JobFailed(
                f"the {self.child.name} ended {self._budget}, the last time with: {self.child.last_words()}",
                f"Its log: {self.child.log}",
            )
        self.note(f"{self.child.name} ended: starting it again")
        self.start()
        self.wait()
