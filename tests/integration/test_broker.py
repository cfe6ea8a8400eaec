"""
Batches through a real Celery worker: chords drive a job on, and no fault of a process or a message harms it.

Nothing ticks here unless a test says so: what goes on by itself goes on by a chord's body or errback.
"""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from sendense.extents import Extent
from sendense.jobs import broker, driver, presence
from sendense.jobs.plan import batch_of
from sendense.jobs.queues import COPY_EXTENTS, HUB_QUEUE, PRIORITY_STEPS, site_queue
from sendense.models import JobSpec, Progress, Survey
from sendense.units import KiB
from tests.hub import Hub, open_hub, places
from tests.servers import nbdkit, short_folder

JOB = "job1"
NAME = "disk.qcow2"
BATCH_BYTES = 256 * KiB
BATCHES = 12
SIZE = BATCHES * BATCH_BYTES
SURVEY = Survey(size=SIZE, multi_conn=True, allocation=True, flush=True)
PROCESSES = 2
PATIENCE = 90.0
"""Seconds for what takes one or two."""


TICK_SECONDS = 0.2


def wait_for(what: str, condition: Callable[[], object], every: float = 0.01) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {PATIENCE:.0f} s"
        time.sleep(every)


class Site:
    """A hub, a worker if there is one, a disk to copy and where to copy it."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub, self.ledger = hub, hub.ledger
        self.app = broker.make_app(hub.url)
        self.log = folder / "worker.log"
        self.source, self.target = folder / "source.img", folder / "target.img"
        self.source.write_bytes(os.urandom(SIZE))
        self.target.write_bytes(b"\xff" * SIZE)
        self.spec = JobSpec(id=JOB, kind="copy", name=NAME, source="", target="")

    def progress(self) -> Progress:
        """The job's counters."""
        found = self.ledger.progress(JOB)
        assert found
        return found

    def plan(self, source: str, target: str) -> None:
        """Enter a job of twelve batches."""
        self.spec = self.spec.model_copy(update={"source": source, "target": target})
        self.ledger.prepare(self.spec)
        batches = (batch_of([Extent(batch * BATCH_BYTES, BATCH_BYTES)]) for batch in range(BATCHES))
        self.ledger.write_plan(JOB, SURVEY, batches)

    def begin(self, window: int, copies: int = 1) -> int:
        """Begin the job and send its first windows, `copies` times each; returns the epoch."""
        epoch = self.ledger.begin(self.spec)
        send = broker.chord_dispatch(self.app, self.ledger, self.spec, BATCHES, window)

        def dispatch(job: str, batches: list[int], epoch: int, alone: bool) -> None:
            for _ in range(copies):
                send(job, batches, epoch, alone)

        driver.advance(self.ledger, JOB, epoch, window, dispatch)
        return epoch

    def wait_until(self, state: str) -> None:
        """Wait for a state of the job."""
        wait_for(f"state {state} ({self.progress()}, {self.words()})", lambda: self.ledger.state(JOB) == state)

    def tick_until_copied(self, epoch: int, window: int) -> None:
        """What the job's coordinator does: tick until all is copied."""
        dispatch = broker.chord_dispatch(self.app, self.ledger, self.spec, BATCHES, window)
        wait_for("the end", lambda: driver.tick(self.ledger, JOB, epoch, window, dispatch)[0] == "copied", TICK_SECONDS)

    def holder(self, batches: range) -> int:
        """The process that copies one of these batches; waits until there is one."""
        found: list[int] = []

        def look() -> bool:
            active = [activity for activity in self.progress().active if activity.batch in batches]
            found.extend(int(activity.worker.split("/")[1]) for activity in active)
            return bool(found)

        wait_for(f"a process at one of the batches {batches}", look)
        return found[0]

    def waiting(self) -> list[dict[str, Any]]:
        """The messages in the site's queue, in the order in which they are taken."""
        queue, found = site_queue(self.spec.site), list[bytes]()
        for key in (queue, *(f"{queue}\x06\x16{step}" for step in PRIORITY_STEPS[1:])):  # kombu's names
            found += reversed(cast(list[bytes], self.hub.client.lrange(key, 0, -1)))
        return [json.loads(text) for text in found]

    def words(self) -> str:
        """What the worker said."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def close(self) -> None:
        """Close the connections of this process."""
        self.app.pool.force_close_all()
        self.app.backend.client.close()


@contextmanager
def open_site() -> Iterator[Site]:
    """A hub without a worker."""
    with open_hub() as hub, short_folder() as folder:
        site = Site(hub, folder)
        try:
            yield site
        finally:
            site.close()


@contextmanager
def worker(site: Site, **settings: float) -> Iterator[psutil.Process]:
    """A real worker with two processes, as a local copy starts it; yields its main process."""
    name = "tester"
    environment = {f"SENDENSE_{key.upper()}": str(value) for key, value in settings.items()}
    environment |= {"SENDENSE_REDIS": site.hub.url, "SENDENSE_WORKER": name}
    queues = f"{HUB_QUEUE},{site_queue(site.spec.site)}"
    command = [
        *("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "celery", "-A", "workers.app", "worker"),
        *("--hostname", f"{name}@%h", "--queues", queues, "--concurrency", str(PROCESSES), "--pool", "prefork"),
        *("--without-mingle", "--without-gossip", "--loglevel", "WARNING"),
    ]
    with site.log.open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment}
        )
    try:
        wait_for("the worker", lambda: presence.is_present(site.hub.client, name) or process.poll() is not None)
        assert process.poll() is None, site.words()
        yield psutil.Process(process.pid)
    finally:
        children = psutil.Process(process.pid).children() if process.poll() is None else []
        process.kill()
        process.wait(10)
        for child in children:
            if child.is_running():
                child.kill()
        psutil.wait_procs(children, 10)


@pytest.fixture
def site() -> Iterator[Site]:
    """A hub without a worker, a disk, and a target full of old data."""
    with open_site() as site:
        yield site


@contextmanager
def served(site: Site, *delay: str) -> Iterator[None]:
    """Source and target served, and the job planned. `delay` goes to the source's delay filter."""
    with ExitStack() as stack:
        options = ["--filter=delay"] if delay else []
        source = stack.enter_context(nbdkit("--readonly", *options, "file", site.source, *delay))
        target = stack.enter_context(nbdkit("file", site.target))
        site.plan(source.uri, target.uri)
        yield


