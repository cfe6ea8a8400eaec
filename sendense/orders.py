"""What users and programs order, in the words that they use: names, beginnings of ids, paths on the hub."""

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from sendense.errors import InputError
from sendense.models import TIME_OF_DAY, TimeOfDay, Weekday
from sendense.requests import BackupMode
from sendense.schedules import NAME, EveryHours
from sendense.throttles import LEAST_RATE
from sendense.units import show_bytes
from sendense.wording import plain_words

Text = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f\x7f]+$")]


def _integral(value: object) -> object:
    """JSON does not tell 5.0 from 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


MOST_RATE = 10**12
"""Bytes a second: more than any line has."""


def _sensible(rate: int) -> int:
    if rate and not LEAST_RATE <= rate <= MOST_RATE:
        text = f"a rate is 0 (no limit), or {show_bytes(LEAST_RATE)}/s to {show_bytes(MOST_RATE)}/s"
        raise PydanticCustomError("rate", "{text}", {"text": text})
    return rate


DiskKey = Annotated[int, Field(ge=0, le=999_999_999), BeforeValidator(_integral)]
_Count = Annotated[int, Field(ge=0, le=100_000), BeforeValidator(_integral)]

_Weekday = Annotated[Weekday, BeforeValidator(_integral)]

_KEY = re.compile(r"0|[1-9][0-9]{0,8}")


def _key(value: object) -> object:
    """The keys of JSON's objects are text."""
    return int(value) if isinstance(value, str) and _KEY.fullmatch(value) else value


_IMAGE = r"/[^\x00-\x1f\x7f]*[^/\x00-\x1f\x7f]\.(qcow2|raw)"
_TCP = r"nbds?://[A-Za-z0-9.-]+(:[0-9]{1,4})?(/[^\x00-\x20\x7f?#]*)?"
_UNIX = r"nbds?\+unix:///[^\x00-\x20\x7f?#]*\?socket=[^\x00-\x20\x7f&#]+"
_TARGET = {"type": "string", "maxLength": 1024, "pattern": f"^({_IMAGE}|{_TCP}|{_UNIX})$"}
_TARGETS = {"type": "object", "minProperties": 1, "maxProperties": 256, "additionalProperties": _TARGET}

Targets = Annotated[
    dict[Annotated[DiskKey, BeforeValidator(_key)], Text],
    Field(min_length=1, max_length=256),
    WithJsonSchema({**_TARGETS, "propertyNames": {"pattern": f"^({_KEY.pattern})$"}}),
]
"""By device key: an NBD URI, or the absolute path of a new image on the hub. What is neither, the hub refuses; for
programs, the schema has the usual forms."""


class _Order(BaseModel):
    # Strict: a disk "2000" in a list, or a flag "no", is a mistake of the program that sent it.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class BackupOrder(_Order):
    """A restore point of a VM. `vm`: name, inventory path, UUID or moref. `disks`: device keys; empty for all."""

    kind: Literal["backup"] = "backup"
    vm: Text
    site: str = Field(default="", max_length=63)
    """The VM's site; not needed where the hub has one."""
    mode: BackupMode = "auto"
    disks: list[DiskKey] = Field(default_factory=list, max_length=256)
    quiesce: bool = True
    verify: bool = False


class RestoreOrder(_Order):
    """
    Disks of a restore point (its id, the beginning of it, or VM@latest), by device key, each onto a target.

    A target is an NBD URI, or the absolute path of a new image on the hub.
    """

    kind: Literal["restore"] = "restore"
    point: Text
    targets: Targets
    verify: bool = False
    force: bool = False


class VerifyOrder(_Order):
    """The stored images of a restore point read back; `own`: not those that it is built on."""

    kind: Literal["verify"] = "verify"
    point: Text
    own: bool = False


class MigrateOrder(_Order):
    """Disks of a VM, by device key, each onto a target of its own; then only what changed; then for good."""

    kind: Literal["migrate"] = "migrate"
    vm: Text
    site: str = Field(default="", max_length=63)
    targets: Targets
    sync: bool = False
    cutover: bool = False
    quiesce: bool = True
    verify: bool = False


