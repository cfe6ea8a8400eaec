"""How a service is told to end: SIGTERM or Ctrl-C, and once more when it has to be at once."""

import signal
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGINT)


class Urgent(BaseException):
    """A second signal to end, wherever the program is just then."""


class Stop:
    """What this process was told. SIGHUP means nothing: settings are read at the start."""

    def __init__(self) -> None:
        self.asked = self.urgent = False

    def listen(self) -> None:
        """From now on signals are heard here: the first is noted, a second raises Urgent."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number in ENDING:
            signal.signal(number, self._hear)

    def shield(self) -> None:
        """From now on no signal disturbs: what follows is short."""
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self.urgent = True
            self.shield()
            raise Urgent
        self.asked = True
