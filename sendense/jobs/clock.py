"""The clock that all machines of a hub go by."""

import redis


def clock(client: "redis.Redis") -> float:
    """Seconds since the epoch by Redis's clock: the machines' own need not agree."""
    seconds, micros = client.time()
    return seconds + micros / 1e6
