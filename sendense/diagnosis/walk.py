"""Going through the checks: in order, each under a deadline, and none that an earlier one makes pointless."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator

from sendense.diagnosis.finding import MISSED, Check, Finding, Trouble
from sendense.errors import (
    CertificateRefused,
    ExportsUnavailable,
    InternalError,
    LoginRefused,
    PermissionMissing,
    SendenseError,
    SiteUnreachable,
)
from sendense.jobs.access import RedisRefused
from sendense.jobs.broker import Unavailable
from sendense.service.bounded import within

log = logging.getLogger(__name__)

ALL_SECONDS = 120.0
"""For a whole check-up: with nothing wrong it takes a few seconds, and one stopped part costs its own deadline."""

_VERDICTS: tuple[tuple[type[SendenseError], str], ...] = (
    (RedisRefused, "redis-refused"),
    (ExportsUnavailable, "exports-away"),
    (SiteUnreachable, "vcenter-unreachable"),
    (CertificateRefused, "vcenter-certificate"),
    (LoginRefused, "vcenter-login"),
    (PermissionMissing, "vcenter-privileges"),
)
"""The first that fits; any other error is called as the check is."""

NO_ANSWER = "no-answer"


def examine(
    checks: Iterable[Check], seconds: float = ALL_SECONDS, told: Callable[[str], None] = lambda name: None
) -> Iterator[Finding]:
    """What each check finds, within so many seconds in all; `told` is given the name of the one that is next."""
    deadline, causes = time.monotonic() + seconds, dict[str, str]()
    for check in checks:
        cause = next((causes[need] for need in check.needs if need in causes), "")
        if cause:
            found = Finding(check.name, "skipped", detail=f"because of: {cause}")
        else:
            told(check.name)
            found = _look(check, deadline)
        if found.result in MISSED:
            causes[check.name] = cause or check.name
        yield found


def _look(check: Check, deadline: float) -> Finding:
    """The finding of one look, which is left alone when it hangs."""
    seconds = min(check.seconds, deadline - time.monotonic())
    if seconds <= 0:
        return Finding(
            check.name, "unknown", NO_ANSWER, "no time was left for it", "Mend what is above, and ask again."
        )
    try:
        return within(seconds, lambda: _ask(check))
    except TimeoutError:
        fix = "What it looks at does not answer: a disk, a file system of another machine, or a stopped process."
        return Finding(check.name, "wrong", NO_ANSWER, f"no answer in {seconds:.0f} s", fix)


def _ask(check: Check) -> Finding:
    try:
        return Finding(check.name, "ok", detail=check.look())
    except Trouble as exc:
        return Finding(check.name, exc.result, exc.verdict, exc.detail, exc.fix)
    except SendenseError as exc:
        called = check.verdict or check.name.replace(" ", "-")
        verdict = next((verdict for error, verdict in _VERDICTS if isinstance(exc, error)), called)
        return Finding(check.name, "wrong", verdict, str(exc), exc.hint)
    except Unavailable as exc:
        return Finding(check.name, "wrong", "redis-silent", f"Redis does not answer: {exc}", REDIS_FIX)
    except Exception as exc:
        log.debug("a look failed", exc_info=True)
        return Finding(check.name, "unknown", "fault", str(InternalError(exc)), InternalError.hint)


REDIS_FIX = (
    "It is stopped, overloaded, or its disk is: look at its log (hub/redis.log in the state folder), then restart it."
)
