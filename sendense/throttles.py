"""Throttles: how many bytes a second are read at a site, by time of day."""

from pydantic import Field

from sendense.models import Record


class Band(Record):
    """A time of day, HH:MM to HH:MM on the clocks of the throttle's time zone; it may go over midnight."""

    start: str
    end: str
    days: list[int] = Field(default_factory=list)
    """ISO weekdays on which it starts, 1 is Monday; empty for all."""
    rate: int
    """Bytes a second, of all nodes together; 0: no limit."""


class Throttle(Record):
    """The limits of one site: that of the first band which has the time, or else `rate`; 0: none."""

    site: str
    rate: int = 0
    bands: list[Band] = Field(default_factory=list)
    timezone: str = "UTC"
