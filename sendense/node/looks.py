"""What a node finds out about itself and its way to the hub, beside its work: nothing waits for it."""

import platform
import threading
import time
from collections import deque

from sendense import __version__
from sendense.errors import InputError, SendenseError
from sendense.exports import PROBE_EXPORT, hub_export, reach
from sendense.models import Tunnel
from sendense.nbd.machine import check_machine
from sendense.nbd.probe import probe
from sendense.settings import Settings, Site
from sendense.vsphere import plugin

PROBE_EVERY_SECONDS = 10.0
"""Between two looks at the way to the hub's exports."""

AGAIN_SECONDS = 2.0
"""The same while something is wrong with it."""

STAGE_SECONDS = 5.0
"""For each stage of a look, as the doctor's."""

STALE_SECONDS = 60.0
"""A look that is older says nothing any more: the one after it must have hung."""

RATE_SECONDS = 10.0
"""The time over which a node's rate is taken."""


class Looks:
    """A thread that looks again and again; what it found last is there at once."""

    def __init__(self, settings: Settings, site: Site) -> None:
        self._settings, self._site = settings, site
        self._tunnel, self._looked = Tunnel(verdict="unknown", detail="not looked at yet"), time.monotonic()
        self.versions: dict[str, str] = {"sendense": __version__, "python": platform.python_version()}
        self.plugins: list[str] = []
        threading.Thread(target=self._look, name="looks", daemon=True).start()

    @property
    def tunnel(self) -> Tunnel:
        """How the hub's exports were reached."""
        if time.monotonic() - self._looked > STALE_SECONDS:
            return Tunnel(verdict="unknown", detail="the look at it does not end")
        return self._tunnel

    def _look(self) -> None:
        checks = {check.name: check.found for check in check_machine()}
        self.versions = self.versions | {name: checks[name] or "missing" for name in ("celery", "libnbd", "nbdkit")}
        self.plugins = [_describe_plugin(self._site)]
        while True:
            self._tunnel, self._looked = look_at_tunnel(self._settings), time.monotonic()
            time.sleep(PROBE_EVERY_SECONDS if self._tunnel.verdict == "ok" else AGAIN_SECONDS)


def look_at_tunnel(settings: Settings) -> Tunnel:
    """Go the way to the hub's exports as a copy does, up to reading."""
    try:
        found = probe(reach(hub_export(PROBE_EXPORT), settings), STAGE_SECONDS).finding
    except SendenseError as exc:
        return Tunnel(verdict="unknown", detail=str(exc))
    if found.verdict in ("ok", "no-such-export"):  # an older hub has no probe, and was reached all the same
        return Tunnel(verdict="ok")
    return Tunnel(verdict=found.verdict, detail=found.detail)


def _describe_plugin(site: Site) -> str:
    """The nbdkit plugin that reads the site's disks, or what is wrong with it."""
    try:
        return plugin.describe(site)
    except InputError as exc:
        return str(exc)


class Rate:
    """Bytes a second over the last RATE_SECONDS, from a counter."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def count(self, moved: int) -> float:
        """Take the counter's value now; returns the rate."""
        now = time.monotonic()
        if self._seen and moved < self._seen[-1][1]:  # counted anew
            self._seen.clear()
        self._seen.append((now, moved))
        while len(self._seen) > 2 and now - self._seen[1][0] >= RATE_SECONDS:
            self._seen.popleft()
        since, before = self._seen[0]
        return (moved - before) / (now - since) if now > since else 0.0
