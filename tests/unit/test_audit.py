"""The audit log: whole lines, whoever writes, and no change that is not in it."""

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sendense.errors import JobFailed, NotFound
from sendense.service.audit import Audit, Who, local_user
from sendense.settings import Settings

WHO = Who("ops", "operator", "192.0.2.7")


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    """A log in an empty state folder."""
    return Audit(Settings(state_dir=tmp_path / "state"))


def _lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "state" / "audit.log").read_text().splitlines()]


def test_a_change(audit: Audit, tmp_path: Path) -> None:
    """A change is noted before it is made, and how it ended, under one id."""
    with audit.change(WHO, "submit", {"vm": "web01"}):
        (begun,) = _lines(tmp_path)
    begun, done = _lines(tmp_path)
    assert (begun["outcome"], done["outcome"]) == ("begun", "done")
    assert begun["id"] == done["id"]
    assert (done["who"], done["role"], done["address"], done["action"]) == ("ops", "operator", "192.0.2.7", "submit")
    assert done["order"] == {"vm": "web01"}
    assert stat.S_IMODE((tmp_path / "state" / "audit.log").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("error", "outcome", "told"),
    [
        (NotFound("no such VM", "look"), "refused", "no such VM"),
        (JobFailed("no room", "make some"), "failed", "no room"),
        (ValueError("inner"), "failed", "ValueError"),
        (KeyboardInterrupt(), "failed", "KeyboardInterrupt"),
    ],
)
def test_how_changes_fail(audit: Audit, tmp_path: Path, error: BaseException, outcome: str, told: str) -> None:
    """A refused or failed change says so, and whoever wanted it gets the error."""

    def fail() -> None:
        with audit.change(local_user(), "submit", None):
            raise error

    with pytest.raises(type(error)):
        fail()
    line = _lines(tmp_path)[-1]
    assert (line["outcome"], line["error"]) == (outcome, told)
    assert line["who"].startswith("local:")


def test_no_change_without_its_line(audit: Audit, tmp_path: Path) -> None:
    """Where nothing can be written, nothing is changed."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "audit.log").mkdir()

    def change() -> None:
        with audit.change(WHO, "submit", None):
            pytest.fail("it was made")

    with pytest.raises(JobFailed, match=r"audit\.log"):
        change()


def test_lines_stay_whole(audit: Audit, tmp_path: Path) -> None:
    """Lines of many at once do not mix, a line that a power cut tore spoils no other, and a renamed log begins anew."""
    audit.write("0", WHO, "first", "done")
    path = tmp_path / "state" / "audit.log"
    with path.open("ab") as file:
        file.write(b'{"time": "2026-')
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: audit.write(str(number), WHO, "x" * 500, "done"), range(100)))
    lines = list(filter(None, path.read_text().splitlines()))
    assert lines[1] == '{"time": "2026-'
    assert {json.loads(line)["id"] for line in lines[2:]} == {str(number) for number in range(100)}
    path.rename(path.with_suffix(".old"))
    audit.write("1", WHO, "again", "done")
    assert len(_lines(tmp_path)) == 1


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("nbd://user:hush@host/x", "nbd://user:…@host/x"),
        ("nbd://host:10809/a@b", "nbd://host:10809/a@b"),
        ("nbd://user@host/x", "nbd://user@host/x"),
        ("/srv/x:y@z.raw", "/srv/x:y@z.raw"),
    ],
)
def test_passwords_in_uris(audit: Audit, tmp_path: Path, text: str, kept: str) -> None:
    """A password that somebody wrote into a URI is masked, and nothing else is changed."""
    audit.write("1", WHO, "submit", "done", {"targets": {"2000": text}, "point": "web01@latest"})
    assert _lines(tmp_path)[0]["order"] == {"targets": {"2000": kept}, "point": "web01@latest"}
