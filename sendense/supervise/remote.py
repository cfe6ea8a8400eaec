"""A Redis that somebody else runs: reached over the network, and away now and then."""

import time

from sendense.jobs.ledger import connect
from sendense.settings import Settings
from sendense.supervise.service import Note
from sendense.units import show_seconds

SAY_SECONDS = 60.0
"""Between two notes that it is still away."""


class RemoteRedis:
    """The Redis of `settings.redis`. Whoever uses its client tells it how that went."""

    def __init__(self, settings: Settings, note: Note, news: Note) -> None:
        """`note` is told that it is away, `news` that it is back."""
        self.url, self._note, self._news = settings.redis, note, news
        self.client = connect(self.url, retries=1, settings=settings)
        """For a supervisor, which has more to do than to wait."""
        self._since = self._said = 0.0

    def measure(self) -> float:
        """Seconds to it and back; LedgerUnavailable when it does not answer."""
        began = time.monotonic()
        self.client.ping()
        return time.monotonic() - began

    def missed(self, exc: Exception) -> None:
        """It did not answer: said at once, and then each minute."""
        now = time.monotonic()
        self._since = self._since or now
        if not self._said or now - self._said > SAY_SECONDS:
            self._said = now
            self._note(f"Redis at {self.url} does not answer, waiting for it: {exc}")

    def answered(self) -> bool:
        """It did; whether it had not before."""
        if not self._since:
            return False
        self._news(f"Redis at {self.url} answers again, after {show_seconds(time.monotonic() - self._since)}")
        self._since = self._said = 0.0
        return True
