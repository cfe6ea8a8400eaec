"""
Reads a copy's map from the ledger: the whole of it once, and from then on only what changed.

A cursor names the last change that its reader knows, and a digest of what was pending. Changes are a Redis stream that
keeps the last few thousand: a cursor whose change is not in it any more (too much happened since, the copy began anew,
Redis lost its last second) is answered with the whole.
"""

from typing import Any
from zlib import crc32

from sendense.jobs.ledger import Ledger
from sendense.maps import CopyMap, Pending, cells_of, runs_of
from sendense.models import Activity

_NOTHING = "0-0"
"""The change of a copy that has none yet, as Redis numbers them."""


def read_map(ledger: Ledger, copy: str, after: str = "") -> CopyMap | None:
    """The copy's map, or what changed since the cursor `after`; None when the ledger has no such copy."""
    change, _, pending = after.partition(".")
    if change and change != _NOTHING:
        fields, news, *rest = _read(ledger, copy, change)
        if news and news[0][0].decode() == change:
            return _changed(fields, news, _pending(fields, rest), pending)
    fields, news, *rest, writers = _read(ledger, copy)
    if fields[0] is None:
        return None
    last = news[0][0].decode() if news else _NOTHING
    found = _pending(fields, rest)
    stored = {int(batch): owner.decode().partition("/")[0] for batch, owner in writers.items()}
    return CopyMap(
        cursor=f"{last}.{_digest(found)}", batches=int(fields[1] or 0), whole=cells_of(stored), pending=found
    )


def _read(ledger: Ledger, copy: str, change: str = "") -> list[Any]:
    """All parts at one moment: the changes from that one on, or else the last one, and who stored each batch."""

    def key(part: str) -> str:
        return ledger.key(copy, part)

    with ledger.client.pipeline() as pipe:
        pipe.hmget(key("job"), "state", "batches")
        if change:
            pipe.xrange(key("changes"), min=change)
        else:
            pipe.xrevrange(key("changes"), count=1)
        pipe.zrange(key("sent"), 0, -1)
        pipe.hgetall(key("owners"))
        pipe.hgetall(key("progress"))
        pipe.zrange(key("later"), 0, -1)
        pipe.hkeys(key("failed"))
        if not change:
            pipe.hgetall(key("writers"))
        found: list[Any] = pipe.execute()
    return found


def _changed(fields: list[Any], news: list[Any], found: Pending, known: str) -> CopyMap:
    """What happened after the first of these changes."""
    last: dict[int, str] = {int(change[b"batch"]): change[b"worker"].decode() for _, change in news[1:]}
    stored: dict[str, list[int]] = {}
    for batch, worker in last.items():
        if worker:
            stored.setdefault(worker, []).append(batch)
    digest = _digest(found)
    return CopyMap(
        cursor=f"{news[-1][0].decode()}.{digest}",
        batches=int(fields[1] or 0),
        stored=stored,
        undone=[batch for batch, worker in last.items() if not worker],
        pending=None if digest == known else found,
    )


def _pending(fields: list[Any], parts: list[Any]) -> Pending:
    sent, owners, moved, later, failed = parts
    if fields[0] != b"copying":  # whatever is left there is to do again in the next run, and nobody is at it
        sent, owners, later = [], {}, []
    running = [
        Activity(batch=int(batch), worker=owner.decode().partition("/")[0], done=int(moved.get(batch, 0)))
        for batch, owner in sorted(owners.items(), key=lambda item: int(item[0]))
    ]
    return Pending(
        sent=runs_of(list(map(int, sent))),
        running=running,
        waiting=runs_of(list(map(int, later))),
        failed=runs_of(list(map(int, failed))),
    )


def _digest(pending: Pending) -> str:
    return f"{crc32(pending.model_dump_json().encode()):08x}"
