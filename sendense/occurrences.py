"""When schedules are due, in every time zone, and which VMs have had no restore point for longer than that allows."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo

from sendense.models import VmRef
from sendense.schedules import Schedule, Seen
from sendense.times import zone_of

HORIZON_DAYS = 15
"""Within which every schedule is due: one day of the week, and the calendar may skip that day once."""

MOST_LATE = timedelta(days=1)
"""A run without a window is done by then, or by the time of the next one; later its VMs are overdue."""

GRACE = timedelta(minutes=15)
"""A backup that ended with its window, or as the next run began, may still be storing its restore point."""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One time at which a schedule is due, and the end of its window if it has one. UTC."""

    start: datetime
    end: datetime | None


def last(schedule: Schedule, now: datetime) -> Occurrence:
    """The latest time at which it was due, now included."""
    zone = zone_of(schedule.timezone)
    today = now.astimezone(zone).date()
    for back in range(-1, HORIZON_DAYS):
        found = [each for each in _of_day(schedule, today - timedelta(back), zone) if each.start <= now]
        if found:
            return found[-1]
    raise AssertionError(schedule)


def following(schedule: Schedule, now: datetime) -> Occurrence:
    """The next time at which it is due, now excluded."""
    zone = zone_of(schedule.timezone)
    today = now.astimezone(zone).date()
    for ahead in range(-2, HORIZON_DAYS):
        for each in _of_day(schedule, today + timedelta(ahead), zone):
            if each.start > now:
                return each
    raise AssertionError(schedule)


def _of_day(schedule: Schedule, day: date, zone: tzinfo) -> Iterator[Occurrence]:
    """Those that begin with that day's `at`, in their order; times that a clock skips fall together."""
    if schedule.days and day.isoweekday() not in schedule.days:
        return
    first = _wall(day, schedule.at)
    if schedule.until:
        over = _wall(day, schedule.until)
        over = over if over > first else over + timedelta(days=1)
    else:
        over = first + timedelta(days=1)
    before = None
    for number in range(24 // schedule.every_hours):
        wall = first + timedelta(hours=number * schedule.every_hours)
        if wall >= over:
            return
        start = instant(wall, zone)
        if start == before:
            continue
        before = start
        # A window within the hour that a clock skips has its length all the same.
        end = max(instant(over, zone), start + min(over - wall, timedelta(hours=1))) if schedule.until else None
        yield Occurrence(start, end)


def _wall(day: date, time: str) -> datetime:
    return datetime.combine(day, datetime.strptime(time, "%H:%M").time())


def instant(wall: datetime, zone: tzinfo) -> datetime:
    """When the clocks of a zone first show this (naive) time, or a later one if they skip it; UTC."""
    found = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if _shown(found, zone) == wall:
        return found
    # Skipped: it lies between what the clock's two offsets make of it.
    seconds = range(int(wall.replace(tzinfo=zone, fold=1).timestamp()), int(found.timestamp()) + 1)
    first = bisect_left(seconds, wall, key=lambda each: _shown(datetime.fromtimestamp(each, UTC), zone))
    return datetime.fromtimestamp(seconds[first], UTC)


def _shown(time: datetime, zone: tzinfo) -> datetime:
    return time.astimezone(zone).replace(tzinfo=None, fold=0)


@dataclass(frozen=True, slots=True)
class Overdue:
    """A VM that has had no restore point for longer than a schedule allows. UTC."""

    vm: VmRef
    schedule: str
    newest: datetime | None
    """Its newest restore point."""
    due: datetime
    """When there should have been a newer one at the latest."""


def overdue(
    schedules: Iterable[tuple[Schedule, Iterable[Seen]]], newest: Mapping[str, datetime], now: datetime
) -> list[Overdue]:
    """
    The VMs that are overdue, each once, by the schedule that it has been for longest.

    `schedules` come with the VMs that they are for; `newest` has the time of each VM's newest restore point by UUID.
    A schedule that is new or was changed, and a VM that is new, have until the end of their first run.
    """
    found: dict[str, Overdue] = {}
    for schedule, vms in schedules:
        if schedule.paused:
            continue
        latest: dict[datetime, datetime] = {}
        for seen in vms:
            vm = seen.vm
            point = newest.get(vm.uuid)
            base = max(time for time in (point, seen.since, schedule.since) if time)
            if base not in latest:
                latest[base] = _done_by(schedule, base)
            due = latest[base]
            if now > due and (vm.uuid not in found or due < found[vm.uuid].due):
                found[vm.uuid] = Overdue(vm, schedule.name, point, due)
    return sorted(found.values(), key=lambda each: (each.due, each.vm.name))


def _done_by(schedule: Schedule, base: datetime) -> datetime:
    """When the first run after `base` is to be done."""
    run = following(schedule, base)
    if run.end:
        return run.end + GRACE
    return min(following(schedule, run.start).start, run.start + MOST_LATE) + GRACE
