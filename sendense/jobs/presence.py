"""Which workers live: each says so every two seconds, under a key that lapses."""

import redis

PRESENCE_SECONDS = 10
"""A worker's main process that said nothing for so long is stopped, gone or cut off: five heartbeats."""


def announce(client: "redis.Redis", worker: str) -> None:
    """Say that this worker lives."""
    client.set(_key(worker), 1, ex=PRESENCE_SECONDS)


def is_present(client: "redis.Redis", worker: str) -> bool:
    """Whether the worker said so within PRESENCE_SECONDS."""
    return bool(client.exists(_key(worker)))


def _key(worker: str) -> str:
    return f"sendense:worker:{worker}"
