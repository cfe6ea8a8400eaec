"""Whatever is stopped or killed in the middle of a copy: it is noticed, named, retried, and the copy is identical."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sendense.jobs.broker import make_app
from sendense.jobs.queues import site_queue
from tests.chaos.running import BATCH, BATCHES, QUICK, RunningCopy, copy_midway, scattered_disk, slow_server
from tests.integration.support import Lab, same_image
from tests.servers import Server

DATA = BATCHES * BATCH
IN_FLIGHT = 2 * BATCH
"""What two processes may have under way, and so have to copy again after one fault."""
STOPPED_SECONDS = QUICK["no_progress_timeout"] + 10
"""Long enough for the deadline, the doctor's look (five seconds), and a failed attempt behind that."""


@pytest.fixture
def disk(lab: Lab) -> Path:
    """What is copied."""
    return scattered_disk(lab)


@pytest.fixture
def source(lab: Lab, disk: Path) -> Iterator[Server]:
    """Where it is copied from."""
    with slow_server(disk, lab.path("source.sock"), "--read-only") as server:
        yield server


def stop_one_process(copy: RunningCopy) -> None:
    copy.worker_processes()[0].suspend()


def stop_worker(copy: RunningCopy) -> None:
    for process in (copy.worker(), *copy.worker_processes()):
        process.suspend()


def stop_worker_main(copy: RunningCopy) -> None:
    copy.worker().suspend()


def stop_target(copy: RunningCopy) -> None:
    copy.family("target.sock")[0].suspend()


def stop_redis(copy: RunningCopy) -> None:
    copy.family("redis-server")[0].suspend()


def kill_one_process(copy: RunningCopy) -> None:
    copy.worker_processes()[0].kill()


def kill_every_process(copy: RunningCopy) -> None:
    for process in copy.worker_processes():
        process.kill()


def kill_worker(copy: RunningCopy) -> None:
    copy.worker().kill()


def kill_target(copy: RunningCopy) -> None:
    copy.family("target.sock")[0].kill()


def kill_redis(copy: RunningCopy) -> None:
    copy.family("redis-server")[0].kill()


STOPPED = {
    stop_one_process: "stopped renewing its claim",
    stop_worker: "the worker stopped",
    stop_worker_main: "the worker stopped",
    stop_target: "the target server stopped answering",
    stop_redis: "redis stopped answering",
}
KILLED = {
    kill_one_process: "stopped renewing its claim",
    kill_every_process: "stopped renewing its claim",
    kill_worker: "worker ended",
    kill_target: "target ended",
    kill_redis: "redis ended",
}


@pytest.mark.parametrize(
    ("fault", "named"), [*STOPPED.items(), *KILLED.items()], ids=[fault.__name__ for fault in (*STOPPED, *KILLED)]
)
def test_fault_of_a_part_of_the_copy(
    lab: Lab, disk: Path, source: Server, fault: Callable[[RunningCopy], None], named: str
) -> None:
    """A part of the copy that is stopped for good, or killed, costs at most the batches under way, and is named."""
    target = lab.path("copy.qcow2")
    with copy_midway(lab, source.uri, target, target.with_name("copy.qcow2.partial")) as copy:
        fault(copy)
        result = copy.finish()
    assert result.status == 0, result.stderr
    assert named in result.stderr
    assert result.summary["copied"] - DATA <= IN_FLIGHT
    assert same_image(disk, target)


def test_worker_that_takes_no_tasks(lab: Lab) -> None:
    """A worker that lives and takes nothing, as after a reconnection that went wrong, is replaced."""
    disk, target = scattered_disk(lab, 2 * BATCHES), lab.path("copy.qcow2")
    with slow_server(disk, lab.path("source.sock"), "--read-only") as source:
        with copy_midway(lab, source.uri, target, target.with_name("copy.qcow2.partial")) as copy:
            make_app(copy.redis_url()).control.cancel_consumer(site_queue("local"))
            result = copy.finish()
    assert result.status == 0, result.stderr
    assert "the worker takes none" in result.stderr
    assert result.summary["copied"] == 2 * DATA
    assert same_image(disk, target)


def test_source_stopped_for_longer_than_its_deadline(lab: Lab, disk: Path, source: Server) -> None:
    """A source server that stops is named with the doctor's verdict, and the copy goes on when it does."""
    target = lab.path("copy.qcow2")
    with copy_midway(lab, source.uri, target, target.with_name("copy.qcow2.partial")) as copy:
        source.stop()
        time.sleep(STOPPED_SECONDS)
        source.cont()
        result = copy.finish()
    assert result.status == 0, result.stderr
    assert "doctor: no-greeting" in result.stderr
    assert result.summary["stalls"] >= 1
    assert result.summary["copied"] - DATA <= IN_FLIGHT
    assert same_image(disk, target)


