"""The folder of a hub, and its locks: who runs the hub's parts now, and the service that wants to."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sendense.errors import InputError
from sendense.settings import Settings

SOCKET_PATH_LIMIT = 107
"""Bytes of a Unix socket's path (unix(7))."""


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


def _try(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
