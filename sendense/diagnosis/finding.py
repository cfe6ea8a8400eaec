"""What a check-up finds: one line for each thing that it looks at, and what to do about what is wrong."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Result = Literal["ok", "warning", "wrong", "unknown", "skipped"]

MISSED: tuple[Result, ...] = ("wrong", "unknown", "skipped")
"""What cannot be built upon."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing as it was found. `verdict`: a word for what is wrong (docs/troubleshooting.md), empty for nothing."""

    check: str
    result: Result
    verdict: str = ""
    detail: str = ""
    fix: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether something is wrong, or unknown that has to be known."""
        return self.result in ("wrong", "unknown")

    def as_json(self) -> dict[str, Any]:
        """As `sendense doctor --json` has it."""
        return asdict(self)


class Trouble(Exception):
    """What a look raises where not all is well: a verdict, what was seen, and what to do."""

    def __init__(self, verdict: str, detail: str, fix: str, result: Result = "wrong") -> None:
        super().__init__(verdict, detail, fix, result)
        self.verdict, self.detail, self.fix, self.result = verdict, detail, fix, result


@dataclass(frozen=True)
class Check:
    """
    One thing to look at. `look` returns what it saw, or raises Trouble or one of our errors.

    Where one of `needs` was found wrong, nothing could be said of this: it is skipped. `seconds`: a look that takes
    longer hangs. `verdict`: of an error that has none of its own; the check's name unless given.
    """

    name: str
    look: Callable[[], str]
    needs: tuple[str, ...] = ()
    seconds: float = 15.0
    verdict: str = ""
