"""What a hub tells of its jobs and nodes: each that begins, ends, joins, leaves or is drained."""

import time

from sendense.coordinator import upkeep
from sendense.coordinator.context import Context
from sendense.jobs import presence
from sendense.requests import JobView
from sendense.supervise.journal import Journal

LOOK_SECONDS = 2.0
"""Between two looks."""


class Chronicle:
    """Compares what there is with what there was at the look before."""

    def __init__(self, context: Context, journal: Journal) -> None:
        self._jobs, self._client, self._journal = context.jobs, context.ledger.client, journal
        self._known: set[str] | None = None
        self._active: set[str] = set()
        self._nodes: dict[str, str] = {}
        self._drained: set[str] = set()
        self._looked = 0.0

    def look(self) -> None:
        """Tell what is new; LedgerUnavailable when Redis does not answer."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        self._look_at_jobs()
        self._look_at_nodes()

    def _look_at_jobs(self) -> None:
        ids, active = set(self._jobs.ids()), set(self._jobs.active())
        first = self._known is None
        new = active if self._known is None else ids - self._known
        for job in sorted(new | (active - self._active)):
            if view := upkeep.find(self._jobs, job):
                self._tell(view, "goes on" if first else "begins", "job_begins")
        for job in sorted((self._active | new) - active):
            if view := upkeep.find(self._jobs, job):
                why = f": {view.error.message}" if view.error else ""
                self._tell(view, f"{view.state}{why}", "job_ends", "info" if view.state == "succeeded" else "warning")
        self._known, self._active = ids, active

    def _tell(self, view: JobView, how: str, action: str, level: str = "info") -> None:
        fields = {"job_id": view.id, "kind": view.request.kind, "state": view.state}
        self._journal.tell("hub", f"job {view.id}, {view.name}: {how}", level, action=action, **fields)

    def _look_at_nodes(self) -> None:
        nodes = {node.name: node.site for node in presence.nodes(self._client)}
        for name in sorted(nodes.keys() - self._nodes.keys()):
            self._journal.tell("hub", f"node {name} of site {nodes[name]} joins", action="node_joins", node=name)
        for name in sorted(self._nodes.keys() - nodes.keys()):
            self._journal.tell("hub", f"node {name} is gone", "warning", action="node_leaves", node=name)
        drained = presence.drained(self._client)
        for name in sorted(drained - self._drained):
            self._journal.tell("hub", f"node {name} is drained", action="node_drained", node=name)
        for name in sorted(self._drained - drained):
            self._journal.tell("hub", f"node {name} takes work again", action="node_resumed", node=name)
        self._nodes, self._drained = nodes, drained
