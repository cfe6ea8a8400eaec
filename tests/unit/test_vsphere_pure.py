"""Change IDs, names, vCenter's faults in words, and which disks can be backed up: without a site."""

import os
from pathlib import Path
from typing import Any

import pytest
import pyVmomi

from sendense.errors import (
    InputError,
    PermissionMissing,
    SiteBusy,
    SiteError,
    SiteFault,
    SnapshotGone,
    VmGone,
)
from sendense.settings import Site
from sendense.vsphere.changes import same_tracking
from sendense.vsphere.faults import translate, words
from sendense.vsphere.inventory import disks_of, plain_name, refusal, refusal_of_all
from sendense.vsphere.session import open_session

vim: Any = pyVmomi.vim
vmodl: Any = pyVmomi.vmodl

A = "52 a5 c1 2f-11 22"
B = "52 de ad be-ef 00"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (f"{A}/4", f"{A}/4", True),
        (f"{A}/4", f"{A}/912", True),
        (f"{A}/4", f"{A.upper()}/5", True),
        (f"{A}/4", f"{B}/4", False),
        (f"{A}/4", "", False),
        ("", "", False),
        ("*", "*", False),
        ("/1", "/1", False),
        (A, A, False),
        (f"{A}/x", f"{A}/x", False),
    ],
)
def test_same_tracking(one: str, other: str, same: bool) -> None:
    """Two change IDs belong together when their UUIDs are equal; what is no change ID belongs to nothing."""
    assert same_tracking(one, other) is same
    assert same_tracking(other, one) is same


def test_plain_name() -> None:
    """The three characters that vCenter escapes in names are shown as people typed them; other escapes are names."""
    assert plain_name("a%2fb%5Cc%2520%41") == "a/b\\c%20%41"


def _fault(kind: Any, message: str = "", **values: Any) -> Any:
    fault = kind(**values)
    if message:
        fault.msg = message
    return fault


def test_words_of_a_fault() -> None:
    """A fault is told in one line, with what stands only in its details, once."""
    details = [
        vmodl.LocalizableMessage(key="a", message="The disk\nis locked."),
        vmodl.LocalizableMessage(key="b", message="Too bad"),
        vmodl.LocalizableMessage(key="c"),
    ]
    fault = _fault(vim.fault.SnapshotFault, "Too bad.", faultMessage=details)
    assert words(fault) == "Too bad; The disk is locked (SnapshotFault)"
    assert words(vim.fault.FileFault(file="[ds] a.vmdk")) == "FileFault"


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        (_fault(vmodl.fault.ManagedObjectNotFound, "gone", obj=vim.VirtualMachine("vm-7")), VmGone, "no VM vm-7"),
        (_fault(vmodl.fault.ManagedObjectNotFound, obj=vim.vm.Snapshot("snapshot-7")), SnapshotGone, "snapshot-7"),
        (_fault(vmodl.fault.ManagedObjectNotFound, "gone", obj=vim.Folder("group-7")), SiteFault, "gone"),
        (
            _fault(vim.fault.NoPermission, object=vim.VirtualMachine("vm-7"), privilegeId="VirtualMachine.State.X"),
            PermissionMissing,
            "lacks VirtualMachine.State.X on vm-7",
        ),
        (_fault(vim.fault.TaskInProgress, "busy"), SiteBusy, "busy (TaskInProgress)"),
        (_fault(vmodl.fault.HostNotConnected), SiteBusy, "HostNotConnected"),
        (_fault(vim.fault.InvalidState, "odd"), SiteFault, "odd (InvalidState)"),
    ],
)
def test_faults_become_errors(fault: Any, error: type[SiteError], said: str) -> None:
    """A fault becomes the error that says whether trying again helps, and begins with what was being done."""
    translated = translate("berlin", "do this", fault)
    assert type(translated) is error
    assert str(translated).startswith("site berlin: do this: ")
    assert said in str(translated)


def _disk(backing: Any) -> Any:
    return vim.vm.device.VirtualDisk(key=2000, backing=backing, capacityInKB=1, controllerKey=1000)


Kinds = vim.vm.device.VirtualDisk


@pytest.mark.parametrize(
    ("backing", "why"),
    [
        (Kinds.FlatVer2BackingInfo(fileName="[d] a.vmdk", diskMode="persistent"), ""),
        (Kinds.FlatVer2BackingInfo(fileName="[d] a.vmdk"), ""),
        (Kinds.SeSparseBackingInfo(fileName="[d] a.vmdk", diskMode="persistent"), ""),
        (
            Kinds.RawDiskMappingVer1BackingInfo(
                fileName="[d] a.vmdk", diskMode="persistent", compatibilityMode="virtualMode"
            ),
            "",
        ),
        (
            Kinds.RawDiskMappingVer1BackingInfo(
                fileName="[d] a.vmdk", diskMode="independent_persistent", compatibilityMode="physicalMode"
            ),
            "physical",
        ),
        (Kinds.FlatVer2BackingInfo(fileName="[d] a.vmdk", diskMode="independent_persistent"), "independent"),
        (Kinds.FlatVer2BackingInfo(fileName="[d] a.vmdk", diskMode="independent_nonpersistent"), "independent"),
        (Kinds.FlatVer2BackingInfo(fileName="[d] a.vmdk", diskMode="nonpersistent"), "nonpersistent"),
        (
            Kinds.FlatVer2BackingInfo(fileName="[d] a.vmdk", diskMode="persistent", sharing="sharingMultiWriter"),
            "multi-writer",
        ),
        (Kinds.LocalPMemBackingInfo(fileName="[p] a.vmdk", diskMode="persistent"), "persistent memory"),
        (Kinds.RawDiskVer2BackingInfo(descriptorFileName="a", deviceName="sda"), "RawDiskVer2BackingInfo"),
        (Kinds.FlatVer2BackingInfo(fileName="", diskMode="persistent"), "no file"),
    ],
)
def test_refusals(backing: Any, why: str) -> None:
    """Disks that no snapshot freezes are refused, with the reason; an RDM in virtual mode is as good as any."""
    said = refusal(_disk(backing))
    assert bool(said) == bool(why)
    assert why in said


def test_vms_that_cannot_have_a_snapshot() -> None:
    """A template, and a VM with a shared SCSI bus, are refused with all their disks."""
    quiet = vim.vm.device.ParaVirtualSCSIController(key=1000, busNumber=0, sharedBus="noSharing")
    shared = vim.vm.device.ParaVirtualSCSIController(key=1001, busNumber=1, sharedBus="physicalSharing")
    disk = _disk(Kinds.FlatVer2BackingInfo(fileName="[d] a.vmdk"))
    assert refusal_of_all({}, [quiet, disk]) == ""
    assert "template" in refusal_of_all({"config.template": True}, [quiet, disk])
    assert "shares its bus" in refusal_of_all({}, [quiet, shared, disk])
    assert disks_of([quiet, disk]) == [disk]


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"secret\n", 0o640, "open to others"),
        (b"secret\n", 0o604, "open to others"),
        (b"\n", 0o600, "is empty"),
        (b"secr\xff\n", 0o600, "not UTF-8"),
        (None, 0, "No such file"),
    ],
)
def test_password_files(content: bytes | None, mode: int, said: str, tmp_path: Path) -> None:
    """A password file that others can read, or that holds no password, is refused before anything is connected to."""
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
        os.chmod(path, mode)
    site = Site(vcenter="127.0.0.1:1", user="operator", password_file=path)
    with pytest.raises(InputError, match=said) as caught:
        open_session("berlin", site)
    assert caught.value.hint
    assert "secr" not in repr(caught.value.__context__)
