"""
The ledger: in Redis, per job, what is to do, who does it, and what is durably stored.

Updates that must go together are one Lua script each (scripts/): they are idempotent for the same owner, so a call
whose answer was lost is simply made again. A job that is not there has no state.
"""

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from importlib import resources
from itertools import islice
from typing import Any, NamedTuple, cast

import redis
from redis.backoff import ExponentialBackoff
from redis.commands.core import Script
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError
from redis.retry import Retry

from sendense.beat import Beat, beating, no_beat
from sendense.errors import ClaimLost
from sendense.extents import Extent, pack, total, unpack
from sendense.jobs import access, tally
from sendense.jobs.clock import clock
from sendense.jobs.plan import Batch, PlanSize
from sendense.models import Activity, Failure, JobSpec, JobState, Progress, Survey
from sendense.settings import Settings, load_settings

SOCKET_SECONDS = 2.0
"""Longest wait for one answer of Redis."""

RETRIES = 5
"""Tries of one call, with up to a second between them: a Redis that is started again is back within these."""

PLAN_CHUNK = 256
"""Batches of a plan that are written in one round trip: 4 MiB at most."""

AREAS_CHUNK = 4096
"""Extents of a disk's areas in one value: 64 KiB."""

SHORT_SECONDS = 10.0
"""A job that said for so long of nothing that it waits for a connection has one, or is gone."""

OPEN_SECONDS = 60
"""That nobody holds a job's connections needs no record."""

LedgerUnavailable = (ConnectionError, TimeoutError, BusyLoadingError)
"""What a call raises when Redis stays away for longer than its retries last."""


class Claim(NamedTuple):
    """An exclusive right to one batch, for a few seconds at a time."""

    job: str
    batch: int
    owner: str
    attempt: int
    extents: list[Extent]


class Window(NamedTuple):
    """Batches that were just marked as sent, and the job's state. `alone`: nothing else of the job is out."""

    state: JobState | None
    batches: list[int]
    alone: bool


class Record(NamedTuple):
    """What is kept of a stored batch."""

    batch: int
    data: int
    digest: bytes
    extents: list[Extent]


class Rest(NamedTuple):
    """
    The part of a batch that was not read, and why it could not be; `delay` in seconds, None to give it up.

    Without a failure it was just not read yet, and is a batch like those that nobody began.
    """

    stored: Batch
    left: Batch
    failure: Failure | None = None
    delay: float | None = 0.0


def connect(url: str, retries: int = RETRIES, settings: Settings | None = None) -> "redis.Redis":
    """
    A client whose calls end: SOCKET_SECONDS for each try.

    The settings, of this process unless given, say where the password and the certificates are (`jobs.access`). What is
    wrong with those is an InputError, of this or of any call.
    """
    return redis.Redis.from_pool(
        access.pool(
            url,
            settings or load_settings(),
            socket_timeout=SOCKET_SECONDS,
            socket_connect_timeout=SOCKET_SECONDS,
            retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), retries),
            retry_on_error=list(LedgerUnavailable),
        )
    )


