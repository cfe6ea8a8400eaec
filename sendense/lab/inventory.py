"""The objects of the site as vCenter shows them: their places in the tree, and their properties."""

from collections.abc import Callable, Mapping
from typing import Any

from sendense.lab.machine import machine_properties, snapshot_properties
from sendense.lab.records import Vm
from sendense.lab.site import Site
from sendense.lab.vim_tasks import VimTasks
from sendense.lab.vmomi import vim, vmodl

Properties = Mapping[str, Callable[[], Any]]
"""By name; each is worked out when it is asked for."""

DATASTORES = ("ssd", "archive")
HOSTS = ("esx01.lab.local", "esx02.lab.local")
ROOT, DATACENTER, VM_ROOT, HOST_ROOT, DATASTORE_ROOT, NETWORK_ROOT = (
    *("group-d1", "datacenter-2", "group-v3", "group-h4", "group-s5", "group-n6"),
)

ABOUT = {
    "name": "VMware vCenter Server",
    "fullName": "VMware vCenter Server 8.0.3 build-24322831 (simulated by Sendense)",
    "vendor": "VMware, Inc.",
    "version": "8.0.3",
    "build": "24322831",
    "osType": "linux-x64",
    "productLineId": "vpx",
    "apiType": "VirtualCenter",
    "apiVersion": "8.0.3.0",
    "instanceUuid": "5e0de05e-1ab0-4000-8000-000000000001",
}

SINGLETONS = {
    "ServiceInstance": vim.ServiceInstance,
    "SessionManager": vim.SessionManager,
    "propertyCollector": vmodl.query.PropertyCollector,
    "ViewManager": vim.view.ViewManager,
    "SearchIndex": vim.SearchIndex,
    "TaskManager": vim.TaskManager,
}


