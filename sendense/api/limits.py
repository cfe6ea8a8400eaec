"""How often one client may ask, and how much it may send: what a hub can bear, whoever is at the other end."""

import math
import time
from ipaddress import ip_address

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

BODY_BYTES = 1024 * 1024
"""Of a request: the longest order that is taken, with 256 targets, has a third of it."""

BODY_SECONDS = 10.0
"""For a request's body to arrive."""

FAILED_SHARE = 40
"""An address may send this part of a token's requests with a wrong token, or none: 30 a minute unless set otherwise. A
right one is taken from there all the same: 256 bits are not guessed at any rate, and behind a tunnel everybody has one
address."""

OPEN_SHARE = 2
"""And this part of them where no token is needed."""


class Limits:
    """Counts requests, in this process. Each call counts one, and returns 0, or the seconds until there is room."""

    def __init__(self, requests_a_minute: int) -> None:
        self._strategy = FixedWindowRateLimiter(MemoryStorage())
        self._token = RateLimitItemPerMinute(requests_a_minute)
        self._failure = RateLimitItemPerMinute(math.ceil(requests_a_minute / FAILED_SHARE))
        self._stranger = RateLimitItemPerMinute(math.ceil(requests_a_minute / OPEN_SHARE))

    def token(self, name: str) -> int:
        """A request with a token."""
        return self._count(self._token, "token", name)

    def failure(self, address: str) -> int:
        """A request whose token is wrong or missing."""
        return self._count(self._failure, "failure", _network(address))

    def stranger(self, address: str) -> int:
        """A request that needs none."""
        return self._count(self._stranger, "stranger", _network(address))

    def _count(self, limit: RateLimitItemPerMinute, *who: str) -> int:
        if self._strategy.hit(limit, *who):
            return 0
        return max(1, math.ceil(self._strategy.get_window_stats(limit, *who).reset_time - time.time()))


def _network(address: str) -> str:
    """One client's: of IPv6 it has 2^64 addresses."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found) if found.version == 4 else str(int(found) >> 64)
