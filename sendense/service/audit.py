"""
The audit log: who changed what at a hub, and who was refused it. One JSON object a line, durable before it is answered.

A change has two lines of one id: `begun` before it is made, so that none goes unrecorded, and how it ended.
"""

import errno
import getpass
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import pydantic_core

from sendense.errors import InputError, SendenseError
from sendense.files import make_folder, storing, sync
from sendense.settings import Settings
from sendense.views import Deletion, Job, Pruning

Outcome = Literal["begun", "done", "refused", "failed"]

_PASSWORD = re.compile(r"""(://[^/?#@\s"]*?):[^/?#@\s"]*@""")
"""In a URI; NBD has no use for one, and somebody may still write it."""


@dataclass(frozen=True)
class Who:
    """Whoever orders: the name and role of a token and the address that it came from, or a user of this machine."""

    name: str
    role: str = ""
    address: str = ""


def local_user() -> Who:
    """Whoever runs this process."""
    try:
        return Who(f"local:{getpass.getuser()}")
    except (KeyError, OSError):  # the user has no name
        return Who(f"local:{os.getuid()}")


@dataclass
class Change:
    """A change under way."""

    jobs: list[str] = field(default_factory=list)

    def made(self, answer: object) -> None:
        """What came of it: the jobs among the answer are noted."""
        for each in answer if isinstance(answer, list) else [answer]:
            job = each.job if isinstance(each, Deletion | Pruning) else each
            if isinstance(job, Job):
                self.jobs.append(job.id)


class Audit:
    """The log in a state folder, `audit.log`; any number of processes write to it, and it may be renamed any time."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.state_dir.absolute() / "audit.log"

    @contextmanager
    def change(self, who: Who, action: str, order: object, id: str = "") -> Iterator[Change]:
        """Around the making of a change; JobFailed, and no change is made, when the log cannot be written."""
        id, change = id or uuid.uuid4().hex, Change()
        self.write(id, who, action, "begun", order)
        try:
            yield change
        except InputError as exc:
            self.write(id, who, action, "refused", order, error=str(exc))
            raise
        except BaseException as exc:
            error = str(exc) if isinstance(exc, SendenseError) else type(exc).__name__
            self.write(id, who, action, "failed", order, error=error)
            raise
        self.write(id, who, action, "done", order, jobs=change.jobs)

    def write(
        self,
        id: str,
        who: Who,
        action: str,
        outcome: Outcome,
        order: object = None,
        *,
        jobs: list[str] | None = None,
        error: str = "",
    ) -> None:
        """Add a line, and make it durable."""
        line: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": id,
            "who": who.name,
            "role": who.role,
            "address": who.address,
            "action": action,
            "order": order,
            "outcome": outcome,
            "jobs": jobs,
            "error": error,
        }
        said = pydantic_core.to_json({key: value for key, value in line.items() if value}).decode()
        with storing(self._path):
            self._append(_PASSWORD.sub(r"\1:…@", said).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        new = not self._path.exists()
        if new:
            make_folder(self._path.parent)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":  # a power cut took the end of the last line
                # Two who see that at once leave an empty line, which spoils nothing.
                line = b"\n" + line
            if os.write(descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            sync(self._path.parent)
