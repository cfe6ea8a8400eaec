"""A job's history as server-sent events: a broken stream goes on where it broke, and a whole one ends with the job."""

import asyncio
import time
from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse

from sendense.api.calls import QUICK, Calls
from sendense.api.problems import TimeIsUp
from sendense.errors import InternalError, SendenseError
from sendense.jobs.broker import Unavailable
from sendense.requests import Event
from sendense.service.operations import Operations
from sendense.service.tokens import Token
from sendense.views import Job

MEDIA_TYPE = "text/event-stream"

STREAMS = 64
"""Open at once in a process: each looks at its job once a second."""

LOOK_SECONDS = 1.0
"""Between two looks at the job."""

HEARTBEAT_SECONDS = 2.0
"""Between two signs of life of a stream whose job has nothing to tell: a client that hears nothing gives it up."""

AWAY_SECONDS = 60.0
"""A stream ends when the hub's Redis does not answer for so long; the client then asks again by itself."""

AWAY_SOON_SECONDS = 5.0
"""The same for who also wants the progress: somebody looks at it, and should hear that there is none."""

AGAIN_MILLISECONDS = 2000
"""Until a client whose stream broke asks again."""


class EventStream(StreamingResponse):
    """The events of a job after one of them; ends with the job, with its token, or with the process."""

    def __init__(self, calls: Calls, token: Token, job: str, after: str, *, progress: bool) -> None:
        """`progress`: also the job itself, whenever something of it changed."""
        self._calls, self._token, self._job, self._after = calls, token, job, after
        self._progress, self._away = progress, AWAY_SOON_SECONDS if progress else AWAY_SECONDS
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(self._messages(), 200, headers, MEDIA_TYPE)

    async def _messages(self) -> AsyncIterator[str]:
        self._calls.streams += 1
        try:
            async for message in self._events():
                yield message
        finally:
            self._calls.streams -= 1

    async def _events(self) -> AsyncIterator[str]:
        yield f"retry: {AGAIN_MILLISECONDS}\n\n"
        said = heard = time.monotonic()
        shown = ""
        while not self._calls.closing() and self._calls.tokens.are_with(self._token):
            try:
                job, events = await self._calls.run(self._look, QUICK)
                heard = time.monotonic()
            except (TimeIsUp, InternalError, *Unavailable):
                job, events = None, []
                if time.monotonic() - heard > self._away:
                    return
            except SendenseError:  # the job is not remembered any more
                return
            for event in events:
                self._after = event.id
                yield f"id: {event.id}\ndata: {event.model_dump_json()}\n\n"
            if job and job.has_ended:
                yield f"event: end\ndata: {job.model_dump_json()}\n\n"
                return
            now = job.model_dump_json() if job and self._progress else shown
            if now != shown:
                yield f"event: job\ndata: {now}\n\n"
            if events or now != shown:
                said, shown = time.monotonic(), now
            elif time.monotonic() - said > HEARTBEAT_SECONDS:
                said = time.monotonic()
                yield ":\n\n"
            await asyncio.sleep(LOOK_SECONDS)

    def _look(self, hub: Operations) -> tuple[Job, list[Event]]:
        job = hub.job(self._job)  # before its events: the last of them are there when it has ended
        return job, hub.events(job.id, self._after)


def wants_stream(accept: str) -> bool:
    """Whether a client asks for a stream rather than for a list."""
    return any(part.partition(";")[0].strip().lower() == MEDIA_TYPE for part in accept.split(","))
