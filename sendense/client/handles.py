"""A job that a program began, or took up: waited for, looked at and ended."""

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from sendense.client import calls
from sendense.client.calls import Call
from sendense.client.exchange import Flow, Pause, perform
from sendense.errors import (
    Cancelled,
    Different,
    HubUnreachable,
    InputError,
    JobFailed,
    SendenseError,
    StillRunning,
)
from sendense.requests import Event
from sendense.units import show_seconds
from sendense.views import Job

LOOK_SECONDS = 1.0
"""Between two looks at a job."""

AWAY_SECONDS = 600.0
"""For which a hub may not answer while its job is waited for: it may be upgraded."""

OnProgress = Callable[[Job], None]
"""Is told how the job stands, at each look."""

T = TypeVar("T")


class Asking(Protocol):
    """A Client, as its handles use it."""

    url: str
    patience: float

    def run(self, flow: Flow[T]) -> T:
        """Do what a flow asks for."""


class AsyncAsking(Protocol):
    """An AsyncClient, as its handles use it."""

    url: str
    patience: float

    async def run(self, flow: Flow[T]) -> T:
        """Do what a flow asks for."""


def waiting(
    handle: "JobHandle | AsyncJobHandle", url: str, on_progress: OnProgress | None, timeout: float | None, away: float
) -> Flow[Job]:
    """Look at a handle's job until it has ended; raises what made it end without success."""
    job, began = handle.id, time.monotonic()
    heard = began
    while True:
        try:
            found = yield from perform(calls.job(job), url, patience=0)
        except HubUnreachable:
            if time.monotonic() - heard > away:
                raise
        else:
            heard, handle.job = time.monotonic(), found
            if on_progress:
                on_progress(found)
            if found.has_ended:
                return succeeded(found)
        if timeout is not None and time.monotonic() - began + LOOK_SECONDS > timeout:
            raise StillRunning(
                f"job {job}: has not ended in {show_seconds(time.monotonic() - began)}",
                f"It goes on; wait for it again, or look at it: sendense jobs show {job}",
            )
        yield Pause(LOOK_SECONDS)


def succeeded(job: Job) -> Job:
    """The job, if that is how it ended; otherwise raises why it did not."""
    if job.state == "succeeded":
        return job
    raise failure(job)


def failure(job: Job) -> SendenseError:
    """Why a job ended without success."""
    if job.state == "cancelled":
        return Cancelled(job.id)
    if not job.error:
        return JobFailed(f"{job.name}: {job.state}", f"Its history: sendense jobs events {job.id}")
    if job.state == "different":
        return Different(job.error.message)
    return (InputError if job.error.usage else JobFailed)(job.error.message, job.error.hint)


class JobHandle:
    """A job; `job` is how it stood when it was last looked at."""

    def __init__(self, client: Asking, job: Job) -> None:
        self._client, self.job = client, job

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id

    def wait(
        self, on_progress: OnProgress | None = None, *, timeout: float | None = None, away: float = AWAY_SECONDS
    ) -> Job:
        """
        Wait for the job's end; returns how it ended if it succeeded.

        Raises JobFailed, Different, Cancelled or InputError when it did not, StillRunning after `timeout` seconds, and
        HubUnreachable when the hub did not answer for `away` seconds. The job goes on whatever happens here.
        """
        return self._client.run(waiting(self, self._client.url, on_progress, timeout, away))

    def refresh(self) -> Job:
        """Look at it now."""
        self.job = self._ask(calls.job(self.id))
        return self.job

    def events(self, after: str = "-") -> list[Event]:
        """Its history after that event, oldest first."""
        return self._ask(calls.events(self.id, after))

    def cancel(self) -> Job:
        """Have it end and clean up after itself."""
        self.job = self._ask(calls.cancel(self.id))
        return self.job

    def pause(self) -> Job:
        """Have it rest."""
        self.job = self._ask(calls.pause(self.id))
        return self.job

    def resume(self) -> Job:
        """Have it go on."""
        self.job = self._ask(calls.resume(self.id))
        return self.job

    def _ask(self, call: Call[T]) -> T:
        return self._client.run(perform(call, self._client.url, self._client.patience))


class AsyncJobHandle:
    """As JobHandle, awaited."""

    def __init__(self, client: AsyncAsking, job: Job) -> None:
        self._client, self.job = client, job

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id

    async def wait(
        self, on_progress: OnProgress | None = None, *, timeout: float | None = None, away: float = AWAY_SECONDS
    ) -> Job:
        """As JobHandle.wait."""
        return await self._client.run(waiting(self, self._client.url, on_progress, timeout, away))

    async def refresh(self) -> Job:
        """Look at it now."""
        self.job = await self._ask(calls.job(self.id))
        return self.job

    async def events(self, after: str = "-") -> list[Event]:
        """Its history after that event, oldest first."""
        return await self._ask(calls.events(self.id, after))

    async def cancel(self) -> Job:
        """Have it end and clean up after itself."""
        self.job = await self._ask(calls.cancel(self.id))
        return self.job

    async def pause(self) -> Job:
        """Have it rest."""
        self.job = await self._ask(calls.pause(self.id))
        return self.job

    async def resume(self) -> Job:
        """Have it go on."""
        self.job = await self._ask(calls.resume(self.id))
        return self.job

    async def _ask(self, call: Call[T]) -> T:
        return await self._client.run(perform(call, self._client.url, self._client.patience))
