"""Which restore points are worth keeping: a pure decision, from their times alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, tzinfo

from sendense.errors import InputError


@dataclass(frozen=True, slots=True)
class Policy:
    """
    How many points to keep: the last ones, and the newest of each of the last days, weeks, months and years.

    Only days (weeks, …) that have a point count. Weeks begin on Monday (ISO 8601).
    """

    last: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    def __post_init__(self) -> None:
        counts = [getattr(self, field.name) for field in fields(self)]
        if min(counts) < 0 or not any(counts):
            raise InputError("the policy keeps nothing", "Give at least one of --keep-last, -daily, … with 1 or more.")


_Period = Callable[[datetime], object]

_PERIODS: dict[str, _Period] = {
    "last": lambda time: object(),
    "daily": lambda time: time.date(),
    "weekly": lambda time: time.isocalendar()[:2],
    "monthly": lambda time: (time.year, time.month),
    "yearly": lambda time: time.year,
}


def keep(points: Sequence[tuple[str, datetime]], policy: Policy, zone: tzinfo) -> dict[str, list[str]]:
    """
    The ids of the points to keep, newest first, each with the rules that keep it.

    `points` are ids and times that know their zone, in any order; days begin at midnight in `zone`. The newest point
    is always kept.
    """
    newest_first = sorted(points, key=lambda point: (point[1], point[0]), reverse=True)
    kept: dict[str, list[str]] = {id: ["newest"] for id, _ in newest_first[:1]}
    seen: dict[str, set[object]] = {rule: set() for rule in _PERIODS}
    for id, time in newest_first:
        for rule, period_of in _PERIODS.items():
            period = period_of(time.astimezone(zone))
            if period not in seen[rule] and len(seen[rule]) < getattr(policy, rule):
                seen[rule].add(period)
                kept.setdefault(id, []).append(rule)
    return kept
