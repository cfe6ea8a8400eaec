"""What a service says on stdout: its own events and its children's logs, whether or not somebody reads."""

import io
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from sendense.supervise import journal as journal_module
from sendense.supervise.journal import Handler, Journal, LineFormatter
from sendense.supervise.notify import Notifier


def said(stream: io.BytesIO) -> list[dict[str, Any]]:
    """The lines as objects."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_lines_of_text() -> None:
    """A line for people has the time in UTC, the level, the part and the message."""
    stream = io.BytesIO()
    journal = Journal(stream, as_json=False)
    journal.tell("hub", "job 12, backup of web01: begins", action="job_begins", job_id="12")
    journal.close()
    time_, level, rest = stream.getvalue().decode().split(maxsplit=2)
    assert time_.endswith("Z")
    assert (level, rest) == ("INFO", "hub: job 12, backup of web01: begins\n")


def test_a_childs_log_is_repeated(tmp_path: Path) -> None:
    """What a child writes from now on is repeated with its level and its fields; a traceback goes with its line."""
    stream, log = io.BytesIO(), tmp_path / "copy.log"
    log.write_text("of an earlier run\n")
    journal = Journal(stream, as_json=True)
    journal.follow("copy", log)
    journal.follow("redis", tmp_path / "redis.log")
    journal.follow("exports", tmp_path / "exports.log", "negotiation failed")
    record = logging.makeLogRecord({"name": "sendense.jobs.batch", "levelname": "WARNING", "msg": "a batch failed"})
    record.job_id, record.batch = "j1", 7
    with log.open("a") as file:
        file.write(LineFormatter().format(record) + "\nTraceback\n  File x\n2026-01-01 00:00:00,000 ERR")
    journal.pump()
    with log.open("a") as file:
        file.write("OR 7 celery: broken {}\n")
    (tmp_path / "redis.log").write_text(
        "7:M 23 Nov 2026 02:42:54.597 # Server initialized\n7:M 23 Nov 2026 02:42:54.597 # Error\n"
    )
    (tmp_path / "exports.log").write_text("qemu: negotiation failed\nqemu: no space\n")
    journal.close()
    lines = said(stream)
    assert [(line["part"], line["level"]) for line in lines] == [
        *[("copy", "warning")] * 3,
        ("copy", "error"),
        ("redis", "info"),
        ("redis", "warning"),
        ("exports", "info"),
    ]
    assert lines[0]["message"].endswith("sendense.jobs.batch: a batch failed")
    assert (lines[0]["job_id"], lines[0]["batch"]) == ("j1", 7)
    assert [line["message"] for line in lines[1:]] == [
        *("Traceback", "  File x", "7 celery: broken {}", "Server initialized", "Error", "qemu: no space")
    ]


def test_large_logs_are_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that was read is emptied once it is large, and nothing of it is lost, long lines in pieces."""
    monkeypatch.setattr(journal_module, "LARGE_LOG", 50_000)
    stream, log = io.BytesIO(), tmp_path / "copy.log"
    journal = Journal(stream, as_json=True)
    journal.follow("copy", log)
    with log.open("ab", buffering=0) as file:
        for number in range(3000):
            file.write(b"line %d of this log\n" % number)
            if not number % 100:
                journal.pump()
        file.write(b"x" * 20_000 + b"\n")
    journal.close()
    messages = [line["message"] for line in said(stream)]
    assert messages[:3000] == [f"line {number} of this log" for number in range(3000)]
    assert "".join(messages[3000:]) == "x" * 20_000
    assert log.stat().st_size < 50_000


def test_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that stops costs lines, and never time; how many is said when it reads again."""
    monkeypatch.setattr(journal_module, "MOST_WAITING", 50)
    monkeypatch.setattr(journal_module, "FLUSH_SECONDS", 0.1)
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "wb", buffering=0) as stream:
        journal = Journal(stream, as_json=True)
        began = time.monotonic()
        for _ in range(5000):
            journal.tell("hub", "x" * 100)
        journal.close()
        assert time.monotonic() - began < 5
        lines = 0
        while b"lines were lost" not in (line := reader.readline()):
            lines += 1
            journal.pump()
        assert lines + int(json.loads(line)["message"].split()[0]) == 5000
        journal.close()


def test_own_logging_is_said() -> None:
    """What this process logs is in its journal, with its fields."""
    stream = io.BytesIO()
    journal = Journal(stream, as_json=True)
    logger = logging.getLogger("sendense.tests.journal")
    logger.addHandler(handler := Handler(journal, "hub"))
    try:
        logger.warning("odd: %d", 7, extra={"action": "odd"})
    finally:
        logger.removeHandler(handler)
    journal.close()
    [line] = said(stream)
    assert (line["level"], line["part"], line["action"]) == ("warning", "hub", "odd")
    assert line["message"] == "sendense.tests.journal: odd: 7"


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ready once, a status when it is new, alive twice as often as asked for; children do not inherit how."""
    address = f"@sendense-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address.replace("@", "\0"))
        listener.settimeout(10)
        for name, value in (
            ("NOTIFY_SOCKET", address),
            ("WATCHDOG_USEC", "200000"),
            ("WATCHDOG_PID", str(os.getpid())),
        ):
            monkeypatch.setenv(name, value)
        notifier = Notifier()
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()
        notifier.alive()
        notifier.alive()
        notifier.status("starting")
        notifier.status("starting")
        notifier.ready()
        notifier.ready()
        time.sleep(0.11)
        notifier.alive()
        notifier.stopping()
        heard = [listener.recv(100).decode() for _ in range(5)]
        assert heard == ["WATCHDOG=1", "STATUS=starting", "READY=1", "WATCHDOG=1", "STOPPING=1"]
    notifier.status("nobody listens any more")


def test_no_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one, nothing is said."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = Notifier()
    notifier.ready()
    notifier.alive()
    assert notifier.is_ready
