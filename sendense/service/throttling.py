"""The throttles of sites: kept in the repository's settings, and put in force in Redis, where the nodes heed them."""

import logging
from collections.abc import Callable
from datetime import datetime

from sendense.beat import Beat
from sendense.coordinator.context import Context
from sendense.errors import Conflict, InputError, NotFound
from sendense.jobs.throttle import Throttles
from sendense.orders import ThrottleOrder
from sendense.repository.finding import is_new
from sendense.repository.settings import RepositorySettings, change_settings, read_settings
from sendense.throttles import Band, Throttle
from sendense.times import show_days, zone_named
from sendense.views import ThrottleView

log = logging.getLogger(__name__)

PUBLISH_SECONDS = 5.0
"""Until a band that has begun is in force."""


def publish(context: Context, beat: Beat) -> None:
    """
    Put in force at each site what its throttle says for this time.

    Again until the settings are still those that it put in force: whichever process does so last has the latest ones.
    """
    path = context.settings.repository
    if not path or is_new(path):
        return
    throttles, done = Throttles(context.ledger.client), None
    while True:
        limited = throttles.limited()  # first: none is lifted that was set after the settings were read
        known = read_settings(context.repository.layout).throttles
        if known == done:
            return
        for site in sorted(limited - {throttle.site for throttle in known}):
            beat()
            throttles.put_in_force(site, 0)
        for throttle in known:
            beat()
            try:
                throttles.put_in_force(throttle.site, _rate_now(context, throttle))
            except InputError as exc:  # a time zone that this machine does not know: the last rate stays
                log.warning("throttle of site %s: %s", throttle.site, exc, extra={"action": "throttle"})
        done = known


def show(context: Context, sites: list[str]) -> list[ThrottleView]:
    """These sites' throttles, and those of sites that nobody knows now; a site without one has no limit."""
    found = {site: Throttle(site=site) for site in sites}
    path = context.settings.repository
    if path and not is_new(path):
        found |= {throttle.site: throttle for throttle in read_settings(context.repository.layout).throttles}
    return [_view(context, throttle) for _, throttle in sorted(found.items())]


def set_rate(context: Context, site: str, order: ThrottleOrder, sites: list[str], beat: Beat) -> ThrottleView:
    """Limit what is read at a site, at the times of a band or at all others, from now on."""

    def changed(before: Throttle | None) -> Throttle:
        if not before and site not in sites:
            raise _unknown(site, sites)
        throttle = before or Throttle(site=site)
        if order.timezone:
            throttle = throttle.model_copy(update={"timezone": order.timezone})
        zone_named(throttle.timezone)
        if not order.band:
            return throttle.model_copy(update={"rate": order.rate})
        band = Band(**order.band.model_dump(), rate=order.rate)
        throttle = throttle.with_band(band)
        if other := next((each for each in throttle.bands if each != band and each.overlaps(band)), None):
            raise Conflict(
                f"site {site}: {band.start}-{band.end} overlaps {_named(other)}, which has a limit",
                f"Remove that one first: sendense throttle remove {site} --from {other.start} --to {other.end}",
            )
        return throttle

    return _change(context, site, changed, beat)


def remove(context: Context, site: str, band: str, beat: Beat) -> ThrottleView:
    """Lift the limit of a site: wholly, or that of a band, HH:MM-HH:MM or HH:MM-HH:MM@1,2 with its ISO weekdays."""

    def changed(before: Throttle | None) -> Throttle:
        if not before:
            raise NotFound(f"site {site}: has no throttle", "List them: sendense throttle")
        if not band:
            return Throttle(site=site)
        times, _, days = band.partition("@")
        start, _, end = times.partition("-")
        found = before.at(start, end, [int(day) for day in days.split(",")] if days else [])
        if len(found) != 1:
            known = ", ".join(map(_named, before.bands)) or "none"
            several = "has several limits" if found else "has no limit"
            on = f" on {show_days([int(day) for day in days.split(',')])}" if days else ""
            error = Conflict if found else NotFound
            raise error(f"site {site}: {several} from {start} to {end}{on}", f"Name one with its --days: {known}.")
        return before.model_copy(update={"bands": [each for each in before.bands if each != found[0]]})

    return _change(context, site, changed, beat)


def _change(context: Context, site: str, change: Callable[[Throttle | None], Throttle], beat: Beat) -> ThrottleView:
    def changed(settings: RepositorySettings) -> RepositorySettings:
        others = [throttle for throttle in settings.throttles if throttle.site != site]
        after = change(next((throttle for throttle in settings.throttles if throttle.site == site), None))
        kept = [after] if after.rate or after.bands else []
        return settings.model_copy(update={"throttles": sorted([*others, *kept], key=lambda each: each.site)})

    settings = change_settings(context.repository.layout, changed, beat)
    throttle = next((throttle for throttle in settings.throttles if throttle.site == site), Throttle(site=site))
    publish(context, beat)
    return _view(context, throttle)


def _named(band: Band) -> str:
    return f"{band.start}-{band.end} {show_days(band.days)}".strip()


def _rate_now(context: Context, throttle: Throttle) -> int:
    return throttle.rate_at(datetime.fromtimestamp(context.jobs.clock(), zone_named(throttle.timezone)))


def _view(context: Context, throttle: Throttle) -> ThrottleView:
    limit = Throttles(context.ledger.client).look(throttle.site)
    return ThrottleView(**throttle.model_dump(), limit=limit.rate, holds=limit.holds, measured=limit.measured)


def _unknown(site: str, sites: list[str]) -> NotFound:
    known = ", ".join(sites) or "none"
    return NotFound(f"site {site}: not known here", f"Known are: {known}. A site is known once a node of it is up.")
