"""What a worker writes into its log: what Celery says again and again is said once a minute, and in one line."""

import logging
import time
from collections.abc import Iterator

from sendense.jobs.broker import Unavailable
from sendense.supervise.journal import LineFormatter

SAY_SECONDS = 60.0
"""Between two lines that say the same of a Redis that is away."""

NO_NEWS = ("CPendingDeprecationWarning", "Exception raised outside body")
"""Warnings: advice on a setting at each loss of Redis, and the traceback of an error that is logged beside it.
Celery has its own filters for warnings, after which ours would not count."""

MOST_TEXTS = 100
"""Of those lines that are remembered: they name an address and an error, so there are a few."""


class Calm(logging.Filter):
    """
    Of a Redis that is away: its first line, and no traceback, which only shows who asked.

    Whoever supervises the worker says for how long it was.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write it."""
        if record.name == "py.warnings" and any(words in record.getMessage() for words in NO_NEWS):
            return False
        if not _is_of_redis(record):
            return True
        text = record.getMessage().split("\n")[0]
        record.msg, record.args, record.exc_info, record.exc_text = text, (), None, None
        now = time.monotonic()
        if now - self._said.get(text, now - 2 * SAY_SECONDS) < SAY_SECONDS:
            return False
        if len(self._said) >= MOST_TEXTS:
            self._said.clear()
        self._said[text] = now
        return True


def log_plainly() -> None:
    """Have all logging of this process go to stderr, which whoever started the worker keeps."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    handler.addFilter(Calm())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def _is_of_redis(record: logging.LogRecord) -> bool:
    if record.levelno >= logging.CRITICAL or not record.name.startswith(("celery", "kombu")):
        return False
    if record.name == "celery.worker.consumer.consumer":
        return "onnect" in record.getMessage()
    if record.name == "celery.backends.redis":  # of a chord, one of whose parts has said it
        return True
    return any(isinstance(exc, Unavailable) for exc in _chain(record))


def _chain(record: logging.LogRecord) -> Iterator[BaseException]:
    exc, seen = record.exc_info[1] if record.exc_info else None, 0
    while exc and seen < MOST_TEXTS:
        yield exc
        exc, seen = exc.__cause__ or exc.__context__, seen + 1
