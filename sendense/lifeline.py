"""Children that cannot outlive this process."""

import os
from collections.abc import Sequence

# The kernel sends SIGKILL when the parent dies: setpriv(1) sets that up before the exec. The shell then looks whether
# the parent died before (measured: one that was killed within milliseconds of the start left its server behind).
_LIFELINE = ("setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", '[ "$PPID" = "$1" ] || exit 1; shift; exec "$@"', "sh")


def tied(command: Sequence[str]) -> list[str]:
    """The command, for a child of this process that ends with it, however that ends."""
    return [*_LIFELINE, str(os.getpid()), *command]