def assert_copied(site: Site) -> None:
    """The target is the source, and each batch is recorded once."""
    progress = site.progress()
    assert (progress.state, progress.done, progress.batches_done) == ("copied", SIZE, BATCHES)
    assert [record.batch for record in site.ledger.records(JOB)] == list(range(BATCHES))
    assert site.target.read_bytes() == site.source.read_bytes()


def test_bodies_drive_a_job(site: Site) -> None:
    """One call of the driver is enough: each window's body sends the next one, to the end."""
    with served(site), worker(site):
        site.begin(window=2)
        site.wait_until("copied")
    assert_copied(site)
    progress = site.progress()
    assert (progress.copied, progress.retries, progress.stalls) == (SIZE, 0, 0)
    assert site.ledger.failures(JOB) == []


def test_nothing_is_left_of_a_job(site: Site) -> None:
    """Neither whoever sends a chord nor a worker subscribes to results, and what Celery keeps in Redis expires."""
    with served(site), worker(site):
        site.begin(window=2)
        site.wait_until("copied")
        clients = site.hub.client.client_list()
        wait_for("the end of the last task", lambda: not site.hub.client.exists("unacked"))
        kept = [key for key in site.hub.client.scan_iter("celery*")]
        forever = [key for key in kept if site.hub.client.ttl(key) == -1]
    assert [client for client in clients if client["psub"] != "0"], "the worker listens for commands"
    assert [client for client in clients if client["sub"] != "0"] == []
    assert forever == []


