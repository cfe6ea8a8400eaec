"""The outbox on a real Redis: what is entered, who gets it, in which order, how often, and what is told of it."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from sendense.beat import no_beat
from sendense.coordinator.context import Context
from sendense.coordinator.outbox import KEPT_ENTRIES, OUTBOX, Outbox, Standing
from sendense.coordinator.record import Jobs
from sendense.errors import ClaimLost, Conflict
from sendense.models import Failure, VmRef
from sendense.notices import Told
from sendense.receivers import Notices, Receiver
from sendense.requests import BackupRequest, Work
from sendense.service import delivery
from sendense.service.figures import read_hub
from sendense.service.webhook import Outcome
from sendense.settings import Settings
from tests import receivers
from tests.hub import Hub, context_of
from tests.receivers import Mailbox, Webhook
from tests.servers import free_port

VM = VmRef(site="oslo", moref="vm-1", uuid="00000000-0000-0000-0000-000000000001", name='we"b\r\n01')


@pytest.fixture(scope="module")
def box() -> Iterator[Mailbox]:
    """A mail server."""
    with receivers.mailbox() as box:
        yield box


def context(hub: Hub, **notices: Any) -> Context:
    """A hub that tells these receivers."""
    settings = Settings(notices=Notices(**notices), node_name="hub01")
    return context_of(hub, settings)


def by_mail(box: Mailbox) -> dict[str, Any]:
    """The settings of a mail server."""
    return {
        "mail_to": ["ops@example.org"],
        "mail_from": "hub@example.org",
        "smtp": box.address,
        "smtp_security": "none",
    }


def end(hub: Hub, job: str, state: str, leftover: str = "", schedule: str = "", **error: Any) -> None:
    """A job that ends."""
    jobs = Jobs(hub.client)
    jobs.submit(job, BackupRequest(vm=VM, schedule=schedule), f"backup of {VM.name}", "inspect", [f"vm:{VM.uuid}"])
    lease, _ = jobs.lease(job, "w/1/a", 100, 1)
    assert lease
    failure = Failure(error="Refused", message="connect: refused", hint="Start it.", **error)
    fields: dict[str, str | int | float] = {"outcome": state, "work": Work(point="20261123T").model_dump_json()}
    if state in ("failed", "different"):
        fields["error"] = failure.model_dump_json()
    lease.write(fields)
    if leftover:
        jobs.note_leftover(job, leftover)
    assert jobs.finish(job, "w/1/a", state)


def say(hub: Hub, subject: str) -> None:
    """Something that a hub noticed."""
    Outbox(hub.client).enter("schedule.failed", Told(subject=subject).model_dump_json(), {})


def make_due(hub: Hub, receiver: Receiver) -> None:
    """Have the time pass until the next attempt."""
    hub.client.hset(f"sendense:notices:to:{receiver}", "due", 0)


def subjects(hook: Webhook) -> list[str]:
    """Of what it was sent."""
    return [notice["subject"] for notice in hook.notices()]


def test_every_way_that_a_job_ends(hub: Hub, hook: Webhook) -> None:
    """Told are failures, and what was left behind; not what a user cancelled, nor a success that nobody asked for."""
    end(hub, "aa", "failed")
    end(hub, "bb", "different")
    end(hub, "cc", "cancelled")
    end(hub, "dd", "succeeded")
    end(hub, "ee", "succeeded", leftover="remove the snapshot: vCenter says no\n")
    end(hub, "ff", "cancelled", leftover="remove the snapshot: vCenter says no\n")
    delivery.deliver(context(hub, webhook=hook.url), no_beat)
    found = [(notice["job"]["id"], notice["kind"]) for notice in hook.notices()]
    assert found == [("aa", "job.failed"), ("bb", "job.different"), ("ee", "job.leftover"), ("ff", "job.leftover")]
    assert [notice["job"]["point"] for notice in hook.notices()] == ["", "", "20261123T", ""]
    first = hook.notices()[0]
    assert (first["version"], first["hub"], first["hint"]) == (1, "hub01", "Start it.")
    assert first["subject"] == f'backup of we"b��01: failed, site {VM.site}: connect: refused'
    assert "connect: refused" in first["text"]
    assert "sendense jobs resume aa" in first["commands"]
    assert (first["job"]["state"], first["job"]["error"]["message"]) == ("failed", "connect: refused")
    assert first["job"]["ended"]
    assert "not cleaned: remove the snapshot: vCenter says no" in hook.notices()[2]["text"]
    assert "sendense jobs clean" in hook.notices()[2]["commands"]


def test_what_is_to_be_told(hub: Hub, hook: Webhook) -> None:
    """Successes alone, where that is asked for; what cannot be resumed is not to be."""
    end(hub, "aa", "failed", usage=True)
    end(hub, "bb", "succeeded")
    delivery.deliver(context(hub, webhook=hook.url, on=["success"]), no_beat)
    assert hook.kinds() == ["job.succeeded"]
    assert "restore point 20261123T" in hook.notices()[0]["text"]
    end(hub, "cc", "failed", usage=True)
    delivery.deliver(context(hub, webhook=hook.url), no_beat)
    assert not any("resume" in command for command in hook.notices()[1]["commands"])


def test_as_it_was_at_its_end(hub: Hub, hook: Webhook) -> None:
    """A job that goes on before its notice is sent was a failure all the same, and may become another one."""
    end(hub, "aa", "failed")
    Jobs(hub.client).resume("aa", "inspect", Work())
    delivery.deliver(context(hub, webhook=hook.url), no_beat)
    (notice,) = hook.notices()
    assert (notice["kind"], notice["job"]["state"]) == ("job.failed", "failed")


def test_once_taken_it_is_not_sent_again(hub: Hub, hook: Webhook) -> None:
    """A receiver gets what is new, once; what all have passed is deleted."""
    told = context(hub, webhook=hook.url)
    for subject in ("one", "two"):
        say(hub, subject)
        for _ in range(2):
            delivery.deliver(told, no_beat)
    assert subjects(hook) == ["one", "two"]
    say(hub, "three")
    delivery.deliver(told, no_beat)
    assert hub.client.xlen(OUTBOX) == 1


def test_tried_again_in_order(hub: Hub, hook: Webhook) -> None:
    """Until it is taken a notice is sent again with the same id, later and later, and those behind it wait."""
    told = context(hub, webhook=hook.url)
    say(hub, "one")
    say(hub, "two")
    hook.answers = [503, 429, 500]
    waits = []
    for attempt in range(1, 4):
        delivery.deliver(told, no_beat)
        (view,) = delivery.show(told).receivers
        assert (view.count, view.attempts, [each.subject for each in view.waiting]) == (2, attempt, ["one", "two"])
        assert view.following
        waits.append(view.following.timestamp() - Jobs(hub.client).clock())
        assert read_hub(told).notices["webhook"] > 0
        delivery.deliver(told, no_beat)  # too early
        make_due(hub, "webhook")
    assert view.error == "answered 500 Internal Server Error"
    assert waits[0] < waits[1] < waits[2] <= 4 * delivery.FIRST_SECONDS
    delivery.deliver(told, no_beat)
    assert subjects(hook) == ["one", "one", "one", "one", "two"]
    assert len({notice["id"] for notice in hook.notices()}) == 2
    (view,) = delivery.show(told).receivers
    assert [(each.subject, each.attempts, each.given_up) for each in view.told] == [
        ("two", 1, False),
        ("one", 4, False),
    ]
    assert (view.count, view.error, view.following) == (0, "", None)


def test_given_up(hub: Hub, hook: Webhook, caplog: pytest.LogCaptureFixture) -> None:
    """What a receiver will never take does not keep the rest from it; it is told in the log, and shown."""
    told = context(hub, webhook=hook.url)
    say(hub, "one")
    say(hub, "two")
    hook.answers = [404]
    delivery.deliver(told, no_beat)
    assert subjects(hook) == ["one", "two"]
    (view,) = delivery.show(told).receivers
    assert [(each.subject, each.given_up, each.error) for each in view.told] == [
        ("two", False, ""),
        ("one", True, "answered 404 Not Found"),
    ]
    figures = read_hub(told)
    assert (figures.tally.given_up, figures.notices) == ({"webhook": 1}, {"webhook": 0})
    assert any("(one) by webhook is given up: answered 404" in record.getMessage() for record in caplog.records)


def test_given_up_after_a_day(hub: Hub) -> None:
    """What is a day old is tried once more, and then given up."""
    told = context(hub, webhook=f"http://127.0.0.1:{free_port()}/")
    outbox, yesterday = Outbox(hub.client), int((time.time() - delivery.GIVE_UP_SECONDS - 60) * 1000)
    outbox.stand("webhook", None, Standing(f"{yesterday - 1}-0"))
    fields: dict[Any, Any] = {"number": 1, "kind": "schedule.failed", "body": Told(subject="old").model_dump_json()}
    hub.client.xadd(OUTBOX, fields, id=f"{yesterday}-0")
    say(hub, "new")
    delivery.deliver(told, no_beat)
    (view,) = delivery.show(told).receivers
    assert [(each.subject, each.given_up, each.attempts) for each in view.told] == [("old", True, 1)]
    assert ([each.subject for each in view.waiting], view.attempts, view.error) == (["new"], 1, "Connection refused")


def test_each_receiver_by_itself(hub: Hub, hook: Webhook, box: Mailbox) -> None:
    """A mail server that does not answer keeps nothing from the webhook; it gets all of it later, in order."""
    before = len(box.mails())
    with receivers.deaf() as address:
        told = context(hub, webhook=hook.url, **(by_mail(box) | {"smtp": address}))
        say(hub, "one")
        say(hub, "two")
        began = time.monotonic()
        delivery.deliver(told, no_beat)
        assert subjects(hook) == ["one", "two"]
        assert time.monotonic() - began > 5  # it has waited for the mail server
    assert [(view.receiver, view.count) for view in delivery.show(told).receivers] == [("webhook", 0), ("mail", 2)]
    assert hub.client.xlen(OUTBOX) == 2
    make_due(hub, "mail")
    delivery.deliver(context(hub, webhook=hook.url, **by_mail(box)), no_beat)
    assert box.subjects()[before:] == ["[sendense hub01] one", "[sendense hub01] two"]
    assert subjects(hook) == ["one", "two"]


def test_one_recipient_later(hub: Hub, box: Mailbox) -> None:
    """Who is greylisted gets it later, and those who have it do not get it again; nor does one who never will."""
    before, names = len(box.mails()), [f"{name}@example.org" for name in "abc"]
    told = context(hub, **(by_mail(box) | {"mail_to": names}))
    say(hub, "one")
    say(hub, "two")
    for answer in ("450 later", "451 later"):
        box.mood(refused=names[1:], answer=answer)
        delivery.deliver(told, no_beat)
        make_due(hub, "mail")
    assert delivery.show(told).receivers[0].error == "refused b@example.org (451 later), c@example.org (451 later)"
    box.mood(refused=names[2:], answer="450 later")
    delivery.deliver(told, no_beat)
    make_due(hub, "mail")
    box.mood(refused=names[2:])
    delivery.deliver(told, no_beat)
    got = [(mail["Subject"].removeprefix("[sendense hub01] "), mail["X-Got"]) for mail in box.mails()[before:]]
    assert got == [("one", names[0]), ("one", names[1]), ("two", ",".join(names[:2]))]
    assert len({mail["Message-ID"] for mail in box.mails()[before:]}) == 2
    (view,) = delivery.show(told).receivers
    assert [(each.given_up, each.error) for each in view.told] == [
        (False, "refused c@example.org (550 nobody of that name)"),
        (False, "refused c@example.org (550 nobody of that name)"),
    ]
    box.mood()


def test_a_fault(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours is an attempt as any other: it is shown, and made again later and later."""
    told = context(hub, webhook="http://127.0.0.1:1/")
    say(hub, "one")

    def fault(*given: Any) -> Outcome:
        raise UnicodeError("label too long")

    monkeypatch.setitem(delivery.SENDERS, "webhook", cast(Any, fault))
    for _ in range(2):
        delivery.deliver(told, no_beat)
    (view,) = delivery.show(told).receivers
    assert (view.count, view.attempts, view.error) == (1, 1, "a fault: UnicodeError: label too long")
    assert delivery.test(told)[0].error == "a fault: UnicodeError: label too long"


