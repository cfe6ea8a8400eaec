"""What requests name in their paths, queries and headers, as strictly as the OpenAPI document says it."""

from typing import Annotated, Literal

from fastapi import Header, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BeforeValidator, Field, WithJsonSchema
from starlette.convertors import Convertor, register_url_convertor

from sendense.maps import Part


class _Vm(Convertor[str]):
    """A VM's name in a path, of inventory paths too; what ends in the name of a route is that route's."""

    regex = "(?!.*/start$).+"

    def convert(self, value: str) -> str:
        """As it is."""
        return value

    def to_string(self, value: str) -> str:
        """As it is."""
        return value


class _Point(_Vm):
    """A restore point in a path: its id, or VM@latest."""

    regex = "(?!(?:preview|delete|prune)$)(?!.*/(?:chain|serve)$).+"


register_url_convertor("vm", _Vm())
register_url_convertor("point", _Point())


_PLAIN = r"^[^\x00-\x1f\x7f]+$"
"""No control characters."""

_EVENT = "[0-9]{1,15}-[0-9]{1,9}"
"""An event's id, as Redis makes them: what is none would be an error of Redis."""


def _whole(value: object) -> object:
    """Digits: pydantic would take ' 5', '+5' and '5.0' as well."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20 else value


Flag = Literal["true", "false"]
"""In a query: pydantic's bool would take 'on' and '1' as well."""

VmInPath = Annotated[
    str, Path(max_length=1024, pattern=_PLAIN, description="A name, an inventory path, a UUID or a moref.")
]
PointInPath = Annotated[
    str, Path(max_length=1024, pattern=_PLAIN, description="Its id, the beginning of one, or VM@latest.")
]
JobInPath = Annotated[str, Path(max_length=64, pattern=_PLAIN, description="Its id, or the beginning of one.")]
NodeInPath = Annotated[str, Path(max_length=63, pattern=_PLAIN)]
ExportInPath = Annotated[str, Path(max_length=255, pattern=_PLAIN)]

SiteQuery = Annotated[str, Query(max_length=63, description="Not needed where the hub has one site.")]
VmQuery = Annotated[str, Query(max_length=1024, description="A name or a UUID; all VMs without it.")]
Limit = Annotated[int, Field(ge=1, le=200, strict=True), BeforeValidator(_whole), Query(description="Jobs on a page.")]
Before = Annotated[str, Query(max_length=64, description="The `following` of the page before.")]
DiskQuery = Annotated[
    Annotated[int, Field(ge=0, le=999_999_999, strict=True), BeforeValidator(_whole)] | None,
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 999_999_999}),
    Query(description="One disk, by its device key; all without it."),
]
PlaceQuery = Annotated[
    Annotated[int, Field(ge=0, le=9999, strict=True), BeforeValidator(_whole)],
    Query(description="A disk, by its place among the job's `disks`, counted from 0."),
]
PartQuery = Annotated[Part, Query(description="The copying of the disk, or its being read back by the same job.")]
Cursor = Annotated[
    str,
    Query(
        pattern=rf"^({_EVENT}\.[0-9a-f]{{8}})?$", description="The `cursor` of an earlier answer: what changed since."
    ),
]
After = Annotated[str, Query(pattern=rf"^({_EVENT})?$", description="An event's id: what came after that one.")]

IdempotencyKey = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        max_length=255,
        pattern=r"^[\x21-\x7e]*$",
        description="The same request with the same key makes one job, for a day; another request with it is a 409.",
    ),
]
LastEventId = Annotated[str, Header(alias="Last-Event-ID", pattern=rf"^({_EVENT})?$", description="As `after`.")]


def no_others(request: Request) -> None:
    """Refuse a parameter that the route does not have: it would be a mistake, and what it was to limit done whole."""
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    known = {field.alias for field in route.dependant.query_params}
    if unknown := sorted(set(request.query_params) - known):
        message = f"not a parameter of this route; it has {', '.join(sorted(known)) or 'none'}"
        raise RequestValidationError([{"type": "extra", "loc": ("query", unknown[0]), "msg": message}])
