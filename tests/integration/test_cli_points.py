"""`sendense points`: what a repository holds, and what may go. No vCenter is there."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sendense.models import VmRef
from sendense.repository.points import Point
from sendense.service.points import in_order
from tests.integration.support import Lab, Result
from tests.repository import UUID, Story
from tests.servers import short_folder

OTHER = VmRef(site="oslo", moref="vm-43", uuid=UUID.replace("beef", "cafe"), name="web01")


@pytest.fixture
def story() -> Iterator[Story]:
    """A VM's backups, to be made."""
    with short_folder() as folder:
        yield Story(folder)


class Points:
    """Runs `sendense points`."""

    def __init__(self, lab: Lab, story: Story) -> None:
        self._lab, self.repository = lab, story.folder / "repository"

    def run(self, *arguments: str, **settings: object) -> Result:
        """A command, and how it ended."""
        chosen = {"repository": self.repository, **settings}
        return self._lab.run("points", *arguments, **{name: value for name, value in chosen.items() if value})

    def lines(self, *arguments: str) -> list[str]:
        """What a command that has to work prints, in lines without their alignment."""
        result = self.run(*arguments)
        assert result.status == 0, result.stderr
        return [" ".join(line.split()) for line in result.stdout.splitlines()]

    def json(self, *arguments: str) -> Any:
        """The one line of JSON on stdout of a command that has to work."""
        result = self.run(*arguments, "--json")
        assert result.status == 0, result.stderr
        assert result.stdout.count("\n") == 1
        return json.loads(result.stdout)

    def ids(self) -> list[str]:
        """The sound points that are listed."""
        return [point["id"] for vm in self.json() for point in vm["points"]]

    def refused(self, *arguments: str, **settings: object) -> str:
        """The two lines of a command that is refused as wrong input."""
        result = self.run(*arguments, **settings)
        assert (result.status, result.stdout) == (2, ""), result
        assert result.stderr.splitlines() == result.error
        return "\n".join(result.error)


@pytest.fixture
def points(lab: Lab, story: Story) -> Points:
    """The command, on the story's repository."""
    return Points(lab, story)


def _chain(story: Story, count: int) -> list[Point]:
    return [story.backup(d2000="AAAA"), *(story.backup(d2000="-B") for _ in range(count - 1))]


def test_list(points: Points, story: Story) -> None:
    """Each VM's points stand in the order of their times, with the reason where one is a full, also in JSON."""
    full, incremental = _chain(story, 2)
    lines = points.lines()
    assert lines[0] == f"web01 (vm-42 of site oslo, {UUID})"
    assert lines[1] == "point time mode disks size data verified"
    assert (lines[2].split()[0], lines[3]) == (full.id, "full, as the first")
    assert "incr 1 2.00 MiB 64.0 KiB never" in lines[4]
    story.repository.mark_verified(full, datetime(2026, 11, 24, 12, tzinfo=UTC))
    assert points.lines()[2].endswith("2026-11-24")
    assert max(map(len, points.run().stdout.splitlines())) <= 80
    lines = points.lines()
    assert points.lines(UUID) == points.lines("vm-42") == points.lines("WEB01") == points.lines("list") == lines
    [found] = points.json("web01")
    assert (found["vm"]["uuid"], found["broken"]) == (UUID, [])
    assert [(each["id"], each["mode"], each["disks"][0]["size"]) for each in found["points"]] == [
        (full.id, "full", story.size),
        (incremental.id, "incremental", story.size),
    ]


def test_an_empty_repository(points: Points) -> None:
    """No restore points is an answer, and no error."""
    assert points.lines() == ["there are no restore points yet"]
    assert points.json() == []


def test_names_that_mean_nothing_or_too_much(points: Points, story: Story) -> None:
    """Unknown VMs and points are refused with those that there are, ambiguous ones with the candidates."""
    first, second = _chain(story, 2)
    assert "It has those of web01." in points.refused("db01")
    assert f"{first.id}, {second.id}" in points.refused("show", "2026")
    assert "no restore point 'x'" in points.refused("show", "x")
    assert "no restore point 'x'" in points.refused("chain", "x")
    assert "no restore point 'x'" in points.refused("delete", "x")
    twin = Story(story.folder, vm=OTHER)
    twin.backup(d2000="A")
    said = points.refused("web01")
    assert UUID in said
    assert OTHER.uuid in said
    assert "several VMs" in points.refused("delete", first.id, twin.repository.points(OTHER.uuid)[0].id)


def test_a_repository_that_cannot_be_read(points: Points, tmp_path: Path) -> None:
    """None set, none there, and one of a newer format: each is said in two lines."""
    assert "no repository is set" in points.refused(repository=None)
    assert "no such folder" in points.refused(repository=tmp_path / "none")
    (points.repository / "repository.json").write_text('{"format": 2}')
    assert "format 2" in points.refused()


def test_a_broken_point_is_shown_and_goes(points: Points, story: Story) -> None:
    """A point whose manifest is damaged is listed with the reason, and can be deleted."""
    full, incremental = _chain(story, 2)
    layout = story.repository.layout
    (layout.point(UUID, incremental.id) / "point.json").write_text("{")
    lines = points.lines("web01")
    assert lines[4] == f"{incremental.id} broken"
    assert "damaged" in lines[5]
    [found] = points.json()
    assert [each["id"] for each in found["points"]] == [full.id]
    assert [each["id"] for each in found["broken"]] == [incremental.id]
    assert "cannot be used" in points.refused("show", incremental.id)
    assert points.lines("delete", incremental.id) == [f"deleted {incremental.id}, which was broken"]
    assert points.ids() == [full.id]
    assert not layout.point(UUID, incremental.id).exists()


