"""The simulated vCenter, driven by the real pyVmomi."""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pyVim import connect as _connect
from pyVim import task as _task
from pyVmomi import SoapAdapter as _SoapAdapter
from pyVmomi import vim as _vim
from pyVmomi import vmodl as _vmodl

from tests.site import LabSite, open_site

SoapAdapter: Any = _SoapAdapter
vim: Any = _vim
vmodl: Any = _vmodl
SmartConnect: Any = _connect.SmartConnect
Disconnect: Any = _connect.Disconnect
WaitForTask: Any = _task.WaitForTask
WaitForTasks: Any = _task.WaitForTasks
PC = vmodl.query.PropertyCollector

MiB, KiB = 2**20, 2**10
USER = "operator@lab.local"
SECONDS = 20.0
"""The longest that anything here may take: a hundred times what it does."""


@pytest.fixture(scope="module")
def shared() -> Iterator[LabSite]:
    """One site for the tests that leave its knobs as they were."""
    with open_site(vms=3) as site:
        yield site


@pytest.fixture
def site() -> Iterator[LabSite]:
    """A site of its own."""
    with open_site(vms=1) as site:
        yield site


@contextmanager
def login(site: LabSite, **options: object) -> Iterator[Any]:
    """A session; the certificate is verified."""
    context = ssl.create_default_context(cafile=str(site.folder / "ca.pem"))
    settings = {"user": USER, "pwd": site.password, "sslContext": context, "httpConnectionTimeout": SECONDS}
    service: Any = SmartConnect(host="127.0.0.1", port=site.port, **{**settings, **options})
    try:
        yield service.content
    finally:
        Disconnect(service)


def find(content: Any, name: str) -> Any:
    """The first VM with a name."""
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
    return next(vm for vm in view.view if vm.name == name)


def done(task: Any) -> Any:
    """The result of a task that has to succeed."""
    WaitForTask(task, maxWaitTime=SECONDS)
    return task.info.result


def disk(config: Any, key: int = 2000) -> Any:
    """A virtual disk of a configuration."""
    return next(device for device in config.hardware.device if device.key == key)


def enable(vm: Any) -> None:
    """Turn change tracking on."""
    done(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))


def snapshot(vm: Any, name: str = "s") -> Any:
    """Take a snapshot."""
    return done(vm.CreateSnapshotEx_Task(name, "", False, None))


def all_changes(vm: Any, frozen: Any, change_id: str, key: int = 2000) -> tuple[list[tuple[int, int]], int, int]:
    """Changed areas from all pages, how many pages there were, and how many of them were empty."""
    size = disk(frozen.config, key).capacityInBytes
    found, offset, pages, empty = [], 0, 0, 0
    while offset < size:
        answer = vm.QueryChangedDiskAreas(frozen, key, offset, change_id)
        assert (answer.startOffset, answer.length > 0) == (offset, True)
        found += [(area.start, area.length) for area in answer.changedArea]
        offset, pages, empty = offset + answer.length, pages + 1, empty + (not answer.changedArea)
    assert offset == size
    return found, pages, empty


def test_the_password_is_checked(shared: LabSite) -> None:
    """A wrong user or password is InvalidLogin."""
    with login(shared) as content:  # SmartConnect leaves its connection open when it fails
        content.sessionManager.Logout()
        for user, password in ((USER, "wrong"), ("root", shared.password), (USER, "é")):
            with pytest.raises(vim.fault.InvalidLogin):
                content.sessionManager.Login(user, password)
        assert content.sessionManager.currentSession is None


def test_the_certificate_is_its_own(shared: LabSite) -> None:
    """Without the lab's certificate the connection is refused; with its thumbprint it stands."""
    with pytest.raises(ssl.SSLCertVerificationError), login(shared, sslContext=ssl.create_default_context()):
        pass
    thumbprint = shared.config.read_text().partition('thumbprint = "')[2].partition('"')[0]
    context = ssl.create_default_context()
    stub: Any = SoapAdapter.SoapStubAdapter("127.0.0.1", shared.port, thumbprint=thumbprint, sslContext=context)
    assert vim.ServiceInstance("ServiceInstance", stub).RetrieveContent().about.apiType == "VirtualCenter"
    stub.DropConnections()


