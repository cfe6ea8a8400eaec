"""Runs of schedules, in Redis: one record for each schedule, changed only by whoever knows it as it is."""

from collections.abc import Iterable
from functools import cached_property, partial
from importlib import resources
from typing import TYPE_CHECKING, cast

from pydantic import TypeAdapter

from sendense.coordinator.outbox import Outbox
from sendense.errors import ClaimLost
from sendense.jobs.reading import readable
from sendense.schedules import Seen, Standing

if TYPE_CHECKING:
    import redis
    from redis.commands.core import Script

_STANDINGS, _SEEN = "sendense:schedules", "sendense:schedules:seen"
_SEEN_VMS: TypeAdapter[dict[str, Seen]] = TypeAdapter(dict[str, Seen])

SILENT_SECONDS, MOST_SILENT_SECONDS = 60, 600
"""For which a site that did not answer in its time is not asked again, doubled each time, and at most: all schedules
wait while one is asked, and there may be several such sites."""


class Runs:
    """The records behind a Redis client; each is given with its text, which `put` compares."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client

    def get(self, name: str) -> tuple[Standing, str]:
        """How a schedule stands."""
        text = cast(bytes | None, self._redis.hget(_STANDINGS, name))
        if not text:
            return Standing(), ""
        # One that cannot be read is begun anew: restore points show what was done.
        found = readable(f"schedule {name}", partial(Standing.model_validate_json, text))
        return found or Standing(), text.decode()

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

    def silence(self, site: str) -> str:
        """Why a site is not to be asked now: it did not answer lately; empty if it may be."""
        why = cast(bytes | None, self._redis.get(_silent(site)))
        return why.decode() if why else ""

    def say_silent(self, site: str, why: str) -> None:
        """Have nobody ask a site for a while, longer with each time in a row."""
        before = self._redis.incr(_silences(site)) - 1
        self._redis.expire(_silences(site), 2 * MOST_SILENT_SECONDS)
        self._redis.set(_silent(site), why, ex=min(SILENT_SECONDS * 2 ** min(before, 10), MOST_SILENT_SECONDS))

    def say_heard(self, site: str) -> None:
        """Say that it has answered."""
        self._redis.delete(_silences(site))

    def keep(self, names: Iterable[str]) -> None:
        """Forget all schedules but these, and what was told of them."""
        keys = (_STANDINGS, _SEEN)
        there = {name.decode() for key in keys for name in cast(list[bytes], self._redis.hkeys(key))}
        if gone := there.difference(names):
            outbox, marks = Outbox(self._redis), set(map(told_mark, gone))
            outbox.enter("", "", {mark: (text, "") for mark, text in outbox.marks().items() if mark in marks})
            for key in keys:
                self._redis.hdel(key, *gone)

    @cached_property
    def _put(self) -> "Script":
        return self._redis.register_script((resources.files("sendense.service") / "scripts" / "put.lua").read_text())


def told_mark(name: str) -> str:
    """The outbox's mark of what was told of a schedule: the run that it was of."""
    return f"schedule:{name}"


def _silent(site: str) -> str:
    return f"sendense:schedules:silent:{site}"


def _silences(site: str) -> str:
    """Where it is counted how many times in a row it was."""
    return f"sendense:schedules:silences:{site}"