def test_a_clock_that_is_put_back(hub: Hub, hook: Webhook) -> None:
    """What waits for a time that no attempt is put off to is tried now."""
    told = context(hub, webhook=hook.url)
    say(hub, "one")
    hook.answers = [500]
    delivery.deliver(told, no_beat)
    delivery.deliver(told, no_beat)
    assert subjects(hook) == ["one"]
    hub.client.hset("sendense:notices:to:webhook", "due", time.time() + 86_400)
    delivery.deliver(told, no_beat)
    assert subjects(hook) == ["one", "one"]
    assert delivery.show(told).receivers[0].count == 0


def test_bounded(hub: Hub, hook: Webhook) -> None:
    """With too many waiting, the oldest go, and the first of those that are left says how many."""
    told = context(hub, webhook=hook.url)
    say(hub, "first")
    delivery.deliver(told, no_beat)
    outbox = Outbox(hub.client)
    body = Told(subject="many").model_dump_json()
    for _ in range(KEPT_ENTRIES + 5):
        outbox.enter("test", body, {})  # of a kind that nobody is sent
    say(hub, "last")
    assert hub.client.xlen(OUTBOX) == KEPT_ENTRIES
    delivery.deliver(told, no_beat)
    (view,) = delivery.show(told).receivers
    assert [(each.subject, each.lost_before) for each in view.told] == [("last", 6), ("first", 0)]


