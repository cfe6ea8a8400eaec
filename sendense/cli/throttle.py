"""The `sendense throttle` commands."""

from typing import TYPE_CHECKING, Annotated

import typer

from sendense.cli.amounts import read_bytes, read_days, read_time
from sendense.cli.opening import open_hub, warn_if_alone
from sendense.cli.tables import print_json, print_table, say
from sendense.errors import InputError
from sendense.times import show_days
from sendense.units import show_bytes

if TYPE_CHECKING:
    from sendense.orders import BandOrder
    from sendense.views import ThrottleView

throttle_app = typer.Typer(help="How fast the disks of a site may be read, by time of day.")

_NONE = ("none", "off", "unlimited")

_Site = Annotated[str, typer.Argument(metavar="SITE", help="The site's name.")]
_From = Annotated[str, typer.Option("--from", metavar="HH:MM", help="When it begins; with --to.")]
_To = Annotated[str, typer.Option("--to", metavar="HH:MM", help="When it ends; the next day, if that is earlier.")]
_Days = Annotated[str, typer.Option("--days", metavar="DAYS", help="On which that time begins: mon-fri, or sat,sun.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@throttle_app.callback(invoke_without_command=True)
def list_throttles(context: typer.Context, as_json: _Json = False) -> None:
    """The limits of all sites, which is in force now, and what was read in the last ten seconds."""
    if context.invoked_subcommand:
        return
    with open_hub() as hub:
        found = hub.throttles()
    if as_json:
        print_json(found)
        return
    if not found:
        say("no site is known; start a node at one: sendense node --site NAME")
        warn_if_alone()
        return
    rows: list[list[str]] = []
    for each in found:
        now = f"{_rate(each.limit)}{', holds' if each.holds else ''}"
        rows.append([each.site, now, f"{show_bytes(each.measured)}/s", _rate(each.rate), _otherwise(each)])
        for band in each.bands:
            days = f" {show_days(band.days)}" if band.days else ""
            rows.append(["", "", "", _rate(band.rate), f"{band.start}-{band.end}{days}{_zone(each)}"])
    print_table(["site", "now", "read", "limit", "when"], rows, right=("read", "limit"))
    warn_if_alone()


@throttle_app.command("set")
def set_rate(
    site: _Site,
    rate: Annotated[str, typer.Argument(metavar="RATE", help="Bytes a second: 50M, 1.5G; or 'none'.")],
    start: _From = "",
    end: _To = "",
    days: _Days = "",
    timezone: Annotated[
        str, typer.Option(metavar="ZONE", help="Of all times of the site, such as Europe/Oslo; else the hub's own.")
    ] = "",
    as_json: _Json = False,
) -> None:
    """
    Limit what all nodes of a site read together, for jobs that run as well.

    With --from and --to at that time of day, otherwise at all times that have no limit of their own.
    """
    from sendense.orders import ThrottleOrder, make_order

    band = _band(start, end, days)
    order = make_order(ThrottleOrder, rate=_bytes_a_second(rate), band=band, timezone=timezone)
    with open_hub() as hub:
        found = hub.set_throttle(site, order)
    if found.bands and not as_json:
        when = f"{band.start}-{band.end} {show_days(band.days)}" if band else "at other times"
        say(f"site {site}: limit {_rate(order.rate)} {when}")
    _show(found, as_json=as_json)


@throttle_app.command()
def remove(site: _Site, start: _From = "", end: _To = "", days: _Days = "", as_json: _Json = False) -> None:
    """Lift the limits of a site; with --from and --to only that of these times, on --days if several have them."""
    band = _band(start, end, days)
    named = f"{band.start}-{band.end}" if band else ""
    if band and days:
        named += "@" + ",".join(map(str, band.days or range(1, 8)))
    with open_hub() as hub:
        _show(hub.remove_throttle(site, named), as_json=as_json)


def _show(found: "ThrottleView", *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    now = f"may read {_rate(found.limit)} now, on all its nodes together" if found.limit else "has no limit now"
    say(f"site {found.site} {now}")


def _band(start: str, end: str, days: str) -> "BandOrder | None":
    """The times that were given, if any were."""
    from sendense.orders import BandOrder, make_order

    if days and not start:
        raise InputError("--days is without --from and --to", "For whole days give --from 00:00 --to 00:00.")
    if bool(start) != bool(end):
        raise InputError("--from and --to belong together", "Give both, such as --from 08:00 --to 18:00, or neither.")
    if not start:
        return None
    return make_order(BandOrder, start=read_time("--from", start), end=read_time("--to", end), days=read_days(days))


def _bytes_a_second(text: str) -> int:
    return 0 if text.lower() in _NONE else read_bytes(text.removesuffix("/s"))


def _rate(rate: int) -> str:
    return f"{show_bytes(rate)}/s" if rate else "none"


def _otherwise(throttle: "ThrottleView") -> str:
    return "at other times" if throttle.bands else "always" if throttle.rate else ""


def _zone(throttle: "ThrottleView") -> str:
    return f" {throttle.timezone}" if throttle.timezone else ""
