"""Throttles: how many bytes a second are read at a site, by time of day."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Annotated

from pydantic import Field

from sendense.models import Record, TimeOfDay, Weekday
from sendense.units import KiB

LEAST_RATE = 64 * KiB
"""Bytes a second: at less, the requests of a few processes would come minutes apart."""

DAY, WEEK = 24 * 60, 7 * 24 * 60
"""Minutes."""


class Band(Record):
    """
    A time of day, HH:MM to HH:MM on the clocks of the throttle's time zone; it may go over midnight.

    From a time to the same time it is a whole day. In an hour that a clock skips it is not, and in one that a clock
    shows twice it is twice.
    """

    start: TimeOfDay
    end: TimeOfDay
    days: list[Weekday] = Field(default_factory=list)
    """On which it starts; empty for all."""
    rate: Annotated[int, Field(ge=0)]
    """Bytes a second, of all nodes together; 0: no limit."""

    def has(self, local: datetime) -> bool:
        """Whether it is that time; `local` is on the clocks of its time zone."""
        minute = (local.isoweekday() - 1) * DAY + local.hour * 60 + local.minute
        return any((minute - start) % WEEK < length for start, length in self._spans())

    def overlaps(self, other: "Band") -> bool:
        """Whether there is a minute of the week that is in both."""
        return any(
            (second - first) % WEEK < length or (first - second) % WEEK < other_length
            for first, length in self._spans()
            for second, other_length in other._spans()
        )

    def is_at(self, start: str, end: str, days: Sequence[int]) -> bool:
        """Whether these are its times and its days."""
        return (self.start, self.end) == (start, end) and _days(self.days) == _days(days)

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Its beginnings in a week that begins on Monday, and how long it lasts, in minutes."""
        start = _minute(self.start)
        length = (_minute(self.end) - start) % DAY or DAY
        for day in _days(self.days):
            yield (day - 1) * DAY + start, length


class Throttle(Record):
    """The limits of one site: that of the band that has the time, or else `rate`; 0: none."""

    site: str
    rate: Annotated[int, Field(ge=0)] = 0
    bands: list[Band] = Field(default_factory=list)
    """None overlaps another."""
    timezone: str = ""
    """An IANA name; empty: that of the hub's own clock."""

    def with_band(self, band: Band) -> "Throttle":
        """With that band, instead of the one at its times on its days, if there is one."""
        others = [each for each in self.bands if not each.is_at(band.start, band.end, band.days)]
        return self.model_copy(update={"bands": sorted([*others, band], key=lambda each: (each.start, each.days))})

    def at(self, start: str, end: str, days: Sequence[int]) -> list[Band]:
        """The bands at these times: those on these days, or without any days on whatever days."""
        return [
            each
            for each in self.bands
            if (each.start, each.end) == (start, end) and (not days or each.is_at(start, end, days))
        ]

    def rate_at(self, local: datetime) -> int:
        """Bytes a second at that time, which is on the clocks of its time zone; 0: no limit."""
        return next((band.rate for band in self.bands if band.has(local)), self.rate)


def _days(days: Sequence[int]) -> list[int]:
    return sorted(set(days)) or list(range(1, 8))


def _minute(text: str) -> int:
    hour, _, minute = text.partition(":")
    return int(hour) * 60 + int(minute)
