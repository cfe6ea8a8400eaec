"""Calls of the hub from requests: in a bounded number of threads, each under a time limit, changes in the audit log."""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, TypeVar, cast

import pydantic_core
from fastapi import Depends, Request
from starlette.responses import Response

from sendense.api.problems import TimeIsUp
from sendense.coordinator.context import Context
from sendense.errors import InternalError, SendenseError
from sendense.jobs import broker
from sendense.service.audit import Audit, Who
from sendense.service.metrics import Metrics
from sendense.service.operations import LOOK_SECONDS, POWER_SECONDS, SNAPSHOT_SECONDS, Operations
from sendense.service.tokens import Tokens
from sendense.views import Check, Deletion, Job, Readiness

log = logging.getLogger(__name__)

QUICK, ASKING, POWER, LONG = 25.0, LOOK_SECONDS + 10, POWER_SECONDS + 10, SNAPSHOT_SECONDS + 10
"""Seconds for a request that the hub answers by itself; that asks a site; that waits for a VM; for snapshots."""

READY_SECONDS = 8.0
"""For all that a hub needs to be looked at; each look has a limit of its own, but that of a file system."""

THREADS = 16
"""Requests that are worked on at once, of those that are quick and of those that may take long; the others wait."""

T = TypeVar("T")


class Calls:
    """What the requests of a process share."""

    def __init__(self, context: Context, prompt: Context, tokens: Tokens, audit: Audit) -> None:
        """`prompt` is the context of whoever would rather hear at once that Redis is away."""
        self._context, self._prompt, self.tokens, self.audit = context, prompt, tokens, audit
        self._quick = ThreadPoolExecutor(THREADS, "quick")
        self._long = ThreadPoolExecutor(THREADS, "long")
        self._look = ThreadPoolExecutor(2, "look")
        self._readiness: asyncio.Task[Readiness] | None = None
        self._metrics = Metrics(prompt)
        self._scrape = ThreadPoolExecutor(1, "scrape")
        self.closing: Callable[[], bool] = lambda: False
        """Whether the process is to end."""
        self.streams = 0
        """Event streams that are open."""

    async def run(self, work: Callable[[Operations], T], seconds: float) -> T:
        """What `work` returns or raises; TimeIsUp after so many seconds, of which waiting for a thread is a part."""
        deadline = time.monotonic() + seconds

        def beat() -> None:
            if self.closing() or time.monotonic() > deadline:
                raise TimeIsUp(seconds)

        def call() -> T:
            beat()
            try:
                return work(Operations(self._context, beat))
            except (SendenseError, *broker.Unavailable):
                raise
            except Exception as exc:
                log.exception("a request failed")
                raise InternalError(exc) from exc

        pool = self._quick if seconds <= QUICK else self._long
        return await _within(pool, call, seconds)

    async def readiness(self) -> Readiness:
        """Whether the hub can do its work; whoever asks while that is being looked at gets the same answer."""
        if not self._readiness or self._readiness.done():
            self._readiness = asyncio.create_task(self._looked())
        return await asyncio.shield(self._readiness)

    async def metrics_text(self) -> bytes:
        """The metrics; several scrapes at once wait for one another, which takes milliseconds."""
        return await _within(self._scrape, self._metrics.text, QUICK)

    async def _looked(self) -> Readiness:
        try:
            return await _within(self._look, Operations(self._prompt).readiness, READY_SECONDS)
        except SendenseError as exc:
            error = str(exc)
        except Exception:
            log.exception("readiness cannot be told")
            error = "met a fault of its own: look into api.log"
        return Readiness(ready=False, checks=[Check(name="hub", error=error)])


async def _within(pool: ThreadPoolExecutor, call: Callable[[], T], seconds: float) -> T:
    try:
        return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(pool, call), seconds)
    except TimeoutError as exc:
        raise TimeIsUp(seconds) from exc


class Caller:
    """Calls the hub for one request."""

    def __init__(self, request: Request) -> None:
        if "token" not in request.scope["state"]:
            raise RuntimeError("a route that the gate does not guard")
        self._request = request
        self.calls = calls_of(request)

    async def __call__(self, work: Callable[[Operations], object], seconds: float = QUICK) -> Response:
        """The answer with what `work` returns."""
        return await self._answer(work, seconds, 200)

    async def change(
        self,
        order: object,
        work: Callable[[Operations], object],
        seconds: float = QUICK,
        *,
        status: int = 200,
    ) -> Response:
        """The same, in the audit log. `order`: what the request asks for, beside its path."""
        state = self._request.scope["state"]
        who, action, id = state["who"], action_of(self._request), state["id"]

        def recorded(hub: Operations) -> object:
            state["recorded"] = True
            with self.calls.audit.change(who, action, order, id) as change:
                found = work(hub)
                change.made(found)
                return found

        return await self._answer(recorded, seconds, status)

    def key(self, given: str) -> str:
        """The order's key: the token's and the client's together, so that no client meets another's."""
        who = cast(Who, self._request.scope["state"]["who"])
        return f"{who.name}:{given}" if given else uuid.uuid4().hex

    async def _answer(self, work: Callable[[Operations], object], seconds: float, status: int) -> Response:
        """The JSON is made in the thread as well: that of a thousand VMs takes its time."""

        def answered(hub: Operations) -> Response:
            found = work(hub)
            if found is None:
                return Response(status_code=204)
            content = pydantic_core.to_json(found, inf_nan_mode="null")
            job = found.job if isinstance(found, Deletion) else found
            headers = {"Location": f"/api/v1/jobs/{job.id}"} if status == 202 and isinstance(job, Job) else None
            return Response(content, status, headers, "application/json")

        return await self.calls.run(answered, seconds)


def calls_of(request: Request) -> Calls:
    """What the process has for its requests."""
    return cast(Calls, request.app.state.calls)


def action_of(request: Request) -> str:
    """How the audit log names what is asked for: encoded, as it came."""
    return f"{request.method} {request.scope['raw_path'].decode('ascii', 'replace')}"


Call = Annotated[Caller, Depends(Caller)]
