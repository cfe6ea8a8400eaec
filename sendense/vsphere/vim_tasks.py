"""Waiting for vCenter's tasks, here vim_tasks."""

import time
from collections.abc import Callable

from pyVmomi import vim, vmodl

from sendense.errors import SiteError, SiteFault
from sendense.units import show_seconds
from sendense.vsphere.faults import moref_of, translate, words
from sendense.vsphere.session import Session

FIRST_POLL_SECONDS = 0.1
POLL_SECONDS = 1.0
"""Between two looks at a vim_task; the first ones come sooner, as most are short."""

Progress = Callable[[int], None]


def no_progress(percent: int) -> None:
    """For callers that show none."""


class VimTaskFailed(Exception):
    """A vim_task ended with `fault`, or had not ended at the deadline (then that is None)."""

    def __init__(self, said: str, fault: vmodl.MethodFault | None = None) -> None:
        super().__init__(said)
        self.fault = fault


def perform(
    session: Session,
    what: str,
    start: Callable[[], vim.Task],
    deadline: float,
    progress: Progress = no_progress,
) -> object:
    """
    Result of the vim_task that `start` makes, once it has ended well.

    Raises VimTaskFailed where it cannot start, ends otherwise, or not before `deadline` (on the monotonic clock); then
    it goes on at the site.
    """
    try:
        vim_task = session.call(what, start, passing=(vmodl.MethodFault,), repeat=False)
    except vmodl.MethodFault as exc:
        raise VimTaskFailed(words(exc), exc) from exc
    return wait_for(session, what, vim_task, deadline, progress)


def wait_for(
    session: Session, what: str, vim_task: vim.Task, deadline: float, progress: Progress = no_progress
) -> object:
    """Result of a vim_task that somebody started; see `perform`."""
    began, delay, shown = time.monotonic(), FIRST_POLL_SECONDS, -1
    while True:
        info = session.call(what, lambda: vim_task.info)
        if info.state == vim.TaskInfo.State.success:
            return info.result
        if info.state == vim.TaskInfo.State.error:
            raise VimTaskFailed(words(info.error) if info.error else "it failed and does not say why", info.error)
        percent = info.progress or 0
        if percent != shown:
            shown = percent
            progress(percent)
        now = time.monotonic()
        if now >= deadline:
            state = "waiting to start" if info.state == vim.TaskInfo.State.queued else f"at {percent} %"
            raise VimTaskFailed(f"{moref_of(vim_task)} is {state} after {show_seconds(now - began)}")
        session.pause(min(delay, max(deadline - now, 0.01)))
        delay = min(delay * 1.5, POLL_SECONDS)


def error_of(
    session: Session, what: str, failure: VimTaskFailed, otherwise: Callable[[str, str], SiteError]
) -> SiteError:
    """The error for a failure: what its fault stands for everywhere, or `otherwise` of the site and the words."""
    if failure.fault is not None:
        error = translate(session.name, what, failure.fault)
        if not isinstance(error, SiteFault):
            return error
    return otherwise(session.name, f"{what}: {failure}")