class Inventory:
    """Finds objects by their managed object ids."""

    def __init__(self, site: Site, tasks: VimTasks) -> None:
        self._site, self._tasks = site, tasks

    def find(self, ref: Any) -> Properties | None:
        """The properties of an object; None when there is none with this id and of this type."""
        found = self._find(ref._moId)
        if found is None:
            return None
        kind, properties = found
        return properties if issubclass(kind, type(ref)) or issubclass(type(ref), kind) else None

    def ref(self, moid: str) -> Any:
        """The object with this id, in its own type; None when there is none."""
        found = self._find(moid)
        return found[0](moid) if found else None

    def recent_tasks(self, vm: Vm) -> list[Any]:
        """A machine's tasks that have not ended, and some that have."""
        return self._tasks.of(vm)

    def _find(self, moid: str) -> tuple[Any, Properties] | None:
        if moid in SINGLETONS:
            return SINGLETONS[moid], {"content": service_content} if moid == "ServiceInstance" else {}
        if fixed := self._fixed().get(moid):
            return fixed
        for folder in self._site.state.folders:
            if folder.id == moid:
                return vim.Folder, self._folder(folder.name, vim.Folder(folder.parent), self._vm_children(moid))
        for vm in self._site.state.vms:
            if vm.id == moid:
                return vim.VirtualMachine, machine_properties(self._site, vm, self)
            if snapshot := vm.snapshot(moid):
                return vim.vm.Snapshot, snapshot_properties(vm, snapshot, self)
        if task := self._tasks.find(moid):
            return vim.Task, {"info": task.info}
        return None

    def _fixed(self) -> dict[str, tuple[Any, Properties]]:
        """What stands in every site: a datacenter with its four folders, two hosts, two datastores."""
        datacenter = vim.Datacenter(DATACENTER)
        folders = {
            VM_ROOT: ("vm", self._vm_children(VM_ROOT)),
            HOST_ROOT: ("host", lambda: [vim.ComputeResource(self.compute(host)) for host in HOSTS]),
            DATASTORE_ROOT: ("datastore", lambda: [self.datastore(name) for name in DATASTORES]),
            NETWORK_ROOT: ("network", list),
        }
        fixed: dict[str, tuple[Any, Properties]] = {
            ROOT: (vim.Folder, self._folder("Datacenters", None, lambda: [datacenter])),
            DATACENTER: (
                vim.Datacenter,
                {
                    "name": lambda: "Lab",
                    "parent": lambda: vim.Folder(ROOT),
                    "vmFolder": lambda: vim.Folder(VM_ROOT),
                    "hostFolder": lambda: vim.Folder(HOST_ROOT),
                    "datastoreFolder": lambda: vim.Folder(DATASTORE_ROOT),
                    "networkFolder": lambda: vim.Folder(NETWORK_ROOT),
                    "datastore": lambda: [self.datastore(name) for name in DATASTORES],
                },
            ),
        }
        for moid, (name, children) in folders.items():
            fixed[moid] = (vim.Folder, self._folder(name, datacenter, children))
        for host in HOSTS:
            fixed[self.compute(host)] = (vim.ComputeResource, self._compute(host))
            fixed[self.host(host)._moId] = (vim.HostSystem, self._host(host))
            fixed[self.pool(host)._moId] = (vim.ResourcePool, self._pool(host))
        for name in DATASTORES:
            fixed[self.datastore(name)._moId] = (vim.Datastore, self._datastore(name))
        return fixed

    # References

    def compute(self, host: str) -> str:
        """The id of the compute resource that a host is alone in."""
        return f"domain-s{10 + HOSTS.index(host)}"

    def host(self, name: str) -> Any:
        """A host, by its name."""
        return vim.HostSystem(f"host-{20 + HOSTS.index(name)}")

    def pool(self, host: str) -> Any:
        """The resource pool of a host."""
        return vim.ResourcePool(f"resgroup-{30 + HOSTS.index(host)}")

    def datastore(self, name: str) -> Any:
        """A datastore, by its name."""
        return vim.Datastore(f"datastore-{40 + DATASTORES.index(name)}")

    # Properties

    def _folder(self, name: str, parent: Any, children: Callable[[], list[Any]]) -> Properties:
        return {"name": lambda: name, "parent": lambda: parent, "childEntity": children}

    def _vm_children(self, folder: str) -> Callable[[], list[Any]]:
        return lambda: [
            *(vim.Folder(child.id) for child in self._site.state.folders if child.parent == folder),
            *(vim.VirtualMachine(vm.id) for vm in self._site.state.vms if vm.folder == folder),
        ]

    def _vms(self, **where: str) -> list[Any]:
        ((name, value),) = where.items()
        return [vim.VirtualMachine(vm.id) for vm in self._site.state.vms if getattr(vm, name) == value]

    def _compute(self, host: str) -> Properties:
        return {
            "name": lambda: host,
            "parent": lambda: vim.Folder(HOST_ROOT),
            "host": lambda: [self.host(host)],
            "resourcePool": lambda: self.pool(host),
            "datastore": lambda: [self.datastore(name) for name in DATASTORES],
        }

    def _host(self, host: str) -> Properties:
        return {
            "name": lambda: host,
            "parent": lambda: vim.ComputeResource(self.compute(host)),
            "vm": lambda: self._vms(host=host),
            "datastore": lambda: [self.datastore(name) for name in DATASTORES],
            "runtime": lambda: vim.host.RuntimeInfo(
                connectionState="connected", powerState="poweredOn", inMaintenanceMode=False
            ),
        }

    def _pool(self, host: str) -> Properties:
        return {
            "name": lambda: "Resources",
            "parent": lambda: vim.ComputeResource(self.compute(host)),
            "owner": lambda: vim.ComputeResource(self.compute(host)),
            "vm": lambda: self._vms(host=host),
            "resourcePool": list,
        }

    def _datastore(self, name: str) -> Properties:
        size = 4 * 2**40
        return {
            "name": lambda: name,
            "parent": lambda: vim.Folder(DATASTORE_ROOT),
            "vm": lambda: self._vms(datastore=name),
            "summary": lambda: vim.Datastore.Summary(
                datastore=self.datastore(name),
                name=name,
                url=f"ds:///vmfs/volumes/{name}/",
                capacity=size,
                freeSpace=size // 2,
                accessible=True,
                multipleHostAccess=True,
                type="VMFS",
            ),
        }


def service_content() -> Any:
    """Where everything begins."""
    return vim.ServiceInstanceContent(
        rootFolder=vim.Folder(ROOT),
        propertyCollector=vmodl.query.PropertyCollector("propertyCollector"),
        viewManager=vim.view.ViewManager("ViewManager"),
        sessionManager=vim.SessionManager("SessionManager"),
        searchIndex=vim.SearchIndex("SearchIndex"),
        taskManager=vim.TaskManager("TaskManager"),
        about=vim.AboutInfo(**ABOUT),
    )