def test_show_and_chain(points: Points, story: Story) -> None:
    """A point shows all of its manifest, and the images that it is made of with what they take."""
    full, incremental = _chain(story, 2)
    shown = "\n".join(points.lines("show", incremental.id))
    for text in ("incremental", UUID, "verified never", full.id, incremental.disks[0].digest, "[ds] web01/2000.vmdk"):
        assert text in shown
    found = points.json("show", full.id)
    assert found["children"] == [incremental.id]
    assert found["point"]["disks"][0]["digest"] == full.disks[0].digest
    assert found["usage"] == story.repository.usage_of(full)
    chain = points.json("chain", incremental.id)[0]
    assert [(level["point"], level["mode"]) for level in chain["levels"]] == [
        (incremental.id, "incremental"),
        (full.id, "full"),
    ]
    assert all(level["stored"] == Path(level["image"]).stat().st_blocks * 512 for level in chain["levels"])
    assert [line.split()[0] for line in points.lines("chain", incremental.id)[2:4]] == [incremental.id, full.id]


def test_delete(points: Points, story: Story) -> None:
    """What others are built on stays unless they may take over; then it goes, and each other point is what it was."""
    first, second, third = (point.id for point in _chain(story, 3))
    assert f"{second} is built on {first}" in points.refused("delete", first)
    assert f"{third} is built on {second}" in points.refused("delete", first, second)
    deletion = points.json("delete", third)
    assert deletion["deleted"] == []
    assert (deletion["job"]["state"], deletion["job"]["request"]["points"]) == ("succeeded", [third])
    story.check_content()
    points.lines("delete", first, "--merge")
    assert points.ids() == [second]
    story.check_content()
    story.check_digests()


def test_all_of_a_chain_goes_without_merging(points: Points, story: Story) -> None:
    """Points that are deleted together are not in each other's way, in whatever order they are named."""
    first, second = (point.id for point in _chain(story, 2))
    assert points.json("delete", first, second)["job"]["request"]["points"] == [second, first]
    assert story.repository.points() == []


def test_prune(points: Points, story: Story) -> None:
    """What no rule keeps goes, what stays is unharmed, and the newest always stays."""
    ids = [point.id for point in _chain(story, 4)]
    assert "keeps nothing" in points.refused("prune", "web01")
    assert "name a VM, or give --all" in points.refused("prune", "--keep-last", "1")
    assert "'--keep-last'" in points.refused("prune", "web01", "--keep-last", "-1")
    dry = points.json("prune", "--all", "--keep-last", "2", "--dry-run")
    assert [(entry["vm"]["name"], sorted(entry["kept"]), entry["job"]) for entry in dry] == [("web01", ids[2:], None)]
    assert sorted(dry[0]["going"]) == ids[:2]
    assert len(story.repository.points()) == 4
    lines = points.lines("prune", "web01", "--keep-last", "2")
    assert [" ".join(line.split()[3:]) for line in lines[2:6]] == ["goes", "goes", "stays: last", "stays: newest, last"]
    assert [point.id for point in story.repository.points()] == ids[2:]
    story.check_content()
    story.check_digests()
    [pruned] = points.json("prune", "--all", "--keep-daily", "5")
    assert pruned["kept"] == {ids[3]: ["newest", "daily"]}
    assert pruned["job"]["state"] == "succeeded"
    assert [point.id for point in story.repository.points()] == ids[3:]
    assert points.lines("prune", "--all", "--keep-yearly", "1")[-1] == "nothing is to be deleted"


def test_days_begin_at_midnight_here(points: Points, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which day a point is of is decided by the machine's own time zone."""
    ids = [point.id for point in _chain(story, 2)]  # at 23:50 and 0:50 UTC

    command = ("prune", "web01", "--keep-daily", "2", "--dry-run")
    for zone, kept in (("UTC", ids), ("Asia/Tokyo", ids[1:])):
        monkeypatch.setenv("TZ", zone)
        assert sorted(points.json(*command)[0]["kept"]) == kept


def test_order_of_deletion(story: Story) -> None:
    """First what nothing that stays is built on, newest first; then the oldest, so that data is merged once."""
    old = _chain(story, 3)
    new = [story.backup(full=True), story.backup(d2000="C"), story.backup(d2000="D")]
    ids = {point.id: name for point, name in zip([*old, *new], "abcdef", strict=True)}
    order = in_order([*old, *new[:2]], [*old, *new])
    assert "".join(ids[id] for id in order) == "cbade"


def test_a_name_that_would_steer_the_terminal(lab: Lab) -> None:
    """A VM's name is printed without its control characters."""
    with short_folder() as folder:
        story = Story(folder, vm=VmRef(site="oslo", moref="vm-42", uuid=UUID, name="web\x1b[2J\n仮想"))
        story.backup(d2000="A")
        shown = Points(lab, story).run().stdout
    assert "\x1b" not in shown
    assert shown.splitlines()[0].startswith("web\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}仮想 (")


def test_looking_starts_nothing(lab: Lab, points: Points, story: Story) -> None:
    """What only looks makes no state folder, so no hub."""
    point = _chain(story, 1)[0].id
    for arguments in ((), ("show", point), ("chain", point), ("prune", "--all", "--keep-last", "1", "--dry-run")):
        points.lines(*arguments)
    assert not lab.state.exists()
