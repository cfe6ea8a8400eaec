"""Jobs that share a site's queue: a small one is not kept waiting by a huge one, and the huge one not by many small."""

from sendense.jobs.driver import SENT_PATIENCE_SECONDS
from sendense.jobs.queues import ALONE_PRIORITY, BATCH_PRIORITY, HUB_QUEUE, PRIORITY_STEPS, SURVEY_PRIORITY, site_queue
from tests.fleet import SITE, Fleet, wait_for
from tests.hub import age

WINDOW = 8


def test_a_small_job_behind_a_huge_one(fleet: Fleet) -> None:
    """
    A small job starts within a window of the huge one that was there first: its survey, and then its batches, wait only
    for what the processes have in hand. The huge one goes on beside it, and both are copied.
    """
    fleet.configure(read_delay="150ms")  # an nbdkit that starts takes less than a few reads
    with fleet.node("n1", 2):
        huge = fleet.job("huge", 100, window=WINDOW)
        fleet.tick_until("the huge job", lambda: huge.done > WINDOW)
        small = fleet.job("small", 3 * WINDOW, window=WINDOW)
        submitted = len(fleet.events())
        wait_for("the small job's plan", lambda: small.ledger.state("small") == "ready")
        small.tick()
        sent = len(fleet.events())
        fleet.tick_until("the small job", lambda: small.ledger.state("small") == "copied")
        left = 100 - huge.done
        fleet.copy_all()
    events = fleet.events()
    before_survey = events[submitted : events.index("open small")].count("read huge")
    before_copy = events[sent : events.index("read small")].count("read huge")
    assert before_survey + before_copy <= WINDOW, (before_survey, before_copy)
    last = len(events) - events[::-1].index("read small")
    assert "read huge" in events[events.index("read small") : last]
    assert left > 0
    for job in (huge, small):
        job.assert_copied()


def waiting(fleet: Fleet) -> dict[int, int]:
    """Messages in the site's queue, by their priority."""
    queue = site_queue(SITE)
    keys = {0: queue, **{step: f"{queue}\x06\x16{step}" for step in PRIORITY_STEPS[1:]}}  # kombu's names
    return {step: fleet.hub.client.llen(key) for step, key in keys.items()}


def test_priorities(fleet: Fleet) -> None:
    """
    Surveys first, then what is alone, then all the rest. A window that nobody took for too long goes ahead as well, so
    no job waits for ever behind others' first windows.
    """
    job = fleet.job("huge", 40, window=WINDOW)
    assert waiting(fleet) == {SURVEY_PRIORITY: 1, ALONE_PRIORITY: 0, BATCH_PRIORITY: 0}
    with fleet.node("n1", 1):
        wait_for("the plan", lambda: job.ledger.state("huge") == "ready")
    job.tick()
    assert waiting(fleet) == {SURVEY_PRIORITY: 0, ALONE_PRIORITY: WINDOW, BATCH_PRIORITY: WINDOW}
    age(fleet.hub.client, "huge", 2 * SENT_PATIENCE_SECONDS)
    job.tick()
    assert waiting(fleet) == {SURVEY_PRIORITY: 0, ALONE_PRIORITY: 2 * WINDOW, BATCH_PRIORITY: 2 * WINDOW}
    assert not fleet.hub.client.exists(HUB_QUEUE)
    job.ledger.stop("huge")
