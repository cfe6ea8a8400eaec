"""When a failed batch is tried again: a pure decision, from the attempt's number and the error's class."""

import random

# Six attempts with these delays ride out an outage of about a minute (a tunnel cut, a server restart)
# even where every connection is refused at once.
MAX_ATTEMPTS = 6
BASE_DELAY_SECONDS = 2.0
MAX_DELAY_SECONDS = 60.0


def delay_before(attempt: int, rng: random.Random | None = None) -> float:
    """Seconds to wait before attempt number `attempt` + 1: doubled each time, and jittered so that workers spread."""
    full = min(MAX_DELAY_SECONDS, BASE_DELAY_SECONDS * 2.0 ** (attempt - 1))
    return full * (rng or random).uniform(0.75, 1.25)


def may_retry(attempt: int, retryable: bool, limit: int = MAX_ATTEMPTS) -> bool:
    """Whether a batch whose attempt number `attempt` (from 1) failed is worth another one."""
    return retryable and attempt < limit