def test_nothing_without_a_session(shared: LabSite) -> None:
    """Only the service content is for everybody; after a logout or an expiry each call is NotAuthenticated."""
    with login(shared) as content:
        vm = find(content, "web01")
        assert content.sessionManager.currentSession.userName == USER
        assert content.sessionManager.SessionIsActive(content.sessionManager.currentSession.key, USER)
        content.sessionManager.Logout()
        assert content.sessionManager.currentSession is None
        for call in (lambda: vm.name, vm.PowerOnVM_Task, content.sessionManager.Logout):
            with pytest.raises(vim.fault.NotAuthenticated):
                call()


def test_an_expired_session(site: LabSite) -> None:
    """Sessions end at once on demand, or when they are idle for too long; a new login helps."""
    with login(site) as content:
        vm = find(content, "web01")
        assert site.client.expire_sessions() == 1
        with pytest.raises(vim.fault.NotAuthenticated):
            _ = vm.name
        content.sessionManager.Login(USER, site.password)
        assert vm.name == "web01"
        site.client.set(session_seconds=0.2)
        time.sleep(0.5)
        with pytest.raises(vim.fault.NotAuthenticated):
            _ = vm.name


def test_the_inventory(shared: LabSite) -> None:
    """The VMs with their places, power, tools and disks; one of each special case."""
    with login(shared) as content:
        view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
        names = sorted(vm.name for vm in view.view)
        assert names == ["app01", "db01", "legacy01", "mixed01", "test01", "test01", "web01"]
        web, mixed, legacy = (find(content, name) for name in ("web01", "mixed01", "legacy01"))
        assert web.runtime.host.name == "esx01.lab.local"
        assert (web.runtime.powerState, web.guest.toolsRunningStatus) == ("poweredOn", "guestToolsRunning")
        first = disk(web.config)
        assert (first.capacityInBytes, first.capacityInKB) == (64 * MiB, 64 * KiB)
        assert (first.backing.fileName, first.backing.diskMode) == ("[ssd] web01/web01.vmdk", "persistent")
        assert first.backing.datastore.name == "ssd"
        assert web.storage.perDatastoreUsage[0].committed > 16 * MiB
        extent = next(file for file in web.layoutEx.file if file.name.endswith("web01-flat.vmdk"))
        assert 16 * MiB < extent.size < 64 * MiB
        kinds = vim.vm.device.VirtualDisk
        assert disk(mixed.config, 2001).backing.diskMode == "independent_persistent"
        assert isinstance(disk(mixed.config, 2002).backing, kinds.RawDiskMappingVer1BackingInfo)
        assert (legacy.config.version, legacy.capability.changeTrackingSupported) == ("vmx-04", False)
        with pytest.raises(vmodl.fault.NotSupported):
            enable(legacy)
        hosts = content.viewManager.CreateContainerView(content.rootFolder, [vim.HostSystem, vim.Datastore], True)
        assert len(hosts.view) == 4
        hosts.DestroyView()
        with pytest.raises(vmodl.fault.ManagedObjectNotFound):
            _ = hosts.view


def test_search(shared: LabSite) -> None:
    """VMs are found by inventory path and by both kinds of UUID; what is not there is None."""
    with login(shared) as content:
        search = content.searchIndex
        web = search.FindByInventoryPath("/Lab/vm/production/web01")
        assert web.name == "web01"
        assert search.FindByInventoryPath("Lab/vm/production/databases/db01").name == "db01"
        assert search.FindByInventoryPath("Lab/vm/web01") is None
        config = web.config
        assert search.FindByUuid(None, config.uuid, True, False) == web
        assert search.FindByUuid(None, config.instanceUuid, True, True) == web
        assert search.FindByUuid(None, config.instanceUuid, True, False) is None
        both = [search.FindByInventoryPath(f"Lab/vm/team-{team}/test01") for team in "ab"]
        assert both[0] != both[1]
        assert web.parent.parent.parent.name == "Lab"


