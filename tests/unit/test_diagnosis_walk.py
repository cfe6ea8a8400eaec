"""The order of a check-up: what is skipped and why, what hangs, and how all of it ends in time."""

import ast
import re
import threading
import time
from pathlib import Path

import pytest

from sendense.diagnosis.finding import Check, Finding, Trouble
from sendense.diagnosis.walk import NO_ANSWER, examine
from sendense.errors import InputError, LoginRefused

PATIENT = 60.0

ROOT = Path(__file__).parents[2]


def fine() -> str:
    """A look that finds nothing wrong."""
    return "fine"


def broken() -> str:
    """A look that finds a fault."""
    raise Trouble("torn", "it is torn", "mend it")


def test_what_depends_on_a_fault_is_skipped_and_names_the_first_cause() -> None:
    """Only what has nothing to do with the fault is looked at, and every skipped line names the fault itself."""
    checks = [
        Check("ground", broken),
        Check("house", fine, ("ground",)),
        Check("roof", fine, ("house",)),
        Check("garden", fine),
    ]
    found = list(examine(checks, PATIENT))
    assert found == [
        Finding("ground", "wrong", "torn", "it is torn", "mend it"),
        Finding("house", "skipped", detail="because of: ground"),
        Finding("roof", "skipped", detail="because of: ground"),
        Finding("garden", "ok", detail="fine"),
    ]
    assert any(each.is_fault for each in found)


def test_a_warning_is_no_fault() -> None:
    """What is worth a word skips nothing, and all is well."""

    def doubtful() -> str:
        raise Trouble("worn", "it is worn", "look after it", "warning")

    found = list(examine([Check("coat", doubtful), Check("hat", fine, ("coat",))], PATIENT))
    assert [each.result for each in found] == ["warning", "ok"]
    assert not any(each.is_fault for each in found)


def test_a_look_that_hangs_ends_at_its_deadline_and_all_looks_at_theirs() -> None:
    """One that hangs is said to give no answer; when all time is used up, what is left is unknown."""
    never = threading.Event()

    def hangs() -> str:
        never.wait(PATIENT)
        return ""

    checks = [Check("disk", hangs, seconds=0.2), Check("net", hangs), Check("rest", fine)]
    began = time.monotonic()
    found = list(examine(checks, 0.5))
    assert time.monotonic() - began < PATIENT / 2
    never.set()
    assert [(each.check, each.result, each.verdict) for each in found] == [
        ("disk", "wrong", NO_ANSWER),
        ("net", "wrong", NO_ANSWER),
        ("rest", "unknown", NO_ANSWER),
    ]


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (LoginRefused("oslo", "vc refuses user"), "vcenter-login"),
        (InputError("no such file", "make it"), "this-file"),
        (ZeroDivisionError(), "fault"),
    ],
)
def test_errors_become_findings(error: Exception, verdict: str) -> None:
    """Our errors keep their words and their hints; a fault of our own is unknown, never raised."""

    def fails() -> str:
        raise error

    (found,) = examine([Check("this file", fails)], PATIENT)
    assert (found.verdict, bool(found.detail), bool(found.fix)) == (verdict, True, True)
    assert found.is_fault


def test_every_verdict_is_explained() -> None:
    """Each word that a check-up may end with, as far as it stands in the source, has a line in troubleshooting.md."""
    named = set()
    for path in (ROOT / "sendense" / "diagnosis").glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                at = {"Trouble": 0, "Check": 4}.get(call.func.id, len(call.args))
                given = [*call.args[at : at + 1], *(each.value for each in call.keywords if each.arg == "verdict")]
                named |= {each.value for each in given if isinstance(each, ast.Constant)}
    assert {"no-notices", "job-waits", "receiver"} <= named
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    explained = {word for row in rows for word in re.findall(r"`([^`]+)`", row)}
    assert named - explained <= {"vcenter"}  # whose errors have verdicts of their own
