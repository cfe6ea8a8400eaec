"""Which status, and which word for programs, each error of ours has over HTTP."""

import json

import pytest
from fastapi import Request

from sendense.api.problems import TimeIsUp, of_error
from sendense.errors import (
    Conflict,
    ExportsUnavailable,
    InputError,
    InternalError,
    JobFailed,
    NotFound,
    SendenseError,
    SiteFailed,
    SiteSilent,
    SiteUnreachable,
    SourceChanged,
)


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (InputError("a", "b"), 422, "invalid"),
        (SourceChanged("a", 1, 2), 422, "invalid"),
        (NotFound("a", "b"), 404, "not-found"),
        (Conflict("a", "b"), 409, "conflict"),
        (SiteSilent("oslo", "vms", 10.0), 504, "site-silent"),
        (SiteUnreachable("oslo", "a"), 502, "site-failed"),
        (SiteFailed("a", "b"), 502, "site-failed"),
        (ExportsUnavailable("a", "b"), 503, "unavailable"),
        (TimeIsUp(25.0), 504, "time-is-up"),
        (JobFailed("a", "b"), 500, "failed"),
    ],
)
def test_errors_become_problems(error: SendenseError, status: int, word: str) -> None:
    """A problem has the words and the hint of its error."""
    found = _problem(error)
    assert (found["status"], found["type"]) == (status, f"urn:sendense:{word}")
    assert (found["detail"], found["hint"]) == (str(error), error.hint)
    assert found["instance"] == "urn:uuid:1"


def test_a_fault_of_our_own_stays_in_the_log() -> None:
    """What happened within the hub is not told to whoever asks."""
    found = _problem(InternalError(ValueError("/srv/secret.py")))
    assert found["status"] == 500
    assert "secret" not in json.dumps(found)


def _problem(error: SendenseError) -> dict[str, object]:
    answer = of_error(Request({"type": "http", "state": {"id": "1"}}), error)
    found: dict[str, object] = json.loads(bytes(answer.body))
    assert answer.status_code == found["status"]
    assert ("Retry-After" in answer.headers) is (answer.status_code == 503)
    return found
