"""Maps of copies from a real ledger: the whole once, then what changed, whatever happens to the copy."""

from collections.abc import Iterator
from urllib.parse import urlencode

import httpx
import pytest

from sendense.extents import Extent
from sendense.jobs.ledger import Rest
from sendense.jobs.map import read_map
from sendense.jobs.plan import PlanSize, batch_of
from sendense.maps import UNSTORED, CopyMap
from sendense.models import Failure, JobSpec, Survey, verification_id
from tests.api import problem
from tests.page import BATCH_BYTES, Shown, ShownJob, open_shown

IDLE_BYTES = 2000
"""Of an answer that says that nothing changed."""


@pytest.fixture(scope="module")
def shown() -> Iterator[Shown]:
    """A hub without work."""
    with open_shown() as shown:
        yield shown


@pytest.fixture(scope="module")
def client(shown: Shown) -> Iterator[httpx.Client]:
    """A reader: maps are for looking."""
    with shown.client("reader") as client:
        yield client


class Follower:
    """Who keeps a map of a copy by what the ledger says changed, as the page does."""

    def __init__(self, shown: Shown, copy: str) -> None:
        self._shown, self._copy = shown, copy
        self.cursor = ""
        self.stored: dict[int, str] = {}

    def look(self) -> CopyMap:
        """Ask for what changed, and take it in."""
        found = read_map(self._shown.hub.ledger, self._copy, self.cursor)
        assert found
        if found.whole:
            cells, workers = found.whole.cells, found.whole.workers
            self.stored = {
                batch: workers[ord(cell) - ord(UNSTORED) - 1] for batch, cell in enumerate(cells) if cell != UNSTORED
            }
        for worker, batches in found.stored.items():
            self.stored |= dict.fromkeys(batches, worker)
        for batch in found.undone:
            self.stored.pop(batch, None)
        self.cursor = found.cursor
        return found

    def agrees(self) -> bool:
        """Whether it knows what the ledger knows."""
        whole = Follower(self._shown, self._copy)
        whole.look()
        return whole.stored == self.stored


def test_only_changes_are_told(shown: Shown) -> None:
    """After the whole comes what is stored since, by whom, and what is under way; nothing where nothing happened."""
    job = shown.job("web01", 40)
    job.store(3, ("oslo-1",))
    follower = Follower(shown, job.copy())
    first = follower.look()
    assert (first.batches, first.whole and first.whole.workers) == (40, ["oslo-1-copy"])
    job.store(2, ("oslo-2",))
    sent = job.send(4)
    running = job.claim(sent[0], "oslo-3", copied=1000)
    failing, lost = job.claim(sent[1], "oslo-3"), job.claim(sent[2], "oslo-3")
    job.fail(failing, again=True)
    job.fail(lost, again=False)
    found = follower.look()
    assert (found.whole, found.stored, found.undone) == (None, {"oslo-2-copy": [3, 4]}, [])
    assert found.pending
    assert [(each.batch, each.worker, each.done) for each in found.pending.running] == [(5, "oslo-3-copy", 1000)]
    assert (found.pending.sent, found.pending.waiting, found.pending.failed) == ([(8, 8)], [(6, 6)], [(7, 7)])
    idle = follower.look()
    assert (idle.whole, idle.stored, idle.undone, idle.pending) == (None, {}, [], None)
    assert len(idle.model_dump_json()) < IDLE_BYTES
    job.finish(running)
    assert follower.look().stored == {"oslo-3-copy": [5]}
    assert follower.agrees()


def test_what_is_undone_is_told(shown: Shown) -> None:
    """A batch that was found wrong, or that changed before the job was resumed, is to do again on the map, too."""
    job, ledger = shown.job("web02", 10), shown.hub.ledger
    job.store(6)
    follower = Follower(shown, job.copy())
    follower.look()
    ledger.stop(job.copy())
    records = ledger.records(job.copy())
    ledger.reopen(job.copy(), records[:2])
    assert sorted(follower.look().undone) == [0, 1]
    added = batch_of([Extent(10 * BATCH_BYTES, BATCH_BYTES)])
    size = PlanSize()
    for _ in range(11):
        size.add(added)
    changed = [(3, batch_of(records[3].extents)), (10, added)]
    ledger.amend(job.copy(), changed, size, lambda: None)
    found = follower.look()
    assert (found.undone, found.batches) == ([3], 11)
    assert sorted(follower.stored) == [2, 4, 5]
    assert follower.agrees()


