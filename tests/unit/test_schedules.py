"""When schedules are due, in every time zone, and which VMs are overdue."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sendense import occurrences
from sendense.cli.schedule import add
from sendense.errors import InputError, NotFound
from sendense.models import VmRef
from sendense.occurrences import GRACE, Overdue
from sendense.schedules import EveryHours, Schedule, Seen

ZONES = (
    "UTC",
    "Europe/Oslo",
    "America/St_Johns",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Asia/Kathmandu",
    "Africa/Cairo",
)
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def at(text: str) -> datetime:
    """A time in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def schedule(time: str, zone: str = "UTC", hours: int = 24, since: datetime = LONG_AGO, **fields: object) -> Schedule:
    """A schedule with these times."""
    known: dict[str, object] = {"name": "one", "at": time, "timezone": zone, "every_hours": hours, "since": since}
    return Schedule.model_validate({**known, **fields})


def times(schedule: Schedule, start: str, end: str) -> list[str]:
    """When it is due between two times, in UTC, as text."""
    found, now = [], at(start)
    while (now := occurrences.following(schedule, now).start) < at(end):
        found.append(f"{now:%d %H:%M}")
    return found


def test_daily_and_weekly() -> None:
    """It is due at its time on its days."""
    assert times(schedule("02:00"), "2026-11-01", "2026-11-04") == ["01 02:00", "02 02:00", "03 02:00"]
    weekly = schedule("22:30", days=[3, 7])  # 1 November 2026 is a Sunday
    assert times(weekly, "2026-11-01", "2026-11-12") == ["01 22:30", "04 22:30", "08 22:30", "11 22:30"]


def test_every_hours() -> None:
    """It is due every so many hours from its first time on, over midnight, and with a window only within that."""
    assert times(schedule("03:30", hours=8), "2026-11-01", "2026-11-02T04:00") == [
        *("01 03:30", "01 11:30", "01 19:30", "02 03:30"),
    ]
    office = schedule("08:00", hours=4, until="17:00", days=[1])
    assert times(office, "2026-11-01", "2026-11-08") == ["02 08:00", "02 12:00", "02 16:00"]
    night = schedule("22:00", hours=3, until="05:00", days=[1])
    assert times(night, "2026-11-01", "2026-11-08") == ["02 22:00", "03 01:00", "03 04:00"]


def test_windows() -> None:
    """A window ends on its day, or on the next one where its end is no later than its beginning."""
    now = at("2026-11-02T00:00")
    assert occurrences.following(schedule("01:00", until="05:30"), now).end == at("2026-11-02T05:30")
    assert occurrences.following(schedule("22:00", until="06:00"), now).end == at("2026-11-03T06:00")
    assert occurrences.following(schedule("22:00", until="22:00"), now).end == at("2026-11-03T22:00")
    assert occurrences.following(schedule("22:00"), now).end is None


def test_a_time_that_a_clock_skips_comes_once() -> None:
    """In Oslo 02:30 does not exist on 29 March 2026: it is due when the clocks show 03:00."""
    assert times(schedule("02:30", "Europe/Oslo"), "2026-03-28", "2026-03-31") == ["28 01:30", "29 01:00", "30 00:30"]
    hourly = times(schedule("00:00", "Europe/Oslo", hours=1), "2026-03-28T23:30", "2026-03-29T03:30")
    assert hourly == ["29 00:00", "29 01:00", "29 02:00", "29 03:00"]


def test_a_time_that_a_clock_shows_twice_comes_once() -> None:
    """In Oslo 02:30 comes twice on 25 October 2026: it is due at the first."""
    assert times(schedule("02:30", "Europe/Oslo"), "2026-10-24", "2026-10-27") == ["24 00:30", "25 00:30", "26 01:30"]
    hourly = times(schedule("00:00", "Europe/Oslo", hours=1), "2026-10-24T22:30", "2026-10-25T03:30")
    assert hourly == ["24 23:00", "25 00:00", "25 02:00", "25 03:00"]


def test_a_window_within_a_skipped_hour() -> None:
    """It has its length all the same."""
    found = occurrences.following(schedule("02:15", "Europe/Oslo", until="02:45"), at("2026-03-29"))
    assert (found.start, found.end) == (at("2026-03-29T01:00"), at("2026-03-29T01:30"))


def test_a_day_that_a_calendar_skips() -> None:
    """Samoa had no 30 December 2011: a schedule of Fridays is due as that night's midnight passes."""
    found = occurrences.following(schedule("12:00", "Pacific/Apia", days=[5]), at("2011-12-24"))
    assert found.start.astimezone(ZoneInfo("Pacific/Apia")).isoformat() == "2011-12-31T00:00:00+14:00"


