"""Signs of life of whoever waits: callers that hold a claim or a lease pass what keeps it."""

from collections.abc import Callable

Beat = Callable[[], None]
"""Called at least every two seconds in every wait; what it raises ends the wait."""


def no_beat() -> None:
    """For callers that hold nothing that lapses."""
