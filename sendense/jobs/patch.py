"""A plan whose source moved on: what changed since is to do again, what did not stays stored."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from sendense.beat import Beat, beating
from sendense.extents import Extent
from sendense.jobs.ledger import Ledger
from sendense.jobs.plan import Batch, PlanSize, batch_of, plan


def patch(ledger: Ledger, job: str, changed: list[Extent], size: int, beat: Beat) -> None:
    """
    Have the planned batches that `changed` touches copied again, as data there, and what no batch has as new batches.

    `changed` is in disk order, of whole clusters. Between two runs of the job only. Done twice, or after a half that
    was interrupted, it comes to the same; ClaimLost for whoever was overtaken by another.
    """

    counts = PlanSize()

    def amended() -> Iterator[tuple[int, Batch]]:
        covered: list[Extent] = []
        for number, extents in beating(ledger.plan(job), beat):
            covered += extents
            touched = any(within(changed, extent) for extent in extents)
            batch = batch_of(list(overlay(extents, changed)) if touched else extents)
            counts.add(batch)
            if touched:
                yield number, batch
        covered.sort()
        rest = plan(subtract(beating(changed, beat), covered), size)
        yield from enumerate(counts.counting(rest), counts.batches)

    ledger.amend(job, amended(), counts, beat)


def within(extents: list[Extent], bounds: Extent) -> list[Extent]:
    """The parts of sorted extents that lie in the bounds."""
    first = max(0, bisect_right(extents, bounds.offset, key=lambda extent: extent.offset) - 1)
    found = []
    for extent in extents[first:]:
        if extent.offset >= bounds.end:
            break
        start, end = max(extent.offset, bounds.offset), min(extent.end, bounds.end)
        if end > start:
            found.append(Extent(start, end - start, extent.zero))
    return found


def overlay(extents: Iterable[Extent], changed: list[Extent]) -> Iterator[Extent]:
    """The extents, data where they changed."""
    for extent in extents:
        at = extent.offset
        for part in within(changed, extent) if extent.zero else ():
            if part.offset > at:
                yield Extent(at, part.offset - at, True)
            yield part
            at = part.end
        if at < extent.end:
            yield Extent(at, extent.end - at, extent.zero)


def subtract(extents: Iterable[Extent], covered: list[Extent]) -> Iterator[Extent]:
    """What of the extents lies in none of the covered ones, which are sorted."""
    for extent in extents:
        at = extent.offset
        for part in within(covered, extent):
            if part.offset > at:
                yield Extent(at, part.offset - at, extent.zero)
            at = part.end
        if at < extent.end:
            yield Extent(at, extent.end - at, extent.zero)
