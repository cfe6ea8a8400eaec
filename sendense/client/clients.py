"""`Client` and `AsyncClient`: the same calls, waited for and awaited."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import cached_property, wraps
from types import TracebackType
from typing import Generic, ParamSpec, Self, TypeVar

import httpx

from sendense.client import calls
from sendense.client.access import Access
from sendense.client.calls import Call
from sendense.client.exchange import Flow, Outcome, Pause, Send, perform
from sendense.client.handles import AsyncJobHandle, JobHandle
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
    cancel = _Calls(calls.cancel)
    pause = _Calls(calls.pause)
    resume = _Calls(calls.resume)
    points = _Calls(calls.points)
    point = _Calls(calls.point)
    chain = _Calls(calls.chain)
    delete = _Calls(calls.delete)
    prune = _Calls(calls.prune)
    clean = _Calls(calls.clean)
    nodes = _Calls(calls.nodes)
    drain = _Calls(calls.drain)
    undrain = _Calls(calls.undrain)
    exports = _Calls(calls.exports)
    serve = _Calls(calls.serve)
    unserve = _Calls(calls.unserve)
    repository = _Calls(calls.repository)

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
    cancel = _Awaits(calls.cancel)
    pause = _Awaits(calls.pause)
    resume = _Awaits(calls.resume)
    points = _Awaits(calls.points)
    point = _Awaits(calls.point)
    chain = _Awaits(calls.chain)
    delete = _Awaits(calls.delete)
    prune = _Awaits(calls.prune)
    clean = _Awaits(calls.clean)
    nodes = _Awaits(calls.nodes)
    drain = _Awaits(calls.drain)
    undrain = _Awaits(calls.undrain)
    exports = _Awaits(calls.exports)
    serve = _Awaits(calls.serve)
    unserve = _Awaits(calls.unserve)
    repository = _Awaits(calls.repository)

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
