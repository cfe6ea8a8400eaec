"""Throttles as operators have them: set by command and over the API, in force by the clock, and seen at a held job."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sendense.client import Client
from sendense.coordinator.context import Context
from sendense.errors import Conflict, InputError, NotFound
from sendense.jobs.throttle import Throttles
from sendense.nbd.connect import no_beat
from sendense.orders import BandOrder, ThrottleOrder
from sendense.repository.settings import change_settings, read_settings
from sendense.service import throttling
from sendense.settings import Settings
from sendense.throttles import Band, Throttle
from sendense.units import KiB, MiB
from sendense.views import ThrottleView
from tests.api import Api
from tests.backup import WAIT_SECONDS, Backups, patiently
from tests.hub import Hub, context_of
from tests.site import LabSite, open_site

SITES = ["bergen", "oslo"]
SLOW = 128 * KiB
"""Bytes a second at which the small disk here takes half a minute."""


@pytest.fixture
def context(hub: Hub, tmp_path: Path) -> Context:
    """A hub with an empty repository."""
    settings = Settings.model_construct(repository=tmp_path / "repository", state_dir=tmp_path / "state")
    return context_of(hub, settings)


@pytest.fixture(scope="module")
def site() -> Iterator[LabSite]:
    """One machine with one small disk."""
    with open_site(vms=1, disks=1, disk_size=16 * MiB, fill=4 * MiB) as site:
        yield site


def keep(context: Context, *throttles: Throttle) -> None:
    """Have the settings name these throttles."""
    change_settings(
        context.repository.layout, lambda settings: settings.model_copy(update={"throttles": list(throttles)})
    )


def in_force(context: Context) -> dict[str, int]:
    """The limits that nodes heed."""
    throttles = Throttles(context.ledger.client)
    return {site: limit for site in SITES if (limit := throttles.look(site).rate)}


def band_at(context: Context, hours: int, rate: int) -> Band:
    """A band of two hours, in whose middle it is in so many hours, in UTC."""
    middle = datetime.fromtimestamp(context.jobs.clock(), UTC) + timedelta(hours=hours)
    start, end = middle - timedelta(hours=1), middle + timedelta(hours=1)
    return Band(start=f"{start:%H:%M}", end=f"{end:%H:%M}", rate=rate)


def test_what_is_in_force_goes_by_the_clock(context: Context) -> None:
    """
    The duty puts in force what each throttle says for this time, lifts limits that are no more, and repeats itself
    without harm; a hub without a repository leaves all as it is.
    """
    throttling.publish(context, no_beat)
    now, later = band_at(context, 0, 2 * MiB), band_at(context, 6, 3 * MiB)
    oslo = Throttle(site="oslo", rate=MiB, bands=[later], timezone="UTC")
    keep(context, oslo, Throttle(site="bergen", bands=[now], timezone="UTC"))
    throttling.publish(context, no_beat)
    throttling.publish(context, no_beat)
    assert in_force(context) == {"oslo": MiB, "bergen": 2 * MiB}
    keep(context, oslo.model_copy(update={"bands": [now]}))
    throttling.publish(context, no_beat)
    assert in_force(context) == {"oslo": 2 * MiB}


def test_set_while_the_duty_is_at_it(context: Context) -> None:
    """What is set or removed between two of the duty's steps is in force after its end."""
    oslo, beats = Throttle(site="oslo", rate=MiB), 0

    def beat() -> None:
        nonlocal beats
        beats += 1
        if beats == 1:  # it has read the settings, and put nothing in force yet
            throttling.remove(context, "oslo", "", no_beat)
            throttling.set_rate(context, "bergen", ThrottleOrder(rate=2 * MiB), SITES, no_beat)

    keep(context, oslo)
    throttling.publish(context, beat)
    assert in_force(context) == {"bergen": 2 * MiB}


def test_settings_that_are_wrong(context: Context) -> None:
    """A time zone that the hub does not know, or a damaged file, leaves in force what was."""
    keep(context, Throttle(site="oslo", rate=MiB), Throttle(site="bergen", rate=MiB))
    throttling.publish(context, no_beat)
    keep(context, Throttle(site="bergen", rate=MiB, timezone="Mars/Base"), Throttle(site="oslo", rate=2 * MiB))
    throttling.publish(context, no_beat)
    assert in_force(context) == {"oslo": 2 * MiB, "bergen": MiB}
    context.repository.layout.settings.write_text('{"format": 1, "throttles": [{"site": "oslo", "rate": -1}]}')
    with pytest.raises(InputError, match=r"settings\.json: damaged"):
        throttling.publish(context, no_beat)
    assert in_force(context) == {"oslo": 2 * MiB, "bergen": MiB}


