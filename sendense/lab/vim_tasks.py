"""vCenter's tasks: each runs in a thread of its own, and can be watched, waited for and cancelled."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sendense.lab.faults import fault
from sendense.lab.records import Vm
from sendense.lab.site import Site
from sendense.lab.vmomi import METHOD_FAULT, support, vim

_STEPS = 20
_KEPT = 200
"""Tasks remembered; vCenter forgets a finished one after ten minutes."""


@dataclass(slots=True)
class VimTask:
    """One task, as its TaskInfo tells of it."""

    id: str
    method: Any
    vm: Vm
    queued: datetime
    state: str = "queued"
    progress: int | None = None
    result: Any = None
    error: Exception | None = None
    started: datetime | None = None
    completed: datetime | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def is_open(self) -> bool:
        """Whether it is still to end."""
        return self.state in ("queued", "running")

    def info(self) -> Any:
        """The TaskInfo of this moment."""
        name = self.method.info.name
        return vim.TaskInfo(
            key=self.id,
            task=vim.Task(self.id),
            name=self.method,
            descriptionId=f"VirtualMachine.{name[0].lower()}{name[1:]}",
            entity=vim.VirtualMachine(self.vm.id),
            entityName=self.vm.name,
            state=self.state,
            cancelled=self.cancelled.is_set(),
            cancelable=self.is_open,
            progress=self.progress,
            result=self.result,
            error=self.error,
            reason=vim.TaskReasonUser(userName="operator@lab.local"),
            queueTime=self.queued,
            startTime=self.started,
            completeTime=self.completed,
            eventChainId=int(self.id.rpartition("-")[2]),
        )


class VimTasks:
    """The tasks of the site; one machine has one at a time."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._tasks: dict[str, VimTask] = {}

    def find(self, ref: str) -> VimTask | None:
        """The task with this managed object id, if it is remembered."""
        with self._site.changed:
            return self._tasks.get(ref)

    def of(self, vm: Vm) -> list[Any]:
        """The machine's tasks that are remembered."""
        with self._site.changed:
            return [vim.Task(task.id) for task in self._tasks.values() if task.vm.id == vm.id]

    def start(self, vm: Vm, method: str, seconds: float, work: Callable[[], Any], failure: Exception | None) -> Any:
        """Run `work` after so many seconds; returns the task. It ends with `failure` instead, if given."""
        with self._site.changed:
            if other := next((task for task in self._tasks.values() if task.vm.id == vm.id and task.is_open), None):
                message = "The operation is not allowed in the current state: another task is already in progress."
                raise fault("TaskInProgress", message, task=vim.Task(other.id))
            task = VimTask(self._site.new_id("task"), support.GetWsdlMethod("urn:vim25", method), vm, datetime.now(UTC))
            self._tasks[task.id] = task
            while len(self._tasks) > _KEPT:
                self._tasks.pop(next(iter(self._tasks)))
            self._site.changed.notify_all()
        threading.Thread(target=self._run, args=(task, seconds, work, failure), daemon=True).start()
        return vim.Task(task.id)

    def _run(self, task: VimTask, seconds: float, work: Callable[[], Any], failure: Exception | None) -> None:
        with self._site.changed:
            task.state, task.started, task.progress = "running", datetime.now(UTC), 0
            self._site.changed.notify_all()
        result, error = None, failure
        try:
            if self._pass_time(task, seconds):
                error = fault("RequestCanceled", "The task was canceled by a user.")
            elif error is None:
                result = work()
        except Exception as exc:
            is_fault = isinstance(exc, METHOD_FAULT)
            error = (
                exc if is_fault else fault("SystemError", f"A general system error occurred: {exc}", reason=str(exc))
            )
        with self._site.changed:
            task.result, task.error, task.completed = result, error, datetime.now(UTC)
            task.state = "error" if error else "success"
            task.progress = None if error else 100
            self._site.changed.notify_all()

    def _pass_time(self, task: VimTask, seconds: float) -> bool:
        """Let time go by, with progress; True when the task was cancelled meanwhile."""
        end = time.monotonic() + seconds
        for step in range(1, _STEPS + 1):
            left = end - time.monotonic()
            if left <= 0:
                break
            if task.cancelled.wait(left / (_STEPS + 1 - step)):
                return True
            with self._site.changed:
                task.progress = 95 * step // _STEPS
                self._site.changed.notify_all()
        return task.cancelled.is_set()
