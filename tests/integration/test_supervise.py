"""Children that are kept up: what ends or stops is started again, for as long as that can help."""

import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sendense.errors import JobFailed
from sendense.jobs import presence
from sendense.jobs.access import RedisFull, must_store
from sendense.jobs.ledger import LedgerUnavailable
from sendense.settings import Settings
from sendense.supervise.child import Child
from sendense.supervise.redis import PrivateRedis
from sendense.supervise.service import Budget, Service
from sendense.supervise.storage import Storage
from sendense.supervise.worker import Worker
from sendense.units import MiB
from tests.backup import small_disk
from tests.servers import short_folder

WAIT_SECONDS = 30.0
"""Far more than anything here takes."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with short_folder() as folder:
        yield folder


@pytest.fixture
def notes() -> list[str]:
    """What an operator is told."""
    return []


@pytest.fixture
def redis(folder: Path, notes: list[str]) -> Iterator[PrivateRedis]:
    """A private Redis that answers."""
    service = PrivateRedis(folder, notes.append, Budget())
    service.start()
    service.wait()
    try:
        yield service
    finally:
        service.client.close()
        service.child.kill()


@pytest.fixture
def worker(folder: Path, redis: PrivateRedis, notes: list[str]) -> Iterator[Worker]:
    """A worker with two processes that announced itself."""
    service = Worker("worker-1", redis, ("site.one", "site.two"), folder / "worker.log", notes.append, Budget())
    service.processes = 2
    service.start()
    try:
        wait_for(lambda: presence.is_present(redis.client, "worker-1") and len(processes(service)) == 2)
        yield service
    finally:
        service.child.kill()


def wait_for(happened: Callable[[], bool]) -> None:
    """Wait until it happened."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def processes(worker: Worker) -> list[psutil.Process]:
    """The processes of a worker's pool."""
    return psutil.Process(worker.child.pid).children()


def kill(service: Service) -> None:
    """SIGKILL its child, and wait until that is gone."""
    os.kill(service.child.pid, signal.SIGKILL)
    wait_for(lambda: not service.child.is_running())


def test_a_killed_redis_is_started_again_with_its_data(redis: PrivateRedis, notes: list[str]) -> None:
    """What it was told a second ago is there."""
    redis.client.set("kept", "yes")
    time.sleep(1.5)  # appendfsync everysec
    kill(redis)
    assert not redis.is_ready()
    redis.supervise()
    assert redis.client.get("kept") == b"yes"
    assert notes == ["redis ended: starting it again"]
    redis.supervise()
    assert len(notes) == 1


def test_a_stopped_redis_is_killed_and_started_again(redis: PrivateRedis, notes: list[str]) -> None:
    """Whoever finds that it does not answer has it replaced."""
    before = redis.child.pid
    os.kill(before, signal.SIGSTOP)
    with pytest.raises(LedgerUnavailable) as stopped:
        redis.client.ping()
    redis.missed(stopped.value)
    assert redis.client.ping()
    assert not psutil.pid_exists(before)
    assert notes[0].startswith("redis stopped answering")


def test_a_full_redis_is_waited_for(redis: PrivateRedis, notes: list[str]) -> None:
    """Starting it again would give it no room: that is said once, and what it has stays."""
    before = redis.child.pid
    redis.client.set("kept", "yes")
    redis.client.config_set("maxmemory", 1)
    for _ in range(2):
        with pytest.raises(RedisFull, match="maxmemory") as full:
            must_store(redis.client)
        redis.missed(full.value)
    both = redis.client.pipeline()
    both.set("one", 1)
    both.set("two", 2)
    with pytest.raises(RedisFull):
        both.execute()
    assert redis.child.pid == before
    (note,) = notes
    assert "does not do what it is asked: Redis has no room" in note
    redis.client.config_set("maxmemory", 0)
    must_store(redis.client)
    assert redis.client.mget("kept", "one", "two") == [b"yes", None, None]