def test_set_and_removed(context: Context) -> None:
    """What is set is kept and in force at once; a band is replaced by one at its time, and removed by itself."""

    def order(rate: int, band: Band | None = None) -> ThrottleView:
        times = BandOrder(start=band.start, end=band.end, days=band.days) if band else None
        return throttling.set_rate(
            context, "oslo", ThrottleOrder(rate=rate, band=times, timezone="UTC"), SITES, no_beat
        )

    now, later = band_at(context, 0, 2 * MiB), band_at(context, 6, 3 * MiB)
    assert order(MiB).limit == MiB
    assert order(2 * MiB, now).limit == 2 * MiB
    assert order(3 * MiB, later).limit == 2 * MiB
    assert order(4 * MiB, now).limit == 4 * MiB
    assert len(read_settings(context.repository.layout).throttles[0].bands) == 2
    with pytest.raises(Conflict, match=rf"overlaps {now.start}-{now.end}") as caught:
        order(MiB, band_at(context, 1, MiB))
    assert f"remove oslo --from {now.start} --to {now.end}" in caught.value.hint
    assert order(0, now).limit == 0
    assert throttling.remove(context, "oslo", f"{now.start}-{now.end}@1,2,3,4,5,6,7", no_beat).limit == MiB
    with pytest.raises(NotFound, match=f"no limit from {now.start} to {now.end}") as gone:
        throttling.remove(context, "oslo", f"{now.start}-{now.end}", no_beat)
    assert f"{later.start}-{later.end}" in gone.value.hint
    assert [(each.site, each.limit) for each in throttling.show(context, SITES)] == [("bergen", 0), ("oslo", MiB)]
    assert throttling.remove(context, "oslo", "", no_beat).bands == []
    assert (in_force(context), read_settings(context.repository.layout).throttles) == ({}, [])


def test_what_is_refused(context: Context) -> None:
    """A site that nobody knows, which may be a slip, and a time zone that there is not; nothing is changed."""
    with pytest.raises(NotFound, match="site olso: not known here") as caught:
        throttling.set_rate(context, "olso", ThrottleOrder(rate=MiB), SITES, no_beat)
    assert "bergen, oslo" in caught.value.hint
    with pytest.raises(NotFound, match="time zone 'Oslo'"):
        throttling.set_rate(context, "oslo", ThrottleOrder(rate=MiB, timezone="Oslo"), SITES, no_beat)
    with pytest.raises(NotFound, match="site oslo: has no throttle"):
        throttling.remove(context, "oslo", "", no_beat)
    keep(context, Throttle(site="oslo", rate=MiB, timezone="Mars/Base"))
    with pytest.raises(NotFound, match="time zone 'Mars/Base'"):
        throttling.set_rate(context, "oslo", ThrottleOrder(rate=2 * MiB), SITES, no_beat)
    assert read_settings(context.repository.layout).throttles[0].rate == MiB
    assert throttling.set_rate(context, "oslo", ThrottleOrder(rate=MiB, timezone="UTC"), SITES, no_beat).limit == MiB
    keep(context, Throttle(site="olso", rate=MiB))
    assert throttling.set_rate(context, "olso", ThrottleOrder(rate=2 * MiB), SITES, no_beat).limit == 2 * MiB


def test_a_backup_that_is_held(backups: Backups, api: Api) -> None:
    """
    A limit is set by a command, shown by all, said of the job that it holds, raised over the API while that runs, and
    in the audit log.
    """
    assert backups.run("throttle", "set", "lab", f"{SLOW}").stdout == (
        "site lab may read 128 KiB/s now, on all its nodes together\n"
    )
    running = backups.start("backup", "web01", "--json")
    with Client(api.url, api.token()) as client:
        assert patiently(lambda: any("held to 128 KiB/s" in job.waiting for job in client.jobs().jobs), WAIT_SECONDS)
        assert patiently(lambda: 0 < client.throttles()[0].measured <= 2 * SLOW, WAIT_SECONDS)
        (listed,) = json.loads(backups.run("throttle", "--json").stdout)
        assert (listed["site"], listed["limit"], listed["holds"]) == ("lab", SLOW, True)
        assert "128 KiB/s, holds" in backups.run("throttle").stdout
        assert client.set_throttle("lab", ThrottleOrder(rate=100 * MiB)).limit == 100 * MiB
        job = backups.succeeded(backups.finish(running))
        assert (job.progress and job.progress.retries) == 0
        assert client.remove_throttle("lab").limit == 0
        layout = backups.repository.layout
        change_settings(layout, lambda found: found.model_copy(update={"throttles": [Throttle(site="lab", rate=MiB)]}))
        assert patiently(lambda: client.throttles()[0].limit == MiB, WAIT_SECONDS), "a hub without a routine looks, too"
        assert client.remove_throttle("lab").limit == 0
    audit = [json.loads(line) for line in (backups.state / "audit.log").read_text().splitlines()]
    actions = [
        (line["action"], line["order"]) for line in audit if line["outcome"] == "done" and "rottle" in line["action"]
    ]
    assert [action for action, _ in actions] == [
        "set_throttle",
        "POST /api/v1/throttles/lab",
        "DELETE /api/v1/throttles/lab",
        "DELETE /api/v1/throttles/lab",
    ]
    assert actions[0][1][1]["rate"] == SLOW


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["set", "lab", "5K"], "64.0 KiB/s"),
        (["set", "lab", "fast"], "not a size"),
        (["set", "lba", "5M"], "site lba: not known here"),
        (["set", "lab", "5M", "--from", "8:00"], "--from and --to belong together"),
        (["set", "lab", "5M", "--from", "8:00", "--to", "24:00"], "24:00: no time of day"),
        (["set", "lab", "5M", "--days", "mon"], "--days is without"),
        (["remove", "lab", "--from", "8:00", "--to", "9:00"], "site lab: has no throttle"),
    ],
)
def test_wrong_commands(backups: Backups, words: list[str], message: str) -> None:
    """Each says what is wrong, and what to do."""
    result = backups.run("throttle", *words)
    assert result.status == 2
    assert message in result.error[0]
