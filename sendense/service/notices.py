"""What is told to people and programs elsewhere, made of the outbox's entries."""

import re
from datetime import UTC, datetime
from textwrap import shorten

from sendense.coordinator.outbox import JOB_ENDED, Entry
from sendense.coordinator.record import view_of
from sendense.jobs.ledger import Ledger
from sendense.notices import Kind, Notice, OverdueVm, Told
from sendense.receivers import Occasion
from sendense.requests import BackupRequest, DeleteRequest, JobView, MigrateRequest
from sendense.service.describing import describe
from sendense.units import show_seconds

OCCASIONS: dict[Kind, Occasion] = {
    "job.failed": "failure",
    "job.different": "failure",
    "job.leftover": "failure",
    "job.succeeded": "success",
    "schedule.failed": "failure",
    "vm.overdue": "overdue",
    "vm.well": "overdue",
}

MOST_VMS = 50
"""VMs that one text names: with a vCenter away, all of a site are overdue at once."""

CAUSE_LETTERS = 100
"""Of a failure's message in a subject: what a list of mails shows, and a phone."""

_ENDPOINT = re.compile(r"\b(read|write) .+? (offset=\d+) length=\d+")
"""What is read or written, which the text has: a subject has no room for it."""

MOST_LISTED = 200
"""VMs that a notice has for programs: 50 KB, which is more than most receivers of webhooks take, and no more."""


def notice_of(entry: Entry, hub: str, ledger: Ledger) -> Notice | None:
    """The notice that an entry comes to; None for what nobody is told, such as a job that a user cancelled."""
    id, time = f"{hub}:{entry.id}", datetime.fromtimestamp(entry.time, UTC)
    if entry.kind == JOB_ENDED:
        view = view_of(*entry.job())
        found = _of_job(view)
        if not found:
            return None
        kind, told = found
        schedule = view.request.schedule if isinstance(view.request, BackupRequest) else ""
        told, job = told.model_copy(update={"schedule": schedule}), describe(ledger, view)
        return Notice(id=id, kind=kind, time=time, hub=hub, **dict(told), job=job)
    told = Told.model_validate_json(entry.body)
    return Notice.model_validate({"id": id, "kind": entry.kind, "time": time, "hub": hub, **dict(told)})


def _of_job(view: JobView) -> tuple[Kind, Told] | None:
    name, id = plain(view.name), view.id
    show, events, resume = f"sendense jobs show {id}", f"sendense jobs events {id}", f"sendense jobs resume {id}"
    where = [_where(view), _when(view)]
    left = [f"not cleaned: {plain(line)}" for line in view.leftover.splitlines()]
    clean = ["sendense jobs clean"] if left else []
    off = ["The VM is off: the job shut it down for the cutover."] if view.work.off else []
    if view.state in ("failed", "different"):
        error = view.error
        kind: Kind = "job.different" if view.state == "different" else "job.failed"
        what = "what is stored is not what was copied" if view.state == "different" else "failed"
        again = [] if error and error.usage else [resume]
        return kind, Told(
            subject=f"{name}: {what}{_briefly(view)}",
            text="\n".join([plain(error.message) if error else "It does not say why.", *left, *off, *where]),
            hint=plain(error.hint) if error else "",
            commands=[show, events, *clean, *again],
        )
    if left:
        return "job.leftover", Told(
            subject=f"{name}: {view.state}, but left something behind",
            text="\n".join([*left, *off, *where]),
            hint="A snapshot that stays grows with every write of its VM: remove it soon.",
            commands=[*clean, show],
        )
    if view.state == "succeeded":
        point = [f"restore point {view.work.point}"] if view.work.point else []
        missing = [f"disk {key} was left out: {plain(reason)}" for key, reason in view.work.left_out.items()]
        text = "\n".join([*point, *missing, *off, *where])
        return "job.succeeded", Told(subject=f"{name}: succeeded", text=text, commands=[show])
    return None


def _briefly(view: JobView) -> str:
    """Where, and why, for a subject."""
    site = f", site {view.request.vm.site}" if isinstance(view.request, BackupRequest | MigrateRequest) else ""
    if not view.error:
        return site
    message = _ENDPOINT.sub(r"\1 \2", plain(view.error.message))
    cause = shorten(message.partition("; ")[0].partition(" [attempt")[0], CAUSE_LETTERS, placeholder=" ...")
    return f"{site}: {cause}"


def _where(view: JobView) -> str:
    request = view.request
    if isinstance(request, BackupRequest | MigrateRequest | DeleteRequest):
        return f"VM {plain(request.vm.name)} ({request.vm.moref}), site {request.vm.site}, job {view.id}"
    return f"restore point {request.point}, job {view.id}"


def _when(view: JobView) -> str:
    began, ended = view.started or view.created, view.ended
    if not ended:
        return f"begun {show_time(began)}"
    return f"begun {show_time(began)}, ended {show_time(ended)}, after {show_seconds((ended - began).total_seconds())}"


def overdue_notice(vms: list[OverdueVm]) -> Told:
    """VMs that have had no restore point for longer than their schedules allow."""
    names = [plain(each.vm.name) for each in vms]
    subject = f"{names[0]}: no restore point for too long" if len(vms) == 1 else f"{len(vms)} VMs: overdue"
    lines = [f"{plain(each.vm.name)}, site {each.vm.site}: {_newest(each)}" for each in vms]
    return Told(
        subject=subject,
        text="\n".join(["No restore point for longer than the schedule allows:", *_few(lines)]),
        hint="Look what its schedule did last, and whether the hub and a node of the site are up.",
        commands=["sendense schedule", "sendense jobs", "sendense nodes"],
        vms=vms[:MOST_LISTED],
    )


def well_notice(vms: list[OverdueVm]) -> Told:
    """VMs that were overdue and have a new restore point."""
    names = [plain(each.vm.name) for each in vms]
    subject = f"{names[0]}: is well again" if len(vms) == 1 else f"{len(vms)} VMs: are well again"
    lines = [f"{plain(each.vm.name)}, site {each.vm.site}: {_newest(each)}" for each in vms]
    text = "\n".join(["There is a new restore point:", *_few(lines)])
    return Told(subject=subject, text=text, vms=vms[:MOST_LISTED])


def _newest(overdue: OverdueVm) -> str:
    newest = f"newest restore point {show_time(overdue.newest)}" if overdue.newest else "no restore point at all"
    return f"{newest}, schedule {plain(overdue.schedule)}"


def _few(lines: list[str]) -> list[str]:
    more = len(lines) - MOST_VMS
    return [*lines[:MOST_VMS], f"and {more} more"] if more > 0 else lines


def show_time(time: datetime) -> str:
    """A time as people read it."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def plain(text: str) -> str:
    """Text from outside on one line, without what would end a header or steer a terminal."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
