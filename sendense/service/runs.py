"""Runs of schedules, in Redis: one record for each schedule, changed only by whoever knows it as it is."""

from collections.abc import Iterable
from functools import cached_property, partial
from typing import TYPE_CHECKING, cast

from pydantic import TypeAdapter

from sendense.errors import ClaimLost
from sendense.jobs.reading import readable
from sendense.schedules import Seen, Standing

if TYPE_CHECKING:
    import redis
    from redis.commands.core import Script

_STANDINGS, _SEEN = "sendense:schedules", "sendense:schedules:seen"
_SEEN_VMS: TypeAdapter[dict[str, Seen]] = TypeAdapter(dict[str, Seen])

_PUT = """
-- KEYS: the standings. ARGV: name, what it was, what it is. Returns 1, or 0 when it is another by now.
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""


class Runs:
    """The records behind a Redis client; each is given with its text, which `put` compares."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client

    def all(self) -> dict[str, Standing]:
        """By the schedules' names."""
        found = cast(dict[bytes, bytes], self._redis.hgetall(_STANDINGS))
        return {name.decode(): _read(name.decode(), text) for name, text in found.items()}

    def get(self, name: str) -> tuple[Standing, str]:
        """How a schedule stands."""
        text = cast(bytes | None, self._redis.hget(_STANDINGS, name))
        return (_read(name, text), text.decode()) if text else (Standing(), "")

    def put(self, name: str, before: str, standing: Standing) -> str:
        """Replace a record; its new text. ClaimLost when somebody else has changed it meanwhile."""
        text = standing.model_dump_json(exclude_defaults=True)
        if text != before and not self._put(keys=[_STANDINGS], args=[name, before, text]):
            raise ClaimLost(name, "its schedule")
        return text

    def seen(self, name: str) -> dict[str, Seen] | None:
        """The VMs that a schedule of all VMs is for, by UUID; None while no site has told of them."""
        text = cast(bytes | None, self._redis.hget(_SEEN, name))
        return readable(f"schedule {name}", partial(_SEEN_VMS.validate_json, text)) if text else None

    def put_seen(self, name: str, seen: dict[str, Seen]) -> None:
        """Say which they are."""
        self._redis.hset(_SEEN, name, _SEEN_VMS.dump_json(seen).decode())

    def keep(self, names: Iterable[str]) -> None:
        """Forget all schedules but these."""
        known = set(names)
        for key in (_STANDINGS, _SEEN):
            there = {name.decode() for name in cast(list[bytes], self._redis.hkeys(key))}
            if gone := there - known:
                self._redis.hdel(key, *gone)

    @cached_property
    def _put(self) -> "Script":
        return self._redis.register_script(_PUT)


def _read(name: str, text: bytes) -> Standing:
    """One that cannot be read is begun anew: restore points show what was done."""
    return readable(f"schedule {name}", partial(Standing.model_validate_json, text)) or Standing()
