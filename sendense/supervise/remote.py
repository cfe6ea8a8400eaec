"""A Redis that somebody else runs: reached over the network, and away now and then."""

import time

from sendense.jobs.access import RedisFull, must_store
from sendense.jobs.ledger import connect
from sendense.settings import Settings
from sendense.supervise.service import SAY_SECONDS, Note
from sendense.units import show_seconds


class RemoteRedis:
    """The Redis of `settings.redis`. Whoever uses its client tells it how that went."""

    def __init__(self, settings: Settings, note: Note, news: Note) -> None:
        """`note` is told that it is away, `news` that it is back."""
        self.url, self._note, self._news = settings.redis, note, news
        self.client = connect(self.url, retries=1, settings=settings)
        """For a supervisor, which has more to do than to wait."""
        self._since = self._said = 0.0

    def measure(self) -> float:
        """Seconds until it has stored something; LedgerUnavailable when it does not answer, or has no room."""
        began = time.monotonic()
        must_store(self.client)
        return time.monotonic() - began

    def missed(self, exc: Exception) -> None:
        """It did not answer, or has no room: said at once, and then each minute."""
        now = time.monotonic()
        self._since = self._since or now
        if not self._said or now - self._said > SAY_SECONDS:
            self._said = now
            what = "stores nothing" if isinstance(exc, RedisFull) else "does not answer"
            self._note(f"Redis at {self.url} {what}, waiting for it: {exc}")

    def answered(self) -> bool:
        """It did; whether it had not before."""
        if not self._since:
            return False
        self._news(f"Redis at {self.url} answers again, after {show_seconds(time.monotonic() - self._since)}")
        self._since = self._said = 0.0
        return True