def test_external_target_stopped_and_going_on(lab: Lab, disk: Path, source: Server) -> None:
    """An NBD target that stops for longer than its deadline is named, and written to again when it goes on."""
    stored = lab.path("stored.raw")
    with stored.open("wb") as file:
        file.truncate(disk.stat().st_size)
    with (
        slow_server(stored, lab.path("target.nbd")) as target,
        copy_midway(lab, source.uri, target.uri, stored) as copy,
    ):
        target.stop()
        time.sleep(STOPPED_SECONDS)
        target.cont()
        result = copy.finish()
    assert result.status == 0, result.stderr
    assert target.uri in result.stderr
    assert "no reply" in result.stderr or "no greeting" in result.stderr
    assert stored.read_bytes() == disk.read_bytes()


def test_source_killed_and_started_again(lab: Lab, disk: Path, source: Server) -> None:
    """A source server that is killed, and started again by whoever runs it, is used again."""
    target = lab.path("copy.qcow2")
    with copy_midway(lab, source.uri, target, target.with_name("copy.qcow2.partial")) as copy:
        source.kill()
        with slow_server(disk, lab.path("source.sock"), "--read-only"):
            result = copy.finish()
    assert result.status == 0, result.stderr
    assert source.uri in result.stderr
    assert result.summary["retries"] >= 1
    assert same_image(disk, target)


@pytest.mark.parametrize(
    ("number", "named"), [(signal.SIGKILL, "source ended"), (signal.SIGSTOP, "the source server stopped answering")]
)
def test_own_source_server(lab: Lab, disk: Path, number: signal.Signals, named: str) -> None:
    """The server that the copy runs for a local source is started again when it is killed, or stops for good."""
    stored = lab.path("stored.raw")
    with stored.open("wb") as file:
        file.truncate(disk.stat().st_size)
    with slow_server(stored, lab.path("target.nbd")) as target:
        with copy_midway(lab, disk, target.uri, stored) as copy:
            copy.family("source.sock")[0].send_signal(number)
            result = copy.finish()
    assert result.status == 0, result.stderr
    assert named in result.stderr
    assert stored.read_bytes() == disk.read_bytes()


def test_killed_copy_resumes(lab: Lab, disk: Path, source: Server) -> None:
    """No child survives a killed copy, and the next run copies only what is missing."""
    target = lab.path("copy.qcow2")
    with copy_midway(lab, source.uri, target, target.with_name("copy.qcow2.partial")) as copy:
        copy.send(signal.SIGKILL)
        copy.process.wait()
        assert lab.survivors() == []
    assert not target.exists()
    refused = lab.copy(source.uri, target)
    assert refused.status == 2
    assert "--resume" in refused.stderr
    summary = lab.copied(source.uri, target, "--resume", "--verify")
    assert summary["already_done"] >= BATCH
    assert summary["copied"] == DATA - summary["already_done"]
    assert same_image(disk, target)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_copy_resumes(lab: Lab, disk: Path, source: Server, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end the copy with status 130, leave no process, and what is stored is not copied again."""
    target = lab.path("copy.qcow2")
    with copy_midway(lab, source.uri, target, target.with_name("copy.qcow2.partial")) as copy:
        copy.send(number)
        result = copy.finish()
    assert result.status == 130, result.stderr
    assert result.summary["state"] == "interrupted"
    assert "--resume" in result.error[1]
    summary = lab.copied(source.uri, target, "--resume")
    assert summary["already_done"] >= BATCH
    assert summary["copied"] == DATA - summary["already_done"]
    assert same_image(disk, target)


def test_interrupted_while_the_source_is_stopped(lab: Lab, disk: Path, source: Server) -> None:
    """Ctrl-C ends a copy within seconds also when its source does not answer."""
    target = lab.path("copy.qcow2")
    with copy_midway(lab, source.uri, target, target.with_name("copy.qcow2.partial")) as copy:
        source.stop()
        copy.send(signal.SIGINT)
        result = copy.finish()
        source.cont()
    assert result.status == 130, result.stderr
    lab.copied(source.uri, target, "--resume")
    assert same_image(disk, target)


def test_source_that_never_comes_back(lab: Lab, disk: Path, source: Server) -> None:
    """A source that stays away fails the copy with its history, and a later run goes on from what was stored."""
    target = lab.path("copy.qcow2")
    with copy_midway(lab, source.uri, target, target.with_name("copy.qcow2.partial")) as copy:
        source.kill()
        result = copy.finish()
    assert result.status == 1
    assert "attempt 6" in result.error[0]
    assert "--resume" in result.error[1]
    with slow_server(disk, lab.path("source.sock"), "--read-only"):
        summary = lab.copied(source.uri, target, "--resume")
    assert summary["copied"] == DATA - summary["already_done"]
    assert same_image(disk, target)
