"""Tells of VMs that are overdue: when they become so, each day that they stay so, and when they are well again."""

from datetime import UTC, datetime

from sendense.beat import Beat
from sendense.coordinator.context import Context
from sendense.coordinator.outbox import Outbox
from sendense.notices import OverdueVm
from sendense.service import scheduling
from sendense.service.notices import overdue_notice, well_notice

LOOK_SECONDS = 60.0
"""Between two looks: schedules allow for hours."""

AGAIN_SECONDS = 86_400.0
"""Between two notices of one VM."""

_MARK = "overdue:"
"""Begins the names of the marks. Each has when the VM was told of, and the restore point that was its newest then."""


def watch(context: Context, beat: Beat) -> None:
    """Enter what is to be told, of all VMs together: with a vCenter away, a whole site becomes overdue."""
    notices = context.settings.notices
    if not notices.receivers or "overdue" not in notices.on:
        return
    outbox, now = Outbox(context.ledger.client), context.jobs.clock()
    before = {name: text for name, text in outbox.marks().items() if name.startswith(_MARK)}
    late = {f"{_MARK}{each.vm.uuid}": each for each in scheduling.overdue(context, beat)}
    due, marks = [], {}
    for name, each in late.items():
        # A VM that was told of in time to come was told of before the clock was set back.
        if not 0 <= now - _said(before.get(name, "")) < AGAIN_SECONDS:
            due.append(OverdueVm(vm=each.vm, schedule=each.schedule, newest=each.newest))
            newest = each.newest.isoformat() if each.newest else ""
            marks[name] = (before.get(name, ""), f"{now} {each.schedule} {newest}")
    if due:
        outbox.enter("vm.overdue", overdue_notice(due).model_dump_json(), marks)
    gone = {name: (text, "") for name, text in before.items() if name not in late}
    if gone:
        well = _well(context, before, list(gone), beat)
        body = well_notice(well).model_dump_json() if well else ""
        outbox.enter("vm.well" if well else "", body, gone)


def _well(context: Context, before: dict[str, str], names: list[str], beat: Beat) -> list[OverdueVm]:
    """Those of them that have a new restore point; of the others no schedule wants one any more."""
    repository = context.repository
    known = {vm.ref.uuid: vm.ref for vm in repository.vms(beat)}
    found = []
    for name in names:
        beat()
        _, schedule, newest = before[name].split(" ", 2)
        uuid = name.removeprefix(_MARK)
        point = repository.latest(uuid)
        if point and uuid in known and (not newest or point.created > datetime.fromisoformat(newest)):
            created = point.created.astimezone(UTC)
            found.append(OverdueVm(vm=known[uuid], schedule=schedule, newest=created))
    return found


def _said(mark: str) -> float:
    return float(mark.partition(" ")[0]) if mark else 0.0
