"""Child processes that cannot outlive this one, that log into a file, and that are ended within a deadline."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from sendense.errors import JobFailed
from sendense.lifeline import tied

START_SECONDS = 30.0
"""A child that is not of use after this long never will be: all of them need well under two."""

KILL_SECONDS = 2.0
"""A killed process is gone at once, unless the kernel has it wait for a disk."""


_TEMPORARY = ("disk-*", "pymp-*")
"""What killed workers leave in their temporary folder."""


class Child:
    """One child process in a session of its own, so that Ctrl-C reaches only its parent."""

    def __init__(self, name: str, argv: Sequence[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.name, self.argv, self.log = name, list(argv), log
        # What it leaves in a temporary folder when it is killed goes with its log's.
        self._env = {**os.environ, "TMPDIR": str(log.parent), **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id; 0 before it was started."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start it, or start it again."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                tied(self.argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                start_new_session=True,
            )

    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def ask_to_end(self) -> None:
        """Send SIGTERM, and do not wait."""
        if self.is_running() and self._process:
            self._process.terminate()

    def end(self, seconds: float) -> None:
        """Ask it to end, and kill it with all that it started when it has not after `seconds`."""
        if self._process is None:
            return
        family = self._family()
        self.ask_to_end()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        _kill(family)

    def kill(self) -> bool:
        """End it at once, with all that it started; False when it does not die: the kernel has it wait for a disk."""
        if self._process is None:
            return True
        family = self._family()
        if self._process.poll() is None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(KILL_SECONDS)
        _kill(family)
        return not self.is_running()

    def kill_own_child(self, pid: int) -> bool:
        """End a process if it is a child of this one; False when it is not, or is gone."""
        for process in self._family():
            if process.pid == pid:
                process.kill()
                return True
        return False

    def listens(self, port: int) -> bool:
        """Whether it, and not another process, listens at a TCP port."""
        try:
            found = psutil.Process(self.pid).net_connections("tcp") if self.is_running() else []
        except psutil.Error:
            return False
        except OSError:  # a hardened unit may hide /proc/net
            return True
        return any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in found)

    def last_words(self, lines: int = 3) -> str:
        """The end of its log, for an error."""
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return ""
        return " / ".join(line.strip() for line in text.splitlines()[-lines:] if line.strip())

    def _family(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


def is_heard_of(lock: Path, port: int) -> bool:
    """Whether who has `lock` open, or one of its children, listens at a TCP port; True where that cannot be seen."""
    try:
        found = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
        pids = {each.pid for each in found if each.laddr and each.laddr.port == port}
    except (psutil.Error, OSError):  # a hardened unit may hide /proc/net
        return True
    return any(_is_of(lock.resolve(), pid) for pid in pids if pid)


def _is_of(lock: Path, pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        family = [process, *process.parents()]
    except psutil.Error:
        return False
    for each in family:
        with suppress(psutil.Error, OSError):  # another user's
            if any(Path(file.path) == lock for file in each.open_files()):
                return True
    return False


def sweep(folder: Path) -> None:
    """Remove what killed children whose logs are in the folder left there: it is their temporary folder, too."""
    for pattern in _TEMPORARY:
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def wait_until(ready: Callable[[], bool], child: Child) -> None:
    """Wait until a child is of use; JobFailed, with the end of its log, when it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if not child.is_running():
            raise JobFailed(f"the {child.name} ended at once: {child.last_words()}", f"Its log: {child.log}")
        if time.monotonic() > deadline:
            child.kill()
            raise JobFailed(f"the {child.name} was not up within {START_SECONDS:.0f} s", f"Its log: {child.log}")
        time.sleep(0.005)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()  # psutil makes sure that the pid is still the process that it was
        except psutil.NoSuchProcess:
            continue
    deadline = time.monotonic() + KILL_SECONDS
    while any(map(_lives, processes)) and time.monotonic() < deadline:
        time.sleep(0.005)


def _lives(process: psutil.Process) -> bool:
    """Not so when it is a zombie that its new parent has yet to collect: that one holds nothing any more."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
