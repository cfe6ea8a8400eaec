"""The check-up of a node: its machine, the site that it stands in, and the way to its hub."""

from functools import cached_property

from sendense import pki
from sendense.diagnosis import machine, sites
from sendense.diagnosis.exports import read_export
from sendense.diagnosis.finding import Check, Trouble
from sendense.diagnosis.redis import RedisLooks
from sendense.exports import PROBE_EXPORT
from sendense.hub.folder import is_locked
from sendense.jobs import presence
from sendense.jobs.queues import HUB_QUEUE
from sendense.node.folder import NodeFolder
from sendense.settings import Settings


class NodeCheckup:
    """What is looked at on a node's machine, whether or not the node runs. NotFound for a site that is not set."""

    def __init__(self, settings: Settings, site: str) -> None:
        self._settings, self._site, self._name = settings, site, settings.node_name
        self._of_site = settings.site(site)
        self._redis, self._folder = RedisLooks(settings), NodeFolder(settings, settings.node_name)

    @cached_property
    def checks(self) -> list[Check]:
        """In their order: what others depend on comes first."""
        settings, redis = self._settings, self._redis
        there = ("hub's address", "redis", "redis answers")
        found = [
            Check("machine", lambda: machine.programs(self._of_site.nbdkit_plugin), seconds=60.0),
            Check("state folder", lambda: machine.state_folder(settings)),
        ]
        if folder := settings.tls_dir:
            files = (pki.CA_CERT, pki.CLIENT_CERT)
            found.append(Check("certificates", lambda: machine.certificates(folder, files)))
        found += sites.checks(self._site, self._of_site, ())
        return [
            *found,
            Check("hub's address", self._address),
            Check("redis", redis.reach, there[:1]),
            Check("redis answers", redis.answer, there[:2]),
            Check("clock", redis.clock, there),
            Check("coordinator", self._coordinator, there),
            Check("exports", lambda: read_export(PROBE_EXPORT, settings), there[:1], 60.0),
            Check("node's name", self._has_name, there),
            Check("node", self._running, ("state folder",)),
            Check("workers", self._workers, ("node", "node's name", *there)),
        ]

    def _address(self) -> str:
        settings = self._settings
        if not settings.redis:
            fix = 'Say where its Redis is: redis = "redis://HOST:PORT" in the settings (docs/nodes.md).'
            raise Trouble("no-hub", "no hub is set", fix)
        if not settings.exports:
            fix = 'Say where they are: exports = "nbd://HOST:PORT" in the settings (docs/nodes.md).'
            raise Trouble("no-exports", "where the hub's exports are is not set", fix)
        return f"{settings.redis}, {settings.exports}"

    def _coordinator(self) -> str:
        if presence.processes(self._redis.client, HUB_QUEUE):
            return "is there"
        fix = "Start the hub, then there: sendense doctor --hub"
        raise Trouble("no-coordinator", "Redis is there, and no hub: nobody hands out work", fix)

    def _has_name(self) -> str:
        holder, file = presence.holder(self._redis.client, f"node.{self._name}"), self._folder.path / "identity"
        if holder and not (file.exists() and file.read_text() == holder):
            other = next((node for node in presence.nodes(self._redis.client) if node.name == self._name), None)
            where = f" on {other.host}" if other else ""
            detail = f"another node is called {self._name}, and is up{where}"
            raise Trouble("name-taken", detail, "Give this one another name: node_name in the settings, or --name.")
        return self._name

    def _running(self) -> str:
        if is_locked(self._folder.path / "lock"):
            return f"runs, in {self._folder.path}"
        fix = f"Start it: systemctl start sendense-node@{self._site} (or: sendense node --site {self._site})."
        detail = f"node {self._name} does not run"
        locks = self._settings.state_dir.absolute().glob("node-*/lock")
        if others := sorted(lock.parent.name.removeprefix("node-") for lock in locks if is_locked(lock)):
            fix = f"For the one that does: sendense doctor --node --name {others[0]}. Or start this one, as that was."
            detail += f", and {', '.join(others)} does" if len(others) == 1 else f", and these do: {', '.join(others)}"
        raise Trouble("not-running", detail, fix)

    def _workers(self) -> str:
        client, name = self._redis.client, self._name
        drained = name in presence.drained(client)
        wanted = {f"{name}-control"} | (set() if drained else {f"{name}-copy"})
        if missing := sorted(each for each in wanted if not presence.is_present(client, each)):
            fix = f"They are started again within seconds; if not: journalctl -u sendense-node@{self._site}"
            raise Trouble("no-workers", f"not there: {', '.join(missing)}", fix)
        if drained:
            raise Trouble("drained", "takes no more work", f"Take it back: sendense nodes resume {name}", "warning")
        return "all are there"
