"""The check-up of a hub: its machine and its folders first, then its parts, then how its work goes."""

import secrets
import socket
import tempfile
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path

from sendense import __version__, pki
from sendense.coordinator import upkeep
from sendense.coordinator.context import open_repository
from sendense.coordinator.copying import copies_of
from sendense.coordinator.run import place_of, site_of
from sendense.diagnosis import machine, receivers, sites, web
from sendense.diagnosis.exports import read_export
from sendense.diagnosis.finding import Check, Trouble
from sendense.diagnosis.redis import RedisLooks
from sendense.exports import Exports
from sendense.hub.folder import is_locked, service_lock
from sendense.jobs import presence
from sendense.jobs.queues import HUB_QUEUE, control_queue, site_queue
from sendense.models import HUB_SITE, UNDER_WAY
from sendense.repository.catalogue import Broken, Repository
from sendense.repository.finding import is_new
from sendense.repository.settings import read_settings
from sendense.requests import JobView
from sendense.service import scheduling
from sendense.settings import Settings
from sendense.supervise.beat import SILENCE_SECONDS
from sendense.supervise.web import refusal
from sendense.units import MiB, show_seconds

REPOSITORY_SECONDS = 60.0
"""For a look at all restore points: ten thousand take a few seconds, on a slow file system more."""

QMP_SECONDS = 10.0
"""For the exports daemon: closing a large image keeps it busy for a moment."""

JOBS = 200
"""The latest jobs that are looked at."""

LATELY = timedelta(days=1)
"""For which a job that failed is worth a warning."""

_SHOWN = 5
"""Names in a detail."""

_START = "Start it: systemctl start sendense-hub (or, in the foreground: sendense hub)."
_LOGS = "journalctl -u sendense-hub, or the logs in hub/ of the state folder"


