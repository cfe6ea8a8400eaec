"""Signs of life of whoever waits, or works for long: callers that hold a claim or a lease pass what keeps it."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

BEAT_ITEMS = 64
"""Items of a long iteration between two beats: batches of 16 KiB take 0.2 s to compress, which is the slowest."""

Beat = Callable[[], None]
"""Called at least every two seconds in every wait; what it raises ends the wait."""

_T = TypeVar("_T")


def no_beat() -> None:
    """For callers that hold nothing that lapses."""


def beating(items: Iterable[_T], beat: Beat) -> Iterator[_T]:
    """The items as they are, with a beat before the first and then before each so many of them."""
    for number, item in enumerate(items):
        if number % BEAT_ITEMS == 0:
            beat()
        yield item
