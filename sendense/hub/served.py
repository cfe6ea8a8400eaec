"""The exports of `serve`: put back whenever the exports daemon was started again."""

import threading
from pathlib import Path

from sendense.coordinator.context import Context
from sendense.errors import ExportsUnavailable, SendenseError
from sendense.jobs import broker
from sendense.nbd.connect import no_beat
from sendense.supervise.service import Note


class Served:
    """Looks in a thread of its own: the daemon may be busy for a while, and its supervisor may not."""

    def __init__(self, context: Context, note: Note) -> None:
        self._context, self._note = context, note
        self._daemon = 0
        """The process that has them all."""
        self._thread: threading.Thread | None = None

    def keep(self, daemon: int) -> None:
        """To be called at every tick, with the daemon's process id."""
        if daemon == self._daemon or (self._thread and self._thread.is_alive()):
            return
        self._thread = threading.Thread(target=self._put_back, args=(daemon,), name="served", daemon=True)
        self._thread.start()

    def _put_back(self, daemon: int) -> None:
        jobs, exports = self._context.jobs, self._context.exports(no_beat)
        try:
            for name, image in jobs.served().items():
                try:
                    exports.add(name, Path(image), writable=False)
                except ExportsUnavailable:
                    return  # until the next tick
                except SendenseError as exc:
                    self._note(f"export {name} cannot be put back: {exc}")
                if name not in jobs.served():  # somebody ended it meanwhile
                    exports.remove(name)
        except (ExportsUnavailable, *broker.Unavailable):
            return
        self._daemon = daemon
