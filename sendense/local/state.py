"""The folder of one unfinished copy: its ledger's file, sockets and logs, and what it was asked to do."""

import fcntl
import os
import shutil
from pathlib import Path

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, ValidationError

from sendense.errors import InputError
from sendense.models import JobSpec

SOCKET_PATH_LIMIT = 107
"""Bytes of a Unix socket's path (unix(7))."""

_LONGEST_SOCKET = "source.sock"


class Unfinished(BaseModel):
    """What a later run has to know to go on. Written before the first byte is copied, gone when the copy is done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: JobSpec
    source: str
    """As the user named it, made absolute."""
    fingerprint: list[int]
    """Size and modification time of a local source: when they differ, resuming would mix two disks."""


class StateFolder:
    """Found by the target alone: only the last copy onto a target may be resumed."""

    def __init__(self, state_dir: Path, target: str) -> None:
        self.path = state_dir.absolute() / "copies" / blake3(target.encode()).hexdigest()[:16]
        self._target = target
        self._lock = -1
        if len(os.fsencode(self.path / _LONGEST_SOCKET)) > SOCKET_PATH_LIMIT:
            raise InputError(
                f"{state_dir}: too long a path for a Unix socket's",
                "Set SENDENSE_STATE_DIR to a folder with a short path.",
            )

    def lock(self) -> None:
        """Keep other copies away from this target, until this process ends."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            while not self._holds_lock():
                self._lock = os.open(self._lock_file, os.O_CREAT | os.O_RDWR, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise InputError(
                f"{self._target}: another copy onto it is running", "Wait until that one ends, or stop it."
            ) from exc
        except OSError as exc:
            raise InputError(
                f"{self.path}: {exc.strerror}", "Set SENDENSE_STATE_DIR to a folder that may be written."
            ) from exc

    def _holds_lock(self) -> bool:
        """Whether the file that is locked is still the one that others would lock: its last holder may delete it."""
        if self._lock < 0:
            return False
        try:
            mine, there = os.fstat(self._lock), self._lock_file.stat()
        except FileNotFoundError:
            there = None
        if there and (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino):
            return True
        os.close(self._lock)
        self._lock = -1
        return False

    def load(self) -> Unfinished | None:
        """The unfinished copy, if there is one."""
        try:
            return Unfinished.model_validate_json(self._request.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as exc:
            raise InputError(f"{self._request}: not readable by this version", "Start over with --force.") from exc

    def save(self, unfinished: Unfinished) -> None:
        """Make the copy one that can be resumed."""
        part = self._request.with_suffix(".part")
        part.write_text(unfinished.model_dump_json())
        part.replace(self._request)

    @property
    def is_unfinished(self) -> bool:
        """Whether there is something to go on with."""
        return self._request.exists()

    def finish(self) -> None:
        """There is nothing to go on with any more."""
        self._request.unlink(missing_ok=True)

    def clear(self) -> None:
        """Empty the folder: what an earlier copy left there is of no use."""
        self.finish()  # first: a half-cleared folder is no unfinished copy
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(mode=0o700, exist_ok=True)

    def leave(self) -> None:
        """At the end of this process's copy: delete the folder, unless there is something to go on with."""
        if not self.is_unfinished:
            shutil.rmtree(self.path, ignore_errors=True)
            self._lock_file.unlink(missing_ok=True)

    def socket(self, name: str) -> Path:
        """Where a child listens."""
        return self.path / f"{name}.sock"

    def log(self, name: str) -> Path:
        """Where a child's output goes."""
        return self.path / f"{name}.log"

    @property
    def _lock_file(self) -> Path:
        return self.path.with_suffix(".lock")

    @property
    def _request(self) -> Path:
        return self.path / "copy.json"