def test_duplicated_messages(site: Site) -> None:
    """Every message of the job comes three times: each batch is copied and recorded once."""
    with served(site), worker(site):
        site.begin(window=BATCHES, copies=3)
        site.wait_until("copied")
        wait_for("the end of the messages", lambda: not site.waiting() and not site.hub.client.exists("unacked"))
    assert_copied(site)
    assert site.progress().copied == SIZE
    assert site.ledger.failures(JOB) == []


WINDOW = 3


def lose_two(site: Site, lose: Callable[[int], None]) -> None:
    """
    Lose a process in each of the first two windows, and see that their errbacks drive the job on.

    The third window can only have been sent by one of them: no other body came back before, and nothing ticks.
    """
    lose(site.holder(range(WINDOW)))
    lose(site.holder(range(WINDOW, 2 * WINDOW)))

    def is_all_handed_out() -> bool:
        held = places(site.hub.client, JOB).values()
        return not any(place in ("todo", "sent") for places_of_one in held for place in places_of_one)

    wait_for("the last window", is_all_handed_out)
    assert site.ledger.state(JOB) == "copying"


def test_killed_processes(site: Site) -> None:
    """A process that is killed costs its batch until the next tick, and nothing else stops for it."""
    with served(site, "rdelay=300ms"), worker(site, claim_seconds=2, renew_seconds=0.3):
        epoch = site.begin(WINDOW)
        lose_two(site, lambda pid: os.kill(pid, signal.SIGKILL))
        site.tick_until_copied(epoch, WINDOW)
    assert_copied(site)
    lapsed = [failure for failure in site.ledger.failures(JOB) if failure.error == "ClaimLapsed"]
    assert len(lapsed) >= 2
    assert site.progress().stalls == len(lapsed)


def test_time_limit(site: Site) -> None:
    """A process that Python cannot wake is killed at the hard limit; its windows' errbacks drive on."""
    with (
        served(site, "rdelay=300ms"),
        worker(site, task_time_limit=3, claim_seconds=2, renew_seconds=0.3) as main,
    ):
        stopped: list[psutil.Process] = []

        def stop(pid: int) -> None:
            stopped.append(psutil.Process(pid))
            stopped[-1].suspend()

        epoch = site.begin(WINDOW)
        lose_two(site, stop)
        wait_for("the end of the stopped", lambda: not any(process.is_running() for process in stopped))
        assert main.is_running()
        site.tick_until_copied(epoch, WINDOW)
    assert_copied(site)
    assert "TimeLimitExceeded" in site.words()


def test_killed_worker(site: Site) -> None:
    """After the whole worker was killed, another one and the tick end the job."""
    with served(site, "rdelay=300ms"):
        with worker(site, claim_seconds=2, renew_seconds=0.3) as main:
            epoch = site.begin(WINDOW)
            site.holder(range(BATCHES))
            main.kill()
        with worker(site, claim_seconds=2, renew_seconds=0.3):
            site.tick_until_copied(epoch, WINDOW)
    assert_copied(site)


def test_stopped_job(site: Site) -> None:
    """A job that is stopped while its messages wait is not copied by them; begun again, it is."""
    with served(site):
        site.begin(WINDOW)
        site.ledger.stop(JOB)
        with worker(site):
            wait_for("the end of the messages", lambda: not site.waiting() and not site.hub.client.exists("unacked"))
            assert site.progress().copied == 0
            site.begin(WINDOW)
            site.wait_until("copied")
    assert_copied(site)


def test_survey_twice(site: Site) -> None:
    """A survey whose message comes again, when the job is already being copied, changes nothing."""
    with served(site, "rdelay=100ms"), worker(site):
        site.hub.client.flushall()
        site.ledger.prepare(site.spec)
        broker.send_survey(site.app, site.spec)
        site.wait_until("ready")
        assert (site.progress().size, site.progress().data) == (SIZE, SIZE)
        site.plan(site.spec.source, site.spec.target)  # the same disk in more batches
        site.begin(WINDOW)
        broker.send_survey(site.app, site.spec)
        site.wait_until("copied")
        wait_for("the end of the messages", lambda: not site.waiting() and not site.hub.client.exists("unacked"))
        assert site.ledger.state(JOB) == "copied"
    assert_copied(site)


