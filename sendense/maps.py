"""The map of a copy: where each of its batches stands, and who stored it."""

from typing import Literal

from pydantic import Field

from sendense.models import Activity, Record

Part = Literal["copying", "verification"]
"""What of a disk: its copying, or its being read back by the same job."""

UNSTORED = "0"
"""A batch that is not stored, in `Whole.cells`."""

Run = tuple[int, int]
"""The first and the last of batches whose numbers follow each other."""


class Whole(Record):
    """
    Every stored batch, and who stored it.

    `cells` has a character for each batch up to the last that is stored: the one whose code is that of '0' plus N means
    the N-th of `workers`, counted from 1; '0' itself that the batch is not stored.
    """

    workers: list[str]
    cells: str


class Pending(Record):
    """The batches that are neither stored nor just to do."""

    sent: list[Run]
    """No worker has claimed them yet."""
    running: list[Activity]
    waiting: list[Run]
    """They failed, or could not be copied just then, and are tried again later."""
    failed: list[Run]
    """They are not tried again in this run."""


class CopyMap(Record):
    """A copy's map, or what changed on it since `after`, an earlier map's cursor."""

    cursor: str
    batches: int
    """In the plan; more than before when a part of one could not be read, or the disk changed between two runs."""
    whole: Whole | None = None
    """Instead of `stored` and `undone`: without `after`, or where too much happened since."""
    stored: dict[str, list[int]] = Field(default_factory=dict)
    """Batches that are stored by now, by the names of the workers that did it."""
    undone: list[int] = Field(default_factory=list)
    """Batches that are not stored any more."""
    pending: Pending | None = None
    """All of them, each time; None when it is as it was."""


def cells_of(stored: dict[int, str]) -> Whole:
    """The whole of these batches, by their numbers, with the worker that stored each."""
    workers = sorted(set(stored.values()))
    places = {worker: chr(ord(UNSTORED) + 1 + place) for place, worker in enumerate(workers)}
    cells = [UNSTORED] * (max(stored, default=-1) + 1)
    for batch, worker in stored.items():
        cells[batch] = places[worker]
    return Whole(workers=workers, cells="".join(cells))


def runs_of(batches: list[int]) -> list[Run]:
    """The runs of these batches, in order."""
    runs: list[Run] = []
    for batch in sorted(batches):
        if runs and runs[-1][1] == batch - 1:
            runs[-1] = (runs[-1][0], batch)
        else:
            runs.append((batch, batch))
    return runs
