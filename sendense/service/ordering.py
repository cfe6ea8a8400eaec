"""What an order comes to: a job's request with everything in it found, and the job's name."""

from collections.abc import Callable

from sendense.coordinator.restore import check_new_image
from sendense.coordinator.site import choose_disks
from sendense.errors import InputError
from sendense.models import VmInfo
from sendense.nbd.uri import is_uri, parse
from sendense.orders import BackupOrder, MigrateOrder, Order, RestoreOrder
from sendense.repository.catalogue import Repository
from sendense.repository.finding import find_sound
from sendense.requests import BackupRequest, JobRequest, MigrateRequest, RestoreRequest, VerifyRequest


def request_of(
    order: Order, find_vm: Callable[[str, str], VmInfo], repository: Callable[[], Repository]
) -> tuple[JobRequest, str]:
    """What the order comes to, with everything named found; refuses what the job would refuse."""
    match order:
        case BackupOrder():
            info = find_vm(order.vm, order.site)
            choose_disks(info, order.disks)
            fields = order.model_dump(exclude={"vm", "site"})
            return BackupRequest(vm=info.ref, **fields), f"backup of {info.ref.name}"
        case MigrateOrder():
            info = find_vm(order.vm, order.site)
            choose_disks(info, order.targets)
            targets = {key: _target(target) for key, target in order.targets.items()}
            fields = order.model_dump(exclude={"vm", "site", "targets"})
            what = "cutover" if order.cutover else "sync" if order.sync else "migration"
            return MigrateRequest(vm=info.ref, targets=targets, **fields), f"{what} of {info.ref.name}"
        case RestoreOrder():
            point = find_sound(repository(), order.point)
            targets = {point.disk(key).key: _target(target) for key, target in order.targets.items()}
            for target in targets.values():
                if not is_uri(target):
                    check_new_image(target, force=order.force, resumed=False)
            fields = order.model_dump(exclude={"point", "targets"})
            request = RestoreRequest(point=point.id, name=point.vm.name, targets=targets, **fields)
            return request, f"restore of {point.vm.name}"
        case _:
            point = find_sound(repository(), order.point)
            return VerifyRequest(point=point.id, name=point.vm.name, own=order.own), f"verify {point.vm.name}"


def _target(text: str) -> str:
    """An NBD URI that can be one, or an absolute path."""
    if is_uri(text):
        return parse(text).uri
    if not text.startswith("/"):
        raise InputError(
            f"{text}: is neither an NBD URI nor an absolute path", "Name the image by its path on the hub."
        )
    return text
