"""
What was ever counted at a hub, over all jobs, also those that are forgotten: a hash in Redis that only grows.

The ledger's scripts count in the same step as they enter the cause, so each cause counts once whatever is sent twice.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import cast

import redis

from sendense.errors import SendenseError
from sendense.models import Failure

KEY, MOVING = "sendense:tally", "sendense:moving"
"""The counts, by names such as bytes/copy/SITE/WORKER; and by site when its last byte was moved, by Redis's clock."""

GIVEN_UP = "given-up"
"""Under this, by receiver, notices that it never got."""

CLAIM_LAPSED, OTHER = "claim-lapsed", "other"

STALLS = (
    *("no-greeting", "handshake-stalled", "read-stalled", "write-stalled", "refused", "unreachable"),
    *("connection-lost", "export-gone", "read-error", CLAIM_LAPSED, OTHER),
)
"""What a stall counts as: the doctor's verdict on the server, where it is one of these."""

_DIAGNOSIS = re.compile(r"doctor: ([a-z-]+) in stage ")


@dataclass
class Tally:
    """The counts as they were read at one moment."""

    moved: dict[tuple[str, str, str], int] = field(default_factory=dict)
    """Bytes by kind (copy, verify), site and worker."""
    jobs: dict[tuple[str, str], int] = field(default_factory=dict)
    """Ends of jobs, by kind and state: one that is resumed ends again."""
    stalls: dict[str, int] = field(default_factory=dict)
    """By verdict."""
    limits: dict[str, int] = field(default_factory=dict)
    """Processes that were killed at their task's hard time limit, by the task's name."""
    given_up: dict[str, int] = field(default_factory=dict)
    """Notices that were given up, by receiver."""
    retries: int = 0

    def moved_by(self, workers: Collection[str]) -> int:
        """Bytes that these workers moved."""
        return sum(count for (_, _, worker), count in self.moved.items() if worker in workers)


def parse(counts: dict[bytes, bytes]) -> Tally:
    """The hash as it is in Redis; what another version counted is left out."""
    found = Tally(stalls=dict.fromkeys(STALLS, 0))
    for name, text in counts.items():
        match name.decode().split("/"):
            case ["bytes", kind, site, worker]:
                found.moved[kind, site, worker] = int(text)
            case ["jobs", kind, state]:
                found.jobs[kind, state] = int(text)
            case ["stalls", verdict]:
                found.stalls[verdict if verdict in STALLS else OTHER] += int(text)
            case ["limits", task]:
                found.limits[task] = int(text)
            case ["given-up", receiver]:
                found.given_up[receiver] = int(text)
            case ["retries"]:
                found.retries = int(text)
    return found


def read(client: "redis.Redis") -> tuple[Tally, dict[str, float]]:
    """The counts, and by site when its last byte was moved, in seconds since the epoch."""
    with client.pipeline(transaction=False) as pipe:  # a full Redis refuses transactions, also those that only read
        pipe.hgetall(KEY)
        pipe.hgetall(MOVING)
        counts, moving = cast(list[dict[bytes, bytes]], pipe.execute())
    return parse(counts), {site.decode(): float(at) for site, at in moving.items()}


def verdict_of(exc: SendenseError) -> str:
    """The doctor's word: for the server of a stalled request, or else for the error itself; empty when it has none."""
    found = _DIAGNOSIS.match(getattr(exc, "diagnosis", ""))
    return found[1] if found else str(getattr(exc, "verdict", ""))


def stall_of(failure: Failure) -> str:
    """What a failure counts as; empty when nothing stalled."""
    if not failure.stalled:
        return ""
    return failure.verdict if failure.verdict in STALLS else OTHER


def count_stall(client: "redis.Redis", failure: Failure) -> None:
    """Count a failure that no script enters, if it is a stall; `client` may be a pipeline."""
    if stall := stall_of(failure):
        client.hincrby(KEY, f"stalls/{stall}", 1)


def count_limit(client: "redis.Redis", task: str) -> None:
    """Count a process that was killed at the hard time limit of its task."""
    client.hincrby(KEY, f"limits/{task}", 1)
