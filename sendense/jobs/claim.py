"""A batch's claim while it is copied: renewed by the copy loop itself, so that only a living loop keeps it."""

import time

from sendense.errors import ClaimLost
from sendense.jobs.ledger import Claim, Ledger, LedgerUnavailable


class ClaimKeeper:
    """Renews a claim from within the copy loop; raises ClaimLost as soon as the batch may be somebody else's."""

    def __init__(self, ledger: Ledger, claim: Claim, lasts: float, every: float, claimed: float) -> None:
        """Seconds; `claimed` is when the claim was asked for (monotonic clock)."""
        self._ledger, self._claim, self._lasts, self._every = ledger, claim, lasts, every
        self._renewed = claimed
        self.copied = 0
        """Bytes that this attempt has moved."""

    def beat(self, copied: int | None = None) -> None:
        """Called at least twice a second; talks to the ledger every few seconds."""
        if copied is not None:
            self.copied = copied
        if time.monotonic() - self._renewed < self._every:
            return
        self._renew()
        if time.monotonic() - self._renewed > self._lasts:  # the process was stopped, or Redis away, amid the call
            self._renew()

    def heed(self) -> None:
        """Look now whether the batch is still ours, for who waits with nothing under way."""
        self._renew()

    def _renew(self) -> None:
        began = time.monotonic()
        try:
            kept = self._ledger.renew(self._claim, self._lasts, self.copied)
        except LedgerUnavailable:
            # Whether the claim still stands is unknown: go on only while it must.
            kept = time.monotonic() - self._renewed < self._lasts
        else:
            self._renewed = began
        if not kept:
            raise ClaimLost(self._claim.job, str(self._claim.batch))
