"""Amounts as users write them: bytes, times of day, and days of the week."""

import re

from sendense.errors import InputError
from sendense.times import DAYS
from sendense.units import GiB, KiB, MiB

_UNITS = {"": 1, "K": KiB, "M": MiB, "G": GiB, "T": 1024 * GiB}


def read_bytes(text: str) -> int:
    """Bytes from '64M', '1.5G' or '4096'."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    if not match:
        raise InputError(f"{text}: not a size", "Give bytes, or a number with K, M, G or T.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def read_time(option: str, text: str) -> str:
    """HH:MM from '8:00' or '08:00', which was given for an option."""
    match = re.fullmatch(r"(\d?\d):(\d\d)", text.strip(), re.ASCII)
    if not match or int(match[1]) > 23 or int(match[2]) > 59:
        raise InputError(f"{option} {text}: no time of day", "Give hours and minutes, from 00:00 to 23:59.")
    return f"{int(match[1]):02}:{match[2]}"


def read_days(text: str) -> list[int]:
    """ISO weekdays from 'mon-fri', 'sat,sun' or 'fri-mon'; 'daily' or nothing is all of them, as no days."""
    found: set[int] = set()
    for part in filter(None, text.lower().replace(" ", "").split(",")):
        first, _, last = part.partition("-")
        if part == "daily":
            return []
        if first not in DAYS or (last or first) not in DAYS or part.endswith("-"):
            raise InputError(f"{text}: no days of the week", "Give them as mon-fri, or as sat,sun.")
        start = DAYS.index(first)
        length = (DAYS.index(last or first) - start) % 7 + 1
        found |= {(start + day) % 7 + 1 for day in range(length)}
    return sorted(found) if len(found) < 7 else []
