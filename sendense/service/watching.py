"""
Snapshots that jobs left at the sites' vCenters: each site is asked every few minutes, and what it said is kept.

Such a snapshot grows until its datastore is full. `sendense jobs clean` removes those of this hub's jobs.
"""

import logging
from functools import partial
from typing import cast

from pydantic import Field

from sendense.coordinator.asking import ask
from sendense.coordinator.context import Context
from sendense.coordinator.site import SNAPSHOT_PREFIX
from sendense.errors import SendenseError
from sendense.jobs import presence
from sendense.jobs.reading import readable
from sendense.models import Record, SnapshotAge, VmRef
from sendense.nbd.connect import Beat

log = logging.getLogger(__name__)

WATCH_SECONDS = 300.0
"""Between two looks at the sites: each is a login, and one query for all VMs."""

ASK_SECONDS = 120.0
"""For a site to tell of its snapshots: a vCenter of thousands of VMs takes some ten seconds."""

KEPT_SECONDS = 86_400.0
"""A site that is not in the settings and did not answer for a day is forgotten."""

_KEY = "sendense:snapshots"


class Orphan(Record):
    """A snapshot of no active job. `made` in seconds since the epoch by Redis's clock."""

    vm: VmRef
    name: str
    known: bool
    """The job is one of this hub's, and has ended; otherwise nobody here knows it."""
    made: float


class SiteLook(Record):
    """What a site said last. `asked` and `answered` in seconds since the epoch by Redis's clock."""

    asked: float
    answered: float = 0.0
    error: str = ""
    """Why it did not answer when it was asked last; `orphans` are as it said before."""
    orphans: list[Orphan] = Field(default_factory=list)


def watch(context: Context, beat: Beat) -> None:
    """Ask every site for the snapshots that jobs made there, and keep which of them belong to no active job."""
    client = context.ledger.client
    own, before = set(context.settings.sites), looks(context)
    for site in sorted(own | presence.controlled_sites(client) | before.keys()):
        beat()
        look = _look(context, site, before.get(site), beat)
        if site in own or look.asked - look.answered < KEPT_SECONDS:
            client.hset(_KEY, site, look.model_dump_json())
        else:
            client.hdel(_KEY, site)


def looks(context: Context) -> dict[str, SiteLook]:
    """What each site said last, but for what another version wrote that cannot be read here."""
    found = cast(dict[bytes, bytes], context.ledger.client.hgetall(_KEY))
    texts = {site.decode(): text for site, text in found.items()}
    looks = {
        site: readable(f"what site {site} said", partial(SiteLook.model_validate_json, text))
        for site, text in texts.items()
    }
    return {site: look for site, look in looks.items() if look}


def _look(context: Context, site: str, before: SiteLook | None, beat: Beat) -> SiteLook:
    jobs = context.jobs
    active, known, asked = set(jobs.active()), set(jobs.ids()), jobs.clock()
    try:
        found: list[SnapshotAge] = ask(context, site, "snapshots", seconds=ASK_SECONDS, beat=beat)
    except SendenseError as exc:
        log.warning("the snapshots of site %s are unknown: %s", site, exc, extra={"action": "watch"})
        return (before or SiteLook(asked=asked, answered=asked)).model_copy(update={"asked": asked, "error": str(exc)})
    # A job that was active at any time since we began to ask may have had its snapshot then with every right.
    now, ids = jobs.clock(), set(jobs.ids())
    excused = active | set(jobs.active()) | (ids - known)
    orphans = [
        Orphan(vm=each.vm, name=each.name, known=job in ids, made=now - each.age)
        for each in found
        if (job := each.name.removeprefix(SNAPSHOT_PREFIX)) not in excused
    ]
    return SiteLook(asked=asked, answered=now, orphans=orphans)
