"""Throttles: the rate in force at a time of day, over midnight, on days of the week, and when clocks are changed."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sendense.cli.amounts import read_bytes, read_days
from sendense.errors import InputError
from sendense.orders import BandOrder, ThrottleOrder, make_order
from sendense.throttles import LEAST_RATE, Band, Throttle
from sendense.times import show_days
from sendense.units import MiB

MINUTES_OF_WEEK = 7 * 24 * 60
MONDAY = datetime(2026, 11, 23, tzinfo=UTC)

GRID = [0, 1, 30, 59]
"""Minutes at which bands begin and end here."""

times = st.builds(lambda hour, minute: f"{hour:02}:{minute:02}", st.integers(0, 23), st.sampled_from(GRID))
bands = st.builds(
    Band,
    start=times,
    end=times,
    days=st.lists(st.integers(1, 7), unique=True),
    rate=st.integers(LEAST_RATE, 10**9),
)
moments = st.integers(0, MINUTES_OF_WEEK - 1).map(lambda minutes: MONDAY + timedelta(minutes=minutes))


def at(day: int, text: str) -> datetime:
    """A time on an ISO weekday."""
    hour, minute = map(int, text.split(":"))
    return MONDAY + timedelta(days=day - 1, hours=hour, minutes=minute)


@pytest.mark.parametrize(
    ("start", "end", "days", "inside", "outside"),
    [
        ("08:00", "18:00", [], [(1, "08:00"), (7, "17:59")], [(1, "07:59"), (1, "18:00")]),
        ("08:00", "18:00", [1, 5], [(1, "12:00"), (5, "12:00")], [(2, "12:00"), (7, "12:00")]),
        ("22:00", "06:00", [5], [(5, "22:00"), (6, "00:00"), (6, "05:59")], [(5, "05:00"), (6, "06:00"), (6, "22:00")]),
        ("22:00", "06:00", [7], [(7, "23:00"), (1, "03:00")], [(1, "22:00"), (7, "03:00")]),
        ("00:00", "00:00", [6, 7], [(6, "00:00"), (7, "23:59")], [(5, "23:59"), (1, "00:00")]),
        ("20:00", "20:00", [1], [(1, "20:00"), (2, "19:59")], [(1, "19:59"), (2, "20:00")]),
    ],
)
def test_times_of_a_band(
    start: str, end: str, days: list[int], inside: list[tuple[int, str]], outside: list[tuple[int, str]]
) -> None:
    """A band begins on its days, ends a minute before its end, and goes over midnight and over the week's end."""
    band = Band(start=start, end=end, days=days, rate=1)
    assert [each for each in inside if not band.has(at(*each))] == []
    assert [each for each in outside if band.has(at(*each))] == []


@given(band=bands, moment=moments)
def test_a_band_and_its_rest_are_the_day(band: Band, moment: datetime) -> None:
    """On all days, a band and the band from its end to its start share no minute, and together have each."""
    daily = band.model_copy(update={"days": []})
    rest = Band(start=band.end, end=band.start, rate=1)
    if band.start == band.end:
        assert daily.has(moment)
    else:
        assert daily.has(moment) != rest.has(moment)


@settings(deadline=None)
@given(first=bands, second=bands)
def test_overlapping_is_to_have_a_minute_together(first: Band, second: Band) -> None:
    """Two bands overlap exactly when there is a minute of the week that both have."""
    week = (MONDAY + timedelta(hours=hour, minutes=minute) for hour in range(7 * 24) for minute in GRID)
    assert (
        first.overlaps(second) == second.overlaps(first) == any(first.has(each) and second.has(each) for each in week)
    )


@given(band=bands, rate=st.integers(LEAST_RATE, 10**9), moment=moments)
def test_the_rate_in_force(band: Band, rate: int, moment: datetime) -> None:
    """It is the band's while that has the time, and otherwise the one for all other times."""
    throttle = Throttle(site="oslo", rate=rate).with_band(band)
    assert throttle.rate_at(moment) == (band.rate if band.has(moment) else rate)