class Ledger:
    """All jobs' records behind one Redis client."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client

    @property
    def client(self) -> "redis.Redis":
        """The client, for what is not a job's."""
        return self._redis

    def key(self, job: str, part: str) -> str:
        """Where Redis has a part of a job's record, for who looks at it as a whole."""
        return _key(job, part)

    def prepare(self, spec: JobSpec) -> None:
        """Enter a job, or an unfinished one again, in state `preparing`: what is recorded of it stays."""
        with self._redis.pipeline() as pipe:
            pipe.hset(_key(spec.id, "job"), mapping={"spec": spec.model_dump_json(), "state": "preparing"})
            pipe.hdel(_key(spec.id, "job"), "closed", "surveyor", "planner")
            pipe.execute()

    def touch(self, job: str, owner: str) -> None:
        """Say that this process works on the job, before it has batches to claim."""
        with self._redis.pipeline() as pipe:
            pipe.hincrby(_key(job, "job"), "beats", 1)
            pipe.hset(_key(job, "job"), mapping={"surveyor": owner, "active": clock(self._redis)})
            pipe.execute()

    def take_surveyor(self, job: str) -> str:
        """The process that worked on the job's survey last, told once; empty when none did."""
        with self._redis.pipeline() as pipe:
            pipe.hget(_key(job, "job"), "surveyor")
            pipe.hdel(_key(job, "job"), "surveyor")
            found: bytes | None = pipe.execute()[0]
        return (found or b"").decode()

    def beats(self, job: str) -> int:
        """A number that grows while somebody works on the job's survey."""
        return int(self._get(job, "beats") or 0)

    def ready(self, job: str, survey: Survey) -> None:
        """The endpoints of a planned job were looked at again."""
        self._redis.hset(_key(job, "job"), mapping={"survey": survey.model_dump_json(), "state": "ready"})

    def write_areas(self, job: str, extents: Iterable[Extent], beat: Beat) -> None:
        """
        Store which parts of the disk the job is about, instead of all of it, for its survey to plan.

        They count once the last of them is stored; what another process writes at the same time is kept apart.
        """
        writer, iterator, number = uuid.uuid4().hex, beating(extents, beat), 0
        while chunk := list(islice(iterator, AREAS_CHUNK)):
            beat()
            self._redis.hset(_key(job, "areas"), f"{writer}/{number}", pack(chunk))
            number += 1
        beat()
        self._redis.hset(_key(job, "job"), "areas", writer)

    def areas(self, job: str) -> Iterator[Extent] | None:
        """The parts of the disk that the job is about; None for all of it."""
        writer = self._get(job, "areas")
        return self._read_areas(job, writer.decode()) if writer else None

    def _read_areas(self, job: str, writer: str) -> Iterator[Extent]:
        number = 0
        while chunk := cast(bytes | None, self._redis.hget(_key(job, "areas"), f"{writer}/{number}")):
            yield from unpack(chunk)
            number += 1

    def close(self, job: str) -> None:
        """Nobody needs connections for this job any more."""
        self._redis.hset(_key(job, "job"), "closed", 1)

    def is_closed(self, job: str) -> bool:
        """Whether connections that are open for the job are to be closed."""
        return self._get(job, "closed") is not None or self.state(job) is None

    def hold(self, job: str, owner: str, seconds: float) -> None:
        """Say that a process has connections open for the job, for so long unless said again."""
        with self._redis.pipeline() as pipe:
            pipe.zadd(_key(job, "open"), {owner: clock(self._redis) + seconds})
            pipe.expire(_key(job, "open"), OPEN_SECONDS)  # also when the job was forgotten meanwhile
            pipe.execute()

    def let_go(self, job: str, owner: str) -> None:
        """Say that it has none any more."""
        self._redis.zrem(_key(job, "open"), owner)

    def holders(self, job: str) -> list[str]:
        """The processes that have connections open for the job."""
        found = cast(list[bytes], self._redis.zrangebyscore(_key(job, "open"), clock(self._redis), "+inf"))
        return [owner.decode() for owner in found]

    def reopen(self, job: str, records: Iterable["Record"]) -> None:
        """What is stored of these batches is wrong: they are to do again, in the job's next run."""
        values: list[str | int] = []
        for record in records:
            values += [record.batch, record.data]
        self._run("reopen", job, *values)

    def spec(self, job: str) -> JobSpec | None:
        """What the job was asked to do."""
        text = self._get(job, "spec")
        return JobSpec.model_validate_json(text) if text else None

    def state(self, job: str) -> JobState | None:
        """Where the job stands."""
        text = self._get(job, "state")
        return cast(JobState, text.decode()) if text else None

    def survey(self, job: str) -> Survey | None:
        """What was found out about the endpoints, once it was."""
        text = self._get(job, "survey")
        return Survey.model_validate_json(text) if text else None

    def write_plan(self, job: str, survey: Survey, batches: Iterable[Batch], beat: Beat = no_beat) -> None:
        """
        Store survey and plan, and then, with the last write, the state `ready`.

        ClaimLost when the job is planned already, or another process plans it by now: nothing more is written.
        """
        planner, size = self._own_plan("anew", job), PlanSize()
        self._enter(job, planner, enumerate(size.counting(batches)), beat)
        fields = ("survey", survey.model_dump_json(), *size.fields(), "size", survey.size, "state", "ready")
        self._change_plan("close", job, planner, *fields)

    def plan(self, job: str) -> Iterator[tuple[int, list[Extent]]]:
        """Every batch's number and extents."""
        count = self._redis.hlen(_key(job, "plan"))
        for start in range(0, count, PLAN_CHUNK):
            numbers = range(start, min(start + PLAN_CHUNK, count))
            found = cast(list[bytes], self._redis.hmget(_key(job, "plan"), list(map(str, numbers))))
            yield from zip(numbers, map(unpack, found), strict=True)

    def amend(self, job: str, batches: Iterable[tuple[int, Batch]], size: PlanSize, beat: Beat) -> None:
        """
        Replace batches of the plan, which are to do again, and add new ones; between two runs, again after a crash.

        `batches` is begun when the plan is nobody else's to change, and so can go by what `plan` says then; once it is
        exhausted, `size` is the whole plan's. ClaimLost when another process amends the plan by now, or a run has
        begun: nothing more is written.
        """
        planner = self._own_plan("amend", job)
        self._enter(job, planner, batches, beat)
        self._change_plan("close", job, planner, *size.fields())

    def _own_plan(self, act: str, job: str) -> str:
        planner = uuid.uuid4().hex
        self._change_plan(act, job, planner)
        return planner

    def _enter(self, job: str, planner: str, batches: Iterable[tuple[int, Batch]], beat: Beat) -> None:
        iterator = beating(batches, beat)
        while chunk := list(islice(iterator, PLAN_CHUNK)):
            beat()
            values: list[int | bytes] = []
            for number, batch in chunk:
                values += [number, batch.packed]
            self._change_plan("enter", job, planner, *values)

    def _change_plan(self, act: str, job: str, planner: str, *values: str | int | float | bytes) -> None:
        if not self._run("plan", job, act, planner, *values):
            raise ClaimLost(job, "its plan")

    def fail(self, job: str, failure: Failure) -> None:
        """End the job before or outside its batches."""
        with self._redis.pipeline() as pipe:
            pipe.rpush(_key(job, "failures"), failure.model_dump_json())
            pipe.hset(_key(job, "job"), "state", "failed")
            tally.count_stall(pipe, failure)
            pipe.execute()

    def begin(self, spec: JobSpec) -> int:
        """Start a run of a planned job, or go on with an unfinished one: returns the run's epoch."""
        return int(self._run("begin", spec.id, spec.model_dump_json()))

    def epoch(self, job: str) -> int:
        """The number of the job's run."""
        return int(self._get(job, "epoch") or 0)

    def stop(self, job: str) -> None:
        """Have every task of the job stop at its next request, and its survey at the next batch that it plans."""
        with self._redis.pipeline() as pipe:
            pipe.hset(_key(job, "job"), "state", "stopped")
            pipe.hdel(_key(job, "job"), "planner")
            pipe.execute()

    def pause(self, job: str, paused: bool) -> None:
        """
        Hand out no more batches until told to go on; those under way end.

        The messages that were refused meanwhile are gone, so going on means that whatever was sent is to do again.
        """
        self._run("pause", job, int(paused))

    def is_paused(self, job: str) -> bool:
        """Whether the job was told to pause, and not to go on."""
        return self._get(job, "paused") is not None

    def take(self, job: str, epoch: int, window: int) -> Window:
        """Move the next window of batches to `sent`."""
        answer = cast(list[Any], self._run("take", job, epoch, window))
        state = cast(JobState, answer[0].decode()) if answer[0] else None
        return Window(state, [int(batch) for batch in answer[2:]], alone=bool(answer[1]))

    def next_attempts(self, job: str, batches: Sequence[int]) -> list[tuple[int, int]]:
        """Of each of these batches the number of its next attempt, from 1, and its bytes of data."""
        names = list(map(str, batches))
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hmget(_key(job, "attempts"), names)
            pipe.hmget(_key(job, "plan"), names)
            attempts, plan = pipe.execute()
        return [
            (int(made or 0) + 1, total(unpack(packed), zero=False)) for made, packed in zip(attempts, plan, strict=True)
        ]

    def claim(self, job: str, batch: int, epoch: int, owner: str, seconds: float) -> Claim | None:
        """The right to copy a batch that was sent, counted as an attempt; None when it is not to be had."""
        answer = cast(list[bytes], self._run("claim", job, batch, epoch, owner, seconds))
        return Claim(job, batch, owner, int(answer[0]), unpack(answer[1])) if answer else None

    def renew(self, claim: Claim, seconds: float, copied: int) -> bool:
        """Keep a claim, and say how many bytes its attempt has moved; False when it is lost."""
        return bool(self._run("renew", claim.job, claim.batch, claim.owner, seconds, copied))

    def record(self, claim: Claim, digest: bytes, copied: int, data: int, retries: int, rest: Rest | None) -> bool:
        """Enter a batch whose bytes are flushed; what was not read becomes a batch of its own. False: not ours."""
        value = json.dumps({"data": data, "digest": digest.hex()})
        more: list[Any] = []
        if rest:
            delay = -1.0 if rest.delay is None else rest.delay
            failure = rest.failure.model_dump_json() if rest.failure else ""
            more = [rest.stored.packed, rest.left.packed, failure, delay]
        return bool(self._run("record", claim.job, claim.batch, claim.owner, value, copied, data, retries, *more))

    def release(self, claim: Claim, failure: Failure, copied: int, delay: float | None, *, end_job: bool) -> bool:
        """Give a failed attempt back, to be tried again after `delay` seconds, or never (None)."""
        wait = -1.0 if delay is None else delay
        text, stall, ends = failure.model_dump_json(), tally.stall_of(failure), int(end_job)
        return bool(self._run("release", claim.job, claim.batch, claim.owner, text, copied, wait, stall, ends))

    def abandon(self, claim: Claim, copied: int) -> bool:
        """Give a claim back that its job's stop, or the loss of the claim itself, made useless."""
        return bool(self._run("abandon", claim.job, claim.batch, claim.owner, copied))

    def defer(self, claim: Claim, copied: int, delay: float, why: str) -> bool:
        """Give a batch back that cannot be copied for `delay` seconds though nothing failed; no attempt is counted."""
        return bool(self._run("defer", claim.job, claim.batch, claim.owner, copied, delay, why))

    def defer_survey(self, job: str, why: str) -> None:
        """Say that the job's survey cannot be made now though nothing failed: nobody is at work on it."""
        with self._redis.pipeline() as pipe:
            pipe.hset(_key(job, "job"), mapping={"short": why, "short_at": clock(self._redis)})
            pipe.hdel(_key(job, "job"), "surveyor")
            pipe.execute()

    def shortage(self, job: str) -> str:
        """What the job waits for; empty when it does not, or has some of it."""
        why, since = self._get(job, "short"), float(self._get(job, "short_at") or 0)
        if not why or clock(self._redis) - since > SHORT_SECONDS or self._redis.exists(_key(job, "owners")):
            return ""
        return why.decode()

    def disown(self, job: str, worker: str) -> int:
        """
        Put back at once what a worker's processes had claimed, without a failure; returns how many batches.

        They have to be dead: each batch is somebody else's from now on.
        """
        return int(self._run("disown", job, worker))

    def sweep(
        self, job: str, epoch: int, attempts: int, patience: float, idle: float, grace: float
    ) -> list[tuple[int, str]]:
        """Put back lapsed claims, due retries and lost messages; returns the lapsed claims' batches and owners."""
        answer = cast(list[bytes], self._run("sweep", job, epoch, attempts, patience, idle, grace))
        return [(int(batch), owner.decode()) for batch, owner in zip(answer[::2], answer[1::2], strict=True)]

    def progress(self, job: str) -> Progress | None:
        """The job's counters, consistent with each other."""
        with self._redis.pipeline() as pipe:
            pipe.hgetall(_key(job, "job"))
            pipe.hgetall(_key(job, "owners"))
            pipe.hgetall(_key(job, "progress"))
            pipe.zcard(_key(job, "sent"))
            pipe.hlen(_key(job, "failed"))
            pipe.hgetall(_key(job, "workers"))
            fields, owners, moved, waiting, failed, workers = pipe.execute()
        if b"state" not in fields:
            return None
        names = ("size", "data", "zero", "done", "already_done", "copied", "again", "batches", "batches_done")
        counts = {name: int(fields.get(name.encode(), 0)) for name in (*names, "retries", "stalls")}
        active = [
            Activity(batch=int(batch), worker=owner.decode(), done=int(moved.get(batch, 0)))
            for batch, owner in sorted(owners.items(), key=lambda item: int(item[0]))
        ]
        state, by_worker = fields[b"state"].decode(), _by_worker(workers)
        return Progress(state=state, waiting=waiting, failed=failed, active=active, by_worker=by_worker, **counts)

    def seconds(self, job: str) -> float:
        """Seconds from the start of the latest run to the end of its copying, by Redis's clock; 0 while it runs."""
        began, ended = self._get(job, "began"), self._get(job, "ended")
        return max(0.0, float(ended) - float(began)) if began and ended else 0.0

    def records(self, job: str, beat: Beat = no_beat) -> list[Record]:
        """Every stored batch, in disk order."""
        count, records = self._redis.hlen(_key(job, "plan")), []
        for start in range(0, count, PLAN_CHUNK):
            names = list(map(str, range(start, min(start + PLAN_CHUNK, count))))
            with self._redis.pipeline() as pipe:
                pipe.hmget(_key(job, "done"), names)
                pipe.hmget(_key(job, "plan"), names)
                done, plan = pipe.execute()
            for name, text, packed in beating(zip(names, done, plan, strict=True), beat):
                if text:
                    value = json.loads(text)
                    records.append(Record(int(name), value["data"], bytes.fromhex(value["digest"]), unpack(packed)))
        return sorted(records, key=lambda record: record.extents[0].offset if record.extents else 0)

    def failures(self, job: str, start: int = 0) -> list[Failure]:
        """The failed attempts, oldest first, from number `start`."""
        return self._failures(self._redis.lrange(_key(job, "failures"), start, -1))

    def given_up(self, job: str) -> list[Failure]:
        """The last failure of each batch that will not be tried again in this run."""
        found = self._failures(self._redis.hvals(_key(job, "failed")))
        return sorted(found, key=lambda failure: -1 if failure.batch is None else failure.batch)

    def delete(self, job: str) -> None:
        """Forget the job."""
        self._redis.delete(*(_key(job, part) for part in _PARTS))

    def _failures(self, texts: Any) -> list[Failure]:
        return [Failure.model_validate_json(text) for text in cast(list[bytes], texts)]

    def _get(self, job: str, field: str) -> bytes | None:
        return cast(bytes | None, self._redis.hget(_key(job, "job"), field))

    def _run(self, name: str, job: str, *args: str | int | float | bytes) -> Any:
        return self._scripts[name](keys=[_key(job, "")], args=list(args))

    @cached_property
    def _scripts(self) -> dict[str, Script]:
        folder = resources.files("sendense.jobs") / "scripts"
        prelude = (folder / "prelude.lua").read_text()
        names = "plan begin take claim renew record release abandon defer disown pause sweep reopen".split()
        return {name: self._redis.register_script(prelude + (folder / f"{name}.lua").read_text()) for name in names}


_PARTS = (
    *("job", "plan", "todo", "sent", "claims", "owners", "attempts", "progress"),
    *("later", "failed", "failures", "done", "writers", "changes", "areas", "open", "workers"),
)


def _by_worker(found: Any) -> dict[str, int]:
    return {worker.decode(): int(count) for worker, count in sorted(cast(dict[bytes, bytes], found).items())}


def _key(job: str, part: str) -> str:
    return f"sendense:{job}:{part}"