def test_a_redis_whose_disk_is_full_is_waited_for(notes: list[str]) -> None:
    """It cannot write its file, and says so; once there is room it goes on, with all that it had said it has."""
    with small_disk(32 * MiB) as disk:
        redis = PrivateRedis(disk.path, notes.append, Budget())
        redis.start()
        try:
            redis.wait()
            before = redis.child.pid
            wait_for(lambda: not stores(redis))
            stored = redis.client.strlen("grows")
            disk.remount("size=128M")
            wait_for(lambda: stores(redis))
            assert redis.client.strlen("grows") == stored + MiB
            assert (redis.child.pid, len(notes)) == (before, 1)
        finally:
            redis.client.close()
            redis.child.kill()


def stores(redis: PrivateRedis) -> bool:
    """Whether it takes what it is told; where it does not, its supervisor learns of it."""
    try:
        redis.client.append("grows", bytes(MiB))
    except RedisFull as exc:
        redis.missed(exc)
        return False
    return True


def test_a_killed_worker_is_started_again(worker: Worker, redis: PrivateRedis, notes: list[str]) -> None:
    """With its processes, under its name, reading its queues."""
    kill(worker)
    redis.client.flushall()
    worker.supervise()
    assert notes == ["worker ended: starting it again"]
    wait_for(lambda: presence.is_present(redis.client, "worker-1"))
    assert worker.child.argv[-3:] == ["worker-1", "2", "site.one,site.two"]


def test_a_worker_says_once_that_redis_is_away(worker: Worker, redis: PrivateRedis) -> None:
    """In a line for each thing, however often it tries, without tracebacks and advice."""
    kill(redis)
    wait_for(lambda: "Cannot connect" in worker.child.log.read_text())
    time.sleep(2.5)  # Celery tries again after 2 s
    redis.supervise()
    wait_for(lambda: presence.is_present(redis.client, "worker-1"))
    lines = worker.child.log.read_text().splitlines()
    assert [sum(words in line for line in lines) for words in ("broker lost", "Cannot connect")] == [1, 1]
    assert all(re.match(r"\d{4}-\d\d-\d\d ", line) for line in lines)
    assert not any(words in line for line in lines for words in ("Deprecation", "Trying again"))


