"""
What a service says: its own events and its children's logs, as lines of text or of JSON on stdout.

The children write into files, which are followed here and emptied when they are large: so nobody who does not read
stdout can stop them. This process does not wait for its reader either.
"""

import json
import logging
import os
import queue
import re
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from sendense.units import KiB, MiB

LARGE_LOG = 8 * MiB
"""Bytes of a log that was read, after which it is emptied."""

READ_BYTES = 256 * KiB
"""Of one log at a time: a child that floods its log must not keep its supervisor from supervising."""

LONGEST_LINE = 8 * KiB
"""Bytes after which a line is cut."""

MOST_WAITING = 10_000
"""Lines that wait for the reader of stdout; those that follow are counted, and lost."""

FLUSH_SECONDS = 2.0
"""For the last lines, at the end."""

# Of `logging` as our own processes format it, and of Redis.
_OURS = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ (DEBUG|INFO|WARNING|ERROR|CRITICAL) (.*?)( \{.*\})?")
_REDIS = re.compile(r"\d+:(?:[A-Z]|signal-handler) (?:\d+ \w+ \d{4} [\d:.]+ [.*#-]|\(\d+\)) (.*)")
_REDIS_TROUBLE = re.compile(r"(?i)warning|error|fail|can't|unable|denied|corrupt|out of memory")
"""Redis marks as a warning whatever it says at the level that it is started with."""

_OWN = ("time", "level", "part", "message")
"""Fields that every line has."""

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LineFormatter(logging.Formatter):
    """A log record as one line with its extra fields at the end, as JSON: for files that a Journal follows."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, before a traceback."""
        extra = extra_fields(record)
        return super().formatMessage(record) + (f" {json.dumps(extra, default=str)}" if extra else "")


def extra_fields(record: logging.LogRecord) -> dict[str, object]:
    """What a log call passed as `extra`; what libraries pass is theirs alone."""
    if not record.name.startswith(("sendense", "workers")):
        return {}
    return {name: value for name, value in vars(record).items() if name not in _PLAIN and name not in _OWN}


@dataclass(slots=True)
class _Log:
    """A child's log: how far it was read, the beginning of its last line, and the level of the one before."""

    part: str
    path: Path
    quiet: str
    """Words of lines that say nothing; empty for none."""
    at: int = 0
    begun: bytes = b""
    level: str = "info"


def stdout() -> BinaryIO:
    """This process's own, without a buffer: at the end of Python that would wait for a reader."""
    return open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)


class Journal:
    """
    All that is said goes through here, in order, and is written by a thread that may wait for its reader.

    `stream` has no buffer.
    """

    def __init__(self, stream: BinaryIO, *, as_json: bool) -> None:
        self._stream, self._as_json = stream, as_json
        self._logs: list[_Log] = []
        self._lines: queue.Queue[str] = queue.Queue(MOST_WAITING)
        self._lost = 0
        self._writer = threading.Thread(target=self._write, name="journal", daemon=True)
        self._writer.start()

    def tell(self, part: str, message: str, level: str = "info", **fields: object) -> None:
        """Say something. `fields` are for programs: the message says it all for people."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self._as_json:
            line = json.dumps({"time": now, "level": level, "part": part, "message": message, **fields}, default=str)
        else:
            line = f"{now} {level.upper():7} {part}: {message}"
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._lost += 1

    def follow(self, part: str, path: Path, quiet: str = "") -> None:
        """Say what is written to a log from now on, but for lines with the words `quiet`."""
        self._logs.append(_Log(part, path, quiet, _size(path)))

    def pump(self) -> None:
        """Say what the logs have new. To be called a few times a second."""
        for log in self._logs:
            self._read(log)
        if self._lost and self._lines.empty():
            lost, self._lost = self._lost, 0
            self.tell("journal", f"{lost} lines were lost: nobody read them", "warning")

    def close(self) -> None:
        """Write what is left, unless its reader keeps it waiting."""
        self.pump()
        deadline = time.monotonic() + FLUSH_SECONDS
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)

    def _read(self, log: _Log) -> None:
        size = _size(log.path)
        if size < log.at:  # put aside, or emptied
            log.at, log.begun = 0, b""
        if size == log.at:
            return
        try:
            with log.path.open("rb") as file:
                file.seek(log.at)
                found = file.read(READ_BYTES)
        except OSError:
            return
        log.at += len(found)
        *lines, log.begun = (log.begun + found).split(b"\n")
        if len(log.begun) > LONGEST_LINE:
            lines, log.begun = [*lines, log.begun], b""
        for line in lines:
            if not (log.quiet and log.quiet.encode() in line):
                for start in range(0, len(line), LONGEST_LINE):
                    self._repeat(log, line[start : start + LONGEST_LINE].decode(errors="replace").rstrip())
        if log.at > LARGE_LOG and log.at == _size(log.path):
            os.truncate(log.path, 0)  # its writers append
            log.at = 0

    def _repeat(self, log: _Log, line: str) -> None:
        fields: dict[str, Any] = {}
        if ours := _OURS.fullmatch(line):
            log.level, message, extra = ours[1].lower(), ours[2], ours[3] or ""
            fields = _fields(extra)
            if not (fields and self._as_json):
                message += extra
        elif redis := _REDIS.fullmatch(line):
            log.level, message = "warning" if _REDIS_TROUBLE.search(redis[1]) else "info", redis[1]
        else:  # of a traceback, say: as the line before
            message = line
        if message:
            self.tell(log.part, message, log.level, **fields)

    def _write(self) -> None:
        while True:
            left = f"{self._lines.get()}\n".encode()
            with suppress(OSError, ValueError):  # nobody will ever read it
                while left:
                    left = left[self._stream.write(left) :]
            self._lines.task_done()


class Handler(logging.Handler):
    """Brings what this process logs into its journal."""

    def __init__(self, journal: Journal, part: str) -> None:
        super().__init__(logging.WARNING)
        self._journal, self._part = journal, part

    def emit(self, record: logging.LogRecord) -> None:
        """Say it."""
        self._journal.tell(
            self._part, f"{record.name}: {record.getMessage()}", record.levelname.lower(), **extra_fields(record)
        )


def _fields(text: str) -> dict[str, Any]:
    """The fields that LineFormatter put at the end of a line; none where it is something else."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return {name: value for name, value in found.items() if name not in _OWN}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
