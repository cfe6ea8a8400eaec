"""What becomes of jobs' messages in queues that are busy, and of records that this version cannot read."""

import json
import logging

import pytest

from sendense.coordinator import run, submission, upkeep
from sendense.coordinator.context import Context
from sendense.coordinator.pipelines import pipeline
from sendense.jobs import presence
from sendense.jobs.presence import Worker
from sendense.jobs.queues import HUB, HUB_QUEUE, SLOW_QUEUE
from sendense.models import VmRef
from sendense.requests import DeleteRequest, JobView, VerifyRequest
from tests.hub import Hub, a_node, context_of

NEW_FIELD = '"of_the_next_version": 1, '


@pytest.fixture
def context(hub: Hub) -> Context:
    """What steps have at hand."""
    return context_of(hub)


def submit(context: Context, job: str) -> JobView:
    """A verification whose first message was lost."""
    submission.submit(context, job, VerifyRequest(point="p", name="n"), "verify")
    context.ledger.client.delete(HUB_QUEUE)
    return get(context, job)


def get(context: Context, job: str) -> JobView:
    """A job that is there."""
    view = context.jobs.get(job)
    assert view
    return view


def test_a_busy_queue_is_not_filled(hub: Hub, context: Context) -> None:
    """While all its processes are busy a job's message is sent once, and the job says why it waits."""
    view = submit(context, "a")
    run.remind(context, view)
    assert not hub.client.exists(HUB_QUEUE)
    assert get(context, "a").waiting == f"no worker reads the queue {HUB_QUEUE}"
    presence.announce(hub.client, Worker(name="w", queues=[HUB_QUEUE], processes=2, active=2))
    for _ in range(3):
        run.remind(context, view)
    assert hub.client.llen(HUB_QUEUE) == 1
    assert get(context, "a").waiting == f"all processes of the queue {HUB_QUEUE} are busy"
    run.advance(context, "a", HUB, "w/1/t")  # that message is taken: it may be sent again, and nobody is waited for
    assert "busy" not in get(context, "a").waiting
    run.remind(context, view)
    assert hub.client.llen(HUB_QUEUE) == 2
    presence.announce(hub.client, Worker(name="w", queues=[HUB_QUEUE], processes=2, active=1))
    for _ in range(2):
        run.remind(context, view)
    assert hub.client.llen(HUB_QUEUE) == 4


def test_long_steps_have_a_queue_of_their_own(hub: Hub, context: Context) -> None:
    """A merge and a check, which take hours, leave the hub's processes to all other steps."""
    vm = VmRef(site="s", moref="vm-1", uuid="u", name="v")
    submission.submit(context, "a", DeleteRequest(vm=vm, points=["p"]), "deletion")
    assert (hub.client.llen(SLOW_QUEUE), hub.client.llen(HUB_QUEUE)) == (1, 0)
    assert run.place_of(get(context, "a")) == "slow"
    run.advance(context, "a", HUB, "w/1/t")
    assert get(context, "a").state == "queued"
    places = {step.name: step.place for step in pipeline(VerifyRequest(point="p", name="n"))}
    assert places == {"choose": "hub", "prepare": "slow", "read": "hub", "compare": "hub", "close": "hub"}


def test_a_step_of_another_version(context: Context) -> None:
    """A job whose step is not known here waits, and says so."""
    submit(context, "a")
    context.ledger.client.hset("sendense:job:a", "step", "polish")
    run.remind(context, get(context, "a"))
    run.advance(context, "a", HUB, "w/1/t")
    assert get(context, "a").waiting == "this hub's version has no step polish"


def test_records_of_a_newer_version(hub: Hub, context: Context, caplog: pytest.LogCaptureFixture) -> None:
    """A field more is passed over; a record that cannot be read is named once, and the others are there."""
    for job in ("a", "b", "c"):
        submit(context, job)
    request = VerifyRequest(point="p", name="n").model_dump_json()
    hub.client.hset("sendense:job:a", "work", f"{{{NEW_FIELD}{get(context, 'a').work.model_dump_json()[1:]}")
    hub.client.hset("sendense:job:a", "request", f"{{{NEW_FIELD}{request[1:]}")
    hub.client.hset("sendense:job:b", "request", json.dumps({"kind": "polish"}))
    node = a_node("n1")
    presence.announce_node(hub.client, node)
    hub.client.set("sendense:node:n1", f"{{{NEW_FIELD}{node.model_dump_json()[1:]}")
    presence.announce_node(hub.client, node.model_copy(update={"name": "n2"}))
    hub.client.set("sendense:node:n2", '{"name": "n2"}')
    with caplog.at_level(logging.WARNING, "sendense.jobs.reading"):
        for _ in range(2):
            assert [view.id for view in upkeep.active(context.jobs)] == ["a", "c"]
            assert [found.name for found in presence.nodes(hub.client)] == ["n1"]
    assert sorted(record.getMessage().split(" is ")[0] for record in caplog.records) == ["job b", "node n2"]
