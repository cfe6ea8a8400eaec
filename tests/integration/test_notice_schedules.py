"""VMs that are overdue, and successes that a schedule wants told, over a real repository and Redis."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from sendense.beat import no_beat
from sendense.coordinator.context import Context
from sendense.coordinator.outbox import Outbox
from sendense.coordinator.record import Jobs
from sendense.models import Failure, VmRef
from sendense.notices import OverdueVm
from sendense.receivers import Notices
from sendense.repository.settings import change_settings
from sendense.requests import BackupRequest, Work
from sendense.schedules import Schedule
from sendense.service import delivery, lateness, routine
from sendense.service.notices import overdue_notice, well_notice
from sendense.settings import Settings
from tests.hub import Hub, context_of
from tests.receivers import Webhook
from tests.repository import VM, Story

NOW = datetime.now(UTC)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A repository without restore points."""
    return Story(tmp_path)


def context(hub: Hub, story: Story, hook: Webhook | None, **notices: Any) -> Context:
    """A hub as it is after a start: with nothing in memory."""
    told = Notices(webhook=hook.url if hook else "", **notices)
    settings = Settings(notices=told, node_name="hub01", repository=story.repository.layout.root)
    return context_of(hub, settings)


def schedule(story: Story, **given: Any) -> None:
    """The repository's one schedule."""
    fields: dict[str, Any] = {"name": "nightly", "vm": VM, "at": "02:00", "since": NOW - timedelta(days=9)}
    only = Schedule(**(fields | given))
    change_settings(story.repository.layout, lambda known: known.model_copy(update={"schedules": [only]}))


def backup(story: Story, created: datetime) -> None:
    """A restore point of that time."""
    point = story.backup(d2000="A")
    path = story.repository.layout.root / "vms" / VM.uuid / "points" / point.id / "point.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"created": created.isoformat()}))


def look(hub: Hub, story: Story, hook: Webhook, **notices: Any) -> list[tuple[str, str]]:
    """Have the hub look and tell; the kinds and subjects of what is new."""
    before = len(hook.got)
    found = context(hub, story, hook, **notices)
    routine.run(found, "overdue", "w/1/a")
    delivery.deliver(found, no_beat)
    return [(notice["kind"], notice["subject"]) for notice in hook.notices()[before:]]


def test_overdue(hub: Hub, hook: Webhook, story: Story) -> None:
    """A VM without a restore point in time is told of once, again each day, and when it is well again."""
    backup(story, NOW - timedelta(days=5))
    assert look(hub, story, hook) == []
    schedule(story)
    assert look(hub, story, hook) == [("vm.overdue", "web01: no restore point for too long")]
    (notice,) = hook.notices()
    assert (notice["vms"][0]["vm"]["uuid"], notice["vms"][0]["schedule"]) == (VM.uuid, "nightly")
    assert f"newest restore point {NOW - timedelta(days=5):%Y-%m-%d}" in notice["text"]
    assert look(hub, story, hook) == []
    passes(hub, lateness.AGAIN_SECONDS)
    assert [kind for kind, _ in look(hub, story, hook)] == ["vm.overdue"]
    backup(story, NOW)
    assert look(hub, story, hook) == [("vm.well", "web01: is well again")]
    assert look(hub, story, hook) == []
    assert Outbox(hub.client).marks() == {}


def test_a_clock_that_is_put_back(hub: Hub, hook: Webhook, story: Story) -> None:
    """A VM that was told of in time to come is told of now, and again a day later."""
    schedule(story)
    assert [kind for kind, _ in look(hub, story, hook)] == ["vm.overdue"]
    passes(hub, -3600.0)
    assert [kind for kind, _ in look(hub, story, hook)] == ["vm.overdue"]
    assert look(hub, story, hook) == []


def test_signs_of_life(hub: Hub, hook: Webhook, story: Story) -> None:
    """Each VM whose restore points are read is a reason to go on."""
    backup(story, NOW - timedelta(days=5))
    schedule(story)
    beats = list[None]()
    lateness.watch(context(hub, story, hook), lambda: beats.append(None))
    assert len(beats) >= 2


def test_many(hub: Hub) -> None:
    """A notice of all VMs of a large site stays as small as receivers take it, and says how many there are."""
    refs = [VmRef(site="oslo", moref=f"vm-{n}", uuid=str(UUID(int=n)), name="x" * 80) for n in range(5000)]
    late = [OverdueVm(vm=ref, schedule="nightly", newest=NOW) for ref in refs]
    for told in (overdue_notice(late), well_notice(late)):
        assert len(told.model_dump_json()) < 100_000
        assert told.subject.startswith("5000 VMs")


def test_no_longer_wanted(hub: Hub, hook: Webhook, story: Story) -> None:
    """A VM whose schedule is paused is neither overdue nor well."""
    schedule(story)
    assert [kind for kind, _ in look(hub, story, hook)] == ["vm.overdue"]
    assert "no restore point at all" in hook.notices()[0]["text"]
    schedule(story, paused=True)
    assert look(hub, story, hook) == []
    assert Outbox(hub.client).marks() == {}
    schedule(story)
    assert [kind for kind, _ in look(hub, story, hook)] == ["vm.overdue"]