def test_who_joins(hub: Hub, hook: Webhook) -> None:
    """A receiver that is set up later is not told of what was long before, nor of what was while it was not set."""
    long_ago: dict[Any, Any] = {"number": 1, "kind": "schedule.failed", "body": Told(subject="old").model_dump_json()}
    hub.client.xadd(OUTBOX, long_ago, id=f"{int((time.time() - 3600) * 1000)}-0")
    hub.client.set("sendense:notices:number", 1)
    say(hub, "one")
    delivery.deliver(context(hub, webhook=hook.url), no_beat)
    say(hub, "two")
    delivery.deliver(context(hub), no_beat)
    say(hub, "three")
    delivery.deliver(context(hub, webhook=hook.url), no_beat)
    assert subjects(hook) == ["one", "three"]


def test_nobody_is_told(hub: Hub) -> None:
    """A hub without receivers keeps nothing that waits."""
    delivery.deliver(context(hub), no_beat)
    say(hub, "one")
    say(hub, "two")
    delivery.deliver(context(hub), no_beat)
    assert hub.client.xlen(OUTBOX) == 1  # the one that says how far it got
    assert delivery.show(context(hub)).receivers == []


def test_two_processes(hub: Hub, hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lost its duty meanwhile enters nothing over what another process has done."""
    told = context(hub, webhook=hook.url)
    say(hub, "one")
    say(hub, "two")
    real = delivery.SENDERS["webhook"]

    def slow(*given: Any) -> Outcome:
        monkeypatch.setitem(delivery.SENDERS, "webhook", real)
        delivery.deliver(told, no_beat)  # the other process, which delivers both
        return Outcome("too late")

    monkeypatch.setitem(delivery.SENDERS, "webhook", cast(Any, slow))
    delivery.deliver(told, no_beat)
    assert subjects(hook) == ["one", "two"]
    (view,) = delivery.show(told).receivers
    assert ([each.subject for each in view.told], view.count, view.error) == (["two", "one"], 0, "")


def test_a_lost_duty_ends(hub: Hub, hook: Webhook) -> None:
    """Who is told that the duty is another's stops at once."""
    say(hub, "one")
    hook.answers = [receivers.HANGS]

    def lost() -> None:
        raise ClaimLost("notices", "its duty")

    with pytest.raises(ClaimLost):
        delivery.deliver(context(hub, webhook=hook.url), lost)


def test_a_record_that_cannot_be_read(hub: Hub, hook: Webhook, caplog: pytest.LogCaptureFixture) -> None:
    """What another version entered, or a fault, is passed over with a line in the log."""
    outbox = Outbox(hub.client)
    outbox.enter("job", json.dumps({"job": "aa", "record": ["request", "{}"]}), {})
    outbox.enter("of.the.future", Told(subject="?").model_dump_json(), {})
    say(hub, "one")
    delivery.deliver(context(hub, webhook=hook.url), no_beat)
    assert subjects(hook) == ["one"]
    assert sum("is passed over" in record.getMessage() for record in caplog.records) == 2


def test_marks(hub: Hub) -> None:
    """What was noticed is entered with the notice, or neither is; and once only."""
    outbox = Outbox(hub.client)
    assert outbox.enter("vm.overdue", "{}", {"a": ("", "1"), "b": ("", "1")})
    assert not outbox.enter("vm.overdue", "{}", {"a": ("1", "2"), "b": ("0", "2")})
    assert outbox.marks() == {"a": "1", "b": "1"}
    assert outbox.enter("", "", {"a": ("1", ""), "b": ("1", "2")})
    assert outbox.marks() == {"b": "2"}
    assert hub.client.xlen(OUTBOX) == 1


def test_a_test(hub: Hub, hook: Webhook, box: Mailbox, tmp_path: Path) -> None:
    """Each receiver gets one, past the outbox, and each says what came of it; without any it is refused."""
    hook.answers = [500]
    sent = delivery.test(context(hub, webhook=hook.url, **by_mail(box)))
    assert [(each.receiver, each.error) for each in sent] == [
        ("webhook", "answered 500 Internal Server Error"),
        ("mail", ""),
    ]
    assert hook.kinds() == ["test"]
    assert box.subjects()[-1] == "[sendense hub01] a test"
    missing = delivery.test(context(hub, webhook=hook.url, webhook_secret_file=tmp_path / "none"))
    assert "No such file" in missing[0].error
    with pytest.raises(Conflict, match="nobody is told"):
        delivery.test(context(hub))