def test_bad_sector_while_verifying(site: Site) -> None:
    """A part of the stored image that does not read at first is no difference once it does."""
    bad = site.target.with_name("bad")
    read = f"dd if={site.target} skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none"
    fault = f"[ -e {bad} ] && [ $4 -lt {2 * 64 * KiB} ] && [ $(($4 + $3)) -gt {64 * KiB} ]"
    pread = f"pread=if {fault}; then echo EIO bad sector >&2; exit 1; fi; {read}"
    with (
        nbdkit("eval", "thread_model=echo parallel", f"get_size=echo {SIZE}", pread) as stored,
        served(site),
        worker(site, retry_seconds=0.1),
    ):
        site.begin(WINDOW)
        site.wait_until("copied")
        copied = site.ledger.records(JOB)

        bad.touch()
        spec = JobSpec(id="verify1", kind="verify", name=NAME, source=stored.uri, of=JOB)
        site.ledger.prepare(spec)
        site.ledger.write_plan(spec.id, SURVEY, (batch_of(record.extents) for record in copied))
        epoch = site.ledger.begin(spec)
        dispatch = broker.chord_dispatch(site.app, site.ledger, spec, BATCHES, WINDOW)
        driver.advance(site.ledger, spec.id, epoch, WINDOW, dispatch)
        wait_for("the read that fails", lambda: site.ledger.failures(spec.id))
        bad.unlink()
        wait_for(
            "the end of the verification",
            lambda: driver.tick(site.ledger, spec.id, epoch, WINDOW, dispatch)[0] == "copied",
            TICK_SECONDS,
        )
        found = site.ledger.records(spec.id)
    assert [record.digest for record in found] == [record.digest for record in copied]
    assert site.ledger.failures(spec.id)[0].error == "ReadFailed"


def test_messages_carry_ids_only(site: Site) -> None:
    """An operator reads in a task what it is about; a message holds ids and numbers, no address of a disk."""
    site.plan("nbd://secret-source/", "nbd://secret-target/")
    epoch = site.begin(window=2)
    messages = site.waiting()
    heads = [message["headers"] for message in messages]
    assert [head["task"] for head in heads] == [COPY_EXTENTS] * 4
    labels = [f"{NAME} · batch {number}/{BATCHES} · 256 KiB" for number in range(1, 5)]
    assert [head["argsrepr"] for head in heads] == labels
    bodies = [json.loads(base64.b64decode(message["body"])) for message in messages]
    assert [body[0] for body in bodies] == [[JOB, batch, epoch] for batch in range(4)]
    assert [body[1] for body in bodies] == [{}] * 4
    assert {message["content-type"] for message in messages} == {"application/json"}
    assert "secret" not in json.dumps([messages, bodies])


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mknod, (str(self._path),))


def test_only_json_is_accepted(site: Site) -> None:
    """A pickled message is thrown away unread, and the worker goes on."""
    sprung = site.source.with_name("sprung")
    queue = site_queue(site.spec.site)
    with site.app.connection_for_write() as connection:
        producer = connection.Producer(serializer="pickle")
        headers = {"task": COPY_EXTENTS, "id": "1", "lang": "py", "argsrepr": "()", "kwargsrepr": "{}"}
        producer.publish(((Trap(sprung), 0, 1), {}, {}), exchange="", routing_key=queue, headers=headers)
        producer.close()
    assert [message["content-type"] for message in site.waiting()] == ["application/x-python-serialize"]
    with served(site), worker(site):
        site.begin(window=2)
        site.wait_until("copied")
    assert_copied(site)
    assert site.waiting() == []
    assert not sprung.exists()
    assert "ContentDisallowed" in site.words() or "Refusing to deserialize" in site.words()
