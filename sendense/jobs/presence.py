"""Which workers live: each says so every two seconds, under a key that lapses; and which processes must end."""

from typing import cast

import redis
from pydantic import BaseModel, ConfigDict

PRESENCE_SECONDS = 10
"""A worker's main process that said nothing for so long is stopped, gone or cut off: five heartbeats."""

CONDEMNED_SECONDS = 60
"""A request to kill a process that its worker's supervisor did not read by then is forgotten: the worker is gone."""

_WORKERS = "sendense:workers"


class Worker(BaseModel):
    """A worker as it announces itself."""

    model_config = ConfigDict(frozen=True)

    name: str
    queues: list[str]
    processes: int


def announce(client: "redis.Redis", worker: Worker) -> None:
    """Say that this worker lives."""
    with client.pipeline() as pipe:
        pipe.set(_key(worker.name), worker.model_dump_json(), ex=PRESENCE_SECONDS)
        pipe.sadd(_WORKERS, worker.name)
        pipe.execute()


def is_present(client: "redis.Redis", worker: str) -> bool:
    """Whether the worker said so within PRESENCE_SECONDS."""
    return bool(client.exists(_key(worker)))


def present(client: "redis.Redis") -> list[Worker]:
    """The workers that live."""
    names = sorted(name.decode() for name in cast(set[bytes], client.smembers(_WORKERS)))
    texts = cast(list[bytes | None], client.mget([_key(name) for name in names])) if names else []
    if gone := [name for name, text in zip(names, texts, strict=True) if not text]:
        client.srem(_WORKERS, *gone)
    return [Worker.model_validate_json(text) for text in texts if text]


def processes(client: "redis.Redis", queue: str) -> int:
    """Processes of all living workers that read a queue."""
    return sum(worker.processes for worker in present(client) if queue in worker.queues)


def condemn(client: "redis.Redis", owner: str) -> None:
    """Have a process killed that let its claim or lease lapse: it is stopped, or stuck. `owner`: WORKER/PID/…"""
    worker, pid = owner.split("/")[:2]
    with client.pipeline() as pipe:
        pipe.rpush(_condemned(worker), pid)
        pipe.expire(_condemned(worker), CONDEMNED_SECONDS)
        pipe.execute()


def take_condemned(client: "redis.Redis", worker: str) -> list[int]:
    """The processes of a worker that are to be killed, by its supervisor; each is told once."""
    found = cast(list[bytes] | None, client.lpop(_condemned(worker), 100))
    return [int(pid) for pid in found or []]


def _key(worker: str) -> str:
    return f"sendense:worker:{worker}"


def _condemned(worker: str) -> str:
    return f"sendense:condemned:{worker}"
