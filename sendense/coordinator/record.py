"""
The record of every job, in Redis: what was asked, which step it is at, what it found out, and how it ended.

One process at a time runs a job's step, under a lease that it renews; what it writes counts only while that is its own.
"""

import hashlib
import json
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cached_property
from importlib import resources
from typing import Any, cast

import redis
from pydantic import TypeAdapter
from redis.commands.core import Script

from sendense.coordinator.outbox import KEPT_ENTRIES, LAST_NUMBER, OUTBOX
from sendense.errors import Cancelled, ClaimLost, Conflict, NotFound
from sendense.jobs.clock import clock
from sendense.jobs.ledger import LedgerUnavailable
from sendense.models import Failure
from sendense.requests import Event, JobRequest, JobView, Work

KEPT_JOBS = 1000
"""Ended jobs that are remembered."""

KEY_SECONDS = 86_400
"""An order's key is remembered for a day: a program that tries again does so within minutes."""

EVENTS_KEPT = 2000
"""Lines of a job's history that are remembered."""

_JOBS, _ACTIVE, _SERVED = "sendense:jobs", "sendense:active", "sendense:served"
_REQUEST: TypeAdapter[JobRequest] = TypeAdapter(JobRequest)

Value = str | int | float


class Jobs:
    """All jobs' records behind one Redis client."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client

    def submit(self, job: str, request: JobRequest, name: str, step: str, locks: Iterable[str]) -> None:
        """Enter a job in its first step; InputError names the job that has one of its locks."""
        names = list(locks)
        fields: dict[str, Value] = {
            "request": request.model_dump_json(),
            "name": name,
            "state": "queued",
            "step": step,
            "work": Work().model_dump_json(),
            "locks": json.dumps(names),
            "created": self.now(),
        }
        self._enter(job, names, fields, name, new=True)

    def resume(self, job: str, step: str, work: Work) -> None:
        """Have an ended job run again from a step; InputError when another one has its locks meanwhile."""
        key, view = _key(job), self.find_resumable(job)
        locks = json.loads(cast(bytes, self._redis.hget(key, "locks")))
        fields: dict[str, Value] = {"state": "queued", "step": step, "work": work.model_dump_json()}
        fields |= {"attempts": 0, "due": 0, "paused": 0}
        fields |= dict.fromkeys(("waiting", "leftover", "cancel", "outcome", "error", "ended"), "")
        self._enter(job, locks, fields, view.name, new=False)
        self.event(job, "resumed")

    def _enter(self, job: str, locks: list[str], fields: dict[str, Value], name: str, *, new: bool) -> None:
        values: list[Value] = [
            job,
            int(new),
            len(locks),
            *(f"sendense:lock:{lock}" for lock in locks),
        ]
        for item in fields.items():
            values += item
        holder = self._run("submit", [_key(job), _JOBS, _ACTIVE], values).decode()
        if holder:
            raise Conflict(
                f"{name}: job {holder} is at work on it",
                f"Wait until it ends (sendense jobs watch {holder}), or cancel it: sendense jobs cancel {holder}",
            )

    def id_for(self, key: str, order: str) -> str:
        """The id of the job that the order with this key makes: the same each time; Conflict for another order."""
        digest = hashlib.sha256(order.encode()).hexdigest()
        new = f"{uuid.uuid4().hex[:12]} {digest}".encode()
        name = f"sendense:key:{hashlib.sha256(key.encode()).hexdigest()}"
        known = cast(bytes | None, self._redis.set(name, new, nx=True, get=True, ex=KEY_SECONDS))
        job, of = (known or new).decode().split()
        if of != digest:
            raise Conflict("this key was given with another order", "Use a new key for a new order.")
        return job

    def keep_served(self, export: str, image: str) -> None:
        """Remember an export that is to be there until it is dropped, whatever happens to the daemon."""
        self._redis.hset(_SERVED, export, image)

    def drop_served(self, export: str) -> bool:
        """Forget one; whether it was there."""
        return bool(self._redis.hdel(_SERVED, export))

    def served(self) -> dict[str, str]:
        """The images of these exports, by name."""
        found = cast(dict[bytes, bytes], self._redis.hgetall(_SERVED))
        return {name.decode(): image.decode() for name, image in found.items()}

    def get(self, job: str) -> JobView | None:
        """A job; None when there is none of this id."""
        fields = cast(dict[bytes, bytes], self._redis.hgetall(_key(job)))
        return view_of(job, {name.decode(): value.decode() for name, value in fields.items()}) if fields else None

    def find(self, text: str) -> JobView:
        """A job by its id, or by the beginning of it; InputError when that is none or several."""
        found = [job for job in self.ids() if job.startswith(text)] if text else []
        view = self.get(found[0]) if len(found) == 1 else None
        if not view:
            if found:
                raise Conflict(f"job {text}: several jobs begin with that", ", ".join(found))
            raise NotFound(f"job {text}: no such job", "'sendense jobs' lists them.")
        return view

    def find_resumable(self, text: str) -> JobView:
        """As `find`; InputError also for a job that runs, or succeeded."""
        view = self.find(text)
        if view.state not in ("failed", "cancelled", "different"):
            raise Conflict(f"job {view.id}: {view.state}", "Only a job that failed or was cancelled can be resumed.")
        return view

    def ids(self) -> list[str]:
        """All jobs, the one that was handed in or resumed last first."""
        return [job.decode() for job in cast(list[bytes], self._redis.zrevrange(_JOBS, 0, -1))]

    def views(self) -> list[JobView]:
        """All jobs, the latest first."""
        return [view for job in self.ids() if (view := self.get(job))]

    def states(self) -> Counter[str]:
        """How many of all jobs are in each state."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job in self.ids():
                pipe.hget(_key(job), "state")
            return Counter(state.decode() for state in cast(list[bytes | None], pipe.execute()) if state)

    def active(self) -> list[str]:
        """The jobs that have not ended."""
        return sorted(job.decode() for job in cast(set[bytes], self._redis.smembers(_ACTIVE)))

    def is_active(self, job: str) -> bool:
        """Whether the job has not ended."""
        return bool(self._redis.sismember(_ACTIVE, job))

    def lapsed(self, job: str) -> str:
        """Who let the lease on the job's step lapse; empty when nobody did, or another one has it by now."""
        owner, until = cast(list[bytes | None], self._redis.hmget(_key(job), "owner", "until"))
        return owner.decode() if owner and float(until or 0) <= self.clock() else ""

    def is_leased(self, job: str) -> bool:
        """Whether somebody runs the job's step now, or nobody is to do so yet."""
        return self.alone([job]) == [None]

    def alone(self, jobs: Iterable[str]) -> list[float | None]:
        """Of each job since when (Redis's clock) nobody is at its step, though it may run; None if that is not so."""
        names, now = list(jobs), self.clock()
        with self._redis.pipeline(transaction=False) as pipe:
            for job in names:
                pipe.hmget(_key(job), "owner", "until", "due")
                pipe.zscore(_JOBS, job)
            answers = pipe.execute()
        found: list[float | None] = []
        for (owner, until, due), begun in zip(answers[::2], answers[1::2], strict=True):
            left, may = float(until or 0), float(due or 0)
            found.append(None if (owner and left > now) or may > now else max(begun or 0.0, left, may))
        return found

    def cancel(self, job: str) -> None:
        """Have the job's step end as soon as it can, and what it made cleaned."""
        self._redis.hset(_key(job), mapping={"cancel": 1, "paused": 0, "due": 0})
        self.event(job, "to be cancelled")

    def pause(self, job: str, paused: bool) -> None:
        """Have the job rest after what it has under way, or go on."""
        self._redis.hset(_key(job), mapping={"paused": int(paused), "due": 0})
        self.event(job, "to be paused" if paused else "goes on")

    def lease(self, job: str, owner: str, seconds: float, renew: float) -> "tuple[Lease | None, str]":
        """The right to run the job's step, and whose lease lapsed before (empty: nobody's); None if not to be had."""
        given, lapsed = self._run("lease", [_key(job), _ACTIVE], [job, owner, seconds])
        return (Lease(self, job, owner, seconds, renew) if given else None), lapsed.decode()

    def renew(self, job: str, owner: str, seconds: float) -> int:
        """Keep a lease: 0 when it is lost, 2 when the job is to be cancelled, else 1."""
        return int(self._run("renew", [_key(job)], [owner, seconds]))

    def write(self, job: str, owner: str, fields: dict[str, Value], *, release: bool, delay: float = 0.0) -> bool:
        """What a step found; False when the lease is not the caller's any more."""
        values: list[Value] = [owner, int(release), delay]
        for item in fields.items():
            values += item
        return bool(self._run("write", [_key(job)], values))

    def disown(self, job: str, worker: str) -> bool:
        """Give the lease back that a process of this worker had: it is dead, and its step's next run no new attempt."""
        return bool(self._run("disown", [_key(job)], [worker]))

    def finish(self, job: str, owner: str, state: str) -> bool:
        """End the job, and enter that in the outbox; False when the lease is not the caller's."""
        locks = json.loads(cast(bytes, self._redis.hget(_key(job), "locks")))
        values: list[Value] = [job, owner, len(locks), *(f"sendense:lock:{lock}" for lock in locks)]
        values += [KEPT_ENTRIES, "state", state, "ended", self.now(), "waiting", ""]
        return bool(self._run("finish", [_key(job), _ACTIVE, OUTBOX, LAST_NUMBER], values))

    def note_waiting(self, job: str, text: str) -> None:
        """What the job waits for, where none of its steps can say so."""
        self._redis.hset(_key(job), "waiting", text)

    def note_leftover(self, job: str, text: str) -> None:
        """What of an ended job is still to be cleaned; empty when nothing is."""
        self._redis.hset(_key(job), "leftover", text)

    def event(self, job: str, text: str) -> None:
        """Add a line to the job's history."""
        self._redis.xadd(_events(job), {"text": text}, maxlen=EVENTS_KEPT)

    def events(self, job: str, after: str = "-") -> list[Event]:
        """The job's history, oldest first, after the event of this id."""
        start = after if after == "-" else f"({after}"
        found = cast(list[tuple[bytes, dict[bytes, bytes]]], self._redis.xrange(_events(job), min=start))
        return [
            Event(
                id=number.decode(),
                time=datetime.fromtimestamp(int(number.split(b"-")[0]) / 1000, UTC),
                text=fields[b"text"].decode(),
            )
            for number, fields in found
        ]

    def forget_oldest(self) -> list[JobView]:
        """Forget all but the latest KEPT_JOBS that have ended; returns what they were."""
        forgotten = []
        for job in self.ids()[KEPT_JOBS:]:
            view = self.get(job)
            if view and view.ended and not self.is_active(job):
                self._redis.delete(_key(job), _events(job))
                self._redis.zrem(_JOBS, job)
                forgotten.append(view)
        return forgotten

    def now(self) -> str:
        """The time by Redis's clock, as records have it."""
        return datetime.fromtimestamp(self.clock(), UTC).isoformat()

    def clock(self) -> float:
        """Seconds since the epoch by Redis's clock: the machines' own need not agree."""
        return clock(self._redis)

    def _run(self, name: str, keys: list[str], args: list[Value]) -> Any:
        return self._scripts[name](keys=keys, args=args)

    @cached_property
    def _scripts(self) -> dict[str, Script]:
        folder = resources.files("sendense.coordinator") / "scripts"
        names = ("submit", "lease", "renew", "write", "finish", "disown")
        return {name: self._redis.register_script((folder / f"{name}.lua").read_text()) for name in names}


