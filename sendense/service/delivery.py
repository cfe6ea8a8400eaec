"""
The delivery of notices: each receiver gets them in their order, at least once, and by itself.

A notice that a receiver does not take is tried again, later and later, for a day; those behind it wait. What no attempt
can help is given up at once.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from datetime import UTC, datetime

from sendense.beat import Beat
from sendense.coordinator.context import Context
from sendense.coordinator.outbox import BEGINNING, Entry, Outbox, Standing
from sendense.errors import Conflict, SendenseError
from sendense.jobs import broker
from sendense.jobs.reading import readable
from sendense.notices import DeliveredNotice, Notice, NoticeSent, NoticesView, ReceiverView, Told, WaitingNotice
from sendense.receivers import Notices, Receiver
from sendense.repository.settings import read_settings
from sendense.requests import BackupRequest
from sendense.service import mail, webhook
from sendense.service.notices import OCCASIONS, notice_of, plain
from sendense.service.prospects import with_prospects
from sendense.service.webhook import Outcome

log = logging.getLogger(__name__)

DELIVER_SECONDS = 5.0
"""Between two looks into the outbox: soon enough for whoever is to get up, and a few small questions to Redis."""

FIRST_SECONDS, MOST_SECONDS = 5.0, 1800.0
"""Before the second attempt, doubled with each one, and at most: a mail server that is back gets its mail soon."""

GIVE_UP_SECONDS = 86_400.0
"""A notice of more than a day ago is tried once, and then given up: whoever looks by then looks at the jobs."""

RUN_SECONDS = 60.0
"""For which one process delivers at a stretch."""

WAIT_SECONDS = 0.5
"""Between two beats while receivers are waited for."""

END_SECONDS = 120.0
"""A receiver's thread that is not done by then, whatever its own limits, is left behind."""

JOIN_SECONDS = 60.0
"""A receiver that was never there before is told of what happened so long before it was, and not of all that ever
did."""

FAULT_LETTERS = 300
"""Of a fault's text that are kept and shown."""

SHOWN = 100
"""Of the notices that wait, how many are listed."""

SENDERS: dict[Receiver, Callable[[Notices, Notice], Outcome]] = {"webhook": webhook.post, "mail": mail.send}


def deliver(context: Context, beat: Beat) -> None:
    """Deliver what is due, to all receivers at the same time."""
    outbox, notices = Outbox(context.ledger.client), context.settings.notices
    stop = threading.Event()
    threads = []
    for receiver in SENDERS:
        if receiver in notices.receivers:
            work = _guarded(receiver, context, outbox, stop)
            threads.append(threading.Thread(target=work, name=receiver, daemon=True))
        else:
            _skip_all(outbox, receiver)
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + END_SECONDS
    try:
        for thread in threads:
            while thread.is_alive() and time.monotonic() < deadline:
                beat()
                thread.join(WAIT_SECONDS)
    finally:
        stop.set()
    if standings := [standing for receiver in SENDERS if (standing := outbox.standing(receiver))]:
        outbox.forget([standing.passed for standing in standings])


def _guarded(receiver: Receiver, context: Context, outbox: Outbox, stop: threading.Event) -> Callable[[], None]:
    def work() -> None:
        try:
            _deliver_to(receiver, context, outbox, stop)
        except (SendenseError, *broker.Unavailable) as exc:
            log.warning("notices by %s: %s", receiver, exc, extra={"action": "notices"})
        except Exception:
            log.exception("notices by %s: a fault", receiver, extra={"action": "notices"})

    return work


def _deliver_to(receiver: Receiver, context: Context, outbox: Outbox, stop: threading.Event) -> None:
    deadline = time.monotonic() + RUN_SECONDS
    while not stop.is_set() and time.monotonic() < deadline:
        before = outbox.standing(receiver)
        behind, following = _following(context, outbox, before or _joining(context))
        if not following:
            if behind != before:
                outbox.stand(receiver, before, behind)
            return
        if 0 < behind.due - context.jobs.clock() <= MOST_SECONDS:  # later: the clock was set back
            return
        entry, notice = following
        begun, *left = behind.left.split(" ")
        outcome = _attempt(receiver, context, with_prospects(context, notice), left if begun == entry.id else [])
        now, told = _judge(receiver, behind, entry, notice, outcome, context.jobs.clock())
        given_up = bool(told and outcome.error)
        if not outbox.stand(receiver, before, now, told, given_up) or now.passed == behind.passed:
            return


def _following(context: Context, outbox: Outbox, standing: Standing) -> tuple[Standing, tuple[Entry, Notice] | None]:
    """Where the receiver stands once it passed all that it does not get, and the entry that it gets next, if any."""
    for entry in outbox.behind(standing.passed):
        if standing.number and entry.number > standing.number + 1:  # the oldest went, as too many waited
            standing = replace(
                standing, number=entry.number - 1, lost=standing.lost + entry.number - standing.number - 1
            )
        if notice := wanted(context, entry):
            return standing, (entry, notice)
        standing = Standing(entry.id, entry.number, lost=standing.lost)
    return standing, None


def _joining(context: Context) -> Standing:
    return Standing(f"{int((context.jobs.clock() - JOIN_SECONDS) * 1000)}-0")


def _skip_all(outbox: Outbox, receiver: Receiver) -> None:
    before, (last, number) = outbox.standing(receiver), outbox.last()
    if last != BEGINNING and (not before or before.passed != last):
        outbox.stand(receiver, before, Standing(last, number))


def wanted(context: Context, entry: Entry) -> Notice | None:
    """The notice of an entry, if receivers are to get it."""
    hub = context.settings.node_name
    notice = readable(f"notice {entry.id}", lambda: notice_of(entry, hub, context.ledger))
    if not notice:
        return None
    is_asked_for = notice.kind == "job.succeeded" and _is_asked_for(context, notice)
    return notice if is_asked_for or OCCASIONS.get(notice.kind) in context.settings.notices.on else None


