"""pyVmomi as the lab uses it: its types are made at run time, so all is Any from here on."""

from typing import Any

from pyVmomi import SoapAdapter, VmomiSupport
from pyVmomi import vim as _vim
from pyVmomi import vmodl as _vmodl

vim: Any = _vim
vmodl: Any = _vmodl
soap: Any = SoapAdapter
support: Any = VmomiSupport

METHOD_FAULT: type[Exception] = support.GetVmodlType("vmodl.MethodFault")
"""The class of all faults."""
