"""The argv that nbdkit is started with, to the letter, and messages without secrets."""

from pathlib import Path

import pytest

from sendense.models import DiskSource
from sendense.settings import Site
from sendense.vsphere.source import mask, nbdkit_command

THUMBPRINT = ":".join(["AB"] * 20)

DISK = DiskSource(
    site="berlin", vm="vm-12", snapshot="snapshot-34", file="[ssd 1] web01/web01_1.vmdk", thumbprint=THUMBPRINT
)


def test_argv_for_vddk() -> None:
    """nbdkit-vddk-plugin(1)'s parameters: what a node in production starts, for one disk."""
    site = Site(
        vcenter="vcenter.example.com",
        user="backup@vsphere.local",
        password_file=Path("/etc/sendense/berlin.password"),
        nbdkit_options={"libdir": "/opt/vmware-vix-disklib-distrib", "transports": "nbdssl", "compression": "fastlz"},
    )
    assert nbdkit_command(site, DISK, Path("/run/sendense/4.sock"), THUMBPRINT) == [
        "nbdkit",
        "--foreground",
        "--readonly",
        "--unix",
        "/run/sendense/4.sock",
        "vddk",
        "server=vcenter.example.com",
        "user=backup@vsphere.local",
        "password=+/etc/sendense/berlin.password",
        f"thumbprint={THUMBPRINT}",
        "vm=moref=vm-12",
        "snapshot=snapshot-34",
        "file=[ssd 1] web01/web01_1.vmdk",
        "libdir=/opt/vmware-vix-disklib-distrib",
        "transports=nbdssl",
        "compression=fastlz",
    ]


def test_argv_for_a_script() -> None:
    """A plugin in Python takes its script first, and vCenter's port where it is not 443."""
    site = Site(
        vcenter="127.0.0.1:8443",
        user="operator",
        password_file=Path("/lab/password"),
        nbdkit_plugin="python",
        nbdkit_options={"compression": "none", "script": "/lab/plugin.py"},
    )
    argv = nbdkit_command(site, DISK, Path("/lab/s"), THUMBPRINT)
    assert argv[5:] == [
        "python",
        "script=/lab/plugin.py",
        "server=127.0.0.1",
        "port=8443",
        "user=operator",
        "password=+/lab/password",
        f"thumbprint={THUMBPRINT}",
        "vm=moref=vm-12",
        "snapshot=snapshot-34",
        "file=[ssd 1] web01/web01_1.vmdk",
        "compression=none",
    ]


def test_filters_stand_before_the_plugin() -> None:
    """nbdkit applies them in their order; their parameters come with the plugin's."""
    site = Site(
        vcenter="vcenter",
        user="operator",
        password_file=Path("/lab/password"),
        nbdkit_filters=["cacheextents", "rate"],
        nbdkit_options={"rate": "400M"},
    )
    argv = nbdkit_command(site, DISK, Path("/lab/s"), THUMBPRINT)
    assert argv[5:8] == ["--filter=cacheextents", "--filter=rate", "vddk"]
    assert argv[-1] == "rate=400M"


def test_argv_for_an_address_of_six() -> None:
    """An IPv6 address is given to the plugin without the brackets that the settings need."""
    site = Site(vcenter="[2001:db8::1]:443", user="operator", password_file=Path("/lab/password"))
    assert "server=2001:db8::1" in nbdkit_command(site, DISK, Path("/lab/s"), THUMBPRINT)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("nbdkit: error: s3cr<t is wrong", "nbdkit: error: *** is wrong"),
        ("<password xsi:type='string'>other</password>", "<password>***</password>"),
        ("<ns1:password>a b</ns1:password> x", "<ns1:password>***</ns1:password> x"),
        ("user=me password=hunter2 vm=moref=vm-1", "user=me password=*** vm=moref=vm-1"),
        ('Password: "two words", then', "Password: ***, then"),
        ("PWD = x", "PWD = ***"),
        ("in XML s3cr&lt;t, in a URL s3cr%3Ct", "in XML ***, in a URL ***"),
        ("a wrong user name or password", "a wrong user name or password"),
        ("", ""),
    ],
)
def test_mask(text: str, masked: str) -> None:
    """Secrets go in every spelling, and so does what is called a password without being known; the rest stays."""
    assert mask(text, ["s3cr<t", ""]) == masked


def test_longer_secrets_go_first() -> None:
    """A secret that begins another one leaves nothing of it."""
    assert mask("abc abcdef", ["abc", "abcdef"]) == "*** ***"
