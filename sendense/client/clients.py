"""`Client` and `AsyncClient`: the same calls, waited for and awaited."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from functools import cached_property, wraps
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar, overload

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
    """A method that makes a call and returns its answer, which an AsyncClient has awaited."""

    def __init__(self, call: Callable[P, Call[T]]) -> None:
        self._call = call
        self.__doc__ = call.__doc__

    @overload
    def __get__(self, client: "Client", owner: type) -> Callable[P, T]: ...

    @overload
    def __get__(self, client: "AsyncClient", owner: type) -> Callable[P, Awaitable[T]]: ...

    def __get__(self, client: Any, owner: type) -> Any:
        def flow(*args: P.args, **named: P.kwargs) -> Flow[T]:
            return (yield from perform(self._call(*args, **named), client.url, client.patience))

        return _method(self._call, client, flow)


class _Begins(Generic[P]):
    """A method that begins a job, or takes one up; returns its handle."""

    def __init__(self, call: Callable[P, Call[Job]]) -> None:
        self._call = call
        self.__doc__ = call.__doc__

    @overload
    def __get__(self, client: "Client", owner: type) -> Callable[P, JobHandle]: ...

    @overload
    def __get__(self, client: "AsyncClient", owner: type) -> Callable[P, Awaitable[AsyncJobHandle]]: ...

    def __get__(self, client: Any, owner: type) -> Any:
        def flow(*args: P.args, **named: P.kwargs) -> Flow[JobHandle | AsyncJobHandle]:
            found = yield from perform(self._call(*args, **named), client.url, client.patience)
            return AsyncJobHandle(client, found) if isinstance(client, AsyncClient) else JobHandle(client, found)

        return _method(self._call, client, flow)


def _method(call: Callable[P, object], client: Any, flow: Callable[P, Flow[object]]) -> Callable[P, Any]:
    @wraps(call)
    def method(*args: P.args, **named: P.kwargs) -> Any:
        return client.run(flow(*args, **named))

    return method


class _Methods(Access):
    """The calls, in `service.hub.Hub`'s shape: each returns what its function in `client.calls` says."""

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


class Client(_Methods):
    """A hub; to be used in a `with`, or closed."""

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


class AsyncClient(_Methods):
    """As Client, awaited, but for `stream`; to be used in an `async with`, or closed."""

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
