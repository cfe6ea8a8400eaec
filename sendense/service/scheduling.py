"""What a hub does about its schedules: looks after each every few seconds, and knows which VMs are overdue."""

import logging
from datetime import UTC, datetime

from sendense import occurrences
from sendense.beat import Beat, no_beat
from sendense.coordinator.context import Context
from sendense.errors import ClaimLost, SendenseError
from sendense.jobs import broker
from sendense.occurrences import Overdue
from sendense.repository.finding import is_new
from sendense.repository.settings import read_settings
from sendense.schedules import Schedule, Seen
from sendense.service.attendance import Attendance
from sendense.service.runs import Runs

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""Between two looks: a schedule may begin so much late."""


def attend(context: Context, beat: Beat) -> None:
    """Look after all schedules; what is wrong with one does not keep the others from it."""
    path = context.settings.repository
    if not path or is_new(path):
        return
    schedules = read_settings(context.repository.layout).schedules
    runs = Runs(context.ledger.client)
    runs.keep(schedule.name for schedule in schedules)
    for schedule in schedules:
        beat()
        try:
            _look(Attendance(context, runs, schedule, beat), schedule.name)
        except ClaimLost:  # a user changed the record: the next look sees it
            beat()  # raises it again if it is the duty that was lost


def _look(attendance: Attendance, name: str) -> None:
    trouble = ""
    try:
        attendance.look()
    except (ClaimLost, *broker.Unavailable):
        raise
    except SendenseError as exc:
        log.warning("schedule %s: %s", name, exc, extra={"action": "schedule"})
        trouble = str(exc)
    except Exception as exc:
        log.exception("schedule %s: a fault", name, extra={"action": "schedule"})
        trouble = f"a fault, see the log of the hub's routine: {exc!r}"
    attendance.say(trouble)


def overdue(context: Context, beat: Beat = no_beat) -> list[Overdue]:
    """The VMs that have had no restore point for longer than their schedules allow, the one due first first."""
    if not (schedules := attended(context, beat)):
        return []  # and no repository is made of a folder that is none yet
    repository, newest = context.repository, {}
    for uuid in {seen.vm.uuid for _, vms in schedules for seen in vms}:
        beat()
        if point := repository.latest(uuid):
            newest[uuid] = point.created
    return occurrences.overdue(schedules, newest, datetime.fromtimestamp(context.jobs.clock(), UTC))


def attended(context: Context, beat: Beat = no_beat) -> list[tuple[Schedule, list[Seen]]]:
    """The schedules that are not paused, each with its VMs: of those of all VMs, what their latest run found."""
    path = context.settings.repository
    if not path or is_new(path):
        return []
    schedules = read_settings(context.repository.layout).schedules
    return [(each, _vms_of(context, each, beat)) for each in schedules if not each.paused]


def _vms_of(context: Context, schedule: Schedule, beat: Beat) -> list[Seen]:
    beat()
    if schedule.vm:
        return [Seen(vm=schedule.vm, since=schedule.since)]
    seen = Runs(context.ledger.client).seen(schedule.name)
    if seen is not None:
        return [each for each in seen.values() if schedule.covers(each.vm)]  # it may have been for another site
    # Nobody could be asked yet: those that were backed up before.
    known = (vm.ref for vm in context.repository.vms(beat))
    return [Seen(vm=ref, since=schedule.since) for ref in known if schedule.covers(ref)]
