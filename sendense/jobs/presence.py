"""Which workers and nodes live: each says so every two seconds, under a key that lapses; and which must end."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar, cast

import redis
from pydantic import BaseModel, ConfigDict

from sendense.jobs.clock import clock
from sendense.jobs.queues import control_queue
from sendense.jobs.reading import readable
from sendense.models import Node

PRESENCE_SECONDS = 10
"""A worker's main process that said nothing for so long is stopped, gone or cut off: five heartbeats."""

CONDEMNED_SECONDS = 60
"""A request to kill a process that its worker's supervisor did not read by then is forgotten: the worker is gone."""

BEGUN_SECONDS = 86_400
"""Which task a process began last is of no use when that was longer ago than any task may take."""

Record = TypeVar("Record", bound=BaseModel)

KNOWN_SECONDS = 86_400
"""A node that did not end in good order is missed for a day; then it is not expected any more."""

_WORKERS, _NODES, _DRAINED = "sendense:workers", "sendense:nodes", "sendense:drained"
_ROUTINE = "sendense:routine"
_KNOWN = "sendense:known-nodes"


class Worker(BaseModel):
    """A worker as it announces itself."""

    model_config = ConfigDict(frozen=True)

    name: str
    queues: list[str]
    """Those that it reads: none once it only ends what it has."""
    processes: int
    active: int = 0
    """Tasks under way."""


def announce(client: "redis.Redis", worker: Worker) -> None:
    """Say that this worker lives."""
    _announce(client, _WORKERS, _key, worker)


def withdraw(client: "redis.Redis", worker: str) -> None:
    """Forget what a worker of this name said: it is not there yet, or any more."""
    client.delete(_key(worker))


def is_present(client: "redis.Redis", worker: str) -> bool:
    """Whether the worker said so within PRESENCE_SECONDS."""
    return bool(client.exists(_key(worker)))


def get_worker(client: "redis.Redis", name: str) -> Worker | None:
    """A worker, if it lives."""
    text = cast(bytes | None, client.get(_key(name)))
    return Worker.model_validate_json(text) if text else None


def present(client: "redis.Redis") -> list[Worker]:
    """The workers that live."""
    return list(_records(Worker, _living(client, _WORKERS, _key)))


def processes(client: "redis.Redis", queue: str) -> int:
    """Processes of all living workers that read a queue."""
    return sum(worker.processes for worker in present(client) if queue in worker.queues)


def controlled_sites(client: "redis.Redis") -> set[str]:
    """The sites whose vCenter somebody speaks to."""
    prefix = control_queue("")
    queues = {queue for worker in present(client) for queue in worker.queues}
    return {queue.removeprefix(prefix) for queue in queues if queue.startswith(prefix)}


def announce_node(client: "redis.Redis", node: Node) -> None:
    """Say that this node lives, and how it is; it is to be missed from now on."""
    with client.pipeline() as pipe:
        pipe.set(_known(node.name), node.site, ex=KNOWN_SECONDS)
        pipe.sadd(_KNOWN, node.name)
        pipe.execute()
    _announce(client, _NODES, _node, node)


def withdraw_node(client: "redis.Redis", name: str, *, missed: bool) -> None:
    """Say that it ends; `missed`: not because it was told to."""
    client.delete(_node(name), *([] if missed else [_known(name)]))


def known_nodes(client: "redis.Redis") -> dict[str, str]:
    """The sites of the nodes that live, and of those that are missed, by their names."""
    return {name: site.decode() for name, site in _living(client, _KNOWN, _known).items()}


def nodes(client: "redis.Redis") -> list[Node]:
    """The nodes that live."""
    return list(_records(Node, _living(client, _NODES, _node)))


def drained(client: "redis.Redis") -> set[str]:
    """The nodes that were told to take no more work, living or not."""
    return {name.decode() for name in cast(set[bytes], client.smembers(_DRAINED))}


def set_drained(client: "redis.Redis", name: str, drained: bool) -> None:
    """Tell a node to take no more work, or to take work again; it is told so until told otherwise."""
    if drained:
        client.sadd(_DRAINED, name)
    else:
        client.srem(_DRAINED, name)