def test_a_band_replaces_the_one_at_its_time() -> None:
    """Set again, a band has the new rate; the same times on other days are another band."""
    throttle = Throttle(site="oslo")
    for days, rate in (([], 1), ([3, 1], 2), ([1, 2, 3, 4, 5, 6, 7], 3), ([1, 3], 4)):
        throttle = throttle.with_band(Band(start="08:00", end="18:00", days=days, rate=rate))
    assert sorted(band.rate for band in throttle.bands) == [3, 4]
    assert not throttle.at("08:00", "17:00", [])
    assert len(throttle.at("08:00", "18:00", [])) == 2
    assert [band.rate for band in throttle.at("08:00", "18:00", [3, 1])] == [4]


def test_clocks_that_are_changed() -> None:
    """An hour that the clock skips is in no band; one that it shows twice is twice in its band."""
    oslo = ZoneInfo("Europe/Oslo")
    throttle = Throttle(site="oslo", bands=[Band(start="02:15", end="02:45", rate=1)])
    for day, expected in (("2026-03-28", 30), ("2026-03-29", 0), ("2026-10-24", 30), ("2026-10-25", 60)):
        midnight = datetime.fromisoformat(day).replace(tzinfo=oslo).astimezone(UTC)
        minutes = (midnight + timedelta(minutes=minute) for minute in range(6 * 60))
        assert sum(throttle.rate_at(minute.astimezone(oslo)) for minute in minutes) == expected, day


@pytest.mark.parametrize("field", [{"start": "24:00"}, {"end": "8:00"}, {"days": [0]}, {"days": [8]}, {"rate": -1}])
def test_a_wrong_band(field: dict[str, object]) -> None:
    """A settings file that was damaged by hand is found out when it is read."""
    with pytest.raises(ValidationError):
        Band.model_validate({"start": "08:00", "end": "18:00", "rate": 1, **field})


def test_rates_that_make_sense() -> None:
    """None, or at least what a request of each process gets through at within minutes."""
    band = BandOrder(start="08:00", end="18:00", days=[1])
    assert make_order(ThrottleOrder, rate=0).rate == 0
    assert make_order(ThrottleOrder, rate=LEAST_RATE, band=band).band == band
    for rate in (1, LEAST_RATE - 1, -LEAST_RATE, 10**13):
        with pytest.raises(InputError, match=r"rate: .*0 \(no limit\), or 64.0 KiB/s to"):
            make_order(ThrottleOrder, rate=rate)


@pytest.mark.parametrize(
    ("text", "days", "shown"),
    [
        ("mon-fri", [1, 2, 3, 4, 5], "mon-fri"),
        ("Sat,Sun", [6, 7], "sat, sun"),
        ("fri-mon", [1, 5, 6, 7], "mon, fri, sat, sun"),
        ("wed", [3], "wed"),
        ("mon-thu, fri-sun", [], "daily"),
        ("daily", [], "daily"),
        ("", [], "daily"),
    ],
)
def test_days_in_words(text: str, days: list[int], shown: str) -> None:
    """Days are read as users write them, and shown like that."""
    assert read_days(text) == days
    assert show_days(days) == shown


@pytest.mark.parametrize("text", ["monday", "mon-", "-fri", "mon-fri-sun", "1-5", "mon;fri"])
def test_words_that_are_no_days(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(InputError, match="no days of the week"):
        read_days(text)


def test_sizes_in_words() -> None:
    """Sizes have a binary suffix, or none."""
    assert [read_bytes(text) for text in ("50M", "1.5 KiB", "4096", "64mb")] == [50 * MiB, 1536, 4096, 64 * MiB]
    for text in ("", "M", "-1M", "5X", "٣M"):
        with pytest.raises(InputError, match="not a size"):
            read_bytes(text)