class Lease:
    """The right to run a job's step, kept by `beat`."""

    def __init__(self, jobs: Jobs, job: str, owner: str, seconds: float, renew: float) -> None:
        self._jobs, self.job, self.owner, self._seconds, self._renew = jobs, job, owner, seconds, renew
        self._renewed = time.monotonic()
        self.heeds_cancel = True
        """Cleaning goes on in a cancelled job."""

    def beat(self) -> None:
        """To be called at least every two seconds: raises ClaimLost or Cancelled when the step must end."""
        began = time.monotonic()
        if began - self._renewed < self._renew:
            return
        try:
            answer = self._jobs.renew(self.job, self.owner, self._seconds)
        except LedgerUnavailable:
            # Whether it still stands is unknown: go on only while it must.
            answer = int(time.monotonic() - self._renewed < self._seconds)
        else:
            self._renewed = began
        if not answer:
            raise ClaimLost(self.job, "its lease")
        if answer == 2 and self.heeds_cancel:
            raise Cancelled(self.job)

    def write(self, fields: dict[str, Value], *, release: bool = False, delay: float = 0.0) -> None:
        """Enter what the step found; ClaimLost when somebody else has the lease."""
        if not self._jobs.write(self.job, self.owner, fields, release=release, delay=delay):
            raise ClaimLost(self.job, "its lease")
        self._renewed = time.monotonic() if not release else self._renewed


def view_of(job: str, fields: dict[str, str]) -> JobView:
    """A job of the fields of its record."""

    def when(name: str) -> datetime | None:
        return datetime.fromisoformat(fields[name]) if fields.get(name) else None

    created = when("created")
    assert created
    return JobView(
        id=job,
        request=_REQUEST.validate_json(fields["request"]),
        name=fields["name"],
        state=cast(Any, fields["state"]),
        step=fields["step"],
        waiting=fields.get("waiting", ""),
        cancelled=bool(fields.get("cancel")),
        paused=fields.get("paused") == "1",
        outcome=cast(Any, fields.get("outcome") or "succeeded"),
        created=created,
        started=when("started"),
        ended=when("ended"),
        attempts=int(fields.get("attempts", 0)),
        error=Failure.model_validate_json(fields["error"]) if fields.get("error") else None,
        leftover=fields.get("leftover", ""),
        work=Work.model_validate_json(fields["work"]),
    )


def _key(job: str) -> str:
    return f"sendense:job:{job}"


def _events(job: str) -> str:
    return f"sendense:events:{job}"
