"""Which points a policy keeps: the newest of each period, and never none."""

from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense.errors import InputError
from sendense.repository.retention import Policy, keep

START = datetime(2026, 1, 1, 22, 0, tzinfo=UTC)

policies = st.lists(st.integers(0, 5), min_size=5, max_size=5).filter(any).map(lambda counts: Policy(*counts))
times = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))
points_of_a_vm = st.lists(times, max_size=60).map(
    lambda found: [(f"p{number}", time) for number, time in enumerate(found)]
)
zones = st.sampled_from([UTC, ZoneInfo("Europe/Oslo"), ZoneInfo("America/St_Johns"), timezone(timedelta(hours=14))])


def nightly(count: int) -> list[tuple[str, datetime]]:
    """A point each night, the first on 1 January 2026, named by its number."""
    return [(f"{number:03}", START + timedelta(days=number)) for number in range(count)]


def test_last() -> None:
    """The last ones are the newest ones, whatever the order they are given in."""
    assert list(keep(nightly(10)[::-1], Policy(last=3), UTC)) == ["009", "008", "007"]


def test_each_rule_counts_for_itself() -> None:
    """A point may be kept by several rules, and says which."""
    kept = keep(nightly(70), Policy(last=1, daily=2, weekly=2, monthly=3, yearly=2), UTC)
    assert kept == {
        "069": ["newest", "last", "daily", "weekly", "monthly", "yearly"],  # Wednesday, 11 March
        "068": ["daily"],
        "066": ["weekly"],  # Sunday, 8 March
        "058": ["monthly"],  # 28 February
        "030": ["monthly"],  # 31 January
    }


def test_days_without_a_point_do_not_count() -> None:
    """After a pause the policy still keeps as many days as it says."""
    points = [*nightly(3), ("late", START + timedelta(days=100))]
    assert list(keep(points, Policy(daily=3), UTC)) == ["late", "002", "001"]


def test_the_newest_of_a_day() -> None:
    """Of several points in a day the newest stays."""
    points = [(str(hour), START.replace(hour=hour)) for hour in range(5)]
    assert list(keep(points, Policy(daily=7), UTC)) == ["4"]


@pytest.mark.parametrize(("zone", "kept"), [(UTC, ["2", "1"]), (ZoneInfo("Europe/Oslo"), ["2"])])
def test_days_begin_at_local_midnight(zone: tzinfo, kept: list[str]) -> None:
    """23:30 in London and half an hour later are one day in Oslo and two in London."""
    night = datetime(2026, 1, 1, 23, 30, tzinfo=UTC)
    assert list(keep([("1", night), ("2", night + timedelta(hours=1))], Policy(daily=5), zone)) == kept


def test_weeks_of_the_turn_of_the_year() -> None:
    """29 December 2025 and 4 January 2026 are of one week, the first of 2026."""
    points = [("1", datetime(2025, 12, 29, tzinfo=UTC)), ("2", datetime(2026, 1, 4, tzinfo=UTC))]
    assert list(keep(points, Policy(weekly=5), UTC)) == ["2"]


@pytest.mark.parametrize("counts", [(0, 0, 0, 0, 0), (-1, 0, 0, 0, 5)])
def test_a_policy_that_keeps_nothing(counts: tuple[int, int, int, int, int]) -> None:
    """Forgotten options do not delete everything."""
    with pytest.raises(InputError):
        Policy(*counts)


@given(points_of_a_vm, policies, zones)
def test_the_newest_is_always_kept(points: list[tuple[str, datetime]], policy: Policy, zone: tzinfo) -> None:
    """However the policy is, the newest point stays, and only known ids come back."""
    kept = keep(points, policy, zone)
    if points:
        assert next(iter(kept)) == max(points, key=lambda point: (point[1], point[0]))[0]
    assert set(kept) <= {id for id, _ in points}


@given(points_of_a_vm, policies, zones)
def test_no_rule_keeps_more_than_it_may(points: list[tuple[str, datetime]], policy: Policy, zone: tzinfo) -> None:
    """Each rule keeps as many as it says, or one for each period that there is."""
    kept = keep(points, policy, zone)
    for rule in ("last", "daily", "weekly", "monthly", "yearly"):
        assert sum(rule in reasons for reasons in kept.values()) <= getattr(policy, rule)
    assert sum("last" in reasons for reasons in kept.values()) == min(policy.last, len(points))
    days = {time.astimezone(zone).date() for _, time in points}
    assert sum("daily" in reasons for reasons in kept.values()) == min(policy.daily, len(days))


@given(points_of_a_vm, policies, zones)
def test_pruning_twice_changes_nothing(points: list[tuple[str, datetime]], policy: Policy, zone: tzinfo) -> None:
    """What was kept once is kept again."""
    kept = keep(points, policy, zone)
    assert keep([point for point in points if point[0] in kept], policy, zone) == kept
