"""When a failed batch is tried again: a pure decision, from the attempt's number and the error's class."""

import random

from sendense.errors import SendenseError

# Six attempts with these delays ride out an outage of about a minute (a tunnel cut, a server restart)
# even where every connection is refused at once.
MAX_ATTEMPTS = 6
BASE_DELAY_SECONDS = 2.0
MAX_DELAY_SECONDS = 60.0


def delay_before_next(
    attempt: int, error: SendenseError, base: float = BASE_DELAY_SECONDS, rng: random.Random | None = None
) -> float | None:
    """
    Seconds until a batch whose attempt number `attempt` (from 1) ended with `error` is tried again; None for never.

    The delay is `base` seconds at first and doubles each time. It is jittered, so that workers that failed together do
    not come back together.
    """
    if not error.retryable or attempt >= (error.attempts or MAX_ATTEMPTS):
        return None
    full = min(MAX_DELAY_SECONDS, base * 2.0 ** (attempt - 1))
    return full * (rng.uniform if rng else random.uniform)(0.75, 1.25)