def _is_asked_for(context: Context, notice: Notice) -> bool:
    """Whether a schedule began the job, and one of those for its VM wants its success told."""
    request = notice.job.request if notice.job else None
    if not notice.schedule or not isinstance(request, BackupRequest):
        return False
    try:
        schedules = read_settings(context.repository.layout).schedules
    except SendenseError:  # rather once too often
        return True
    return any(each.notify_success and (each.name == notice.schedule or each.is_for(request.vm)) for each in schedules)


def _attempt(receiver: Receiver, context: Context, notice: Notice, left: Collection[str] = ()) -> Outcome:
    """`left`: who alone is still to get it, unless the settings have none of them any more."""
    notices = context.settings.notices
    if some := [each for each in notices.mail_to if each in left]:
        notices = notices.model_copy(update={"mail_to": some})
    try:
        outcome = SENDERS[receiver](notices, notice)
    except SendenseError as exc:  # a file that cannot be read: somebody may put that right
        return Outcome(f"{exc} ({exc.hint})")
    except Exception as exc:  # it is tried ever later, as any other, and shown
        log.exception("notice %s by %s: a fault", notice.id, receiver, extra={"action": "notices"})
        return Outcome(plain(f"a fault: {type(exc).__name__}: {exc}")[:FAULT_LETTERS])
    return Outcome(note=outcome.error) if some and outcome.final else outcome


def _judge(
    receiver: Receiver, behind: Standing, entry: Entry, notice: Notice, outcome: Outcome, now: float
) -> tuple[Standing, str]:
    """Where the receiver stands after an attempt, and what is to be told of the notice; empty while it waits."""
    attempts = behind.attempts + 1
    gives_up = outcome.error and (outcome.final or now - entry.time > GIVE_UP_SECONDS)
    fields = {"action": "notice", "receiver": receiver, "notice": notice.id}
    if outcome.error and not gives_up:
        delay = min(FIRST_SECONDS * 2 ** min(behind.attempts, 16), MOST_SECONDS)
        level = logging.WARNING if not behind.attempts else logging.INFO
        log.log(level, "notice %s (%s) by %s: %s", notice.id, notice.subject, receiver, outcome.error, extra=fields)
        left = " ".join([entry.id, *outcome.left]) if outcome.left else behind.left
        return replace(behind, attempts=attempts, due=now + delay, error=outcome.error, left=left), ""
    if outcome.error:
        log.error(
            "notice %s (%s) by %s is given up: %s", notice.id, notice.subject, receiver, outcome.error, extra=fields
        )
    told = DeliveredNotice(
        id=notice.id,
        kind=notice.kind,
        subject=notice.subject,
        time=notice.time,
        told=datetime.fromtimestamp(now, UTC),
        attempts=attempts,
        given_up=bool(outcome.error),
        error=outcome.error or outcome.note,
        lost_before=behind.lost,
    )
    return Standing(entry.id, entry.number), told.model_dump_json()


def show(context: Context) -> NoticesView:
    """Who is told, what waits, and what became of the notices that were told lately."""
    outbox, notices = Outbox(context.ledger.client), context.settings.notices
    views = []
    for receiver in notices.receivers:
        standing = outbox.standing(receiver) or _joining(context)
        waiting = [notice for entry in outbox.behind(standing.passed) if (notice := wanted(context, entry))]
        due = datetime.fromtimestamp(standing.due, UTC) if standing.attempts else None
        views.append(
            ReceiverView(
                receiver=receiver,
                to=notices.show(receiver),
                count=len(waiting),
                waiting=[
                    WaitingNotice(id=each.id, kind=each.kind, subject=each.subject, time=each.time)
                    for each in waiting[:SHOWN]
                ],
                attempts=standing.attempts,
                following=due,
                error=standing.error,
                told=[DeliveredNotice.model_validate_json(line) for line in outbox.told(receiver)],
            )
        )
    return NoticesView(on=list(notices.on), receivers=views)


def test(context: Context) -> list[NoticeSent]:
    """Send a notice to each receiver now, past the outbox; Conflict when there is none."""
    notices, now = context.settings.notices, datetime.now(UTC)
    if not notices.receivers:
        raise Conflict("nobody is told of anything", "Set webhook or mail_to under [notices] (docs/notices.md).")
    told = Told(subject="a test", text="Somebody ran 'sendense notices test'.", hint="Nothing: it arrived.")
    hub = context.settings.node_name
    notice = Notice(id=f"{hub}:test-{int(now.timestamp() * 1000)}", kind="test", time=now, hub=hub, **dict(told))
    return list(_try_each(context, notice))


def _try_each(context: Context, notice: Notice) -> Iterator[NoticeSent]:
    """Both at the same time, as each may take as long as a request may."""
    outcomes: dict[Receiver, Outcome] = {}

    def attempt(receiver: Receiver) -> None:
        outcomes[receiver] = _attempt(receiver, context, notice)

    notices = context.settings.notices
    threads = {one: threading.Thread(target=attempt, args=[one], daemon=True) for one in notices.receivers}
    for thread in threads.values():
        thread.start()
    deadline = time.monotonic() + RUN_SECONDS
    for receiver, thread in threads.items():
        thread.join(max(0.0, deadline - time.monotonic()))
        outcome = outcomes.get(receiver, Outcome(f"was not done within {RUN_SECONDS:.0f} s"))
        yield NoticeSent(
            receiver=receiver, to=notices.show(receiver), id=notice.id, error=outcome.error, note=outcome.note
        )
