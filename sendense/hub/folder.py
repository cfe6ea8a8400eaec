"""A hub's locks: in its folder, who runs the hub's parts now and the service that wants to; and on its repository."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from sendense.errors import Conflict, InputError
from sendense.repository.finding import is_new
from sendense.repository.layout import HUB_LOCK, Layout
from sendense.settings import Settings

SOCKET_PATH_LIMIT = 107
"""Bytes of a Unix socket's path (unix(7))."""

MOST_WORDS = 8192
"""Bytes that are read of what a hub says of itself: two paths of the longest."""


def prepare(settings: Settings) -> None:
    """Make the folder; InputError where that cannot be, or no socket could be in it."""
    folder = settings.hub_dir
    check_path(settings)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise InputError(f"{folder}: {exc.strerror}", "Set state_dir to a folder that may be written.") from exc


def check_path(settings: Settings) -> None:
    """InputError when no socket could be in the folder."""
    if len(os.fsencode(settings.hub_dir / "exports-watch.sock")) > SOCKET_PATH_LIMIT:
        raise InputError(
            f"{settings.state_dir}: too long a path for a Unix socket's", "Set state_dir to a folder with a short path."
        )


def service_lock(folder: Path) -> Path:
    """The lock that a hub's service has for as long as it is there, also while a command still runs the parts."""
    return folder / "service.lock"


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Have a lock for the block; False when another process has it."""
    try:
        lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise InputError(f"{path}: {exc.strerror}", "Set state_dir to a folder that may be written.") from exc
    try:
        yield _try(lock, fcntl.LOCK_EX)
    finally:
        os.close(lock)


def is_locked(path: Path) -> bool:
    """Whether a process has a lock."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


class RepositoryLock:
    """
    Has the repository of the settings for one hub: two would go on with the same jobs, and write the same images.

    The lock ends with its holder, whose words are in the file for whoever is refused.
    """

    def __init__(self, settings: Settings) -> None:
        self._path = Layout(settings.repository.absolute()).hub_lock if settings.repository else None
        self._state_dir = settings.state_dir.absolute()
        self._lock = -1

    def take(self) -> None:
        """
        Have it; Conflict while another hub does.

        A folder that is missing, has something else in it, or cannot be written to is left alone: nobody changes
        anything there. Call it again.
        """
        if self._lock >= 0 or not self._path or not _is_ours(self._path.parent):
            return
        try:
            lock = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        holder = ""
        try:
            if _try(lock, fcntl.LOCK_EX):
                self._lock = lock
            else:
                holder = _holder(lock)
        except OSError:  # a file system without locks
            return
        finally:
            if self._lock < 0:
                os.close(lock)
        if holder:
            raise Conflict(
                f"another hub has the repository {self._path.parent}: {holder}",
                "End that one, or give this one a repository of its own.",
            )
        with suppress(OSError):  # the file system may be full; the lock holds all the same
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, self._words().encode(), 0)

    def release(self) -> None:
        """Let it go."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _words(self) -> str:
        since = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        known = {"host": socket.gethostname(), "pid": os.getpid(), "state_dir": str(self._state_dir), "since": since}
        return json.dumps(known) + "\n"


def _is_ours(root: Path) -> bool:
    """Whether it is a repository, or can become one."""
    try:
        return is_new(root) or Layout(root).marker.exists()
    except OSError:
        return False


def _holder(lock: int) -> str:
    try:
        known = json.loads(os.pread(lock, MOST_WORDS, 0))
        return f"that of {known['state_dir']} on {known['host']} (process {known['pid']}), since {known['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"process with a lock on {HUB_LOCK} there"


def _try(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
