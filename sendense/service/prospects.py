"""What the failure of a backup leaves its VM with: its newest good restore point, and when it is tried again."""

from datetime import datetime

from sendense import occurrences
from sendense.coordinator.context import Context, open_repository
from sendense.errors import SendenseError
from sendense.notices import Notice
from sendense.repository.finding import is_new
from sendense.repository.settings import read_settings
from sendense.requests import BackupRequest
from sendense.schedules import Schedule
from sendense.service.bounded import within
from sendense.service.notices import plain, show_time
from sendense.settings import Settings

READ_SECONDS = 10.0
"""For the repository: a notice that a backup failed goes out all the same where its disk is what fails."""


def with_prospects(context: Context, notice: Notice) -> Notice:
    """The notice of a backup that failed, with what is left; any other as it is."""
    request = notice.job.request if notice.job else None
    if notice.kind not in ("job.failed", "job.different") or not isinstance(request, BackupRequest):
        return notice
    try:
        lines = within(READ_SECONDS, lambda: _lines(context.settings, request, notice.time))
    except TimeoutError:
        lines = [f"its restore points are not known: the repository did not answer in {READ_SECONDS:.0f} s"]
    except (SendenseError, OSError) as exc:
        lines = [f"its restore points are not known: {plain(str(exc))}"]
    return notice.model_copy(update={"text": "\n".join([notice.text, *lines])})


def _lines(settings: Settings, request: BackupRequest, ended: datetime) -> list[str]:
    if settings.repository and is_new(settings.repository):
        return [_newest(None, ended), _following(request, [], ended)]
    repository = open_repository(settings, create=False)
    good = [point.created for point in repository.points(request.vm.uuid) if not point.damaged]
    schedules = read_settings(repository.layout).schedules
    return [_newest(max(good, default=None), ended), _following(request, schedules, ended)]


def _newest(newest: datetime | None, ended: datetime) -> str:
    if not newest:
        return "the VM has no good restore point: it is not protected"
    age = (ended - newest).total_seconds()
    return f"newest good restore point {show_time(newest)}, {f'{_show_age(age)} before' if age >= 0 else 'made since'}"


def _show_age(seconds: float) -> str:
    if seconds < 60:
        return "less than a minute"
    if seconds < 7200:
        return f"{seconds // 60:.0f} min"
    return f"{seconds / 3600:.0f} hours" if seconds < 172_800 else f"{seconds / 86400:.1f} days"


def _following(request: BackupRequest, schedules: list[Schedule], ended: datetime) -> str:
    began = f"begun by schedule {plain(request.schedule)}" if request.schedule else "begun by no schedule"
    runs = [(occurrences.following(each, ended).start, each.name) for each in schedules if each.is_for(request.vm)]
    if not runs:
        return f"{began}; it is not tried again by itself"
    start, name = min(runs)
    which = "it" if name == request.schedule else f"schedule {name}"
    return f"{began}; {which} tries again at {show_time(start)}, by itself"