def test_a_batch_that_is_split_is_one_more(shown: Shown) -> None:
    """What could not be read of a batch is a batch of its own, which waits for its retry."""
    job = shown.job("web03", 4)
    follower = Follower(shown, job.copy())
    follower.look()
    claim = job.claim(job.send(1)[0], "oslo-1")
    stored, left = batch_of([Extent(0, BATCH_BYTES // 2)]), batch_of([Extent(BATCH_BYTES // 2, BATCH_BYTES // 2)])
    rest = Rest(stored, left, Failure(batch=0, error="ReadFailed", message="read: Input/output error"), 1000.0)
    assert shown.hub.ledger.record(claim, bytes(32), stored.data, stored.data, 0, rest)
    found = follower.look()
    assert (found.batches, follower.stored) == (5, {0: "oslo-1-copy"})
    assert found.pending
    assert found.pending.waiting == [(4, 4)]


def test_a_reader_that_missed_too_much_gets_the_whole(shown: Shown) -> None:
    """Changes that are not kept any more, and a copy that began anew under its name, are no gap in what is known."""
    job, ledger = shown.job("web04", 30), shown.hub.ledger
    job.store(5)
    follower = Follower(shown, job.copy())
    follower.look()
    job.store(5)
    shown.hub.client.xtrim(ledger.key(job.copy(), "changes"), maxlen=2, approximate=False)
    assert follower.look().whole
    assert follower.agrees()
    spec = ledger.spec(job.copy())
    assert spec
    ledger.delete(job.copy())
    assert read_map(ledger, job.copy(), follower.cursor) is None
    ledger.prepare(spec)
    survey = Survey(size=BATCH_BYTES, multi_conn=True, allocation=True, flush=True)
    ledger.write_plan(spec.id, survey, [batch_of([Extent(0, BATCH_BYTES)])])
    ledger.begin(spec)
    found = follower.look()
    assert (found.batches, follower.stored) == (1, {})
    assert found.whole


def test_nobody_is_at_a_stopped_copy(shown: Shown) -> None:
    """What was out when a job was stopped is to do; what it gave up stays marked, and is to do when it is resumed."""
    job, ledger = shown.job("web05", 10), shown.hub.ledger
    sent = job.send(4)
    job.claim(sent[0], "oslo-1")
    job.fail(job.claim(sent[1], "oslo-1"), again=True)
    job.fail(job.claim(sent[2], "oslo-1"), again=False)
    follower = Follower(shown, job.copy())
    follower.look()
    ledger.stop(job.copy())
    found = follower.look().pending
    assert found
    assert (found.sent, found.running, found.waiting, found.failed) == ([], [], [], [(2, 2)])
    spec = ledger.spec(job.copy())
    assert spec
    ledger.begin(spec)
    resumed = follower.look().pending
    assert resumed
    assert resumed.failed == []


def _path(job: ShownJob, disk: int = 0, **query: str) -> str:
    return f"jobs/{job.id}/map?{urlencode({'disk': disk, **query})}"


def test_over_http(shown: Shown, client: httpx.Client) -> None:
    """A program follows a disk by the cursors that it is given; its verification has a map of its own."""
    job = shown.job("web06", 6, 3)
    job.store(2, ("oslo-1",), disk=1)
    first = client.get(_path(job, 1)).raise_for_status().json()
    assert first["whole"] == {"workers": ["oslo-1-copy"], "cells": "11"}
    job.store(1, ("oslo-1",), disk=1)
    found = client.get(_path(job, 1, after=first["cursor"])).raise_for_status()
    assert (found.json()["stored"], found.json()["whole"]) == ({"oslo-1-copy": [2]}, None)
    assert len(found.content) < IDLE_BYTES
    assert client.get(_path(job, 1, part="verification")).json()["batches"] == 0
    verification = JobSpec(id=verification_id(job.copy(1)), kind="verify", name="web06", source="nbd://stored/")
    shown.hub.ledger.prepare(verification)
    survey = Survey(size=2 * BATCH_BYTES, multi_conn=True, allocation=True, flush=True)
    plan = [batch_of([Extent(number * BATCH_BYTES, BATCH_BYTES)]) for number in range(2)]
    shown.hub.ledger.write_plan(verification.id, survey, plan)
    assert client.get(_path(job, 1, part="verification")).json()["batches"] == 2


def test_what_has_no_map(shown: Shown, client: httpx.Client) -> None:
    """A disk that is not there, and a job whose ledger is gone, are told apart; so is a cursor that is none."""
    job = shown.job("web07", 6)
    assert "has no disk number 7" in problem(client.get(_path(job, 7)), 404)["detail"]
    problem(client.get(_path(job, after="1-x")), 422)
    problem(client.get(f"jobs/{job.id}/map?disk=x"), 422)
    problem(client.get("jobs/none/map"), 404)
    shown.hub.ledger.delete(job.copy())
    assert client.get(_path(job)).json()["batches"] == 0
    job.end("succeeded")
    assert "is not kept any more" in problem(client.get(_path(job)), 404)["detail"]


def test_who_is_asking(shown: Shown, client: httpx.Client) -> None:
    """A token's bearer learns what it may do, and where Flower is."""
    found = client.get("whoami").json()
    assert (found["role"], found["flower"]) == ("reader", "http://127.0.0.1:5555/")
    with shown.client("operator") as operator:
        assert operator.get("whoami").json()["role"] == "operator"
    problem(httpx.get(f"{shown.url}api/v1/whoami"), 401)