def test_an_unknown_zone() -> None:
    """A time zone that does not exist is said."""
    with pytest.raises(NotFound, match="Europe/Atlantis"):
        occurrences.last(schedule("02:00", "Europe/Atlantis"), at("2026-01-01"))


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("at", "24:00"),
        ("at", "2:00"),
        ("until", "25:00"),
        ("days", [8]),
        ("every_hours", 5),
        ("at_once", 0),
        ("name", "a b"),
        ("since", datetime(2026, 1, 1)),
    ],
)
def test_nonsense_is_refused(field: str, wrong: object) -> None:
    """A schedule that somebody wrote by hand is looked at."""
    with pytest.raises(ValidationError):
        Schedule.model_validate({**schedule("02:00").model_dump(), field: wrong})


schedules = st.builds(
    lambda hour, minute, zone, hours, days, until: schedule(
        f"{hour:02}:{minute:02}", zone, hours, days=sorted(days), until=until
    ),
    st.integers(0, 23),
    st.sampled_from([0, 15, 30, 59]),
    st.sampled_from(ZONES),
    st.sampled_from(EveryHours.__args__),  # type: ignore[attr-defined]
    st.sets(st.integers(1, 7)),
    st.sampled_from(["", "00:00", "02:30", "06:00", "23:59"]),
)
moments = st.datetimes(datetime(2009, 1, 1), datetime(2027, 12, 31)).map(
    lambda time: time.replace(tzinfo=UTC, microsecond=0)
)


@given(schedules, moments)
def test_last_and_next_enclose_now(schedule: Schedule, now: datetime) -> None:
    """The last time is not after now, the next one is, and none is between them; each window has a length."""
    last, following = occurrences.last(schedule, now), occurrences.following(schedule, now)
    assert last.start <= now < following.start
    assert occurrences.following(schedule, last.start) == following
    assert occurrences.last(schedule, following.start) == following
    assert occurrences.last(schedule, following.start - timedelta(seconds=1)) == last
    assert (following.end is not None) == bool(schedule.until)
    if following.end:
        assert following.end > following.start


@given(schedules, moments)
def test_clocks_show_the_time(schedule: Schedule, now: datetime) -> None:
    """When it is due the clocks of its zone show one of its times, unless they skipped it just then."""
    zone = ZoneInfo(schedule.timezone)
    found = occurrences.following(schedule, now).start
    shown = found.astimezone(zone)
    first = int(schedule.at[:2]) * 60 + int(schedule.at[3:])
    is_shown = (shown.hour * 60 + shown.minute - first) % (schedule.every_hours * 60) == 0
    before = (found - timedelta(seconds=1)).astimezone(zone)
    assert is_shown or shown.utcoffset() != before.utcoffset()
    assert shown.fold == 0 or not is_shown


@given(st.sampled_from(ZONES), moments)
def test_every_day_has_its_run(zone: str, now: datetime) -> None:
    """A daily schedule is due once for each day of the calendar, one that it skips included."""
    daily, count, time = schedule("02:30", zone), 0, now
    while (time := occurrences.following(daily, time).start) <= now + timedelta(days=30):
        count += 1
    assert 29 <= count <= 31


# Overdue

VM = VmRef(site="lab", moref="vm-1", uuid="00000000-0000-0000-0000-000000000001", name="web01")
OTHER = VM.model_copy(update={"uuid": "00000000-0000-0000-0000-000000000002", "name": "web02"})


def late(known: Schedule, now: str, point: str = "", since: datetime = LONG_AGO) -> list[Overdue]:
    """Whether VM is overdue, its newest restore point being of that time."""
    newest = {VM.uuid: at(point)} if point else {}
    return occurrences.overdue([(known, [Seen(vm=VM, since=since)])], newest, at(now))


def test_overdue_without_a_window() -> None:
    """A backup may take until the next one, or for a day."""
    nightly = schedule("02:00")
    assert late(nightly, "2026-11-04T02:15", "2026-11-02T02:01") == []
    (found,) = late(nightly, "2026-11-04T02:16", "2026-11-02T02:01")
    assert (found.vm, found.schedule, found.due) == (VM, "one", at("2026-11-04T02:15"))
    assert late(schedule("00:00", hours=2), "2026-11-03T02:16", "2026-11-02T22:01")
    assert not late(schedule("00:00", hours=2), "2026-11-03T02:14", "2026-11-02T22:01")
    weekly = schedule("02:00", days=[1])
    assert late(weekly, "2026-11-03T02:16", "2026-10-26T02:01")
    assert not late(weekly, "2026-11-03T02:14", "2026-10-26T02:01")


