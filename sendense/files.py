"""Files that survive a power cut: atomic replacement, fsync of file and folder, a lock, and clear errors."""

import errno
import fcntl
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sendense.errors import InputError, JobFailed

PART = ".part"
"""What ends the name of a file that is not whole: whoever finds one may delete it."""

LOCK_POLL_SECONDS = 0.05

_ROOM = "Make room on that file system (sendense points prune), then resume: what is stored stays stored."
_HINTS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: "Mount the repository's file system writable, then resume.",
    errno.EACCES: "Run as the user whom the repository belongs to.",
    errno.EPERM: "Run as the user whom the repository belongs to.",
    errno.EIO: "The disk under the repository fails: look at the system's log.",
}


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn the OSErrors of whoever writes at `path` into JobFailed, which says where and what to do."""
    try:
        yield
    except OSError as exc:
        raise JobFailed(f"{path}: {exc.strerror or exc}", hint_for(exc)) from exc


def hint_for(exc: OSError) -> str:
    """What an operator can do about it."""
    return _HINTS.get(exc.errno or 0, "Look at the repository's file system.")


def write_atomically(path: Path, content: bytes) -> None:
    """Make or replace a file: after any crash it is there as before, or with all of `content`."""
    with replacing(path) as part:
        part.write_bytes(content)


def identify(folder: Path) -> str:
    """What tells a service with this folder from one elsewhere; stays over restarts. InputError where it cannot."""
    file = folder / "identity"
    try:
        if not file.exists():
            write_atomically(file, secrets.token_hex(16).encode())
        return file.read_text()
    except OSError as exc:
        raise InputError(f"{file}: {exc.strerror}", "Set state_dir to a folder that may be written.") from exc


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The block writes a file under another name; in the end it is durable, and takes the place of `path`."""
    descriptor, name = tempfile.mkstemp(PART, f"{path.name}.", path.parent)  # 0600
    os.close(descriptor)
    part = Path(name)
    try:
        yield part
        sync(part)
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's content durable, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_secret(path: Path, setting: str) -> str:
    """Contents of a file without its final newline; InputError, which names the setting, where it cannot be used."""
    what = next((word for word in ("token", "secret") if word in setting), "password")
    make_it = f"Write the {what} into it, readable by this user only: install -m 600 /dev/stdin {path}"
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read()
    except OSError as exc:
        raise InputError(f"{setting} {path}: {exc.strerror or exc}", make_it) from exc
    if mode & 0o077:
        raise InputError(f"{setting} {path} is open to others (mode {mode:04o})", f"Run: chmod 600 {path}")
    secret = content.removesuffix(b"\n").removesuffix(b"\r")
    if not secret:
        raise InputError(f"{setting} {path} is empty", make_it)
    with suppress(UnicodeDecodeError):
        return secret.decode()
    # Raised out here: the decoder's error carries the secret.
    raise InputError(f"{setting} {path} is not UTF-8 text", f"Write the {what} into it as UTF-8.")


def make_folder(path: Path) -> None:
    """A folder with its parents, all of them durable and for their owner alone; one that is there is left alone."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    sync(path.parent)


def rename(old: Path, new: Path) -> None:
    """Rename, durably."""
    old.replace(new)
    sync(new.parent)
    if old.parent != new.parent:
        sync(old.parent)


@contextmanager
def locked(path: Path, seconds: float, busy: str, beat: Callable[[], None]) -> Iterator[None]:
    """
    Hold a lock among the processes of this machine; it ends with its holder.

    Raises JobFailed, with `busy` as its message, when somebody else holds it for longer than `seconds`.
    """
    with storing(path):
        make_folder(path.parent)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + seconds
        while not _lock(descriptor):
            if time.monotonic() > deadline:
                raise JobFailed(busy, "Wait until that is done, then try again.")
            beat()
            time.sleep(LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
