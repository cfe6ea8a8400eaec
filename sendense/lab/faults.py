"""vSphere's faults, with the messages that vCenter gives them."""

from sendense.lab.vmomi import vim, vmodl


def fault(kind: str, message: str = "", **details: object) -> Exception:
    """A fault by the name of its type, of `vim.fault` or of `vmodl.fault`; AttributeError when there is none."""
    found = getattr(vim.fault, kind, None) or getattr(vmodl.fault, kind)
    made: Exception = found(msg=message or kind, **details)
    return made


def invalid_argument(name: str) -> Exception:
    """What vCenter answers to a parameter that cannot be right."""
    return fault("InvalidArgument", f"A specified parameter was not correct: {name}", invalidProperty=name)


def file_fault(file: str, why: str) -> Exception:
    """What vCenter answers when a virtual disk, or what belongs to it, cannot be used."""
    return fault("FileFault", f"Error caused by file {file}: {why}", file=file)


def not_found(ref: object) -> Exception:
    """What vCenter answers when it knows no such object, or knows it no more."""
    message = "The object has already been deleted or has not been completely created"
    return fault("ManagedObjectNotFound", message, obj=ref)


def wrong_power_state(powered_on: bool) -> Exception:
    """What vCenter answers to an operation that needs the other power state."""
    states = vim.VirtualMachine.PowerState
    now, needed = (states.poweredOn, states.poweredOff) if powered_on else (states.poweredOff, states.poweredOn)
    message = f"The attempted operation cannot be performed in the current state ({now})."
    return fault("InvalidPowerState", message, existingState=now, requestedState=needed)