def test_objects_that_are_not_there(shared: LabSite) -> None:
    """An unknown managed object id is ManagedObjectNotFound, an unknown property InvalidProperty."""
    with login(shared) as content:
        stub = content.rootFolder._stub
        for ref in (vim.VirtualMachine("vm-9", stub), vim.vm.Snapshot("snapshot-9", stub), vim.Task("task-9", stub)):
            with pytest.raises(vmodl.fault.ManagedObjectNotFound):
                _ = ref.info if isinstance(ref, vim.Task) else ref.config
        wanted = PC.PropertySpec(type=vim.VirtualMachine, pathSet=["config.nonsense"])
        spec = PC.FilterSpec(objectSet=[PC.ObjectSpec(obj=find(content, "web01"))], propSet=[wanted])
        with pytest.raises(vmodl.query.InvalidProperty):
            content.propertyCollector.RetrieveContents([spec])


def _all_vms(content: Any, paths: list[str]) -> Any:
    """A filter for all VMs of a container view."""
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
    step = PC.TraversalSpec(name="view", type=vim.view.ContainerView, path="view", skip=False)
    start = PC.ObjectSpec(obj=view, skip=True, selectSet=[step])
    return PC.FilterSpec(objectSet=[start], propSet=[PC.PropertySpec(type=vim.VirtualMachine, pathSet=paths)])


@pytest.mark.parametrize("size", [1, 3, 100])
def test_properties_come_in_pages(shared: LabSite, size: int) -> None:
    """RetrievePropertiesEx gives at most so many objects, and a token for the rest; unset properties are left out."""
    with login(shared) as content:
        spec = _all_vms(content, ["name", "config.hardware.device", "snapshot"])
        collector = content.propertyCollector
        page, found = collector.RetrievePropertiesEx([spec], PC.RetrieveOptions(maxObjects=size)), []
        while page:
            assert len(page.objects) <= size
            found += page.objects
            page = collector.ContinueRetrievePropertiesEx(page.token) if page.token else None
        assert len({entry.obj for entry in found}) == len(found) == 7
        for entry in found:
            properties = {prop.name: prop.val for prop in entry.propSet}
            assert {"name", "config.hardware.device"} <= properties.keys()
        with pytest.raises(vmodl.fault.InvalidArgument):
            collector.ContinueRetrievePropertiesEx("1:gone")


def test_a_recursive_traversal(shared: LabSite) -> None:
    """The older way to walk: folders that name their own step again."""
    with login(shared) as content:
        again = PC.SelectionSpec(name="folders")
        down = PC.TraversalSpec(name="datacenters", type=vim.Datacenter, path="vmFolder", selectSet=[again])
        step = PC.TraversalSpec(name="folders", type=vim.Folder, path="childEntity", selectSet=[again, down])
        spec = PC.FilterSpec(
            objectSet=[PC.ObjectSpec(obj=content.rootFolder, skip=True, selectSet=[step])],
            propSet=[PC.PropertySpec(type=vim.VirtualMachine, pathSet=["name"])],
        )
        found = content.propertyCollector.RetrieveContents([spec])
        assert len(found) == 7


def test_tasks(site: LabSite) -> None:
    """A task has progress on its way and a result at its end; a second one on the same VM is TaskInProgress."""
    site.client.set(snapshot_seconds=2)
    with login(site) as content:
        vm, progress = find(content, "web01"), []
        task = vm.CreateSnapshot_Task("slow", "", False, False)
        with pytest.raises(vim.fault.TaskInProgress) as refused:
            vm.CreateSnapshot_Task("other", "", False, False)
        assert refused.value.task == task
        WaitForTask(task, onProgressUpdate=lambda _, percent: progress.append(percent), maxWaitTime=SECONDS)
        assert task.info.state == "success"
        assert task.info.result == vm.snapshot.currentSnapshot
        assert task.info.entityName == "web01"
        assert any(isinstance(percent, int) and 0 < percent < 100 for percent in progress)


