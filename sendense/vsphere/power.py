"""Turning VMs off and on."""

import time

from pyVmomi import vim, vmodl

from sendense.errors import InputError, PowerFailed
from sendense.vsphere.faults import words
from sendense.vsphere.properties import read
from sendense.vsphere.session import Beat, Session
from sendense.vsphere.vim_tasks import VimTaskFailed, error_of, perform

POWER_SECONDS = 120.0
"""For turning on or off once the guest has no say: a busy host takes seconds."""

POLL_SECONDS = 1.0

_OFF, _ON, _SUSPENDED = "poweredOff", "poweredOn", "suspended"
_TOOLS_RUN = "guestToolsRunning"


def shutdown(session: Session, moref: str, seconds: float, beat: Beat) -> None:
    """
    Turn a VM off: its guest is asked and has `seconds`; where VMware Tools do not run, or after that, the power goes.

    One that is off already is fine. Raises InputError for a suspended one, PowerFailed, VmGone, PermissionMissing.
    """
    what, vm = f"shut down {moref}", session.vm(moref)
    with session.beating(beat):
        state, tools = _state(session, what, moref)
        if state == _SUSPENDED:
            raise InputError(
                f"{moref} is suspended: turning it off would lose its memory", "Resume it, or turn it off."
            )
        if state == _ON and seconds > 0 and tools == _TOOLS_RUN and _ask_guest(session, what, vm):
            deadline = time.monotonic() + seconds
            while state == _ON and time.monotonic() < deadline:
                session.pause(min(POLL_SECONDS, max(deadline - time.monotonic(), 0.01)))
                state, _ = _state(session, what, moref)
        if state != _OFF:
            _switch(session, what, moref, _OFF)


def power_on(session: Session, moref: str, beat: Beat) -> None:
    """Turn a VM on; one that is on already is fine. Raises PowerFailed, VmGone or PermissionMissing."""
    what = f"turn on {moref}"
    with session.beating(beat):
        if _state(session, what, moref)[0] != _ON:
            _switch(session, what, moref, _ON)


def _state(session: Session, what: str, moref: str) -> tuple[str, str]:
    """Power state, and whether VMware Tools run, in vSphere's words."""
    found = read(session, what, session.vm(moref), ("runtime.powerState", "guest.toolsRunningStatus"))
    return str(found.get("runtime.powerState", "")), str(found.get("guest.toolsRunningStatus", ""))


def _ask_guest(session: Session, what: str, vm: vim.VirtualMachine) -> bool:
    """Whether the guest took the request. It may be going down already, or its tools just stopped."""
    try:
        session.call(what, vm.ShutdownGuest, passing=(vmodl.MethodFault,), repeat=False)
    except (vim.fault.ToolsUnavailable, vim.fault.InvalidState, vim.fault.TaskInProgress):
        return False
    except vmodl.MethodFault as exc:
        raise error_of(session, what, VimTaskFailed(words(exc), exc), PowerFailed) from exc
    return True


def _switch(session: Session, what: str, moref: str, wanted: str) -> None:
    vm = session.vm(moref)
    deadline = time.monotonic() + POWER_SECONDS
    try:
        perform(session, what, (lambda: vm.PowerOn(None)) if wanted == _ON else vm.PowerOff, deadline)
    except VimTaskFailed as exc:
        if _state(session, what, moref)[0] != wanted:  # it may have got there by itself
            raise error_of(session, what, exc, PowerFailed) from exc