class HubCheckup:
    """What is looked at on a hub's machine, whether or not the hub runs."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._redis = settings, RedisLooks(settings)
        self._damaged: list[Broken] = []

    @cached_property
    def checks(self) -> list[Check]:
        """In their order: what others depend on comes first."""
        settings, redis = self._settings, self._redis
        state, there = ("state folder",), ("redis", "redis answers")
        found = [
            Check("machine", machine.programs, seconds=60.0),
            Check("state folder", lambda: machine.state_folder(settings)),
            Check("repository", self._usable_repository),
            Check("restore points", self._restore_points, ("repository",), REPOSITORY_SECONDS),
            Check("broken points", self._broken, ("restore points",)),
        ]
        if folder := settings.tls_dir:
            files = (pki.CA_CERT, pki.SERVER_CERT, pki.CLIENT_CERT)
            found.append(Check("certificates", lambda: machine.certificates(folder, files)))
        for name, site in settings.sites.items():
            found += sites.checks(name, site, ("machine",))
        found += [
            Check("hub", self._running, state),
            Check("redis", redis.reach, () if settings.redis else ("hub",)),
            Check("redis answers", redis.answer, ("redis",)),
            Check("redis data", redis.data, there),
            Check("redis owner", self._owner, there),
            Check("clock", redis.clock, there),
            Check("exports", self._exports, ("hub",), 2 * QMP_SECONDS),
            Check("exports read", self._exports_read, ("exports",), 60.0),
            Check("coordinator", self._coordinator, ("hub", *there)),
            Check("routine", self._routine, ("hub", *there)),
        ]
        if settings.api_listen:
            found.append(Check("api", lambda: web.api(settings), ("hub",), 30.0))
        if settings.flower_listen:
            found.append(Check("flower", lambda: web.flower(settings), ("hub",)))
        return [
            *found,
            Check("nodes", self._nodes, ("hub", *there)),
            Check("sites", self._sites, ("hub", *there)),
            Check("jobs", self._jobs, there),
            Check("waiting jobs", self._waiting, ("coordinator", *there)),
            Check("unfinished points", self._unfinished, ("restore points", *there), REPOSITORY_SECONDS),
            Check("schedules", self._schedules, ("restore points",), REPOSITORY_SECONDS),
            Check("overdue VMs", self._overdue, ("schedules", "hub", *there), REPOSITORY_SECONDS),
            *self._receivers(),
        ]

    # The repository

    def _usable_repository(self) -> str:
        if not (path := self._settings.repository):
            fix = 'Name its folder: repository = "…" in the settings file. Migrations need none.'
            raise Trouble("no-repository", "none is set, so nothing can be backed up", fix, "warning")
        said = machine.usable(path.absolute(), "repository", "repository")
        if not is_new(path):
            open_repository(self._settings, create=False)
        return said

    @cached_property
    def _repository(self) -> Repository | None:
        path = self._settings.repository
        return open_repository(self._settings, create=False) if path and not is_new(path) else None

    def _restore_points(self) -> str:
        if not (repository := self._repository):
            return "none yet"
        sound, self._damaged = repository.sound_and_broken()
        count = len(sound)
        return f"{count} of {count + len(self._damaged)} are sound" if self._damaged else f"{count}, all of them sound"

    def _broken(self) -> str:
        """Apart from the look at all points, so that one of them keeps nothing else from being looked at."""
        if broken := self._damaged:
            names = _listed([f"{each.id} ({each.reason})" for each in broken])
            fix = "Bring the files back from a copy of the repository, or delete the points: sendense points"
            raise Trouble("broken-points", f"{len(broken)} cannot be restored: {names}", fix)
        return "none"

    def _unfinished(self) -> str:
        if not (repository := self._repository):
            return "none"
        jobs = self._redis.context.jobs
        active = {view.work.point for view in upkeep.active(jobs)}
        left = [each.id for each in repository.unfinished() if each.id not in active]
        if left:
            fix = "Go on with their jobs (sendense jobs resume JOB), or delete them: sendense jobs clean"
            raise Trouble("unfinished", f"{len(left)} of jobs that ended: {_listed(left)}", fix, "warning")
        return "none"

    # The hub's parts

    def _running(self) -> str:
        settings = self._settings
        if is_locked(service_lock(settings.hub_dir)):
            return f"runs, in {settings.hub_dir}"
        for setting in ("redis_listen", "exports_listen", "api_listen", "flower_listen"):
            listen = getattr(settings, setting)
            if listen and (why := refusal(listen)):
                fix = f"End who listens there (ss -ltnp), or set {setting} to another address; then start the hub."
                raise Trouble("port-taken", f"does not run, and cannot: {setting} {listen}: {why}", fix)
        raise Trouble("not-running", "does not run", _START)

    def _owner(self) -> str:
        if not self._settings.redis:
            return "its own"
        holder, file = presence.holder(self._redis.client, "hub"), self._settings.hub_dir / "identity"
        if holder and not (file.exists() and file.read_text() == holder):
            fix = "End the other hub, or give this one a Redis of its own ('redis' in the settings)."
            raise Trouble("another-hub", "another hub has it now", fix)
        return "this hub has it" if holder else "no hub has it now"

    def _exports(self) -> str:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(QMP_SECONDS)
            try:
                monitor.connect(str(self._settings.qmp_socket))
            except (TimeoutError, BlockingIOError) as exc:
                raise self._silent_exports() from exc
            except OSError as exc:
                fix = f"The hub starts it again by itself; if not: {_LOGS} (exports.log)."
                raise Trouble("exports-away", f"the daemon is not there: {exc.strerror or exc}", fix) from exc
        manager = self._manager()
        if not manager.answers():
            raise self._silent_exports()
        count = len(manager.list())
        return f"the daemon answers, and serves {count} image{'s' * (count != 1)}"

    def _silent_exports(self) -> Trouble:
        fix = "It is stopped, or a disk under an image does not answer: restart the hub, and look at that disk."
        return Trouble("exports-silent", f"the daemon gives no answer in {QMP_SECONDS:.0f} s", fix)

    def _exports_read(self) -> str:
        """A small image, served and read as a node would."""
        manager, name = self._manager(), f"doctor-{secrets.token_hex(8)}"
        # Named so that the hub's next start removes what a killed check-up leaves.
        with tempfile.TemporaryDirectory(prefix="disk-", dir=self._settings.hub_dir) as folder:
            image = Path(folder) / "doctor.raw"
            image.write_bytes(secrets.token_bytes(MiB))
            manager.add(name, image, "raw", writable=False)
            try:
                return read_export(name, self._settings)
            finally:
                manager.remove(name)

    def _manager(self) -> Exports:
        return Exports(self._settings.qmp_socket, self._settings.exports_address, QMP_SECONDS)

    def _coordinator(self) -> str:
        if count := presence.processes(self._redis.client, HUB_QUEUE):
            return f"{count} processes"
        raise Trouble("no-coordinator", "no worker reads the hub's queue", f"It is started again; if not: {_LOGS}.")

    def _routine(self) -> str:
        silence = presence.routine_silence(self._redis.client)
        if silence > 2 * SILENCE_SECONDS:
            said = f"for {show_seconds(silence)}" if silence < float("inf") else "since the hub's first start"
            fix = f"Schedules and notices wait for it. Restart the hub; {_LOGS} (beat.log, routine.log)."
            raise Trouble("routine-stopped", f"nothing was done {said}", fix)
        return f"its last duty was {show_seconds(silence)} ago"

    # How its work goes

    def _nodes(self) -> str:
        client = self._redis.client
        nodes, known, drained = presence.nodes(client), presence.known_nodes(client), presence.drained(client)
        names = {node.name for node in nodes}
        if gone := sorted(known.keys() - names):
            fix = "There: systemctl status sendense-node@SITE, and: sendense doctor --node --site SITE"
            raise Trouble("node-gone", f"ended without a word, or cut off: {_listed(gone)}", fix)
        for node in nodes:
            if node.tunnel.verdict not in ("ok", "unknown"):
                detail = f"{node.name} does not reach the exports: {node.tunnel.verdict}: {node.tunnel.detail}"
                raise Trouble("node-tunnel", detail, "There: sendense doctor --node --site SITE")
        for site in sorted({node.site for node in nodes}):
            there = {node.name for node in nodes if node.site == site}
            if there <= drained:
                detail = f"all nodes of {site} are drained: {_listed(sorted(there))}"
                raise Trouble("drained", detail, "Take them back: sendense nodes resume NAME", "warning")
        if other := sorted({node.name for node in nodes if node.versions.get("sendense") != __version__}):
            detail = f"of another version than this hub's {__version__}: {_listed(other)}"
            raise Trouble("versions", detail, "Upgrade the nodes after the hub, one by one.", "warning")
        if not nodes and not self._settings.sites:
            fix = "Start one at each VMware site: docs/nodes.md"
            raise Trouble("no-nodes", "none is there, so no VM can be reached", fix, "warning")
        return f"{len(nodes)}: {_listed(sorted(names))}" if nodes else "none"

    def _sites(self) -> str:
        client = self._redis.client
        living = presence.controlled_sites(client)
        wanted = {*self._settings.sites, *presence.known_nodes(client).values()}
        if silent := sorted(wanted - living):
            fix = f"Look at that site's nodes: sendense nodes, and there: sendense doctor --node --site {silent[0]}"
            raise Trouble("site-silent", f"nobody speaks to the vCenter of {_listed(silent)}", fix)
        return _listed(sorted(living)) if living else "none"

    def _jobs(self) -> str:
        jobs = self._redis.context.jobs
        views = [view for job in jobs.ids()[:JOBS] if (view := upkeep.find(jobs, job))]
        if left := [view.id for view in views if view.leftover]:
            fix = "Snapshots grow: sendense jobs clean, soon. It says what stays and why."
            raise Trouble("leftovers", f"something was left by: {_listed(left)}", fix)
        since = datetime.now(UTC) - LATELY
        if failed := [view.id for view in views if _failed_after(view, since)]:
            fix = f"sendense jobs show {failed[0]} says why; then: sendense jobs resume {failed[0]}"
            raise Trouble("jobs-failed", f"{len(failed)} in the last day: {_listed(failed)}", fix, "warning")
        return f"{sum(not view.ended for view in views)} under way, none failed in the last day"

    def _waiting(self) -> str:
        views = [view for view in upkeep.active(self._redis.context.jobs) if not view.paused]
        waits = [(view, queue) for view in views if (queue := self._unread(view))]
        if not waits:
            return "none"
        said = [
            f"{view.name} ({view.id}): {view.waiting or f'no worker reads the queue {queue}'}" for view, queue in waits
        ]
        where = {site_of(view) for view, _ in waits}
        if where <= {HUB_SITE, *self._settings.sites}:
            fix = f"This hub starts its workers again within seconds; if not: {_LOGS}."
        else:
            start = f"Start a node at site {_listed(sorted(where))}, there: systemctl start sendense-node@SITE"
            fix = f"{start} (docs/nodes.md); one that is drained: sendense nodes resume NAME"
        raise Trouble("job-waits", f"nobody is there to go on with {len(waits)}: {_listed(said)}", fix)

    def _unread(self, view: JobView) -> str:
        """The queue of a site that a job waits for, where nobody reads it; empty where somebody is at the job."""
        context, client = self._redis.context, self._redis.client
        if place_of(view) == "control":
            queues = [] if context.jobs.is_leased(view.id) else [control_queue(site_of(view))]
        elif view.waiting:
            ledger = context.ledger
            busy = [name for name in copies_of(view) if ledger.state(name) in UNDER_WAY]
            queues = [site_queue(spec.site, solo=spec.solo) for name in busy if (spec := ledger.spec(name))]
        else:
            queues = []
        return next((queue for queue in queues if not presence.processes(client, queue)), "")

    def _schedules(self) -> str:
        repository = self._repository
        schedules = read_settings(repository.layout).schedules if repository else []
        if schedules and not is_locked(service_lock(self._settings.hub_dir)):
            names = _listed([each.name for each in schedules])
            raise Trouble("schedules-stopped", f"nothing runs them while no hub does: {names}", _START)
        return _listed([each.name for each in schedules]) or "none"

    def _overdue(self) -> str:
        if late := scheduling.overdue(self._redis.context):
            names = _listed([each.vm.name for each in late])
            fix = "sendense schedule says what its last run came to; sendense jobs, why a job failed."
            raise Trouble("overdue", f"no restore point for longer than the schedule allows: {names}", fix)
        return "none"

    def _receivers(self) -> list[Check]:
        notices = self._settings.notices
        if not notices.receivers:
            return [Check("notices", self._no_receivers)]
        return [
            Check(f"notices: {one}", partial(receivers.look, notices, one), (), receivers.RECEIVER_SECONDS, "receiver")
            for one in notices.receivers
        ]

    def _no_receivers(self) -> str:
        fix = "Set [notices] in the settings file (docs/notices.md), then: sendense notices test"
        raise Trouble("no-notices", "nobody is told when a backup fails", fix, "warning")


def _failed_after(view: JobView, since: datetime) -> bool:
    return bool(view.ended and view.ended > since and view.state in ("failed", "different"))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
