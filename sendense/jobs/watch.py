"""Who watches a job from a command."""

from typing import Protocol

from sendense.models import Progress


class Watcher(Protocol):
    """Who is told how it goes."""

    def note(self, text: str) -> None:
        """Something an operator should know, once."""

    def show(self, phase: str, progress: Progress) -> None:
        """The job's counters, several times a second."""
