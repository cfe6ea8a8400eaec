"""vCenter's faults as errors of ours."""

from pyVmomi import vim, vmodl

from sendense.errors import PermissionMissing, SiteBusy, SiteError, SiteFault, SnapshotGone, VmGone

_BUSY = (
    vim.fault.ConcurrentAccess,
    vim.fault.TaskInProgress,
    vim.fault.Timedout,
    vmodl.fault.HostCommunication,
    vmodl.fault.RequestCanceled,
)


def translate(site: str, what: str, fault: vmodl.MethodFault) -> SiteError:
    """The error for a fault that the caller has no use of its own for; `what` was being done."""
    if isinstance(fault, vmodl.fault.ManagedObjectNotFound):
        moref = moref_of(fault.obj)
        if isinstance(fault.obj, vim.VirtualMachine):
            return VmGone(site, f"{what}: there is no VM {moref}")
        if isinstance(fault.obj, vim.vm.Snapshot):
            return SnapshotGone(site, f"{what}: there is no snapshot {moref}")
    if isinstance(fault, vim.fault.NoPermission):
        where = f" on {moref_of(fault.object)}" if fault.object else ""
        return PermissionMissing(site, f"{what}: the user lacks {fault.privilegeId or 'a privilege'}{where}")
    return (SiteBusy if isinstance(fault, _BUSY) else SiteFault)(site, f"{what}: {words(fault)}")


def words(fault: vmodl.MethodFault) -> str:
    """What a fault says, in one line: its message, what it adds to that, and its name."""
    said = [getattr(fault, "msg", None), *(message.message for message in fault.faultMessage or [])]
    lines = dict.fromkeys(" ".join(text.split()).rstrip(".") for text in said if text and text.strip())
    name = type(fault).__name__.rpartition(".")[2]
    return f"{'; '.join(lines)} ({name})" if lines else name


def moref_of(managed: object) -> str:
    """The moref of a managed object, as in vm-12."""
    return str(getattr(managed, "_moId", ""))
