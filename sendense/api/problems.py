"""Errors as problem details (RFC 9457): what and where, with the hint that a command gives."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from sendense.errors import (
    Conflict,
    ExportsUnavailable,
    InputError,
    InternalError,
    NotFound,
    SendenseError,
    SiteError,
    SiteFailed,
    SiteSilent,
)
from sendense.jobs.access import RedisFull, RedisRefused
from sendense.jobs.broker import Unavailable

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

RETRY_SECONDS = 5
"""When to ask again a hub that lacks a part: what ended is started again within two."""

SHOWN_FIELDS = 20
"""Fields that are wrong, of a body that may have a thousand."""


class TimeIsUp(SendenseError):
    """A request was not answered within its time limit."""

    hint = "What it began may go on. Ask again; with the same Idempotency-Key it makes no second job."

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"no answer within {self.seconds:.0f} s"


class WrongField(BaseModel):
    """A field of a request that is wrong."""

    model_config = ConfigDict(frozen=True)

    field: str
    """Where it is: body.targets.2000, query.limit."""
    message: str


class ProblemDetails(BaseModel):
    """Why a request was refused, or failed."""

    model_config = ConfigDict(frozen=True)

    type: str
    """`urn:sendense:` and a word for programs."""
    title: str
    status: int
    detail: str
    hint: str = ""
    """What to do about it."""
    instance: str
    """This request, as the hub's log and the audit log have it."""
    fields: list[WrongField] = Field(default_factory=list)


@dataclass(frozen=True)
class Kind:
    """A sort of problem: the status, the word behind `urn:sendense:`, and its title."""

    status: int
    word: str
    title: str


BAD_REQUEST = Kind(400, "bad-request", "The request cannot be read")
UNAUTHORIZED = Kind(401, "unauthorized", "A token is needed")
FORBIDDEN = Kind(403, "forbidden", "The token does not allow this")
NOT_FOUND = Kind(404, "not-found", "What was named is not there")
NO_ROUTE = Kind(404, "no-such-route", "No such route")
NO_METHOD = Kind(405, "no-such-method", "Not a method of this route")
SLOW = Kind(408, "too-slow", "The request did not arrive in time")
CONFLICT = Kind(409, "conflict", "Not as things stand now")
TOO_LARGE = Kind(413, "too-large", "The request is too large")
NO_JSON = Kind(415, "no-json", "The request is no JSON")
INVALID = Kind(422, "invalid", "The request is wrong")
TOO_MANY = Kind(429, "too-many", "Too many requests")
INTERNAL = Kind(500, "internal", "A fault of the hub")
FAILED = Kind(500, "failed", "It failed")
SITE_FAILED = Kind(502, "site-failed", "The site failed")
UNAVAILABLE = Kind(503, "unavailable", "A part of the hub is away")
SITE_SILENT = Kind(504, "site-silent", "The site does not answer")
TIME_IS_UP = Kind(504, "time-is-up", "It took too long")

KINDS = [each for each in list(globals().values()) if isinstance(each, Kind)]

_BY_ERROR: tuple[tuple[type[SendenseError], Kind], ...] = (
    (RedisRefused, UNAVAILABLE),
    (NotFound, NOT_FOUND),
    (Conflict, CONFLICT),
    (InputError, INVALID),
    (SiteSilent, SITE_SILENT),
    (SiteError, SITE_FAILED),
    (SiteFailed, SITE_FAILED),
    (ExportsUnavailable, UNAVAILABLE),
    (TimeIsUp, TIME_IS_UP),
    (InternalError, INTERNAL),
    (SendenseError, FAILED),
)
"""The first that fits; errors are drawn in sendense/errors.py."""

_AWAY = "the hub's Redis does not answer", "It is started again by itself; look at GET /readyz, and at redis.log there."
_FAULT = "the hub met a fault of its own", "Look for this request's instance in the hub's log (api.log), and report it."


def problem(
    request: Request | Mapping[str, Any],
    kind: Kind,
    detail: str,
    hint: str = "",
    *,
    fields: Sequence[WrongField] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer that tells of a problem."""
    scope = request.scope if isinstance(request, Request) else request
    body = ProblemDetails(
        type=f"urn:sendense:{kind.word}",
        title=kind.title,
        status=kind.status,
        detail=detail,
        hint=hint,
        instance=f"urn:uuid:{scope['state']['id']}",
        fields=list(fields),
    )
    scope["state"]["problem"] = detail
    known = dict(headers or {})
    if kind.status == 503:
        known.setdefault("Retry-After", str(RETRY_SECONDS))
    # In ASCII: what a client sent may be in it, and need not be text that can be encoded.
    content = json.dumps(body.model_dump(exclude={"fields"} if not fields else None))
    return Response(content, kind.status, known, MEDIA_TYPE)


def of_error(request: Request, exc: SendenseError) -> Response:
    """The problem that an error of ours makes."""
    kind = next(kind for error, kind in _BY_ERROR if isinstance(exc, error))
    if kind is INTERNAL:
        return problem(request, INTERNAL, *_FAULT)
    return problem(request, kind, str(exc), exc.hint)


def install(app: FastAPI) -> None:
    """Have every error of a request answered so."""

    async def ours(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, SendenseError)
        return of_error(request, exc)

    async def away(request: Request, exc: Exception) -> Response:
        log.warning("Redis is of no use: %s: %s", type(exc).__name__, exc, extra={"action": "unavailable"})
        return problem(request, UNAVAILABLE, *((str(exc), exc.hint) if isinstance(exc, RedisFull) else _AWAY))

    async def unexpected(request: Request, exc: Exception) -> Response:
        return problem(request, INTERNAL, *_FAULT)

    app.add_exception_handler(SendenseError, ours)
    for error in Unavailable:
        app.add_exception_handler(error, away)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, unexpected)


async def _invalid(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    errors = exc.errors()
    if any(each["type"] == "json_invalid" for each in errors):
        return problem(request, BAD_REQUEST, "the body is no JSON", "Send one JSON object, in UTF-8.")
    fields = [
        WrongField(field=".".join(map(str, each["loc"])), message=each["msg"].removeprefix("Value error, "))
        for each in errors[:SHOWN_FIELDS]
    ]
    detail = "; ".join(f"{each.field}: {each.message}" for each in fields[:3])
    return problem(request, INVALID, detail, "GET /openapi.json has the form of every request.", fields=fields)


async def _http(request: Request, exc: Exception) -> Response:
    """What the framework refuses by itself."""
    assert isinstance(exc, HTTPException)
    path = request.scope["path"]
    if exc.status_code == HTTPStatus.NOT_FOUND:
        return problem(request, NO_ROUTE, f"{path}: there is nothing here", "GET /openapi.json lists all routes.")
    if exc.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(_methods(request))  # the framework's own header has those of the first route alone
        detail = f"{path}: not with {request.method}"
        return problem(request, NO_METHOD, detail, f"It takes {allowed}.", headers={"Allow": allowed})
    return problem(request, BAD_REQUEST, "the request cannot be read", "Send one JSON object, in UTF-8.")


def _methods(request: Request) -> list[str]:
    """The methods that the routes of a path take."""
    scope, routes = request.scope, cast(FastAPI, request.app).router.routes
    return [
        method
        for method in ("GET", "POST", "DELETE")
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]
