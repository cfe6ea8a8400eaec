"""Restore points as users see them, and which of them a policy lets go."""

from collections.abc import Collection

from sendense.errors import Conflict
from sendense.orders import PruneOrder
from sendense.repository.catalogue import Broken, KnownVm, Repository
from sendense.repository.finding import all_vms, find_sound, find_vm
from sendense.repository.points import Point
from sendense.repository.retention import Policy
from sendense.views import BrokenPoint, ChainLevel, DiskChain, PointDetails, RepositoryUsage, VmPoints


def list_points(repository: Repository, vm: str) -> list[VmPoints]:
    """The points of a VM, or of every one."""
    return [points_of(repository, known) for known in named_vms(repository, vm)]


def named_vms(repository: Repository, vm: str) -> list[KnownVm]:
    """The VM that was named; all of the repository's without a name."""
    return [find_vm(repository, vm)] if vm else all_vms(repository)


def points_of(repository: Repository, known: KnownVm) -> VmPoints:
    """The points of one VM."""
    sound, unusable = repository.sound_and_broken(known.ref.uuid)
    broken = [BrokenPoint(id=each.id, vm=each.vm, reason=each.reason) for each in unusable]
    return VmPoints(vm=known.ref, path=known.path, points=sound, broken=broken)


def details(repository: Repository, text: str) -> PointDetails:
    """A sound point, what it takes, and what is built on it."""
    point = find_sound(repository, text)
    children = [child.id for child in repository.children(point)]
    return PointDetails(point=point, usage=repository.usage_of(point), children=children)


def chain(repository: Repository, text: str) -> list[DiskChain]:
    """The images behind each disk of a point."""
    point = find_sound(repository, text)
    return [
        DiskChain(
            key=disk.key,
            label=disk.label,
            size=disk.size,
            levels=[
                ChainLevel(
                    point=level.point,
                    mode=level.disk.mode,
                    image=str(level.image),
                    stored=level.image.stat().st_blocks * 512,
                )
                for level in repository.levels(point, disk.key)
            ],
        )
        for disk in point.disks
    ]


def usage(repository: Repository) -> RepositoryUsage:
    """What the repository takes, and what is left on its file system."""
    sound, broken = repository.sound_and_broken()
    return RepositoryUsage(
        path=str(repository.layout.root),
        stored=repository.usage(),
        free=repository.free(),
        vms=len(all_vms(repository)),
        points=len(sound),
        broken=len(broken),
    )


def in_order(going: Collection[Point], points: Collection[Point]) -> list[str]:
    """
    The ids in the order in which they cost least.

    First those that nothing else is built on any more, newest first: their data just goes. Then the others, oldest
    first, so that what is merged into the next point is merged once.
    """
    left = {point.id for point in points}
    free: list[str] = []
    newest_first = sorted(going, key=lambda point: (point.created, point.id), reverse=True)
    built_on = {point.id: {disk.parent for disk in point.disks} for point in points}
    for point in newest_first:
        if not any(point.id in built_on[other] for other in left):
            free.append(point.id)
            left.discard(point.id)
    return free + [point.id for point in reversed(newest_first) if point.id not in free]


def must_be_free(repository: Repository, going: list[Point]) -> None:
    """Refuse at once what the job would refuse."""
    ids = {point.id for point in going}
    for point in going:
        if others := [child.id for child in repository.children(point) if child.id not in ids]:
            raise Conflict(
                f"{', '.join(others)} is built on {point.id}",
                "Delete that first, or use --merge: it then takes over what it needs.",
            )


def vm_of(found: Collection[Point | Broken]) -> str:
    """The UUID of the one VM that all of these are of."""
    uuids = {point.vm if isinstance(point, Broken) else point.vm.uuid for point in found}
    if len(uuids) > 1:
        raise Conflict("the restore points are those of several VMs", "Delete those of one VM at a time.")
    return uuids.pop()


def policy_of(order: PruneOrder) -> Policy:
    """The order's rules; InputError when they keep nothing."""
    return Policy(order.last, order.daily, order.weekly, order.monthly, order.yearly)