def test_a_cancelled_task(site: LabSite) -> None:
    """A task that is cancelled ends in RequestCanceled, and leaves no snapshot."""
    site.client.set(snapshot_seconds=SECONDS)
    with login(site) as content:
        vm = find(content, "web01")
        task = vm.CreateSnapshot_Task("slow", "", False, False)
        task.CancelTask()
        with pytest.raises(vmodl.fault.RequestCanceled):
            WaitForTask(task, maxWaitTime=SECONDS)
        assert vm.snapshot is None


def test_waiting_ends_with_the_session(site: LabSite) -> None:
    """Who waits for a task when the session ends learns of it at once."""
    site.client.set(snapshot_seconds=SECONDS)
    with login(site) as content:
        task = find(content, "web01").CreateSnapshot_Task("slow", "", False, False)
        threading.Timer(0.3, site.client.expire_sessions).start()
        started = time.monotonic()
        with pytest.raises(vim.fault.NotAuthenticated):
            WaitForTask(task)
        assert time.monotonic() - started < SECONDS / 2


def test_updates(site: LabSite) -> None:
    """WaitForUpdatesEx tells everything at first, then nothing until its time is over, then what changed."""
    with login(site) as content:
        vm = find(content, "web01")
        spec = PC.FilterSpec(
            objectSet=[PC.ObjectSpec(obj=vm)],
            propSet=[PC.PropertySpec(type=vim.VirtualMachine, pathSet=["name", "runtime.powerState"])],
        )
        collector = content.propertyCollector
        known = collector.CreateFilter(spec, False)
        first = collector.WaitForUpdatesEx("", PC.WaitOptions(maxWaitSeconds=5))
        assert [change.val for change in first.filterSet[0].objectSet[0].changeSet] == ["web01", "poweredOn"]
        assert collector.WaitForUpdatesEx(first.version, PC.WaitOptions(maxWaitSeconds=0)) is None
        site.client.power("web01", False)
        second = collector.WaitForUpdatesEx(first.version, PC.WaitOptions(maxWaitSeconds=5))
        changes = second.filterSet[0].objectSet[0].changeSet
        assert [(change.name, change.val) for change in changes] == [("runtime.powerState", "poweredOff")]
        with pytest.raises(vmodl.query.InvalidCollectorVersion):
            collector.WaitForUpdatesEx(first.version, PC.WaitOptions(maxWaitSeconds=0))
        known.Destroy()
        with pytest.raises(vmodl.fault.ManagedObjectNotFound):
            known.Destroy()


def test_snapshots_make_a_tree(site: LabSite) -> None:
    """Snapshots hang below each other; removing one gives its children to its parent, or takes them along."""
    with login(site) as content:
        vm = find(content, "web01")
        one, two, three = (snapshot(vm, name) for name in ("one", "two", "three"))
        assert disk(vm.config).backing.fileName == "[ssd] web01/web01-000003.vmdk"
        assert disk(two.config).backing.fileName == "[ssd] web01/web01-000001.vmdk"
        root = vm.snapshot.rootSnapshotList[0]
        assert (root.snapshot, root.childSnapshotList[0].snapshot) == (one, two)
        done(one.RemoveSnapshot_Task(False, True))
        root = vm.snapshot.rootSnapshotList[0]
        assert (root.name, root.childSnapshotList[0].name, vm.snapshot.currentSnapshot) == ("two", "three", three)
        assert disk(two.config).backing.fileName == "[ssd] web01/web01.vmdk"
        with pytest.raises(vmodl.fault.ManagedObjectNotFound):
            one.RemoveSnapshot_Task(False)
        done(two.RemoveSnapshot_Task(True))
        assert vm.snapshot is None
        assert disk(vm.config).backing.fileName == "[ssd] web01/web01.vmdk"
        assert list((site.folder / "snapshots").iterdir()) == []