def test_a_backup_that_takes_long_is_not_overdue() -> None:
    """One that takes up to its whole period is well all the time, whose restore points are of its beginnings."""
    hourly, day = schedule("00:00", hours=1), at("2026-11-03T00:00")
    for minute in range(6 * 60):
        now = day + timedelta(minutes=minute)
        newest = (now - timedelta(minutes=59)).replace(minute=0, second=5)
        assert occurrences.overdue([(hourly, [Seen(vm=VM, since=LONG_AGO)])], {VM.uuid: newest}, now) == []


def test_overdue_with_a_window() -> None:
    """Within its window there is time; then little."""
    weekly = schedule("22:00", until="06:00", days=[7])
    assert late(weekly, "2026-11-02T06:00", "2026-10-25T23:00") == []
    (found,) = late(weekly, "2026-11-02T07:00", "2026-10-25T23:00")
    assert found.due == at("2026-11-02T06:00") + GRACE


def test_what_is_new_has_time() -> None:
    """Neither a new schedule nor a new VM is overdue before its first run is to be done; a paused one never is."""
    assert late(schedule("02:00", since=at("2026-11-02T12:00")), "2026-11-04T02:00") == []
    assert late(schedule("02:00", since=at("2026-11-02T12:00")), "2026-11-04T03:00")
    assert late(schedule("02:00"), "2026-11-04T02:00", since=at("2026-11-02T12:00")) == []
    assert late(schedule("02:00", paused=True), "2026-11-04T03:00") == []


def test_each_vm_is_overdue_once() -> None:
    """By the schedule for which it is longest so; the one that is late longest comes first."""
    nightly, hourly = schedule("02:00", name="nightly"), schedule("00:00", hours=1, name="hourly")
    vms = [Seen(vm=VM, since=LONG_AGO), Seen(vm=OTHER, since=LONG_AGO)]
    newest = {VM.uuid: at("2026-11-02T02:05"), OTHER.uuid: at("2026-11-01T02:05")}
    found = occurrences.overdue([(nightly, vms), (hourly, vms)], newest, at("2026-11-09"))
    assert [(each.vm.name, each.schedule) for each in found] == [("web02", "hourly"), ("web01", "hourly")]


def test_the_same_order() -> None:
    """Whether two schedules order the same does not depend on when they were made, or are paused."""
    assert schedule("02:00").is_as(schedule("02:00", since=at("2026-01-01"), paused=True))
    assert not schedule("02:00").is_as(schedule("02:01"))


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ({"vm": VM}, {"vm": VM}, True),
        ({"vm": VM}, {"vm": OTHER}, False),
        ({"vm": VM}, {}, True),
        ({"vm": VM}, {"site": "lab", "paused": True}, True),
        ({"vm": VM}, {"site": "oslo"}, False),
        ({"site": "lab"}, {}, True),
        ({"site": "lab"}, {"site": "oslo"}, False),
        ({"site": "lab"}, {"site": "lab"}, True),
    ],
)
def test_vms_in_common(one: dict[str, Any], other: dict[str, Any], share: bool) -> None:
    """Two schedules may have a VM in common, also while one is paused; it does not matter which is asked."""
    first, second = schedule("02:00").model_copy(update=one), schedule("03:00").model_copy(update=other)
    assert (first.may_share(second), second.may_share(first)) == (share, share)


# What users type


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "does not say when"),
        ({"daily": "25:00"}, "no time of day"),
        ({"daily": "2"}, "no time of day"),
        ({"daily": "02:00", "every": "4h"}, "--daily and --every exclude each other"),
        ({"daily": "02:00", "start": "01:00"}, "--from is for --every"),
        ({"daily": "02:00", "until": "soon"}, "--until soon"),
        ({"daily": "02:00", "vm": ""}, "name a VM, or give --all"),
        ({"daily": "02:00", "every_vm": True}, "web01 and --all exclude each other"),
        ({"daily": "02:00", "name": "a/b"}, "no name for a schedule"),
        ({"every": "5h"}, "--every 5h"),
        ({"weekly": "someday@02:00"}, "no days of the week"),
        ({"weekly": "sun"}, "no days and time"),
        ({"weekly": "sun@02:00", "days": "mon"}, "no days and time"),
    ],
)
def test_wrong_words(options: dict[str, Any], words: str) -> None:
    """What cannot be meant is said in the words of the command, before any hub is asked."""
    with pytest.raises(InputError, match=words):
        add(**{"vm": "web01", **options})
