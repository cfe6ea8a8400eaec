"""VMs that are overdue, and successes that a schedule wants told, over a real repository and Redis."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sendense.beat import no_beat
from sendense.coordinator.context import Context
from sendense.coordinator.outbox import Outbox
from sendense.coordinator.record import Jobs
from sendense.jobs import broker
from sendense.receivers import Notices
from sendense.repository.settings import change_settings
from sendense.requests import BackupRequest, Work
from sendense.schedules import Schedule
from sendense.service import delivery, lateness, routine
from sendense.settings import Settings
from tests import receivers
from tests.hub import Hub, open_hub
from tests.receivers import Webhook
from tests.repository import VM, Story

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def redis_hub() -> Iterator[Hub]:
    """One Redis for all tests of this module."""
    with open_hub() as hub:
        yield hub


@pytest.fixture
def hub(redis_hub: Hub) -> Hub:
    """With nothing in it."""
    redis_hub.client.flushall()
    return redis_hub


@pytest.fixture
def hook() -> Iterator[Webhook]:
    """A webhook."""
    with receivers.webhook() as hook:
        yield hook


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A repository without restore points."""
    return Story(tmp_path)


def context(hub: Hub, story: Story, hook: Webhook | None, **notices: Any) -> Context:
    """A hub as it is after a start: with nothing in memory."""
    told = Notices(webhook=hook.url if hook else "", **notices)
    settings = Settings(notices=told, node_name="hub01", repository=story.repository.layout.root)
    return Context(settings, hub.ledger, Jobs(hub.client), broker.make_app(hub.url))


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
    a_day_passes(hub)
    assert [kind for kind, _ in look(hub, story, hook)] == ["vm.overdue"]
    backup(story, NOW)
    assert look(hub, story, hook) == [("vm.well", "web01: is well again")]
    assert look(hub, story, hook) == []
    assert Outbox(hub.client).marks() == {}


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
    lateness.watch(Context(settings, hub.ledger, Jobs(hub.client), broker.make_app(hub.url)), no_beat)
    assert hook.got == []


@pytest.mark.parametrize("wants", [True, False])
def test_successes_of_a_schedule(hub: Hub, hook: Webhook, story: Story, wants: bool) -> None:
    """They are told where it wants that, whatever else is."""
    schedule(story, notify_success=wants, since=NOW)
    for job, name in (("aa", "nightly"), ("bb", ""), ("cc", "gone")):
        jobs = Jobs(hub.client)
        jobs.submit(job, BackupRequest(vm=VM, schedule=name), "backup of web01", "inspect", [])
        lease, _ = jobs.lease(job, "w/1/a", 100, 1)
        assert lease
        lease.write({"work": Work().model_dump_json()})
        assert jobs.finish(job, "w/1/a", "succeeded")
    delivery.deliver(context(hub, story, hook), no_beat)
    assert [(notice["job"]["id"], notice["schedule"]) for notice in hook.notices()] == [("aa", "nightly")] * wants


def a_day_passes(hub: Hub) -> None:
    """Since a VM was told of last."""
    outbox = Outbox(hub.client)
    for name, mark in outbox.marks().items():
        said, rest = mark.split(" ", 1)
        outbox.enter("", "", {name: (mark, f"{float(said) - lateness.AGAIN_SECONDS} {rest}")})