def test_nobody_wants_to_know(hub: Hub, hook: Webhook, story: Story) -> None:
    """Where nobody is told of it nothing is noticed, so that whoever is told later hears of it then."""
    schedule(story)
    assert look(hub, story, hook, on=["failure"]) == []
    lateness.watch(context(hub, story, None), no_beat)
    assert Outbox(hub.client).marks() == {}
    assert [kind for kind, _ in look(hub, story, hook)] == ["vm.overdue"]


def test_a_hub_without_a_repository(hub: Hub, hook: Webhook, tmp_path: Path) -> None:
    """There is nothing to look at."""
    settings = Settings(notices=Notices(webhook=hook.url), repository=tmp_path / "none")
    lateness.watch(context_of(hub, settings), no_beat)
    assert hook.got == []


@pytest.mark.parametrize("wants", [True, False])
def test_successes_of_a_schedule(hub: Hub, hook: Webhook, story: Story, wants: bool) -> None:
    """They are told where a schedule that is for the VM wants that, whichever began the backup."""
    schedule(story, notify_success=wants, since=NOW)
    for job, name in (("aa", "nightly"), ("bb", ""), ("cc", "other")):
        jobs = Jobs(hub.client)
        jobs.submit(job, BackupRequest(vm=VM, schedule=name), "backup of web01", "inspect", [])
        lease, _ = jobs.lease(job, "w/1/a", 100, 1)
        assert lease
        lease.write({"work": Work().model_dump_json()})
        assert jobs.finish(job, "w/1/a", "succeeded")
    delivery.deliver(context(hub, story, hook), no_beat)
    found = [(notice["job"]["id"], notice["schedule"]) for notice in hook.notices()]
    assert found == ([("aa", "nightly"), ("cc", "other")] if wants else [])


def test_a_backup_that_failed(hub: Hub, hook: Webhook, story: Story) -> None:
    """Its notice says which good restore point there is, and when a schedule tries again; a broken repository too."""
    assert "the VM has no good restore point" in failed(hub, story, hook, "aa")
    backup(story, NOW - timedelta(hours=5))
    text = failed(hub, story, hook, "bb")
    assert f"newest good restore point {NOW - timedelta(hours=5):%Y-%m-%d %H:%M:%S} UTC, 5 hours before" in text
    assert "begun by schedule nightly; it is not tried again by itself" in text
    schedule(story, paused=True)
    backup(story, datetime.now(UTC) - timedelta(seconds=5))
    text = failed(hub, story, hook, "cc")
    assert "less than a minute before" in text
    assert "it is not tried again by itself" in text
    schedule(story, vm=None)
    assert re.search(r"schedule nightly; it tries again at \S+ 02:00:00 UTC, by itself", failed(hub, story, hook, "dd"))
    folder = story.repository.layout.root / "vms" / VM.uuid / "points"
    for manifest in folder.glob("*/point.json"):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"damaged": "disk 2000: other content"}))
    assert "the VM has no good restore point" in failed(hub, story, hook, "ee")
    (story.repository.layout.root / "settings.json").write_text("{")
    assert "its restore points are not known: " in failed(hub, story, hook, "ff")


def failed(hub: Hub, story: Story, hook: Webhook, job: str) -> str:
    """The text about a backup that the schedule began, and that failed."""
    jobs = Jobs(hub.client)
    jobs.submit(job, BackupRequest(vm=VM, schedule="nightly"), "backup of web01", "inspect", [])
    lease, _ = jobs.lease(job, "w/1/a", 100, 1)
    assert lease
    disk, more = "[ds1] web01.vmdk of vm-1", "; said last, of one of them: nbdkit: offset 252706816"
    message = f"disk 2000: read {disk} offset=4096 length=512: EIO, tried 3 times, the first of 337 places{more}"
    failure = Failure(error="ReadFailed", message=message)
    lease.write({"outcome": "failed", "work": Work().model_dump_json(), "error": failure.model_dump_json()})
    assert jobs.finish(job, "w/1/a", "failed")
    delivery.deliver(context(hub, story, hook), no_beat)
    notice = hook.notices()[-1]
    cause = "disk 2000: read offset=4096: EIO, tried 3 times, the first of 337 places"
    assert (notice["job"]["id"], notice["subject"]) == (job, f"backup of web01: failed, site {VM.site}: {cause}")
    assert message in notice["text"]
    return str(notice["text"])


def passes(hub: Hub, seconds: float) -> None:
    """Since a VM was told of last."""
    outbox = Outbox(hub.client)
    for name, mark in outbox.marks().items():
        said, rest = mark.split(" ", 1)
        outbox.enter("", "", {name: (mark, f"{float(said) - seconds} {rest}")})
