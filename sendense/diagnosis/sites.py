"""A site as a machine there sees it: the password, nbdkit's plugin, and vCenter, which is only read."""

import stat
import time
from pathlib import Path

from sendense.diagnosis.finding import Check, Trouble
from sendense.diagnosis.machine import compare_clocks
from sendense.files import read_secret
from sendense.settings import Site
from sendense.vsphere import inventory, plugin
from sendense.vsphere.session import open_session

VCENTER_SECONDS = 60.0
"""For a login and a list of VMs: a vCenter of thousands takes some ten seconds."""


def checks(name: str, site: Site, needs: tuple[str, ...]) -> list[Check]:
    """What is to be looked at for a site; `needs` as any check's."""
    return [
        Check(f"{name}: nbdkit plugin", lambda: plugin.describe(site), needs, plugin.LOAD_SECONDS + 5, "nbdkit-plugin"),
        Check(f"{name}: password file", lambda: password(site.password_file), verdict="password-file"),
        Check(f"{name}: vCenter", lambda: vcenter(name, site), (f"{name}: password file",), VCENTER_SECONDS, "vcenter"),
    ]


def password(path: Path) -> str:
    """The file with the password, which only its owner may read."""
    read_secret(path, "password_file")
    return f"{path}, mode {stat.S_IMODE(path.stat().st_mode):04o}"


def vcenter(name: str, site: Site) -> str:
    """Logged in, with the right time, and VMs to be seen."""
    with open_session(name, site) as session:
        began = time.time()
        theirs = session.clock().timestamp()
        compare_clocks(theirs, (began + time.time()) / 2, "vCenter", within=time.time() - began)
        found = inventory.list_vms(session)
        product = session.call("read its version", lambda: session.content.about.fullName)
    if not found:
        fix = "Give the user its role on the VMs' folders or on the datacenter, with 'Propagate to children'."
        raise Trouble("vcenter-no-vms", f"user {site.user} sees no VM at {site.vcenter}", fix)
    untracked = sum(not vm.tracking for vm in found)
    said = f"{product} at {site.vcenter}, {len(found)} VMs"
    return f"{said}, {untracked} of them without change tracking yet" if untracked else said