def hold(client: "redis.Redis", thing: str, holder: str) -> bool:
    """Have something that one at a time may have, until PRESENCE_SECONDS after the last call; False: another has it."""
    key = _held(thing)
    before = cast(bytes | None, client.set(key, holder, nx=True, get=True, ex=PRESENCE_SECONDS))
    if before is not None and before.decode() != holder:
        return False
    client.expire(key, PRESENCE_SECONDS)
    return True


def holder(client: "redis.Redis", thing: str) -> str:
    """Who has it now; empty when nobody has."""
    found = cast(bytes | None, client.get(_held(thing)))
    return found.decode() if found else ""


def let_go(client: "redis.Redis", thing: str, holder: str) -> None:
    """Let others have it at once."""
    if client.get(_held(thing)) == holder.encode():
        client.delete(_held(thing))


def say_routine(client: "redis.Redis") -> None:
    """Say that the hub's routine goes on: beat sent for a duty, and a process is at it."""
    client.set(_ROUTINE, clock(client))


def routine_silence(client: "redis.Redis") -> float:
    """
    Seconds since that was said last; infinite where it never was.

    What was said in the future was said before the clock was set back, by so much at least: beat waits for as long.
    """
    said = cast(bytes | None, client.get(_ROUTINE))
    return abs(clock(client) - float(said)) if said else float("inf")


def begin(client: "redis.Redis", owner: str) -> None:
    """Say what a process is at from now on, so that it is not killed for what it was at. `owner`: WORKER/PID/TASK."""
    worker, pid, task = owner.split("/")
    with client.pipeline() as pipe:
        pipe.hset(_begun(worker), pid, task)
        pipe.expire(_begun(worker), BEGUN_SECONDS)
        pipe.execute()


def pardon(client: "redis.Redis", worker: str) -> None:
    """Forget what was said of the processes of a worker: they have all ended, and others may get their numbers."""
    client.delete(_condemned(worker), _begun(worker))


def condemn(client: "redis.Redis", owner: str) -> None:
    """
    Have a process killed that let its claim or lease lapse: it is stopped, or stuck.

    `owner`: WORKER/PID/TASK, and it is spared once it is at another task; or WORKER/PID, whatever it is at.
    """
    worker, _, process = owner.partition("/")
    with client.pipeline() as pipe:
        pipe.rpush(_condemned(worker), process)
        pipe.expire(_condemned(worker), CONDEMNED_SECONDS)
        pipe.execute()


def take_condemned(client: "redis.Redis", worker: str) -> list[int]:
    """The processes of a worker that are to be killed, by its supervisor; each is told once."""
    found = cast(list[bytes] | None, client.lpop(_condemned(worker), 100))
    if not found:
        return []
    condemned = [process.decode().partition("/")[::2] for process in found]
    begun = cast(list[bytes | None], client.hmget(_begun(worker), [pid for pid, _ in condemned]))
    return [
        int(pid)
        for (pid, task), now in zip(condemned, begun, strict=True)
        if not (task and now) or now.decode() == task
    ]


def _announce(client: "redis.Redis", index: str, key: Callable[[str], str], record: Worker | Node) -> None:
    with client.pipeline() as pipe:
        pipe.set(key(record.name), record.model_dump_json(), ex=PRESENCE_SECONDS)
        pipe.sadd(index, record.name)
        pipe.execute()


def _records(kind: type[Record], living: dict[str, bytes]) -> Iterator[Record]:
    for name, text in living.items():
        if found := readable(f"{kind.__name__.lower()} {name}", partial(kind.model_validate_json, text)):
            yield found


def _living(client: "redis.Redis", index: str, key: Callable[[str], str]) -> dict[str, bytes]:
    """What those in an index that live say of themselves, by name; the others are taken out of it."""
    names = sorted(name.decode() for name in cast(set[bytes], client.smembers(index)))
    texts = cast(list[bytes | None], client.mget(list(map(key, names)))) if names else []
    if gone := [name for name, text in zip(names, texts, strict=True) if not text]:
        client.srem(index, *gone)
    return {name: text for name, text in zip(names, texts, strict=True) if text}


def _held(thing: str) -> str:
    return f"sendense:held:{thing}"


def _node(name: str) -> str:
    return f"sendense:node:{name}"


def _known(name: str) -> str:
    return f"sendense:known-node:{name}"


def _key(worker: str) -> str:
    return f"sendense:worker:{worker}"


def _condemned(worker: str) -> str:
    return f"sendense:condemned:{worker}"


def _begun(worker: str) -> str:
    return f"sendense:begun:{worker}"
