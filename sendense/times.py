"""Times of day, days of the week, and time zones, as users name them."""

import os
from contextlib import suppress
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

from sendense.errors import NotFound

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

LOCAL, ZONES = Path("/etc/localtime"), Path("/usr/share/zoneinfo")


def zone_of(name: str) -> ZoneInfo:
    """A time zone by its IANA name; NotFound for none."""
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError) as exc:
        raise NotFound(f"time zone {name!r}: is not known", "Give an IANA name, such as Europe/Oslo.") from exc


def local_zone() -> str:
    """The IANA name of this machine's time zone, as far as it is known; else UTC."""
    zone = _local()
    return zone.key if zone else "UTC"


def zone_named(name: str) -> tzinfo:
    """A time zone by its IANA name, this machine's without one: a day begins at midnight in summer as in winter."""
    if name:
        return zone_of(name)
    if zone := _local():
        return zone
    try:
        with LOCAL.open("rb") as file:
            return ZoneInfo.from_file(file, "localtime")
    except (OSError, ValueError):
        return datetime.now().astimezone().tzinfo or UTC


def _local() -> ZoneInfo | None:
    """This machine's time zone, if it has a name: TZ, or what /etc/localtime is a link to."""
    linked = LOCAL.resolve()
    names = (
        os.environ.get("TZ", "").removeprefix(":"),
        str(linked.relative_to(ZONES)) if ZONES in linked.parents else "",
    )
    for name in filter(None, names):
        with suppress(NotFound):
            return zone_of(name)
    return None


def show_days(days: list[int]) -> str:
    """ISO weekdays as users read them: 'mon-fri', 'sat, sun', 'daily'."""
    if not days:
        return "daily"
    names = [DAYS[day - 1] for day in sorted(set(days))]
    together = len(names) > 2 and DAYS.index(names[-1]) - DAYS.index(names[0]) == len(names) - 1
    return f"{names[0]}-{names[-1]}" if together else ", ".join(names)
