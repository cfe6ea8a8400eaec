"""The steps of each kind of job, in order. What cleans up runs last, and in every case."""

from sendense.coordinator import backup, copying, migrate, removal, restore, site, verification
from sendense.coordinator.context import Step
from sendense.requests import JobRequest

_CLOSE = Step("close", "hub", copying.close, cleaning=True)
_REMOVE_SNAPSHOT = Step("remove-snapshot", "control", site.remove_snapshot, cleaning=True)

_PIPELINES: dict[str, tuple[Step, ...]] = {
    "backup": (
        Step("inspect", "control", site.inspect),
        Step("choose", "hub", backup.choose),
        Step("snapshot", "control", site.make_snapshot),
        Step("changes", "control", site.read_changes),
        Step("prepare", "hub", backup.prepare),
        Step("copy", "hub", backup.copy),
        Step("verify", "hub", backup.verify),
        Step("commit", "hub", backup.commit, final=True),
        _CLOSE,
        _REMOVE_SNAPSHOT,
        Step("tidy", "hub", backup.tidy, cleaning=True),
    ),
    "migrate": (
        Step("inspect", "control", site.inspect),
        Step("choose", "hub", migrate.choose),
        Step("shutdown", "control", site.shut_down),
        Step("snapshot", "control", site.make_snapshot),
        Step("changes", "control", site.read_changes),
        Step("prepare", "hub", migrate.prepare),
        Step("copy", "hub", migrate.copy),
        Step("verify", "hub", migrate.verify),
        Step("deliver", "hub", migrate.deliver, final=True),
        _CLOSE,
        _REMOVE_SNAPSHOT,
    ),
    "restore": (
        Step("choose", "hub", restore.choose),
        Step("prepare", "hub", restore.prepare),
        Step("copy", "hub", restore.copy),
        Step("verify", "hub", restore.verify),
        Step("deliver", "hub", restore.deliver, final=True),
        _CLOSE,
    ),
    "verify": (
        Step("choose", "hub", verification.choose),
        Step("prepare", "slow", verification.prepare),
        Step("read", "hub", verification.read),
        Step("compare", "hub", verification.compare),
        _CLOSE,
    ),
    "delete": (Step("delete", "slow", removal.delete), _CLOSE),
}


_ASKED_FOR = {"verify": "verify", "shutdown": "cutover"}
"""Steps that a field of the request asks for."""


def pipeline(request: JobRequest) -> tuple[Step, ...]:
    """The steps of a job: those of its kind that it was asked for."""
    left_out = {name for name, flag in _ASKED_FOR.items() if not getattr(request, flag, True)}
    return tuple(step for step in _PIPELINES[request.kind] if step.name not in left_out)
