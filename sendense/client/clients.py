"""`Client` and `AsyncClient`: the same calls, waited for and awaited."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from functools import cached_property, wraps
from types import TracebackType
from typing import Generic, ParamSpec, Self, TypeVar

import httpx

from sendense.client import calls, streams
from sendense.client.access import Access
from sendense.client.calls import Call
from sendense.client.exchange import Flow, Outcome, Pause, Send, perform, refusal, unreachable
from sendense.client.handles import AsyncJobHandle, JobHandle
from sendense.requests import Event
from sendense.views import Job

P = ParamSpec("P")
T = TypeVar("T")


class _Calls(Generic[P, T]):
    """A method of Client that makes a call and returns its answer."""

    def __init__(self, call: Callable[P, Call[T]]) -> None:
        self._call = call
        self.__doc__ = call.__doc__

    def __get__(self, client: "Client", owner: type["Client"]) -> Callable[P, T]:
        @wraps(self._call)
        def method(*args: P.args, **named: P.kwargs) -> T:
            return client.run(perform(self._call(*args, **named), client.url, client.patience))

        return method


class _Begins(Generic[P]):
    """A method of Client that begins a job."""

    def __init__(self, call: Callable[P, Call[Job]]) -> None:
        self._call = call
        self.__doc__ = call.__doc__

    def __get__(self, client: "Client", owner: type["Client"]) -> Callable[P, JobHandle]:
        @wraps(self._call)
        def method(*args: P.args, **named: P.kwargs) -> JobHandle:
            found = client.run(perform(self._call(*args, **named), client.url, client.patience))
            return JobHandle(client, found)

        return method


class _Awaits(Generic[P, T]):
    """As _Calls, of AsyncClient."""

    def __init__(self, call: Callable[P, Call[T]]) -> None:
        self._call = call
        self.__doc__ = call.__doc__

    def __get__(self, client: "AsyncClient", owner: type["AsyncClient"]) -> Callable[P, Awaitable[T]]:
        @wraps(self._call)
        async def method(*args: P.args, **named: P.kwargs) -> T:
            return await client.run(perform(self._call(*args, **named), client.url, client.patience))

        return method


class _AwaitsBeginning(Generic[P]):
    """As _Begins, of AsyncClient."""

    def __init__(self, call: Callable[P, Call[Job]]) -> None:
        self._call = call
        self.__doc__ = call.__doc__

    def __get__(self, client: "AsyncClient", owner: type["AsyncClient"]) -> Callable[P, Awaitable[AsyncJobHandle]]:
        @wraps(self._call)
        async def method(*args: P.args, **named: P.kwargs) -> AsyncJobHandle:
            found = await client.run(perform(self._call(*args, **named), client.url, client.patience))
            return AsyncJobHandle(client, found)

        return method


class Client(Access):
    """
    A hub, in `service.hub.Hub`'s shape: every call returns what its function in `client.calls` says.

    To be used in a `with`, or closed.
    """

    sites = _Calls(calls.sites)
    vms = _Calls(calls.vms)
    vm = _Calls(calls.vm)
    power_on = _Calls(calls.power_on)
    preview = _Calls(calls.preview)
    submit = _Calls(calls.submit)
    jobs = _Calls(calls.jobs)
    job = _Calls(calls.job)
    events = _Calls(calls.events)
    disk_map = _Calls(calls.disk_map)
    cancel = _Calls(calls.cancel)
    pause = _Calls(calls.pause)
    resume = _Calls(calls.resume)
    points = _Calls(calls.points)
    point = _Calls(calls.point)
    chain = _Calls(calls.chain)
    delete = _Calls(calls.delete)
    prune = _Calls(calls.prune)
    clean = _Calls(calls.clean)
    schedules = _Calls(calls.schedules)
    schedule = _Calls(calls.schedule)
    add_schedule = _Calls(calls.add_schedule)
    remove_schedule = _Calls(calls.remove_schedule)
    pause_schedule = _Calls(calls.pause_schedule)
    resume_schedule = _Calls(calls.resume_schedule)
    run_schedule = _Calls(calls.run_schedule)
    nodes = _Calls(calls.nodes)
    drain = _Calls(calls.drain)
    undrain = _Calls(calls.undrain)
    throttles = _Calls(calls.throttles)
    set_throttle = _Calls(calls.set_throttle)
    remove_throttle = _Calls(calls.remove_throttle)
    exports = _Calls(calls.exports)
    serve = _Calls(calls.serve)
    unserve = _Calls(calls.unserve)
    repository = _Calls(calls.repository)
    notices = _Calls(calls.notices)
    test_notices = _Calls(calls.test_notices)

    backup = _Begins(calls.backup)
    restore = _Begins(calls.restore)
    verify = _Begins(calls.verify)
    migrate = _Begins(calls.migrate)
    take_up = _Begins(calls.job)
    """A job that was begun elsewhere, or earlier."""

    @cached_property
    def _http(self) -> httpx.Client:
        return httpx.Client(**self.options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def stream(self, job: str, after: str = "-") -> Iterator[Event | Job]:
        """
        A job's events after that one, and the job at each change, as they happen; the last is the job as it ended.

        HubUnreachable when the hub says nothing for 5 s, or ends the stream before. Nothing is tried again.
        """
        call, began = calls.stream(job, after), time.monotonic()
        request = self.request(self._http, call)
        request.headers["Accept"] = streams.MEDIA_TYPE
        try:
            response = self._http.send(request, stream=True)
            with closing(response):
                if not response.is_success:
                    response.read()
                    raise refusal(response, self.url)
                yield from streams.read(response.iter_lines(), self.url)
        except httpx.ReadTimeout as exc:
            raise unreachable(self.url, f"said nothing of the job for {calls.SILENT_SECONDS:.0f} s") from exc
        except httpx.HTTPError as exc:
            raise self.lost(exc, call, began).error from exc

    def run(self, flow: Flow[T]) -> T:
        """Do what a flow asks for, waiting."""
        outcome: Outcome = None
        while True:
            try:
                step = flow.send(outcome)
            except StopIteration as stop:
                found: T = stop.value
                return found
            outcome = self._do(step)

    def _do(self, step: Send | Pause) -> Outcome:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        began = time.monotonic()
        try:
            return self._http.send(self.request(self._http, step.call))
        except httpx.HTTPError as exc:
            return self.lost(exc, step.call, began)


class AsyncClient(Access):
    """As Client, awaited; to be used in an `async with`, or closed."""

    sites = _Awaits(calls.sites)
    vms = _Awaits(calls.vms)
    vm = _Awaits(calls.vm)
    power_on = _Awaits(calls.power_on)
    preview = _Awaits(calls.preview)
    submit = _Awaits(calls.submit)
    jobs = _Awaits(calls.jobs)
    job = _Awaits(calls.job)
    events = _Awaits(calls.events)
    disk_map = _Awaits(calls.disk_map)
    cancel = _Awaits(calls.cancel)
    pause = _Awaits(calls.pause)
    resume = _Awaits(calls.resume)
    points = _Awaits(calls.points)
    point = _Awaits(calls.point)
    chain = _Awaits(calls.chain)
    delete = _Awaits(calls.delete)
    prune = _Awaits(calls.prune)
    clean = _Awaits(calls.clean)
    schedules = _Awaits(calls.schedules)
    schedule = _Awaits(calls.schedule)
    add_schedule = _Awaits(calls.add_schedule)
    remove_schedule = _Awaits(calls.remove_schedule)
    pause_schedule = _Awaits(calls.pause_schedule)
    resume_schedule = _Awaits(calls.resume_schedule)
    run_schedule = _Awaits(calls.run_schedule)
    nodes = _Awaits(calls.nodes)
    drain = _Awaits(calls.drain)
    undrain = _Awaits(calls.undrain)
    throttles = _Awaits(calls.throttles)
    set_throttle = _Awaits(calls.set_throttle)
    remove_throttle = _Awaits(calls.remove_throttle)
    exports = _Awaits(calls.exports)
    serve = _Awaits(calls.serve)
    unserve = _Awaits(calls.unserve)
    repository = _Awaits(calls.repository)
    notices = _Awaits(calls.notices)
    test_notices = _Awaits(calls.test_notices)

    backup = _AwaitsBeginning(calls.backup)
    restore = _AwaitsBeginning(calls.restore)
    verify = _AwaitsBeginning(calls.verify)
    migrate = _AwaitsBeginning(calls.migrate)
    take_up = _AwaitsBeginning(calls.job)
    """A job that was begun elsewhere, or earlier."""

    @cached_property
    def _http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(**self.options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def run(self, flow: Flow[T]) -> T:
        """Do what a flow asks for, awaiting."""
        outcome: Outcome = None
        while True:
            try:
                step = flow.send(outcome)
            except StopIteration as stop:
                found: T = stop.value
                return found
            outcome = await self._do(step)

    async def _do(self, step: Send | Pause) -> Outcome:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        began = time.monotonic()
        try:
            return await self._http.send(self.request(self._http, step.call))
        except httpx.HTTPError as exc:
            return self.lost(exc, step.call, began)