def test_a_worker_that_is_not_present_is_replaced(
    worker: Worker, redis: PrivateRedis, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its main process stopped: that it has a process id does not count."""
    monkeypatch.setattr("sendense.supervise.worker.PRESENCE_GRACE_SECONDS", 0.0)
    worker.supervise()
    assert notes == []
    before = worker.child.pid
    os.kill(before, signal.SIGSTOP)
    redis.client.flushall()  # as its lapse would
    worker.supervise()
    assert notes[0] == "the worker stopped: killing it and starting another"
    assert worker.child.pid != before
    assert not psutil.pid_exists(before)


def test_a_process_whose_claim_lapsed_is_killed(worker: Worker, redis: PrivateRedis, notes: list[str]) -> None:
    """One of the worker's own, and never another process that has that number."""
    worker.claim_lapsed(f"worker-1/{os.getpid()}/1")
    worker.claim_lapsed(f"worker-1/{worker.child.pid}/1")
    assert notes == []
    stopped, condemned = processes(worker)
    stopped.suspend()
    worker.claim_lapsed(f"worker-1/{stopped.pid}/1")
    assert notes == [f"worker process {stopped.pid} stopped: killed, its work is done again"]
    presence.condemn(redis.client, f"worker-1/{condemned.pid}/1")
    for pid in presence.take_condemned(redis.client, worker.name):
        worker.kill_process(pid)
    assert len(notes) == 2
    assert presence.take_condemned(redis.client, worker.name) == []
    wait_for(lambda: len({one.pid for one in processes(worker)} - {stopped.pid, condemned.pid}) == 2)


def test_only_what_a_process_is_at_condemns_it(worker: Worker, redis: PrivateRedis) -> None:
    """One that is back and at another task is spared; a worker that is started again has nothing to answer for."""
    name = worker.name
    presence.begin(redis.client, f"{name}/1/new")
    presence.begin(redis.client, f"{name}/2/old")
    for process in ("1/old", "2/old", "3/old"):
        presence.condemn(redis.client, f"{name}/{process}")
    assert presence.take_condemned(redis.client, name) == [2, 3]
    presence.condemn(redis.client, f"{name}/1")
    assert presence.take_condemned(redis.client, name) == [1]
    presence.condemn(redis.client, f"{name}/2/old")
    kill(worker)
    worker.supervise()
    assert presence.take_condemned(redis.client, name) == []


class Brief(Service):
    """A service that is of use at once, and ends soon after."""

    def __init__(self, folder: Path, notes: list[str], budget: Budget) -> None:
        argv = [sys.executable, "-c", "print('no room left')"]
        super().__init__(Child("brief", argv, folder / "log"), notes.append, budget)


def test_a_child_that_always_ends_is_given_up(folder: Path, notes: list[str]) -> None:
    """After as many starts as its budget has, with its last words."""
    service = Brief(folder, notes, Budget(3, math.inf))
    service.start()
    for _ in range(2):
        wait_for(lambda: not service.child.is_running())
        service.supervise()
    wait_for(lambda: not service.child.is_running())
    with pytest.raises(JobFailed, match=r"the brief ended 3 times, the last time with: .*no room left"):
        service.supervise()
    assert len(notes) == 2


def test_a_budget_is_one_of_a_time(folder: Path, notes: list[str]) -> None:
    """A service that runs for years may end more often than it may within a moment."""
    service = Brief(folder, notes, Budget(2, 0.5))
    service.start()
    for _ in range(3):
        wait_for(lambda: not service.child.is_running())
        time.sleep(0.6)
        service.supervise()
    wait_for(lambda: not service.child.is_running())
    service.supervise()
    wait_for(lambda: not service.child.is_running())
    budget = Budget(1, 60)
    budget.spend()
    assert budget.is_spent()
    assert str(budget) == "1 times within 1:00"


def test_a_child_that_cannot_start_says_why(folder: Path, notes: list[str]) -> None:
    """The error has its last words, and comes at once."""
    service = PrivateRedis(folder / "missing", notes.append, Budget())
    (folder / "missing").mkdir()
    service.child.argv.append("--no-such-option=1")
    service.start()
    with pytest.raises(JobFailed, match="the redis ended at once: ") as caught:
        service.wait()
    assert str(folder / "missing" / "redis.log") in caught.value.hint


def test_an_address_that_another_process_has(folder: Path, notes: list[str]) -> None:
    """Is named with its setting, of Redis and of the exports daemon."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = Settings(state_dir=folder, redis_listen=address)
        with pytest.raises(JobFailed, match=f"redis_listen {address}: Address already in use") as caught:
            PrivateRedis(folder, notes.append, Budget(), settings).start()
        assert "set redis_listen to" in caught.value.hint
        with pytest.raises(JobFailed, match=f"exports_listen {address}: Address already in use"):
            Storage(address, folder, notes.append, Budget()).start()


TRACER = """
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
assert libc.ptrace(0x4206, int(sys.argv[1]), None, None) == 0, ctypes.get_errno()  # PTRACE_SEIZE
print("seized", flush=True)
time.sleep(60)
"""
"""Until this ends, nobody else hears of the death of a process that it traces."""


def test_a_child_that_does_not_die(folder: Path, notes: list[str]) -> None:
    """Its supervisor says so once, goes on, has no second one beside it, and starts it again once it is gone."""
    service = Service(Child("sleeper", ["sleep", "60"], folder / "sleeper.log"), notes.append, Budget())
    service.start()
    pid = service.child.pid
    tracer = subprocess.Popen([sys.executable, "-c", TRACER, str(pid)], stdout=subprocess.PIPE, text=True)
    try:
        assert tracer.stdout
        assert tracer.stdout.readline() == "seized\n"
        for _ in range(2):
            service.restart("it stopped")
            assert service.child.pid == pid
        assert len(notes) == 2
        assert "does not die" in notes[1]
        tracer.kill()
        tracer.wait(10)
        service.restart("it stopped")
        assert service.child.is_running()
        assert service.child.pid != pid
    finally:
        tracer.kill()
        tracer.communicate(timeout=10)
        service.child.kill()
