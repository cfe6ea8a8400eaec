"""How sizes and times are shown to people."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense.units import GiB, KiB, MiB, show_bytes, show_seconds

SUFFIXES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1023, "1.00 KiB"),
        (KiB, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (10 * KiB - 1, "10.0 KiB"),
        (100 * KiB - 1, "100 KiB"),
        (1000 * KiB - 1, "0.98 MiB"),
        (128 * MiB, "128 MiB"),
        (2.5 * GiB, "2.50 GiB"),
        (1024 * GiB, "1.00 TiB"),
        (2**60, "1024 PiB"),
    ],
)
def test_show_bytes(count: float, shown: str) -> None:
    """Three significant digits and a binary suffix."""
    assert show_bytes(count) == shown


@given(st.integers(0, 900 * 2**50))
def test_bytes_are_shown_in_three_digits(count: int) -> None:
    """What is shown is the count, to within half of its last digit; from a KiB on it has three digits."""
    digits, suffix = show_bytes(count).split(" ")
    assert float(digits) * 1024 ** SUFFIXES.index(suffix) == pytest.approx(count, rel=0.0052)
    assert re.fullmatch(r"\d\.\d\d|\d\d\.\d|\d{3}" if suffix != "B" else r"\d{1,3}", digits)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0 s"),
        (0.84, "0.8 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (42.4, "42 s"),
        (59.4, "59 s"),
        (59.6, "1:00"),
        (60, "1:00"),
        (185, "3:05"),
        (3599.4, "59:59"),
        (3599.6, "1:00:00"),
        (7800, "2:10:00"),
        (360000, "100:00:00"),
    ],
)
def test_show_seconds(seconds: float, shown: str) -> None:
    """Tenths below ten seconds, then whole seconds, minutes and hours."""
    assert show_seconds(seconds) == shown


@given(st.integers(10, 10**7))
def test_seconds_read_back(seconds: int) -> None:
    """What is shown is the time, to the second."""
    total = 0
    for part in show_seconds(seconds).removesuffix(" s").split(":"):
        total = total * 60 + int(part)
    assert total == seconds
