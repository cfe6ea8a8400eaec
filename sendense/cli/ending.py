"""How commands end: exit statuses, and what Ctrl-C and SIGTERM do."""

import signal
from types import FrameType

EXIT_FAILED, EXIT_USAGE, EXIT_DIFFERENT, EXIT_INTERRUPTED = 1, 2, 3, 130

AGAIN_SECONDS = 0.02
"""Until an interruption that came at a bad moment is raised."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM."""


def interrupt(number: int, frame: FrameType | None) -> None:
    """Once: what follows is the end in good order, and takes less than five seconds."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    if _would_be_swallowed(frame):
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        return
    raise Interrupted


def _would_be_swallowed(frame: FrameType | None) -> bool:
    """Python prints and forgets what is raised within a finalizer, and within the callbacks of its import system."""
    while frame:
        code = frame.f_code
        if code.co_name == "__del__" or code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
