"""
The outbox in Redis: what is to be told to people and programs elsewhere, and how far each receiver has got.

One stream of entries; the end of a job is entered by the script that ends it. Each receiver passes the entries in their
order, at its own pace: an entry's id is the same at every attempt, so whoever gets it twice can tell.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import cast

import redis
from redis.commands.core import Script

from sendense.jobs import tally

OUTBOX, LAST_NUMBER = "sendense:notices", "sendense:notices:number"
_MARKS = "sendense:notices:marks"

KEPT_ENTRIES = 1000
"""Entries that wait at most: about 4 MB; then the oldest go, which each receiver's standing shows."""

KEPT_TOLD = 100
"""Notices of which a receiver remembers what became of them."""

PAGE = 50
"""Entries that are read at once by whoever wants them all."""

JOB_ENDED = "job"
"""The kind of an entry that has a job's record as it was at its end."""

BEGINNING = "0-0"
"""Before the first entry."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. `number` counts all that were ever made; `body` is JSON."""

    id: str
    number: int
    kind: str
    body: str

    @property
    def time(self) -> float:
        """When it was made, in seconds since the epoch by Redis' clock."""
        return int(self.id.partition("-")[0]) / 1000

    def job(self) -> tuple[str, dict[str, str]]:
        """The id and the fields of the record of the job that ended."""
        content = json.loads(self.body)
        flat = content["record"]
        return content["job"], dict(zip(flat[::2], flat[1::2], strict=True))


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a receiver has got: the last entry that it passed and its number, and the attempts at the next one."""

    passed: str
    number: int = 0
    attempts: int = 0
    due: float = 0.0
    """When the next attempt may be made, in seconds since the epoch by Redis' clock."""
    error: str = ""
    """Why the last attempt failed."""
    left: str = ""
    """The id of the next entry and who is still to get it, with spaces between, where others have taken it."""
    lost: int = 0
    """Entries that it did not come to, as too many waited, since the last notice that it passed."""


class Outbox:
    """The outbox behind a Redis client."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client

    def enter(self, kind: str, body: str, marks: Mapping[str, tuple[str, str]]) -> bool:
        """
        Set each mark from what it was to what it is, and enter a notice (none without a kind), all or nothing.

        False when a mark is not what it was: somebody else has seen to it. An empty text is a mark that is not set.
        """
        values: list[str | int] = [KEPT_ENTRIES, kind, body]
        for name, (before, after) in marks.items():
            values += [name, before, after]
        return bool(self._scripts["enter"](keys=[OUTBOX, LAST_NUMBER, _MARKS], args=values))

    def marks(self) -> dict[str, str]:
        """What was noticed so far, by whatever name whoever noticed it gave."""
        found = cast(dict[bytes, bytes], self._redis.hgetall(_MARKS))
        return {name.decode(): value.decode() for name, value in found.items()}

    def behind(self, passed: str, page: int = PAGE) -> Iterator[Entry]:
        """The entries behind one, oldest first; so many are read at once."""
        while found := self._redis.xrange(OUTBOX, min=f"({passed}", count=page):
            for id, fields in cast(list[tuple[bytes, dict[bytes, bytes]]], found):
                passed = id.decode()
                yield Entry(passed, int(fields[b"number"]), fields[b"kind"].decode(), fields[b"body"].decode())

    def standing(self, receiver: str) -> Standing | None:
        """How far a receiver has got; None for one that never was there."""
        found = cast(dict[bytes, bytes], self._redis.hgetall(_standing(receiver)))
        fields = {name.decode(): value.decode() for name, value in found.items()}
        if "passed" not in fields:
            return None
        return Standing(
            fields["passed"],
            int(fields["number"]),
            int(fields["attempts"]),
            float(fields["due"]),
            fields["error"],
            fields.get("left", ""),
            int(fields["lost"]),
        )

    def stand(
        self, receiver: str, before: Standing | None, now: Standing, told: str = "", given_up: bool = False
    ) -> bool:
        """
        Enter how far a receiver has got now, and what is to be told of it; False if it had got elsewhere before.

        `given_up`: the notice that it passed counts as one that it never got.
        """
        counted = f"{tally.GIVEN_UP}/{receiver}" if given_up else ""
        values: list[str | int | float] = [before.passed if before else "", KEPT_TOLD, told, counted]
        values += ["passed", now.passed, "number", now.number, "attempts", now.attempts]
        values += ["due", now.due, "error", now.error, "left", now.left, "lost", now.lost]
        return bool(self._scripts["pass"](keys=[_standing(receiver), _told(receiver), tally.KEY], args=values))

    def waits(self, receiver: str, now: float) -> float:
        """For how many seconds the notice is due that a receiver was offered and did not take; 0 without one."""
        standing = self.standing(receiver)
        following = next(self.behind(standing.passed, page=1), None) if standing and standing.attempts else None
        return max(0.0, now - following.time) if following else 0.0

    def told(self, receiver: str) -> list[str]:
        """What became of the notices that a receiver passed lately, the latest first."""
        return [line.decode() for line in cast(list[bytes], self._redis.lrange(_told(receiver), 0, -1))]

    def forget(self, passed: Iterable[str]) -> None:
        """Delete the entries that all receivers, which have got as far as this, have passed."""
        self._redis.xtrim(OUTBOX, minid=min(passed, key=_order), approximate=False)

    def last(self) -> tuple[str, int]:
        """The latest entry and its number."""
        found = cast(list[tuple[bytes, dict[bytes, bytes]]], self._redis.xrevrange(OUTBOX, count=1))
        return (found[0][0].decode(), int(found[0][1][b"number"])) if found else (BEGINNING, 0)

    @cached_property
    def _scripts(self) -> dict[str, Script]:
        folder = resources.files("sendense.coordinator") / "scripts"
        return {name: self._redis.register_script((folder / f"{name}.lua").read_text()) for name in ("enter", "pass")}


def _order(id: str) -> tuple[int, ...]:
    return tuple(map(int, id.split("-")))


def _standing(receiver: str) -> str:
    return f"sendense:notices:to:{receiver}"


def _told(receiver: str) -> str:
    return f"sendense:notices:told:{receiver}"
