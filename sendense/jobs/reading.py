"""What a supervisor does with a record in Redis that this version cannot read: it says so once, and goes on."""

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


def readable(what: str, read: Callable[[], T]) -> T | None:
    """What `read` makes of a record; None where it cannot, as another version wrote it."""
    try:
        return read()
    except (ValueError, KeyError, AssertionError) as exc:
        _say(what, type(exc).__name__)
        return None


@lru_cache(maxsize=1000)
def _say(what: str, error: str) -> None:
    log.warning(
        "%s is passed over: its record cannot be read (%s); a newer version wrote it: update this machine",
        what,
        error,
        extra={"action": "unreadable"},
    )
