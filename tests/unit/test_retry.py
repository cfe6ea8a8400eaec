"""When a failed batch is tried again."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense.errors import ClaimLost, NoSuchExport, ReadFailed, Refused, SendenseError, TargetFull, WriteFailed
from sendense.retry import BASE_DELAY_SECONDS, MAX_ATTEMPTS, MAX_DELAY_SECONDS, delay_before_next

WRITE_FAILED = WriteFailed("nbd://host/disk", 0, 512, "Input/output error")
READ_FAILED = ReadFailed("nbd://host/disk", 0, 512, "Input/output error")

seeds = st.integers(0, 2**32)


class HighEnd(random.Random):
    """Always the upper bound."""

    def uniform(self, a: float, b: float) -> float:
        """The larger of the two."""
        return max(a, b)


def delays(error: SendenseError, rng: random.Random | None = None) -> list[float]:
    """The delays after each attempt, until there is none."""
    found: list[float] = []
    while (delay := delay_before_next(len(found) + 1, error, rng=rng)) is not None:
        found.append(delay)
    return found


@given(seeds)
def test_attempts_are_capped(seed: int) -> None:
    """A batch is tried MAX_ATTEMPTS times, so there is one delay less."""
    assert len(delays(WRITE_FAILED, random.Random(seed))) == MAX_ATTEMPTS - 1


@given(seeds)
def test_an_error_may_be_worth_fewer_attempts(seed: int) -> None:
    """A sector that does not read is tried as often as its class says."""
    assert ReadFailed.attempts
    assert len(delays(READ_FAILED, random.Random(seed))) == ReadFailed.attempts - 1


@pytest.mark.parametrize(
    "error",
    [
        TargetFull("nbd://host/disk", 0, 512, "No space left on device"),
        NoSuchExport("nbd://host/disk", "no export 'disk'"),
        ClaimLost("job", "7"),
    ],
)
def test_never_again(error: SendenseError) -> None:
    """What trying again cannot mend is not tried again."""
    assert delay_before_next(1, error) is None


@given(st.integers(MAX_ATTEMPTS, 10**6))
def test_attempts_beyond_the_cap(attempt: int) -> None:
    """An attempt whose number is already too high is the last."""
    assert delay_before_next(attempt, Refused("nbd://host/disk", "connection refused")) is None


@given(seeds)
def test_delays_double_and_are_jittered(seed: int) -> None:
    """Each delay is within a quarter of twice the one before, whatever the dice say."""
    for number, delay in enumerate(delays(WRITE_FAILED, random.Random(seed))):
        full = BASE_DELAY_SECONDS * 2**number
        assert 0.75 * full <= delay <= 1.25 * full


def test_delays_follow_their_base() -> None:
    """The first delay is what the settings say, and the others double from there."""
    rng = HighEnd()
    found = [delay_before_next(attempt, WRITE_FAILED, 0.1, rng) for attempt in range(1, MAX_ATTEMPTS)]
    assert found == pytest.approx([0.125 * 2**number for number in range(MAX_ATTEMPTS - 1)])


def test_delays_differ() -> None:
    """Workers that failed together do not come back together."""
    assert len({delay_before_next(1, WRITE_FAILED) for _ in range(20)}) > 1


def test_delays_have_a_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many attempts a class allows, nobody waits much longer than a minute."""
    monkeypatch.setattr(WriteFailed, "attempts", 50)
    found = delays(WRITE_FAILED, HighEnd())
    assert len(found) == 49
    assert max(found) == MAX_DELAY_SECONDS * 1.25
    assert all(first <= second for first, second in pairwise(found))


def test_an_outage_of_a_minute_is_ridden_out() -> None:
    """The delays of one batch add up to about a minute: a tunnel that is cut, or a server that starts again."""
    full = sum(BASE_DELAY_SECONDS * 2**number for number in range(MAX_ATTEMPTS - 1))
    assert 60 <= full <= 90