Order = Annotated[BackupOrder | RestoreOrder | VerifyOrder | MigrateOrder, Field(discriminator="kind")]


class DeleteOrder(_Order):
    """Restore points of one VM to delete; `merge`: a point that is built on one of them takes over what it needs."""

    points: list[Text] = Field(min_length=1, max_length=1000)
    merge: bool = False


class KeepOrder(_Order):
    """How many restore points of each VM to keep (`sendense.repository.retention.Policy`); all 0 for all points."""

    last: _Count = 0
    daily: _Count = 0
    weekly: _Count = 0
    monthly: _Count = 0
    yearly: _Count = 0


def _some(rule: str) -> JsonDict:
    return {"required": [rule], "properties": {rule: {"type": "integer", "minimum": 1}}}


class PruneOrder(KeepOrder):
    """
    How many restore points of a VM, or of each of all, to keep: at least one.

    Days begin at midnight in `timezone`, an IANA name; the hub's own when empty.
    """

    model_config = ConfigDict(json_schema_extra={"anyOf": [_some(name) for name in KeepOrder.model_fields]})

    vm: str = Field(default="", max_length=1024)
    """Empty for all VMs."""
    timezone: str = Field(default="", max_length=64)
    dry_run: bool = False


class ScheduleOrder(_Order):
    """A schedule to make: see `sendense.schedules.Schedule`."""

    name: str = Field(default="", max_length=63, pattern=rf"^$|{NAME}")
    """Made of the VM's or the site's when empty."""
    vm: str = Field(default="", max_length=1024, pattern=r"^[^\x00-\x1f\x7f]*$")
    """Empty for all VMs."""
    site: str = Field(default="", max_length=63)
    """Of the VM, or of all VMs; empty for all sites."""
    days: list[_Weekday] = Field(default_factory=list, max_length=7)
    """ISO weekdays, 1 is Monday; empty for all."""
    at: TimeOfDay
    until: str = Field(default="", pattern=rf"^$|{TIME_OF_DAY}")
    every_hours: Annotated[EveryHours, BeforeValidator(_integral)] = 24
    timezone: str = Field(default="", max_length=64)
    """An IANA name; the hub's own when empty."""
    at_once: Annotated[int, Field(ge=1, le=1000), BeforeValidator(_integral)] = 2
    keep: KeepOrder | None = None
    quiesce: bool = True
    verify: bool = False
    notify_success: bool = False
    replace: bool = False
    """Take the place of a schedule of this name that orders something else."""


class PreviewOrder(_Order):
    """A backup to be looked at, not made."""

    vm: Text
    site: str = Field(default="", max_length=63)
    mode: BackupMode = "auto"
    disks: list[DiskKey] = Field(default_factory=list, max_length=256)
    with_snapshot: bool = False
    """Make a snapshot to know exactly what changed; it is removed again."""


_Rate = Annotated[
    int,
    BeforeValidator(_integral),
    AfterValidator(_sensible),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "const": 0}, {"type": "integer", "minimum": LEAST_RATE, "maximum": MOST_RATE}]}
    ),
]


class BandOrder(_Order):
    """A time of day of a throttle, HH:MM to HH:MM, and the ISO weekdays on which it starts, 1 is Monday."""

    start: TimeOfDay
    end: TimeOfDay
    days: list[_Weekday] = Field(default_factory=list, max_length=7)
    """Empty for all."""


class ThrottleOrder(_Order):
    """Bytes a second that may be read at a site, on all its nodes together; 0: no limit."""

    rate: _Rate
    band: BandOrder | None = None
    """Then; without it, whenever no other band has the time."""
    timezone: str = Field(default="", max_length=64)
    """An IANA name, of the clocks that all bands of the site go by; empty: as before, the hub's own at first."""


OrderT = TypeVar("OrderT", bound=_Order)


def make_order(kind: type[OrderT], **fields: Any) -> OrderT:
    """An order of what a user gave; InputError names the first field that cannot be right."""
    try:
        return kind(**fields)
    except ValidationError as exc:
        first = exc.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or kind.__name__
        raise InputError(
            f"{where}: {plain_words(first['msg'])}", "Correct it; docs/api.md says what each order takes."
        ) from exc
