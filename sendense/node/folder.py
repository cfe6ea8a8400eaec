"""Where a node keeps its logs and what it is known by."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from sendense.errors import Conflict, InputError
from sendense.files import identify
from sendense.settings import Settings
from sendense.supervise.child import sweep

_TEMPORARY = ("disk-*", "pymp-*")
"""What killed workers leave in their temporary folder."""


class NodeFolder:
    """The folder of one node of this machine; `identity` tells it from a node of the same name on another one."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._name = name
        self.path = settings.state_dir.absolute() / f"node-{name}"
        self.identity = ""
        """Stays over restarts: whoever has the lock and this knows that the one before is dead."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Have it alone; Conflict when the node runs already."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise InputError(f"{self.path}: {exc.strerror}", "Set state_dir to a folder that may be written.") from exc
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                hint = "End that one, or give this one another name with --name."
                raise Conflict(f"node {self._name} runs already on this machine", hint) from exc
            sweep(self.path)
            self.identity = identify(self.path)
            yield
        finally:
            os.close(lock)