def test_a_snapshot_freezes(site: LabSite) -> None:
    """What the guest writes after a snapshot is not in it; a revert brings the old content back, powered off."""
    with login(site) as content:
        vm = find(content, "web01")
        frozen = snapshot(vm)
        before = site.client.disk_path("web01").read_bytes()
        site.client.write("web01", 5 * MiB, b"new" * 1000)
        site.client.zero("web01", 10 * MiB, MiB)
        now = site.client.disk_path("web01").read_bytes()
        assert now[5 * MiB : 5 * MiB + 3000] == b"new" * 1000
        assert not any(now[10 * MiB : 11 * MiB])
        assert site.client.snapshots("web01")[0].paths[2000].read_bytes() == before
        done(frozen.RevertToSnapshot_Task())
        assert site.client.disk_path("web01").read_bytes() == before
        assert vm.runtime.powerState == "poweredOff"


def test_quiesce_needs_tools(site: LabSite) -> None:
    """A quiesced snapshot fails where the tools do not run, and says so in the tree where they do."""
    with login(site) as content:
        with pytest.raises(vim.fault.ApplicationQuiesceFault):
            done(find(content, "legacy01").CreateSnapshot_Task("q", "", False, True))
        vm = find(content, "web01")
        done(vm.CreateSnapshotEx_Task("q", "", False, vim.vm.WindowsQuiesceSpec()))
        assert vm.snapshot.rootSnapshotList[0].quiesced
        site.client.set("web01", tools_running=False)
        with pytest.raises(vim.fault.ApplicationQuiesceFault):
            done(vm.CreateSnapshotEx_Task("q", "", False, vim.vm.GuestQuiesceSpec()))


def test_power(site: LabSite) -> None:
    """Machines are turned off and on; a guest shuts down in a moment, and only with tools."""
    site.client.set(shutdown_seconds=2)
    with login(site) as content:
        vm, legacy = find(content, "web01"), find(content, "legacy01")
        with pytest.raises(vim.fault.InvalidPowerState):
            vm.PowerOnVM_Task()
        with pytest.raises(vim.fault.ToolsUnavailable):
            legacy.ShutdownGuest()
        vm.ShutdownGuest()
        assert vm.runtime.powerState == "poweredOn"
        deadline = time.monotonic() + SECONDS
        while vm.runtime.powerState == "poweredOn":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        WaitForTasks([legacy.PowerOffVM_Task(), vm.PowerOnVM_Task()], si=None, pc=content.propertyCollector)
        assert (vm.runtime.powerState, legacy.runtime.powerState) == ("poweredOn", "poweredOff")


def test_failures_to_order(site: LabSite) -> None:
    """The next call fails as ordered: a task in its result, another method at once, or without any answer."""
    with login(site) as content:
        vm = find(content, "web01")
        site.client.fail_next("CreateSnapshot", "FileFault")
        with pytest.raises(vim.fault.FileFault):
            snapshot(vm)
        enable(vm)
        frozen = snapshot(vm)
        site.client.fail_next("QueryChangedDiskAreas", "HostConnectFault", times=2)
        for _ in range(2):
            with pytest.raises(vim.fault.HostConnectFault):
                vm.QueryChangedDiskAreas(frozen, 2000, 0, "*")
        site.client.fail_next("QueryChangedDiskAreas", "drop")
        with pytest.raises((http.client.HTTPException, OSError)):
            vm.QueryChangedDiskAreas(frozen, 2000, 0, "*")
        assert vm.QueryChangedDiskAreas(frozen, 2000, 0, "*").length


def test_a_client_that_says_nothing(shared: LabSite) -> None:
    """A connection without a TLS handshake does not keep others waiting."""
    with socket.create_connection(("127.0.0.1", shared.port)), login(shared) as content:
        assert content.about.apiVersion


def test_what_is_no_call(shared: LabSite) -> None:
    """A request that is no SOAP gets a fault, and one for another path a 404; the server goes on."""
    context = ssl.create_default_context(cafile=str(shared.folder / "ca.pem"))
    connection = http.client.HTTPSConnection("127.0.0.1", shared.port, timeout=SECONDS, context=context)
    for path, body, status in (
        ("/sdk", b"nonsense", 500),
        ("/sdk", b"<a/>", 500),
        ("/x", b"", 404),
        ("/lab/status", b"", 401),
    ):
        connection.request("POST", path, body)
        response = connection.getresponse()
        answer = response.read()
        assert response.status == status
        assert status != 500 or b"InvalidRequest" in answer
    connection.close()
