"""
What has to happen for a call to be answered, without doing it: requests to send and pauses to make.

A flow is a generator of those; whoever runs it, waiting or awaiting, sends it what came of each.
"""

import random
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from sendense.client.calls import Call
from sendense.errors import Conflict, HubUnreachable, InputError, JobFailed, NotAllowed, NotFound, SendenseError

BASE_SECONDS, MOST_SECONDS = 0.2, 5.0
"""Before the first repetition, and at most, where the hub does not say how long."""

THROTTLED_SECONDS = 90.0
"""For which a hub may say that there are too many requests: it counts them by the minute."""

TOO_MANY, AWAY = 429, (502, 503, 504)

_STATUSES: dict[int, type[InputError] | type[NotAllowed]] = {
    401: NotAllowed,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
}

T = TypeVar("T")


@dataclass(frozen=True)
class Send:
    """Send this request."""

    call: Call[Any]


@dataclass(frozen=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Lost:
    """No answer came. `unsent`: nor did the hub get the request."""

    error: HubUnreachable
    unsent: bool
    again: bool
    """Sending it again may help."""


Outcome = httpx.Response | Lost | None
Flow = Generator[Send | Pause, Outcome, T]


class _Problem(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: str = ""
    detail: str
    hint: str = ""


def perform(call: Call[T], url: str, patience: float) -> Flow[T]:
    """
    Send the request until it is answered, for `patience` seconds after the first failure; raises what the hub says.

    Repeated is only what does no harm twice, and what the hub did not get.
    """
    failed, attempt = 0.0, 0
    while True:
        reply = yield Send(call)
        assert reply is not None
        delay, error = _delay_and_error(call, reply, url, attempt)
        if error is None:
            assert isinstance(reply, httpx.Response)
            return _read(call, reply, url)
        failed, attempt = failed or time.monotonic(), attempt + 1
        throttled = isinstance(reply, httpx.Response) and reply.status_code == TOO_MANY
        until = failed + (THROTTLED_SECONDS if throttled else patience)
        if delay is None or time.monotonic() + delay > until:
            raise error
        yield Pause(delay)


def _delay_and_error(
    call: Call[Any], reply: httpx.Response | Lost, url: str, attempt: int
) -> tuple[float | None, SendenseError | None]:
    """Seconds before the request is sent again, None for never; and what is wrong, None for nothing."""
    jittered = min(MOST_SECONDS, BASE_SECONDS * 2**attempt) * random.uniform(0.5, 1.5)
    if isinstance(reply, Lost):
        return (jittered if reply.again and (reply.unsent or call.may_be_repeated) else None), reply.error
    if reply.is_success:
        return None, None
    problem = _problem(reply)
    error = _error(reply, problem, url)
    if reply.status_code == TOO_MANY:  # it was not looked at
        return max(jittered, _retry_after(reply)), error
    away = reply.status_code in AWAY and isinstance(error, HubUnreachable)
    return (max(jittered, _retry_after(reply)) if away and call.may_be_repeated else None), error


def _read(call: Call[T], reply: httpx.Response, url: str) -> T:
    try:
        return call.answer.validate_json(reply.content or b"null")
    except ValidationError as exc:
        first = exc.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise unreachable(
            url,
            f"its answer is none that this version understands ({where}: {first['msg']})",
            "Check the URL, and use the same version of Sendense at both ends.",
        ) from exc


def _problem(reply: httpx.Response) -> _Problem | None:
    """The problem that a hub tells of (RFC 9457); None when something else answered."""
    if reply.headers.get("content-type", "").partition(";")[0] != "application/problem+json":
        return None
    try:
        return _Problem.model_validate_json(reply.content)
    except ValidationError:
        return None


def _error(reply: httpx.Response, problem: _Problem | None, url: str) -> SendenseError:
    status = reply.status_code
    if not problem:
        return unreachable(url, f"answered with status {status}, and not as a hub does")
    if status in (TOO_MANY, 503) or problem.type.endswith(":time-is-up"):
        return unreachable(url, problem.detail, problem.hint)
    if 400 <= status < 500:
        return _STATUSES.get(status, InputError)(problem.detail, problem.hint)
    return JobFailed(problem.detail, problem.hint)


def refusal(reply: httpx.Response, url: str) -> SendenseError:
    """What the hub says in an answer that is none of success."""
    return _error(reply, _problem(reply), url)


def unreachable(url: str, detail: str, hint: str = "") -> HubUnreachable:
    """What to say of a hub that cannot be used."""
    return HubUnreachable(
        f"hub {url}: {detail}", hint or "Check the URL, that 'sendense hub' runs there, and the way to it."
    )


def _retry_after(reply: httpx.Response) -> float:
    text = reply.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else 0.0
